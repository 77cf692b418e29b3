"""What one forward of a sample shows of a network's activations: where each is called, and what it receives."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aafit.networks.call_sites import Doorway, called_with, show_unnamed_calls
from aafit.networks.kinds import GATES, activation_name, called_kind, is_activation
from aafit.networks.own_classes import each_its_own, elementwise_kind, may_be_an_activation
from aafit.networks.places import Place, calling_frames, in_full, line_of, place_of
from aafit.networks.probe import forward_of_sample, probe_of
from aafit.networks.signals import Signal, Signals, tensors_in

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
    place: Place
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
        behind = {f"{path}.original" for path, module in modules.items() if isinstance(module, Doorway)}
        self._modules = {
            path: module.original if isinstance(module, Doorway) else module
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
