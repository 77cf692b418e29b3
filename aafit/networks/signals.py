"""What is known of the tensors of one forward: the layer before them, the axis of their channels, and their gates.

A gate is a sigmoid, tanh, hard sigmoid or hard tanh that multiplies another signal, with whatever is computed of it
alone in between: a part of it, 1 - z, s / 6, an upsampled s. Layers and other activations end that.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

OF_ANOTHER = "a gate: it multiplies another signal"
OF_ITS_OWN = "it multiplies its own input: put the product into a module, to replace it as a whole"

_MOVES_AXES = (
    "permute",
    "transpose",
    "swap",
    "movedim",
    "moveaxis",
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "unsqueeze",
    "expand",
    "mT",
    "T",
    "mH",
    "H",
)
# These give another number of channels, in the axis in which they were.
_PARTS = (
    "cat",
    "concat",
    "concatenate",
    "chunk",
    "split",
    "tensor_split",
    "narrow",
    "pixel_shuffle",
    "pixel_unshuffle",
)
_CHANNELS_AT_1 = ("batch_norm", "instance_norm", "group_norm")
_MATMULS = ("matmul", "mm", "bmm", "addmm", "baddbmm")
_TIMES = ("mul", "multiply", "div", "divide", "true_divide", "einsum", "addcmul", "addcdiv")
_CHOOSES = ("getitem", "gather", "index_select", "take_along_dim", "masked_fill")
_SUMS = ("add", "sub", "subtract", "rsub", "neg", "negative", "pow", "square", "addcmul", "addcdiv")
_SAME_VALUES = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "contiguous", "dropout")
_ELEMENTWISE = (*_TIMES, *_SUMS, *_SAME_VALUES)


@dataclass(frozen=True)
class Gate:
    """The call of a function that is a gate where it multiplies another signal.

    Attributes:
        name: Tells it from other calls.
        source: The `Signal.source` of what it receives.
        of_others: Whether it is a gate if it multiplies another signal; if not, only a product with its own input is
            noted.
    """

    name: Hashable
    source: int
    of_others: bool = True


@dataclass
class Signal:
    """What is known of a tensor.

    Attributes:
        source: The same for all that arithmetic, element by element, makes of one tensor.
        weights: Whether it is a parameter, or computed of parameters alone.
        layer: Class and path of the layer before it.
        axis: That of the channels.
        gates: Those whose values this tensor has, or is computed from alone.
        origins: The names of those that it depends on, in whatever way.
        plus_3: Whether 3 was added to get it, as for the ReLU6 in a hard sigmoid.
    """

    source: int
    weights: bool = False
    layer: tuple[str, str] | None = None
    axis: int | None = None
    gates: tuple[Gate, ...] = ()
    origins: frozenset[Hashable] = frozenset()
    plus_3: bool = False


class Signals:
    """Follows the tensors of one forward from function to function; `gates` has why a call is one, by its name."""

    def __init__(self) -> None:
        self.gates: dict[Hashable, str] = {}
        self._known = WeakTensorKeyDictionary()
        self._sources = count()

    def of(self, tensor: Tensor) -> Signal:
        """What is known of a tensor."""
        signal: Signal | None = self._known.get(tensor)
        if signal is None:
            signal = self._known[tensor] = Signal(next(self._sources), isinstance(tensor, nn.Parameter))
        return signal

    def add_gate(self, name: Hashable, received: Signal, output: Tensor, of_others: bool = True) -> None:
        """Note that a call gave `output`: it is a gate if that multiplies a signal."""
        signal = self.of(output)
        signal.gates += (Gate(name, received.source, of_others),)
        signal.origins |= {name}

    def follow(self, func: Callable[..., Any], output: Any, args: Any, owner: str, activation: bool) -> None:
        """Note what a function, called in the forward of the module at `owner`, made of its arguments."""
        name, inputs = plain_name(func), list(tensors_in(args))
        if name == "to" or name.endswith("_as"):
            # Of the other they take the shape or the type alone.
            inputs = inputs[:1]
        signals = [self.of(tensor) for tensor in inputs]
        # A single number is a number, of whatever type.
        varying = [at for at, signal in enumerate(signals) if not signal.weights and inputs[at].dim()]
        self._multiplied(name, inputs, signals)
        sources = {signals[at].source for at in varying}
        same = name in _ELEMENTWISE and len(sources) == 1
        gates = () if activation else self._carried(name, signals, varying)
        origins = frozenset[Hashable]().union(*(signal.origins for signal in signals))
        weights = bool(inputs) and all(signal.weights for signal in signals)
        before = next((signal.layer for signal in signals if signal.layer is not None), None)
        plus_3 = name == "add" and 3 in [value for value in args if isinstance(value, (int, float))]
        for made in tensors_in(output):
            layer, axis = _layer(name, made, signals, owner)
            if layer is None:
                layer, axis = before, _axis(name, made, inputs, signals)
            source = min(sources) if same else next(self._sources)
            # To be chosen by an index or a mask is not to be computed of it.
            own = origins if made.is_floating_point() else frozenset[Hashable]()
            self._known[made] = Signal(source, weights, layer, axis, gates, own, plus_3)

    def _carried(self, name: str, signals: list[Signal], varying: list[int]) -> tuple[Gate, ...]:
        """The gates whose values, but for arithmetic and the choice of a part, a function gives on."""
        if not varying and len(signals) == 1:
            # The sigmoid of a parameter is a gate too.
            varying = [0]
        if not varying or name.endswith(("_like", "softmax")) or name.startswith("new_"):
            return ()
        gates = signals[varying[0]].gates
        if len(varying) == 1:
            # What else takes weights is a layer.
            alone = len(signals) == 1 or name in _ELEMENTWISE
            return gates if alone else ()
        # w / w.sum()
        if name == "div" and len(signals) == 2:
            return tuple(gate for gate in gates if gate.name in signals[1].origins)
        # What chooses a part by numbers that are computed.
        return gates if name in _CHOOSES else ()

    def _multiplied(self, name: str, inputs: list[Tensor], signals: list[Signal]) -> None:
        """Mark what is multiplied with another signal as a gate."""
        for one, other in _factors(name, len(inputs)):
            if signals[other].weights or not inputs[other].dim():
                continue
            for gate in signals[one].gates:
                # The other factor depends on the gate itself: it is no other signal.
                if gate.name in signals[other].origins:
                    continue
                if gate.source == signals[other].source:
                    self.gates[gate.name] = OF_ITS_OWN
                elif gate.of_others:
                    self.gates[gate.name] = OF_ANOTHER


def plain_name(func: Callable[..., Any]) -> str:
    """The name of a torch function or property: "mul" for x.mul_(y) and x *= y too, "T" for x.T."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    name = name.strip("_")
    return {"rdiv": "div", "rsub": "sub", "rmatmul": "matmul", "rpow": "pow"}.get(name, name)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, and in its lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _factors(name: str, number: int) -> Iterator[tuple[int, int]]:
    """Which of the tensors that a function takes it multiplies with which."""
    factors = [*range(number)] if name in _TIMES else []
    if name.startswith("addc"):
        # The first is added.
        factors = factors[1:]
    pairs = [(one, other) for one in factors for other in factors if one != other]
    if name == "lerp" and number == 3:
        pairs = [(0, 2), (1, 2), (2, 0), (2, 1)]
    yield from pairs


def _layer(name: str, made: Tensor, signals: list[Signal], owner: str) -> tuple[tuple[str, str] | None, int | None]:
    """The class and path of the layer that a function is, and the axis of its channels; None where it is none."""
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
    """Where the channels of what a function gives are, None where that is not known."""
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
