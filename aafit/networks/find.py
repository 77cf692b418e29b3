"""Find the activations of a network, modules and calls of functions: the dry run of a replacement.

`find_activations` runs one forward of a sample in a copy of the network; `_Observer` sees every call of a module and of
a torch function in it, and notes a `FoundActivation` for each call of an activation. signals.py recognizes gates.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aafit.activations import FNeuron
from aafit.activations.interval import INTERVAL, IntervalActivation
from aafit.errors import UserError, nearest
from aafit.networks.batches import Batch, tensors_in
from aafit.networks.call_sites import (
    ActivationCall,
    Frame,
    SharedModuleProxy,
    called_with,
    calling_frames,
    join_path,
    line_of,
    observe_other_calls,
    path_of,
)
from aafit.networks.kinds import (
    GATES,
    activation_name,
    called_kind,
    elementwise_kind,
    full_options,
    is_activation,
    is_elementwise,
    is_plain,
    may_be_an_activation,
    with_separate_activations,
)
from aafit.networks.running import check_network, forward_of_sample, probe_of
from aafit.networks.signals import Signal, Signals
from aafit.tables import table

KEPT_ELEMENTS = 1 << 16  # at most, of the input of a module that may be an activation
SETS = "sets: layer/channel/neuron"
OUTSIDE_OF = (
    "outside: share of the inputs outside the interval: the activation's own, or [{:g}, {:g}], the default of families "
    "that have one."
)
NOT_SAMPLED = (
    "No sample was given: activations called as functions (F.relu), and modules called more than once, were not looked "
    "for."
)


@dataclass
class FoundActivation:
    """An activation of a network. Fields that need a sample are None without one, or if its forward does not call it.

    Attributes:
        path: Path of the module, or the path that the module of a call gets: "act1", "block.relu_1".
        kind: Kind of the function, "ReLU".
        class_name: Class of the module, or the name of the function with brackets, "relu()".
        refused: Why it cannot be replaced; empty if it can.
        line: Where the program calls it, "net.py:12: x = F.relu(x)".
        calls: Number of calls in one forward of the sample.
        shape: Shape of its input, the batch first.
        range: Smallest and largest value of its input; None too if the values are not known.
        outside: Share of its inputs outside the interval: its own, or for activations without one the default.
        after: Layer before it, as ("Conv2d", "conv1").
        channel_axis: Axis of the channels in its input; None if the layer before does not determine it.
        gate: Why only its path, or a function as the key, replaces it (a gate); empty for all others.
        in_place: Whether the call works in place.
        device, dtype: Those of its input.
        aliases: Other paths of the same module.
        call: The call in the network's program; None if no sample was given, or it is not called.
    """

    path: str
    kind: str
    class_name: str
    refused: str = ""
    line: str | None = None
    calls: int | None = None
    shape: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    outside: float | None = None
    after: tuple[str, str] | None = None
    channel_axis: int | None = field(default=None, repr=False)
    gate: str = ""
    in_place: bool = field(default=False, repr=False)
    device: torch.device | None = field(default=None, repr=False)
    dtype: torch.dtype | None = field(default=None, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)
    call: ActivationCall | None = field(default=None, repr=False)

    @property
    def needs_module(self) -> bool:
        """Whether it is a call that has no module of its own yet."""
        return self.call is not None and bool(self.call.name)

    @property
    def sets(self) -> dict[str, int | None]:
        """Number of parameter sets if it is shared by layer, channel or neuron; None where that is not known.

        A set has 2 parameters for AHAF, 4 for LEAF, and a value at each knot for F-Neuron.
        """
        if self.shape is None or len(self.shape) < 2:
            return {"layer": 1, "channel": None, "neuron": None}
        channels = None if self.channel_axis is None else self.shape[self.channel_axis]
        return {"layer": 1, "channel": channels, "neuron": torch.Size(self.shape[1:]).numel()}

    def add_call(self, u: Tensor, signal: Signal, module: nn.Module | None = None) -> None:
        """Count a call of `module`, or of a function, with the input `u`."""
        before = self.calls or 0
        self.calls = before + 1
        self.shape, self.device, self.dtype = tuple(u.shape), u.device, u.dtype
        self.channel_axis, self.after = 1 if u.dim() == 2 else signal.axis, signal.layer
        if u.numel() and u.is_floating_point() and not u.is_meta:
            low, high = (end.item() for end in u.detach().aminmax())
            self.range = _union(self.range, (low, high) if low <= high else None)
            is_outside = (
                module.is_outside(u)
                if isinstance(module, (FNeuron, IntervalActivation))
                else (u < INTERVAL[0]) | (u > INTERVAL[1])
            )
            share = (is_outside & u.isfinite()).double().mean().item()
            # Calls of one activation have inputs of about one size.
            self.outside = share if self.outside is None else (before * self.outside + share) / self.calls


def _union(one: tuple[float, float] | None, other: tuple[float, float] | None) -> tuple[float, float] | None:
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


@dataclass(frozen=True)
class Found:
    """The activations of a network in the order of their first calls; prints as a table.

    Attributes:
        rows: The activations.
        owners: Paths of the modules whose forwards call activations.
        sampled: Whether a sample was given.
    """

    rows: tuple[FoundActivation, ...]
    owners: tuple[str, ...] = field(default=(), repr=False)
    sampled: bool = True

    @cached_property
    def _by_path(self) -> dict[str, FoundActivation]:
        return {path: row for row in reversed(self.rows) for path in (*row.aliases, row.path)}

    def __iter__(self) -> Iterator[FoundActivation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> FoundActivation:
        if path in self._by_path:
            return self._by_path[path]
        raise UserError(f"The network has no activation at {path!r}. {nearest(path, [row.path for row in self.rows])}")

    def __str__(self) -> str:
        header = ("path", "kind", "calls", "input", "range", "outside", "after", SETS, "what can be done")
        text = table(header, [_cells(row) for row in self.rows], numbers=False)
        if any(row.outside is not None for row in self.rows):
            text += "\n" + OUTSIDE_OF.format(*INTERVAL)
        lines = [(row.path, row.line) for row in self.rows if row.line is not None]
        if lines:
            text += "\n\n" + table(("path", "called in"), lines, numbers=False)
        return text if self.sampled else f"{text}\n\n{NOT_SAMPLED}"


def _cells(row: FoundActivation) -> tuple[str, ...]:
    sets = "/".join("?" if count is None else str(count) for count in row.sets.values())
    possible = row.refused or (f"only by its path: {row.gate}" if row.gate else "can be replaced")
    return (
        row.path,
        row.kind,
        "" if row.calls is None else str(row.calls),
        "" if row.shape is None else "x".join(map(str, row.shape)),
        "" if row.range is None else f"{row.range[0]:.3g} to {row.range[1]:.3g}",
        "" if row.outside is None else f"{row.outside:.2%}",
        "" if row.after is None else " ".join(row.after),
        sets,
        possible + " (the sample does not reach it)" * (row.calls == 0),
    )


def find_activations(net: nn.Module, *sample: Any, **keywords: Any) -> Found:
    """Find the activations of `net`, and what a replacement would do with each. `net` is left unchanged.

    With a sample these are found: modules; functions (F.relu, torch.relu, x.relu(), x.clamp(min=0)), also those held in
    attributes; one module called at several places; modules of other classes that compute an elementwise function.
    docs/networks/README.md lists what is found and what is not. Without a sample only modules are found.

    Args:
        net: any network.
        sample: an input, as the network is called: find_activations(net, images), find_activations(net, ids,
            mask=mask). Or what `sample=` of `replace_activations` takes: a tuple of the inputs, or an `aafit.Batch`.
        keywords: keyword inputs of the network.

    Returns:
        The activations, in the order of their first calls.

    Raises:
        UserError: the network is wrapped, scripted, compiled, exported or quantised; it refuses the sample.

    Example:
        >>> print(aafit.find_activations(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(16, 4)))
    """
    if not sample and not keywords:
        return found_in(net, None)
    if len(sample) == 1 and not keywords and isinstance(sample[0], (tuple, Batch)):
        return found_in(net, sample[0])
    return found_in(net, (*sample, keywords) if keywords else sample)


def found_in(net: nn.Module, sample: Any, named: Collection[str] = (), share_calls: bool = False) -> Found:
    """Find the activations of `net`; see `find_activations`.

    Args:
        net: any network.
        sample: one value of any form that `as_inputs` takes; None for no sample.
        named: paths of modules that count as activations whatever they are.
        share_calls: count a module that is called at several places as one activation.

    Raises:
        UserError: as `find_activations`.
    """
    check_network(net)
    if sample is None:
        return Found(tuple(_rows_of_modules(net, {}, {}, named, set())), sampled=False)
    for path, module in net.named_modules():
        if type(module).__name__ == "OptimizedModule":
            raise UserError(
                f"{path!r} is compiled by torch.compile, and no call in it can be observed: put its _orig_mod there, "
                "and compile the result."
            )
    observed, kinds = _observed(net, sample, named)
    owners = tuple(dict.fromkeys(_call(row).owner for row in observed))
    if share_calls:
        observed = _with_shared_calls(observed)
    order = {id(row): at for at, row in enumerate(observed)}
    shared = _called_at_several_places(net, observed)
    alone = {_call(row).called: row for row in observed if _call(row).of_module and _call(row).called not in shared}
    rows = list(_rows_of_modules(net, alone, kinds, named, shared))
    places = Counter((_call(row).owner, _call(row).path[0]) for row in observed)
    rows += _rows_of_calls(net, (row for row in observed if alone.get(_call(row).called) is not row), places)
    rows.sort(key=lambda row: order.get(id(row), len(order)))
    for row in rows:
        row.calls = row.calls or 0
    return Found(tuple(rows), owners)


def _call(row: FoundActivation) -> ActivationCall:
    assert row.call is not None
    return row.call


def _with_shared_calls(rows: Iterable[FoundActivation]) -> list[FoundActivation]:
    """Count all calls of one module as one."""
    first: dict[Hashable, FoundActivation] = {}
    for row in rows:
        call = _call(row)
        one = first.setdefault(call.called if call.of_module else id(row), row)
        if one is not row:
            one.calls = (one.calls or 0) + (row.calls or 0)
            one.range = _union(one.range, row.range)
    return list(first.values())


def _called_at_several_places(net: nn.Module, rows: Iterable[FoundActivation]) -> set[str]:
    """Return the paths of modules that are called at several places, including those already proxied."""
    places = Counter(_call(row).called for row in rows if _call(row).of_module)
    proxied = {path for path, module in net.named_modules() if isinstance(module, SharedModuleProxy)}
    return {path for path, count in places.items() if count > 1} | proxied


def _rows_of_modules(
    net: nn.Module,
    observed: Mapping[str, FoundActivation],
    kinds: Mapping[str, str],
    named: Collection[str],
    shared: Collection[str],
) -> Iterator[FoundActivation]:
    """Yield the activations that are modules and are called at one place at most.

    Args:
        net: the network.
        observed: the observed calls, by path of the module.
        kinds: kinds of the modules that are activations by what they compute, not by their class; by path.
        named: paths of modules that count as activations whatever they are.
        shared: paths of modules that are called at several places, which are left out.
    """
    modules, paths = _replaceable_modules(net)
    hidden = {*kinds, *(path for path, module in modules.items() if isinstance(module, SharedModuleProxy))}
    for path, module in modules.items():
        known = is_activation(module)
        if path in shared or _is_inside(path, hidden) or not (known or path in kinds or path in named):
            continue
        row = observed.get(path) or FoundActivation(path, "", "")
        row.kind, row.class_name = kinds.get(path) or activation_name(module), type(module).__name__
        row.refused = "not an elementwise activation" if known and not is_elementwise(module) else _why_not_real(row)
        row.aliases = tuple(other for other in paths[id(module)] if other not in modules)
        yield row


def _replaceable_modules(net: nn.Module) -> tuple[dict[str, nn.Module], dict[int, list[str]]]:
    """Return the modules that can be replaced separately, by path, and all paths of each module, by its id.

    A module that is registered under several names counts once for each name. A module inside a block that is
    registered under several names counts once, because replacing it in one place replaces it in all.
    """
    own = {
        join_path(around_path, name): module
        for around_path, around in net.named_modules()
        for name, module in around._modules.items()
        if module is not None
    }
    modules: dict[str, nn.Module] = {"": net} if is_activation(net) else {}
    paths: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in net.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
        if path in own:
            modules[path] = module
    return modules, paths


def _rows_of_calls(
    net: nn.Module, rows: Iterable[FoundActivation], places: Mapping[tuple[str, Frame], int]
) -> Iterator[FoundActivation]:
    """Yield the calls of functions, and of modules called at several places, each with the path that its module gets.

    That is the path of the owner, then the name of the function and a number: "block.relu_1". `places` has the number
    of observed calls by owner and innermost frame.
    """
    numbers: Counter[tuple[str, str]] = Counter()
    for row in rows:
        call = _call(row)
        owner, called = net.get_submodule(call.owner), call.called.rpartition(".")[2]
        # The modules of a Sequential are called "0", "1", ...
        base = called if called.isidentifier() else f"act_{called}"
        numbers[call.owner, base] += 1
        while hasattr(owner, f"{base}_{numbers[call.owner, base]}"):
            numbers[call.owner, base] += 1
        # If the sample reaches a frame by one path only, any other path to it counts as the same call.
        path = call.path if places[call.owner, call.path[0]] > 1 else call.path[:1]
        row.call = replace(call, name=f"{base}_{numbers[call.owner, base]}", path=path)
        row.path = row.call.module_path
        row.class_name = type(net.get_submodule(call.called)).__name__ if call.of_module else f"{call.called}()"
        plain = is_plain(call.options)
        row.refused = _why_not_real(row) if plain else "which is called with a tensor beside its input"
        yield row


def _why_not_real(row: FoundActivation) -> str:
    """Return why an activation of integers or complex numbers cannot be replaced; empty for real numbers."""
    if row.dtype is None or row.dtype.is_floating_point:
        return ""
    kind = "complex numbers" if row.dtype.is_complex else "integers"
    return f"called with {kind} ({str(row.dtype).removeprefix('torch.')}), which no adaptive activation takes"


def _is_inside(path: str, roots: Collection[str]) -> bool:
    """Return whether a path is below one of `roots`."""
    while path:
        path = path.rpartition(".")[0]
        if path in roots:
            return True
    return False


def _observed(net: nn.Module, sample: Any, named: Collection[str]) -> tuple[list[FoundActivation], dict[str, str]]:
    """Observe the activation calls of one forward of the sample.

    It runs on a copy in evaluation mode, without gradients: neither the network nor torch's random state changes.

    Returns:
        The calls in the order of the first ones, without those inside an activation; and the kinds of the modules that
        are activations by what they compute, not by their class, by path.

    Raises:
        UserError: as `forward_of_sample`.
    """
    probe = with_separate_activations(probe_of(net))
    observer = _Observer(probe, named)
    with observer.hooks:
        forward_of_sample(probe, sample, observer)
    kinds = observer.kinds()
    return observer.rows(kinds), kinds


class _Observer(TorchFunctionMode):
    """Sees each call of a torch function and of a module in a forward, and the module whose forward makes it."""

    def __init__(self, probe: nn.Module, named: Collection[str]) -> None:
        super().__init__()
        self._named = set(named)
        self._rows: dict[Hashable, FoundActivation] = {}
        # The modules whose forwards run, and what is known of the input if they may be activations.
        self._running: list[tuple[str, Signal | None]] = []
        self._signals = Signals()
        modules = dict(probe.named_modules())
        # The module behind a proxy counts as being at the proxy's path.
        proxied = {f"{path}.original" for path, module in modules.items() if isinstance(module, SharedModuleProxy)}
        self._modules = {
            path: module.original if isinstance(module, SharedModuleProxy) else module
            for path, module in modules.items()
            if path not in proxied
        }
        self._candidates = {
            path: module for path, module in self._modules.items() if path and may_be_an_activation(module)
        }
        self._received: dict[str, Tensor] = {}
        # Candidates that are gates only if their kind is in GATES.
        self._gates_by_kind: set[str] = set()
        self.hooks = ExitStack()
        observe_other_calls(probe, self)
        for path, module in self._modules.items():
            before, after = partial(self._before, path), partial(self._after, path)
            self.hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            self.hooks.enter_context(module.register_forward_hook(after, always_call=True))

    def kinds(self) -> dict[str, str]:
        """Return the kinds of modules of classes that are not torch's, after the hooks were removed."""
        kinds = {path: elementwise_kind(self._candidates[path], u) for path, u in self._received.items()}
        return {path: kind for path, kind in kinds.items() if kind is not None}

    def rows(self, kinds: Mapping[str, str]) -> list[FoundActivation]:
        """Return the calls in the order of the first ones, without those inside an activation."""
        activations = {path for path, module in self._modules.items() if is_activation(module)}
        hidden = activations | kinds.keys() | self._named
        rows = []
        for row in self._rows.values():
            call = _call(row)
            if (call.of_module and call.called not in hidden) or call.owner in hidden or _is_inside(call.owner, hidden):
                continue
            if not call.of_module:
                row.gate = self._signals.gates.get(id(row), row.gate)
            else:
                row.kind = kinds.get(call.called, row.kind)
                if call.called not in self._gates_by_kind or row.kind in GATES:
                    row.gate = self._signals.gates.get(call.called, row.gate)
            rows.append(row)
        return rows

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = None
        if is_activation(module) or path in self._named or path in self._candidates:
            received = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if received is not None:
            # Whether a candidate is an activation is known only after the forward.
            in_place = bool(getattr(module, "inplace", False))
            self._note(activation_name(module), received, path, {}, in_place, module)
            if path in self._candidates:
                self._received.setdefault(path, _first_rows(received))
        self._running.append((path, None if received is None else self._signals.of(received)))

    def _after(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        _, received = self._running.pop()
        made = next(iter(tensors_in(output)), None)
        if made is None:
            return
        if _is_layer(module):
            signal = self._signals.of(made)
            signal.layer = type(module).__name__, path
            if isinstance(module, nn.RNNBase) or type(module).__name__ == "Conv1D":
                # A Conv1D is a linear layer in spite of its name; it reshapes the product of matrices.
                signal.axis = made.dim() - 1
        if received is None or not isinstance(output, Tensor):
            return
        if is_activation(module):
            inputs = [value for value in args if isinstance(value, Tensor)]
            self._signals.follow(type(module), output, inputs, path, True)
            self._may_be_a_gate(activation_name(module), path, received, output)
        elif path in self._candidates:
            if not received.raw and not {*self._signals.of(output).gates} - {*received.gates}:
                self._gates_by_kind.add(path)
            self._signals.add_gate(path, received, output)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = called_kind(func, args, kwargs)
        row, received = None, None
        if kind is not None:
            u = args[0] if args else kwargs.get("input")
            if isinstance(u, Tensor) and u.is_floating_point():
                in_place = bool(kwargs.get("inplace", False)) or func.__name__.endswith("_")
                called, options, _ = called_with(func, args, kwargs)
                row, received = self._note(kind, u, called, options, in_place), self._signals.of(u)
        owner = self._running[-1][0] if self._running else ""
        output = func(*args, **kwargs)
        self._signals.follow(func, output, [*args, *kwargs.values()], owner, kind is not None)
        if kind is not None and row is not None and received is not None:
            self._may_be_a_gate(kind, id(row), received, output)
        return output

    def _may_be_a_gate(self, kind: str, name: Hashable, received: Signal, output: Tensor) -> None:
        if kind in GATES or received.raw:
            self._signals.add_gate(name, received, output)
        elif kind == "ReLU6":
            # relu6(x + 3) is six times a hard sigmoid.
            self._signals.add_gate(name, received, output, of_others=received.plus_3)

    def _note(
        self,
        kind: str,
        u: Tensor,
        called: str,
        options: dict[str, Any],
        in_place: bool,
        module: nn.Module | None = None,
    ) -> FoundActivation | None:
        """Note a call of a function, or of `module` at the path `called`; None if the network's program makes none."""
        owner = self._running[-1][0] if self._running else ""
        frames = calling_frames(self._modules[owner])
        if not frames:
            return None
        path = path_of(frames)
        # One place may call now one function and now another, or one function with other options.
        full = full_options(called, options) if module is None else {}
        shown = tuple(sorted((name, "" if isinstance(v, Tensor) else str(v)) for name, v in full.items()))
        key = owner, called, module is None, path, shown
        row = self._rows.get(key)
        if row is None:
            call = ActivationCall(owner, called, module is not None, kind, path, options)
            row = FoundActivation(called, kind, "", line=line_of(frames), in_place=in_place, call=call)
            self._rows[key] = row
            if isinstance(u if u._base is None else u._base, nn.Parameter):
                row.gate = "it is given a parameter, not a signal"
        row.add_call(u, self._signals.of(u), module)
        if module is not None and getattr(module, "num_parameters", 1) > 1:
            # The slopes of an nn.PReLU lie along axis 1, whatever layer comes before it.
            row.channel_axis = 1
        return row


def _first_rows(u: Tensor) -> Tensor:
    """Return a copy of the first rows: enough to recognise a function, and small for many modules at once."""
    if not u.dim():
        return u.detach().clone()
    rows = min(8, max(1, KEPT_ELEMENTS // max(1, u[:1].numel())))
    return u.detach()[:rows].clone()


def _is_layer(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase)
    return isinstance(module, kinds) or type(module).__name__ in ("Conv1D", "LazyLinear")
