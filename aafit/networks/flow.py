"""Trace which tensors flow where in one forward: from an activation to the layers that receive its output, and back.

`Flow` records every torch function of a forward with the tensors that it takes and returns. `Flow.follow` carries a
label for each element of a tensor through operations that only move, select or average elements, so that a layer's
channels can be distinguished however the tensor is reshaped in between.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aafit.activations import AdaptiveActivation
from aafit.networks.batches import tensors_in
from aafit.networks.call_sites import observe_other_calls
from aafit.networks.running import forward_of_sample, probe_of
from aafit.networks.signals import plain_name

COPIES = (
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis",
    "squeeze", "unsqueeze", "contiguous", "clone", "detach", "to", "type_as", "getitem", "chunk", "split",
    "tensor_split", "narrow", "expand", "T", "mT", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold",
    "roll", "flip", "pad", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "cat", "concat",
    "concatenate", "interpolate", "upsample",
)  # fmt: skip
"""Functions that move or select elements; an interpolation is an average with weights that sum to 1."""
SAME = ("to", "type_as", "contiguous", "clone", "detach")
AVERAGES = ("mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))
MAXIMA = ("amax", *(f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))
JOINS = ("cat", "concat", "concatenate")
LAYERS = {
    **{f"conv{n}d": "conv" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": "conv_transpose" for n in (1, 2, 3)},
    "linear": "linear",
    "batch_norm": "batch_norm",
}
"""The kinds of layers, by the name of the function that computes them."""
READS = ("item", "tolist", "numpy", "bool", "float", "int", "index", "equal", "allclose", "is_nonzero", "array")
"""Functions that return no tensor, but a result that depends on the values; that of all others depends on the shape
and dtype only."""
_ARGUMENTS = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
PADDED = 0.0
"""The label of an element that zero padding adds."""
MIXED = -1.0
"""The label of the largest of elements with different labels."""


@dataclass(eq=False)
class FunctionCall:
    """A call in a forward, of a torch function or of an adaptive activation.

    Attributes:
        name: Of the function; "" for an activation.
        func, args, kwargs: The call.
        output: What it returned.
        activation: Path of the activation; None for a function.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = field(repr=False)
    activation: str | None = None

    @property
    def layer(self) -> str | None:
        """The kind of the layer: "conv", "conv_transpose", "linear" or "batch_norm"; None if it is none of these."""
        return LAYERS.get(self.name)

    @property
    def passes(self) -> bool:
        """Whether it only moves, selects or averages elements, or takes their maximum."""
        return self.name in COPIES or self.name in AVERAGES or self.name in MAXIMA

    def argument(self, name: str) -> Any:
        """Return an argument of a layer by name; None if it is not given."""
        at = _ARGUMENTS[self.layer or ""].index(name)
        return self.args[at] if at < len(self.args) else self.kwargs.get(name)

    def __str__(self) -> str:
        if self.activation is not None:
            return f"the activation {self.activation!r}"
        added = self.name.startswith("add") and sum(isinstance(given, Tensor) for given in self.args) > 1
        return f"a sum of two tensors ({self.name})" if added else self.name


@dataclass(frozen=True)
class Arrival:
    """A layer or activation that receives the elements of a tensor.

    Attributes:
        call: The call that receives them.
        labels: The label of each element of its input: as given, `PADDED`, or NaN for those of other tensors.
        through_maximum: Whether a maximum of several elements was taken on the way.
    """

    call: FunctionCall
    labels: Tensor
    through_maximum: bool


