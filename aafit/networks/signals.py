"""Follow the tensors of one forward: the layer before each, the axis of its channels, and the gates it comes from.

A gate is an activation that multiplies another signal: a sigmoid, tanh, hard sigmoid or hard tanh, or any function of
the network's input alone (an envelope). Between the two there may be operations on the gate alone: a part of it, 1 - z,
s / 6, an upsampled s. Layers and other activations end a gate.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from aafit.networks.batches import tensors_in

OTHER_SIGNAL = "a gate: it multiplies another signal"
OWN_INPUT = "it multiplies its own input: put the product into a module, to replace it as a whole"

_MOVES_AXES = (
    "permute", "transpose", "swap", "movedim", "moveaxis", "view", "reshape", "flatten", "squeeze", "unsqueeze",
    "expand", "mT", "T", "mH", "H",
)  # fmt: skip
# These change the number of channels, and leave their axis.
_PARTS = (
    "cat", "concat", "concatenate", "chunk", "split", "tensor_split", "narrow", "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip
_CHANNELS_AT_1 = ("batch_norm", "instance_norm", "group_norm")
_MATMULS = ("matmul", "mm", "bmm", "addmm", "baddbmm")
_TIMES = ("mul", "multiply", "div", "divide", "true_divide", "einsum", "addcmul", "addcdiv")
_CHOOSES = ("getitem", "gather", "index_select", "take_along_dim", "masked_fill")
_SUMS = ("add", "sub", "subtract", "rsub", "neg", "negative", "pow", "square", "addcmul", "addcdiv")
_SAME_VALUES = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "contiguous", "dropout")
_ELEMENTWISE = (*_TIMES, *_SUMS, *_SAME_VALUES)


@dataclass(frozen=True)
class Gate:
    """An activation call that is a gate if it multiplies another signal.

    Attributes:
        name: Identifies the call.
        source: `Signal.source` of its input.
        of_others: Whether it is a gate if it multiplies another signal; if not, only a product with its own input is
            noted.
    """

    name: Hashable
    source: int
    of_others: bool = True


@dataclass
class Signal:
    """Properties of a tensor.

    Attributes:
        source: A number that all tensors share which elementwise arithmetic computes from the same tensor.
        weights: Whether it is a parameter, or computed from parameters alone.
        raw: Whether it is an input of the network, or computed from inputs without parameters.
        layer: Class and path of the layer before it.
        axis: Axis of the channels.
        gates: Gates whose values this tensor has, or is computed from alone.
        origins: Names of the gates that it depends on in any way.
        plus_3: Whether 3 was added last, as for the ReLU6 in a hard sigmoid.
    """

    source: int
    weights: bool = False
    raw: bool = False
    layer: tuple[str, str] | None = None
    axis: int | None = None
    gates: tuple[Gate, ...] = ()
    origins: frozenset[Hashable] = frozenset()
    plus_3: bool = False


class Signals:
    """Follows the tensors of one forward from function to function.

    Attributes:
        gates: Why a call is a gate, by the name of the call.
    """

    def __init__(self) -> None:
        self.gates: dict[Hashable, str] = {}
        self._known = WeakTensorKeyDictionary()
        self._sources = count()

    def of(self, tensor: Tensor) -> Signal:
        """Return what is known of a tensor."""
        signal: Signal | None = self._known.get(tensor)
        if signal is None:
            weights = isinstance(tensor, nn.Parameter)
            signal = self._known[tensor] = Signal(next(self._sources), weights, not weights)
        return signal

    def add_gate(self, name: Hashable, received: Signal, output: Tensor, of_others: bool = True) -> None:
        """Note that a call returned `output`: it is a gate if that multiplies a signal."""
        signal = self.of(output)
        signal.gates += (Gate(name, received.source, of_others),)
        signal.origins |= {name}

    def follow(self, func: Callable[..., Any], output: Any, args: Any, owner: str, activation: bool) -> None:
        """Note what a function, called in the forward of the module at `owner`, made of its arguments."""
        name, inputs = plain_name(func), tensors_in(args)
        if name == "to" or name.endswith("_as"):
            # Only the shape or the dtype of the other tensor counts.
            inputs = inputs[:1]
        signals = [self.of(tensor) for tensor in inputs]
        # A tensor without axes counts as a constant.
        varying = [at for at, signal in enumerate(signals) if not signal.weights and inputs[at].dim()]
        self._multiplied(name, inputs, signals)
        sources = {signals[at].source for at in varying}
        same = name in _ELEMENTWISE and len(sources) == 1
        gates = () if activation else self._carried(name, signals, varying)
        origins = frozenset[Hashable]().union(*(signal.origins for signal in signals))
        weights = bool(inputs) and all(signal.weights for signal in signals)
        raw = all(signal.raw for signal in signals)
        before = next((signal.layer for signal in signals if signal.layer is not None), None)
        plus_3 = name == "add" and 3 in [value for value in args if isinstance(value, (int, float))]
        for made in tensors_in(output):
            layer, axis = _layer(name, made, signals, owner)
            if layer is None:
                layer, axis = before, _axis(name, made, inputs, signals)
            source = min(sources) if same else next(self._sources)
            # Integer and boolean tensors carry no gate origins: an index or a mask selects, and enters no value.
            own = origins if made.is_floating_point() else frozenset[Hashable]()
            self._known[made] = Signal(source, weights, raw, layer, axis, gates, own, plus_3)

    def _carried(self, name: str, signals: list[Signal], varying: list[int]) -> tuple[Gate, ...]:
        """Return the gates whose values a function passes on, possibly changed by arithmetic or by selecting a part."""
        if not varying and len(signals) == 1:
            # The sigmoid of a parameter is a gate too.
            varying = [0]
        if not varying or name.endswith(("_like", "softmax")) or name.startswith("new_"):
            return ()
        gates = signals[varying[0]].gates
        if len(varying) == 1:
            # Any other function that takes weights is a layer.
            alone = len(signals) == 1 or name in _ELEMENTWISE
            return gates if alone else ()
        # w / w.sum()
        if name == "div" and len(signals) == 2:
            return tuple(gate for gate in gates if gate.name in signals[1].origins)
        # A part is chosen by computed indices.
        return gates if name in _CHOOSES else ()

    def _multiplied(self, name: str, inputs: list[Tensor], signals: list[Signal]) -> None:
        """Mark calls whose outputs a function multiplies with another signal as gates."""
        for one, other in _factors(name, len(inputs)):
            if signals[other].weights or not inputs[other].dim():
                continue
            for gate in signals[one].gates:
                # If the other factor depends on the gate itself, it is no other signal.
                if gate.name in signals[other].origins:
                    continue
                if gate.source == signals[other].source:
                    self.gates[gate.name] = OWN_INPUT
                elif gate.of_others:
                    self.gates[gate.name] = OTHER_SIGNAL


def plain_name(func: Callable[..., Any]) -> str:
    """Return the name of a torch function or property: "mul" for x.mul_(y) and x *= y too, "T" for x.T."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    name = name.strip("_")
    return {"rdiv": "div", "rsub": "sub", "rmatmul": "matmul", "rpow": "pow"}.get(name, name)


