"""Find the activations of a torch network, modules and calls of functions: the dry run of a replacement.

What one forward of a sample shows of a network's activations: where each is called, and what it receives.

What was found of a network's activations: a row for each, which prints as a table.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from aafit.errors import UserError, nearest
from aafit.networks.batches import Batch
from aafit.networks.call_sites import (
    CallPath,
    SharedModuleProxy,
    Site,
    called_with,
    calling_frames,
    in_full,
    line_of,
    place_of,
    show_unnamed_calls,
)
from aafit.networks.kinds import (
    GATES,
    activation_name,
    called_kind,
    each_its_own,
    elementwise_kind,
    is_activation,
    is_elementwise,
    may_be_an_activation,
)
from aafit.networks.running import forward_of_sample, probe_of
from aafit.networks.signals import Signal, Signals, tensors_in
from aafit.tables import table

KEPT = 1 << 16  # elements of what a module receives that may be an activation


@dataclass
class Seen:
    """What one activation received in a forward, at one place of the program.

    Attributes:
        owner: Path of the module whose forward makes the call.
        module: Path of the module that is called; None: a function is.
        call: Name of the function, with the options it is called with beside its input.
        line: "net.py:12: x = F.relu(x)".
        channel_axis: That of the layer before it (1 after a convolution or a batch norm, the last after a linear
            layer), None where the operations between do not tell.
        after: The class of the layer before it and its path.
        low, high: The range of its inputs.
        gate: Why it is taken for a gate; empty: it is none.
        in_place: Whether the call works in place.
    """

    owner: str
    module: str | None
    place: CallPath
    kind: str
    call: str
    options: dict[str, Any]
    line: str
    calls: int = 0
    shape: tuple[int, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    channel_axis: int | None = None
    after: tuple[str, str] | None = None
    low: float = float("inf")
    high: float = float("-inf")
    gate: str = ""
    in_place: bool = False


@dataclass
class Observation:
    """What one forward showed, in the order of the first calls; `own` has the kinds of classes that are not torch's."""

    seen: list[Seen] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)

    def share_calls(self) -> None:
        """Let all calls of one module count as one."""
        first: dict[str, Seen] = {}
        for row in self.seen:
            if row.module is not None and (before := first.setdefault(row.module, row)) is not row:
                before.calls += row.calls
                before.low, before.high = min(before.low, row.low), max(before.high, row.high)
        self.seen = [row for row in self.seen if row.module is None or first[row.module] is row]


def observe(model: nn.Module, sample: Any, named: Collection[str] = ()) -> Observation:
    """The activations that one forward of `sample` calls, as modules and as functions, each place apart.

    Runs on a copy in eval mode without gradients: neither the model nor torch's random state changes. The modules at
    the paths `named` are taken for activations, whatever they are.

    Raises:
        UserError: as `forward_of_sample`.
    """
    probe = each_its_own(probe_of(model))
    watch = _Observer(probe, named)
    forward_of_sample(probe, sample, watch)
    watch.close()
    return watch.result()