class Flow(TorchFunctionMode):
    """The calls of one forward, with the tensors that each takes and returns.

    Attributes:
        calls: In their order.
        consumers: The calls that take a tensor, by its id; all tensors are kept, so that ids stay unique.
        producers: The call that returned a tensor, by its id.
        outputs: The ids of the tensors that the network returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[FunctionCall] = []
        self.consumers: defaultdict[int, list[FunctionCall]] = defaultdict(list)
        self.producers: dict[int, FunctionCall] = {}
        self.outputs: set[int] = set()
        self._kept: list[Any] = []
        self._inside = 0

    @classmethod
    def of(cls, net: nn.Module, sample: Any) -> Self:
        """Trace a forward of `net` for a sample; the parameters in the calls are those of `net` itself.

        Raises:
            UserError: the sample has no form that the network takes, or its forward fails.
        """
        flow, probe = cls(), probe_of(net)
        observe_other_calls(probe, flow)
        for path, module in probe.named_modules():
            if isinstance(module, AdaptiveActivation):
                module.register_forward_pre_hook(flow._enter)
                module.register_forward_hook(partial(flow._leave, path), always_call=True)
        returned = forward_of_sample(probe, sample, flow)
        flow._kept.append(returned)
        flow.outputs = {id(tensor) for tensor in tensors_in(returned)}
        return flow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = plain_name(func)
        if not self._inside and (tensors_in(output) or name in READS):
            raw = getattr(func, "__name__", "")
            in_place = raw.endswith("_") and not raw.startswith("__")
            self._note(FunctionCall(f"{name} in place" if in_place else name, func, args, kwargs or {}, output))
        return output

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._inside += 1

    def _leave(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside -= 1
        if not self._inside:
            self._note(FunctionCall("", module, args, {}, output, path))

    def _note(self, call: FunctionCall) -> None:
        taken, made = tensors_in([*call.args, *call.kwargs.values()]), tensors_in(call.output)
        if call.passes and len(made) == 1 and any(made[0] is one for one in taken):
            # Dropout in evaluation mode, or contiguous(): nothing happens.
            return
        self.calls.append(call)
        self._kept.append(call)
        for key in dict.fromkeys(map(id, taken)):
            self.consumers[key].append(call)
        for tensor in made:
            self.producers[id(tensor)] = call

    def follow(self, tensor: Tensor, labels: Tensor) -> tuple[list[Arrival], str]:
        """Carry labels from a tensor to all layers and activations that receive its elements.

        Args:
            tensor: One of the forward.
            labels: A label for each of its elements, in float64, of its shape: numbers above 1, drawn at random so that
                an average of different ones is none of them.

        Returns:
            The arrivals, and what else receives the elements; "" if nothing does.
        """
        known = labels.unique()
        arrivals: list[Arrival] = []
        ends = [(tensor, labels, False)]
        while ends:
            at, own, maximum = ends.pop()
            if id(at) in self.outputs:
                return arrivals, "it is an output of the network"
            for call in self.consumers[id(at)]:
                if call.activation is not None or (call.layer is not None and call.argument("input") is at):
                    arrivals.append(Arrival(call, own, maximum))
                    continue
                if not call.passes:
                    return arrivals, f"{call} takes it"
                made = _carried(call, at, own)
                if made is None:
                    return arrivals, f"{call} takes it together with another tensor"
                for output, carried in zip(tensors_in(call.output), made, strict=False):
                    if output.is_floating_point():
                        if not _are_labels(carried, known):
                            return arrivals, f"{call} mixes channels, or channels and padding"
                        ends.append((output, carried, maximum or call.name in MAXIMA))
        return arrivals, ""

    def source(self, tensor: Tensor) -> FunctionCall | str:
        """Return the layer whose output a tensor is, through operations that pass elements on; or why there is none."""
        while True:
            call = self.producers.get(id(tensor))
            if call is None:
                return "it is an input of the network"
            if call.layer is not None:
                return call
            if not call.passes or call.name in JOINS:
                return f"{call} gives it"
            (tensor, *_) = tensors_in([*call.args, *call.kwargs.values()])


def _carried(call: FunctionCall, at: Tensor, labels: Tensor) -> list[Tensor] | None:
    """Return the labels of the outputs of a call that takes `at`; None if another tensor decides about its values."""
    if call.name in SAME:
        return [labels]
    others = [one for one in tensors_in([*call.args, *call.kwargs.values()]) if one is not at]
    if call.name not in JOINS and any(one.is_floating_point() for one in others):
        return None

    def replaced(value: Any, labels: Tensor = labels) -> Any:
        if value is at:
            return labels
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.full(value.shape, float("nan"), dtype=labels.dtype)
        return type(value)(map(replaced, value)) if type(value) in (list, tuple) else value

    with torch.no_grad():
        made = call.func(*map(replaced, call.args), **{name: replaced(value) for name, value in call.kwargs.items()})
        if call.name in MAXIMA:
            # The least label must be the largest one.
            args = [replaced(value, -labels) for value in call.args]
            least = call.func(*args, **{name: replaced(value, -labels) for name, value in call.kwargs.items()})
            one, other = tensors_in(made)[0], -tensors_in(least)[0]
            return [torch.where((one == other) | one.isnan(), one, MIXED)]
    return tensors_in(made)


def _are_labels(values: Tensor, known: Tensor) -> bool:
    own = values[~values.isnan() & (values != PADDED)]
    known = known[~known.isnan() & (known != PADDED)].sort().values
    above = torch.searchsorted(known, own).clamp(0, len(known) - 1)
    near = torch.minimum((known[above] - own).abs(), (known[(above - 1).clamp(min=0)] - own).abs())
    return bool((near < 1e-9).all())