def _factors(name: str, number: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of the tensors that a function multiplies with each other, as indices among its arguments."""
    factors = [*range(number)] if name in _TIMES else []
    if name.startswith("addc"):
        # The first is added.
        factors = factors[1:]
    if name == "lerp" and number == 3:
        yield from ((0, 2), (1, 2), (2, 0), (2, 1))
    yield from ((one, other) for one in factors for other in factors if one != other)


def _layer(name: str, made: Tensor, signals: list[Signal], owner: str) -> tuple[tuple[str, str] | None, int | None]:
    """Return the class and path of the layer that a function is, and the axis of its channels; None if it is none."""
    if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d"):
        kind = "".join(word.capitalize() for word in name.split("_"))
        return (kind, owner), made.dim() - int(name[-2]) - 1
    if name in ("linear", "bilinear", "embedding"):
        return (name.capitalize(), owner), made.dim() - 1
    if name in _MATMULS and len(signals) > 1 and signals[-1].weights != signals[-2].weights:
        # x @ W, or W @ x.
        return ("Linear", owner), made.dim() - (1 if signals[-1].weights else 2)
    return None, None


def _axis(name: str, made: Tensor, inputs: list[Tensor], signals: list[Signal]) -> int | None:
    """Return the axis of the channels in a function's output; None if it is not known."""
    if name in _CHANNELS_AT_1:
        return 1
    if name.startswith(_MOVES_AXES) or name in _MATMULS or name in ("einsum", "scaled_dot_product_attention"):
        return None
    for tensor, signal in zip(inputs, signals, strict=True):
        axis = signal.axis
        if axis is None or tensor.dim() != made.dim():
            continue
        if name in _PARTS or name == "getitem" or tensor.shape[axis] == made.shape[axis]:
            return axis
    return None