class _Observer(TorchFunctionMode):
    """Sees each call of a torch function and of a module, knows whose forward it is in, and follows the tensors."""

    def __init__(self, probe: nn.Module, named: Collection[str]) -> None:
        super().__init__()
        self._named = set(named)
        self._seen: dict[Any, Seen] = {}
        # The modules whose forwards run, and what each received that may be an activation.
        self._around: list[tuple[str, Signal | None]] = []
        self._signals = Signals()
        modules = dict(probe.named_modules())
        # What stands behind a doorway counts as standing at its path.
        behind = {f"{path}.original" for path, module in modules.items() if isinstance(module, SharedModuleProxy)}
        self._modules = {
            path: module.original if isinstance(module, SharedModuleProxy) else module
            for path, module in modules.items()
            if path not in behind
        }
        self._candidates = {
            path: module for path, module in self._modules.items() if path and may_be_an_activation(module)
        }
        self._received: dict[str, Tensor] = {}
        # Candidates that are gates only if their kind is one of those.
        self._by_kind: set[str] = set()
        self._handles = []
        show_unnamed_calls(probe, self)
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving(path), always_call=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def result(self) -> Observation:
        """The calls, without those inside an activation, which are its own business."""
        own = {}
        for path, u in self._received.items():
            if (kind := elementwise_kind(self._candidates[path], u)) is not None:
                own[path] = kind
        hidden = {path for path, module in self._modules.items() if is_activation(module)} | own.keys() | self._named
        inside = tuple(f"{path}." for path in hidden)
        seen = []
        for row in self._seen.values():
            if row.module is not None and row.module not in hidden:
                continue
            if row.owner in hidden or (f"{row.owner}.").startswith(inside):
                continue
            if row.module is None:
                row.gate = self._signals.gates.get(id(row), row.gate)
            else:
                row.kind = own.get(row.module, row.kind)
                if row.module not in self._by_kind or row.kind in GATES:
                    row.gate = self._signals.gates.get(row.module, row.gate)
            seen.append(row)
        return Observation(seen, own)

    def _entering(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            received = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            counted = is_activation(module) or path in self._named or path in self._candidates
            if received is not None and counted:
                # Of a module that is one of the candidates it is known only later whether it is an activation.
                self._note(activation_name(module), received, path, "", {}, bool(getattr(module, "inplace", False)))
                if path in self._candidates:
                    self._received.setdefault(path, _few_rows(received))
            self._around.append((path, self._signals.of(received) if counted and received is not None else None))

        return hook

    def _leaving(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            _, received = self._around.pop()
            made = next(tensors_in(output), None)
            if made is None:
                return
            if _is_layer(module):
                signal = self._signals.of(made)
                signal.layer = type(module).__name__, path
                if isinstance(module, nn.RNNBase) or type(module).__name__ == "Conv1D":
                    # A Conv1D is a linear layer in spite of its name; it reshapes what its product of matrices gives.
                    signal.axis = made.dim() - 1
            if received is None or not isinstance(output, Tensor):
                return
            if is_activation(module):
                self._signals.follow(
                    type(module), output, [value for value in args if isinstance(value, Tensor)], path, True
                )
                self._may_be_a_gate(activation_name(module), path, received, output)
            elif path in self._candidates:
                if not {*self._signals.of(output).gates} - {*received.gates}:
                    self._by_kind.add(path)
                self._signals.add_gate(path, received, output)

        return hook

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
                call, options, _ = called_with(func, args, kwargs)
                row, received = self._note(kind, u, None, call, options, in_place), self._signals.of(u)
        owner = self._around[-1][0] if self._around else ""
        output = func(*args, **kwargs)
        self._signals.follow(func, output, [*args, *kwargs.values()], owner, kind is not None)
        if kind is not None and row is not None and received is not None:
            self._may_be_a_gate(kind, id(row), received, output)
        return output

    def _may_be_a_gate(self, kind: str, name: Hashable, received: Signal, output: Tensor) -> None:
        if kind in GATES:
            self._signals.add_gate(name, received, output)
        elif kind == "ReLU6":
            # relu6(x + 3) is six times a hard sigmoid.
            self._signals.add_gate(name, received, output, of_others=received.plus_3)

    def _note(
        self, kind: str, u: Tensor, module: str | None, call: str, options: dict[str, Any], in_place: bool
    ) -> Seen | None:
        owner = self._around[-1][0] if self._around else ""
        frames = calling_frames(self._modules[owner])
        if not frames:
            return None
        place = place_of(frames)
        # One place may call now one function and now another, or one with other options.
        full = {name: "" if isinstance(value, Tensor) else str(value) for name, value in in_full(call, options).items()}
        key = owner, module, place, call, tuple(sorted(full.items()))
        row = self._seen.get(key)
        if row is None:
            row = self._seen[key] = Seen(owner, module, place, kind, call, options, line_of(frames), in_place=in_place)
            if isinstance(u if u._base is None else u._base, nn.Parameter):
                row.gate = "it is given a parameter, not a signal"
        row.calls += 1
        row.shape, row.device, row.dtype = tuple(u.shape), u.device, u.dtype
        signal = self._signals.of(u)
        row.channel_axis, row.after = signal.axis, signal.layer
        if module is not None and getattr(self._modules[module], "num_parameters", 1) > 1:
            # The slopes of an nn.PReLU lie along axis 1, whatever comes before it.
            row.channel_axis = 1
        if u.numel() and u.is_floating_point() and not u.is_meta:
            low, high = u.detach().aminmax()
            row.low, row.high = min(row.low, low.item()), max(row.high, high.item())
        return row


def _few_rows(u: Tensor) -> Tensor:
    """The first rows, in memory of their own: enough to tell a function by, of many modules at once."""
    if not u.dim():
        return u.detach().clone()
    rows = min(8, max(1, KEPT // max(1, u[:1].numel())))
    return u.detach()[:rows].clone()


def _is_layer(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase)
    return isinstance(module, kinds) or type(module).__name__ in ("Conv1D", "LazyLinear")


NOT_SAMPLED = (
    "No sample was given: activations called as functions (F.relu), and modules called more than once, were not looked "
    "for."
)


@dataclass(frozen=True)
class FoundActivation:
    """An activation of a network, at the path that its replacement will have.

    What the sample shows of it is None where no sample was given, or its forward does not call it.

    Attributes:
        path: "act1", or "block.relu_1" for a call that has no module of its own yet.
        kind: Of the function, "ReLU".
        class_name: Of the module; of a function its name, "relu()".
        refused: Why it cannot be replaced; empty: it can.
        sampled: Whether a sample was given.
        seen: What the sample shows of it.
        site: What is to be given a module first.
        aliases: Other paths of the same module.
    """

    path: str
    kind: str
    class_name: str
    refused: str = ""
    sampled: bool = False
    seen: Seen | None = field(default=None, repr=False)
    site: Site | None = field(default=None, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)

    @property
    def line(self) -> str | None:
        """Where the program calls it, "net.py:12: x = F.relu(x)"."""
        return self.seen.line if self.seen else None

    @property
    def calls(self) -> int | None:
        """The number of calls in one forward of the sample; None: there was none."""
        return self.seen.calls if self.seen else 0 if self.sampled else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of what it receives, the batch first."""
        return self.seen.shape if self.seen else None

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest value that it receives; None too where the values are not known."""
        return (self.seen.low, self.seen.high) if self.seen and self.seen.low <= self.seen.high else None

    @property
    def after(self) -> tuple[str, str] | None:
        """The layer before it, as ("Conv2d", "conv1")."""
        return self.seen.after if self.seen else None

    @property
    def gate(self) -> str:
        """Why only its own path, or a function as the key, replaces it (a gate); empty: it is as all others."""
        return self.seen.gate if self.seen else ""

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels in what it receives, None where the layer before does not tell."""
        if self.shape is None:
            return None
        return 1 if len(self.shape) == 2 else self.seen.channel_axis if self.seen else None

    @property
    def sets(self) -> dict[str, int | None]:
        """The number of parameter sets when it is shared by layer, channel or neuron; None where that is not known.

        A set has 2 parameters of an AHAF, 4 of a LEAF, one for each knot of an F-Neuron.
        """
        shape, axis = self.shape, self.channel_axis
        if shape is None or len(shape) < 2:
            return {"layer": 1, "channel": None, "neuron": None}
        channels = None if axis is None else shape[axis]
        return {"layer": 1, "channel": channels, "neuron": torch.Size(shape[1:]).numel()}


@dataclass(frozen=True)
class Found:
    """What `find_activations` found, in the order of the first calls; prints as a table.

    Attributes:
        rows: The activations.
        owners: Paths of the modules whose forwards make calls.
        sampled: Whether a sample was given.
    """

    rows: tuple[FoundActivation, ...]
    owners: tuple[str, ...] = field(default=(), repr=False)
    sampled: bool = True

    def __iter__(self) -> Iterator[FoundActivation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> FoundActivation:
        for row in self.rows:
            if path == row.path or path in row.aliases:
                return row
        raise UserError(f"The network has no activation at {path!r}. {nearest(path, [row.path for row in self.rows])}")

    def __str__(self) -> str:
        header = ("path", "kind", "calls", "input", "range", "after", "sets: layer/channel/neuron", "what can be done")
        text = table(header, [_cells(row) for row in self.rows], numbers=False)
        lines = [(row.path, row.line) for row in self.rows if row.line is not None]
        if lines:
            text += "\n\n" + table(("path", "called in"), lines, numbers=False)
        return text if self.sampled else f"{text}\n\n{NOT_SAMPLED}"


def _cells(row: FoundActivation) -> tuple[str, ...]:
    sets = "/".join("?" if count is None else str(count) for count in row.sets.values())
    done = row.refused or (f"only by its path: {row.gate}" if row.gate else "can be replaced")
    return (
        row.path,
        row.kind,
        "" if row.calls is None else str(row.calls),
        "" if row.shape is None else "x".join(map(str, row.shape)),
        "" if row.range is None else f"{row.range[0]:.3g} to {row.range[1]:.3g}",
        "" if row.after is None else " ".join(row.after),
        sets,
        done + " (the sample does not reach it)" * (row.calls == 0),
    )


EXPORTED = "{} is exported by torch.export, and its program is fixed: replace before it is exported."


def find_activations(net: nn.Module, *sample: Any, **keywords: Any) -> Found:
    """The activations of `net`, and what a replacement would do with each. `net` is left as it was.

    With a sample: modules, functions (F.relu, torch.relu, x.relu(), x.clamp(min=0)), functions held in attributes, one
    module called at several places, modules of a class of the network's own that computes a function element by
    element; docs/networks/README.md lists what is found and what is not. Without one only modules are.

    Args:
        net: any network.
        sample: an input of it, as it is called: find_activations(net, images), find_activations(net, ids, mask=mask).
            Or what `sample=` of `replace_activations` takes: a tuple of the inputs, or an `aafit.Batch`.

    Raises:
        UserError: the network is wrapped, scripted, compiled, exported or quantised; it refuses the sample.
    """
    if not sample and not keywords:
        return found_in(net, None)
    if len(sample) == 1 and not keywords and isinstance(sample[0], (tuple, Batch)):
        return found_in(net, sample[0])
    return found_in(net, (*sample, keywords) if keywords else sample)


def found_in(net: nn.Module, sample: Any, named: Collection[str] = (), share_calls: bool = False) -> Found:
    """As `find_activations`, with the sample as one value of any form (None: there is none).

    The modules at the paths `named` are among them, whatever they are. With `share_calls` a module that is called at
    several places is one activation.
    """
    check_plain(net)
    if sample is None:
        return Found(tuple(_modules(net, Observation(), named)), sampled=False)
    for path, module in net.named_modules():
        if type(module).__name__ == "OptimizedModule":
            raise UserError(
                f"{path!r} is compiled by torch.compile, and no call in it can be seen: put its _orig_mod there, and "
                "compile what comes out."
            )
    watched = observe(net, sample, named)
    if share_calls:
        watched.share_calls()
    rows = [*_modules(net, watched, named), *_calls(net, watched)]
    order = {id(seen): at for at, seen in enumerate(watched.seen)}
    rows.sort(key=lambda row: order.get(id(row.seen), len(order)))
    return Found(tuple(rows), tuple(dict.fromkeys(seen.owner for seen in watched.seen)))


def check_plain(net: nn.Module) -> None:
    """Raise unless the network is a plain module.

    Raises:
        UserError: it is wrapped, scripted, compiled, exported or quantised; the message says what to give instead.
    """
    name = type(net).__name__
    if name == "ExportedProgram":
        raise UserError(EXPORTED.format("The network"))
    if not isinstance(net, nn.Module):
        raise UserError(f"The network is a {type(net).__name__}: give a torch.nn.Module.")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(
            "The network is a ScriptModule, whose program is fixed: give the network that it was made from."
        )
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"The network is wrapped in a {name}: give net.module, and wrap what comes out.")
    if name == "OptimizedModule":
        raise UserError("The network is compiled by torch.compile: give net._orig_mod, and compile what comes out.")
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{path!r} is a ScriptModule, whose program is fixed: give the module it was made from.")
        if isinstance(module, GraphModule) and any(isinstance(node.target, OpOverload) for node in module.graph.nodes):
            raise UserError(EXPORTED.format(repr(path) if path else "The network"))
        if ".quantized" in type(module).__module__:
            raise UserError(
                f"{path!r} is a quantised {type(module).__name__}: give the network as it was before quantisation."
            )


def _modules(net: nn.Module, watched: Observation, named: Collection[str] = ()) -> Iterator[FoundActivation]:
    """The activations that are modules, each called at one place at most."""
    seen_of = {seen.module: seen for seen in watched.seen if seen.module is not None}
    places, aliases = _places(net)
    inside = tuple(f"{path}." for path in watched.own)
    inside += tuple(f"{path}." for path, module in places.items() if isinstance(module, SharedModuleProxy))
    several = _called_at_several_places(net, watched)
    for path, module in places.items():
        known = is_activation(module)
        if not known and path not in watched.own and path not in named:
            continue
        if path in several or path.startswith(inside):
            continue
        seen = seen_of.get(path)
        yield FoundActivation(
            path,
            watched.own.get(path) or activation_name(module),
            type(module).__name__,
            "not an elementwise activation" if known and not is_elementwise(module) else _of_no_reals(seen),
            bool(watched.seen),
            seen,
            aliases=tuple(other for other in aliases[id(module)] if other not in places),
        )


def _places(net: nn.Module) -> tuple[dict[str, nn.Module], dict[int, list[str]]]:
    """What can be replaced apart, by path in the order of the network; and all paths of each module, by its id.

    A module in a block that is one object under several names is one. Under several names of its own it is several.
    """
    own = {
        f"{around_path}.{name}" if around_path else name: module
        for around_path, around in net.named_modules()
        for name, module in around._modules.items()
        if module is not None
    }
    places: dict[str, nn.Module] = {"": net} if is_activation(net) else {}
    paths: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in net.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
        if path in own:
            places[path] = module
    return places, paths


def _calls(net: nn.Module, watched: Observation) -> Iterator[FoundActivation]:
    """The calls that have no module of their own: of functions, and of modules called at several places.

    The path of each is that of its owner, with the name of the function and a number: "block.relu_1".
    """
    several = _called_at_several_places(net, watched)
    taken: defaultdict[str, set[str]] = defaultdict(set)
    ways = Counter((seen.owner, seen.place[0]) for seen in watched.seen)
    for seen in watched.seen:
        if seen.module is not None and seen.module not in several:
            continue
        name = _free_name(seen, net.get_submodule(seen.owner), taken[seen.owner])
        call = seen.call if seen.module is None else seen.module
        # Where the sample shows one way to a place only, another way to it means the same.
        place = seen.place if ways[seen.owner, seen.place[0]] > 1 else seen.place[:1]
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in seen.options.values())
        yield FoundActivation(
            f"{seen.owner}.{name}" if seen.owner else name,
            seen.kind,
            f"{seen.call}()" if seen.module is None else type(net.get_submodule(seen.module)).__name__,
            _of_no_reals(seen) if plain else "which is called with a tensor beside its input",
            True,
            seen,
            Site(name, place, seen.kind, call, seen.options, seen.module is not None),
        )


def _of_no_reals(seen: Seen | None) -> str:
    """Why what is called with integers or complex numbers is not replaced."""
    if seen is None or seen.dtype.is_floating_point:
        return ""
    kind = "complex numbers" if seen.dtype.is_complex else "integers"
    return f"called with {kind} ({str(seen.dtype).removeprefix('torch.')}), which no adaptive activation takes"


def _called_at_several_places(net: nn.Module, watched: Observation) -> set[str]:
    """The modules that are; one behind a doorway was when others of its calls were given modules."""
    places = Counter(seen.module for seen in watched.seen if seen.module is not None)
    doorways = {path for path, module in net.named_modules() if isinstance(module, SharedModuleProxy)}
    return {path for path, count in places.items() if count > 1} | doorways


def _free_name(seen: Seen, owner: nn.Module, taken: set[str]) -> str:
    called = seen.call if seen.module is None else seen.module.rpartition(".")[2]
    # The modules of a Sequential are called "0", "1", ...
    called = called if called.isidentifier() else f"act_{called}"
    number = 1
    while f"{called}_{number}" in taken or hasattr(owner, f"{called}_{number}"):
        number += 1
    taken.add(f"{called}_{number}")
    return f"{called}_{number}"
