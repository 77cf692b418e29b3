"""Fold the scales and shifts of Affine activations into the layers around them, so that the plain function remains.

Begin with `fold_activations`. flow.py traces which layers an activation's input comes from and its output goes to. For
y = a f(b u + c) + d, b and c go into the layer before, a and d into the layers behind.

Axes in names: S parameter set of the activation, K channel of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aafit.activations import AffineActivation
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import tensors_in
from aafit.networks.flow import PADDED, Arrival, Flow, FunctionCall
from aafit.networks.kinds import activation_name
from aafit.networks.running import check_network, copied, forward_of_sample, probe_of
from aafit.networks.surgery import put_activation
from aafit.tables import table

TOLERANCE = 4096
"""The largest difference between the outputs, relative to the largest output, in units of the dtype's precision."""


@dataclass(frozen=True)
class FoldedActivation:
    """An Affine activation after folding.

    Attributes:
        path: Its path.
        old: The activation, "Affine(ReLU) as SiLU".
        function: The fixed function, "ReLU".
        before: The layer that took the scale and shift of the input; "" if there is none.
        behind: The layers that took the scale and shift of the output.
        remains: The operations that are left beside the function: of "scale before", "shift before", "scale behind" and
            "shift behind".
        why: Why these operations could not be folded; "" if nothing remains.
    """

    path: str
    old: str
    function: str
    before: str
    behind: tuple[str, ...]
    remains: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Fold:
    """The report of `fold_activations`: prints as a table.

    Attributes:
        rows: The Affine activations, in the order of their calls.
        difference: The largest absolute difference between the outputs for the sample before and after.
        largest: The largest absolute output for the sample.
    """

    rows: tuple[FoldedActivation, ...]
    difference: float
    largest: float

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the plain function remains at each activation."""
        return not any(row.remains for row in self.rows)

    def __str__(self) -> str:
        cells = [
            (row.path, row.old, row.function, row.before, ", ".join(row.behind), ", ".join(row.remains) or "nothing")
            for row in self.rows
        ]
        header = ("folded", "activation", "now", "into the layer before", "into layers behind", "remains")
        text = table(header, cells, numbers=False)
        for row in self.rows:
            if row.why:
                text += f"\n{row.path}: {row.why}."
        plain = sum(not row.remains for row in self.rows)
        return (
            f"{text}\n{plain} of {len(self.rows)} activations are plain functions now. The outputs for the sample "
            f"differ by at most {self.difference:.2g} (the largest output is {self.largest:.3g})."
        )


class ScaledFunction(nn.Module):
    """A fixed function with scales and shifts, y = scale f(slope u + shift) + offset: those that could not be folded.

    Args:
        function: An elementwise module.
        rest: Those of "slope", "shift", "scale" and "offset" that are left, of a shape that broadcasts against the
            trailing dimensions of the input.
    """

    slope_parameters: ClassVar[tuple[str, ...]] = ("slope",)
    slope: Tensor | None
    shift: Tensor | None
    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, function: nn.Module, rest: dict[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name in ("slope", "shift", "scale", "offset"):
            self.register_buffer(name, rest.get(name))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function elementwise."""
        u = input if self.slope is None else self.slope * input
        y: Tensor = self.function(u if self.shift is None else u + self.shift)
        y = y if self.scale is None else self.scale * y
        return y if self.offset is None else y + self.offset

    def extra_repr(self) -> str:
        return ", ".join(name for name in ("slope", "shift", "scale", "offset") if getattr(self, name) is not None)


def fold_activations(net: nn.Module, sample: Any) -> tuple[nn.Module, Fold]:
    """Return a copy of `net` in which the scales and shifts of Affine activations are in the layers around them.

    Every y = a f(b u + c) + d becomes the plain function f: the convolution, linear layer or batch norm that computes u
    takes b and c, and those that receive y take a and d. Reshaping, pooling, dropout, concatenation and padding may
    stand between. What a layer cannot take remains at the activation, and the report says why: the tensor is used
    elsewhere too (a residual connection), another operation comes in between (a layer norm, a product), the layer is
    called twice or its weights are shared or computed, or parameters vary within a channel of the layer. A convolution
    with zero padding takes a, but no d: the padding is 0 before and after. Where f is positively homogeneous, as ReLU
    is, an a > 0 can go into the layer before.

    The result computes what `net` does in evaluation mode, within rounding, which is checked on the sample. In training
    mode a batch norm that took a scale behaves differently. Other adaptive activations are left as they are.

    Args:
        net: a network with Affine activations; it is left unchanged.
        sample: an input of the network, as for `replace_activations`. A network whose program depends on its inputs is
            folded for the way that the sample takes.

    Returns:
        The new network, and the report.

    Raises:
        UserError: there is no Affine activation, the sample does not run, or the outputs for it would change.

    Example:
        >>> net, _ = aafit.replace_activations(base, {"SiLU": aafit.Affine("ReLU")}, sharing="channel", sample=images)
        >>> plain, report = aafit.fold_activations(net, images)
        >>> print(report)
    """
    check_network(net)
    if sample is None:
        raise UserError("Folding follows a forward of the network: give an input of the network as the sample.")
    activations = {path: one for path, one in adaptive_activations(net).items() if isinstance(one, AffineActivation)}
    if not activations:
        raise UserError("There is nothing to fold: the network has no Affine activation.")
    if "" in activations:
        raise UserError("The network itself is an Affine activation: put it into an nn.Sequential to fold it.")
    folded = copied(net)
    flow = Flow.of(folded, sample)
    layers = _Layers(folded, flow)
    rows = []
    for path in activations:
        activation = folded.get_submodule(path)
        assert isinstance(activation, AffineActivation)
        rows.append(_fold(folded, path, activation, layers))
    outputs = [tensors_in(forward_of_sample(probe_of(one), sample)) for one in (net, folded)]
    pairs = [(one.double(), other.double()) for one, other in zip(*outputs, strict=True) if one.is_floating_point()]
    difference = max((_largest(one - other) for one, other in pairs), default=0.0)
    largest = max((_largest(one) for one, _ in pairs), default=0.0)
    precision = max((torch.finfo(one.dtype).eps for one in outputs[0] if one.is_floating_point()), default=0.0)
    if not difference <= TOLERANCE * precision * largest:
        raise UserError(
            f"Folding would change the outputs for the sample by up to {difference:.3g} (the largest output is "
            f"{largest:.3g}): the network's program depends on values that folding changes. Keep the network as it is."
        )
    return folded, Fold(tuple(rows), difference, largest)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


class _Layers:
    """The layers of a network that can take a scale or a shift, as a forward shows them."""

    def __init__(self, net: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self._owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
        for path, module in net.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._owners.setdefault(id(parameter), []).append((path, module, name))

    def path(self, call: FunctionCall) -> str:
        """Return the path of the module that has the layer's weight."""
        return self._of_weight(call)[0]

    def why_not(self, call: FunctionCall, shifted: bool) -> str:
        """Return why the layer of a call cannot be changed; "" if it can.

        Args:
            call: of a layer.
            shifted: whether it takes a shift too, for which it needs a bias.
        """
        weight, bias = call.argument("weight"), call.argument("bias")
        if weight is None:
            return f"{call} has no weight"
        for parameter in (weight, bias):
            if parameter is None:
                continue
            owners = self._owners.get(id(parameter), [])
            if not owners:
                return f"the weights of {call} are computed"
            if len(owners) > 1 or len(self.flow.consumers[id(parameter)]) > 1:
                return f"{owners[0][0]!r} is called more than once, or its weights are shared"
        _, module, name = self._of_weight(call)
        if nn.utils.parametrize.is_parametrized(module):
            return f"{self.path(call)!r} is parametrized"
        own_bias = "bias" in module._parameters and name == "weight"
        if shifted and bias is None and not own_bias:
            return f"{self.path(call)!r} has no bias"
        if call.layer == "batch_norm" and (bias is None or call.argument("running_mean") is None):
            return f"{self.path(call)!r} has no bias or no running statistics"
        return ""

    def weight(self, call: FunctionCall) -> Tensor:
        """Return the present weight of a layer in float64."""
        _, module, name = self._of_weight(call)
        weight: Tensor = getattr(module, name).detach().double()
        return weight

    def set_weight(self, call: FunctionCall, values: Tensor) -> None:
        """Set the weight of a layer."""
        _, module, name = self._of_weight(call)
        _set(module, name, values)

    def bias(self, call: FunctionCall) -> Tensor:
        """Return the present bias of a layer, (K,) in float64; 0 if it has none."""
        module, name = self._bias(call)
        bias, weight = getattr(module, name, None), call.argument("weight")
        if bias is not None:
            own: Tensor = bias.detach().double()
            return own
        axis = _channel_axis(call, call.output)
        return torch.zeros(call.output.shape[axis], dtype=torch.float64, device=weight.device)

    def set_bias(self, call: FunctionCall, values_K: Tensor) -> None:
        """Set the bias of a layer, which gets one if it has none."""
        module, name = self._bias(call)
        weight = call.argument("weight")
        if getattr(module, name, None) is not None:
            _set(module, name, values_K)
        elif values_K.any():
            own = values_K.to(weight.device, weight.dtype)
            module.register_parameter(name, nn.Parameter(own, requires_grad=weight.requires_grad))

    def _of_weight(self, call: FunctionCall) -> tuple[str, nn.Module, str]:
        """Return the path of the module that has the layer's weight, the module, and the weight's name in it."""
        return self._owners[id(call.argument("weight"))][0]

    def _bias(self, call: FunctionCall) -> tuple[nn.Module, str]:
        """Return the module that has the layer's bias, or would get one, and its name in it."""
        bias = call.argument("bias")
        if bias is None:
            return self._of_weight(call)[1], "bias"
        _, module, name = self._owners[id(bias)][0]
        return module, name


def _set(module: nn.Module, name: str, values: Tensor) -> None:
    # In place: the forward that was traced has this parameter.
    with torch.no_grad():
        getattr(module, name).copy_(values)


def _fold(net: nn.Module, path: str, activation: AffineActivation, layers: _Layers) -> FoldedActivation:
    """Fold one activation of `net`, in place."""
    a_S, b_S, c_S, d_S = (value.double().flatten() for value in activation.constants())
    calls = [call for call in layers.flow.calls if call.activation == path]
    reasons: list[str] = []
    before = None
    behind: list[tuple[Arrival, Tensor]] = []
    if len(calls) != 1:
        reasons.append(f"the forward calls it {len(calls)} times")
    else:
        behind, reason, shiftable = _behind(calls[0], activation, layers)
        takes_a = not reason and not (any(one.through_maximum for one, _ in behind) and (a_S <= 0).any())
        if not reason and not takes_a:
            reason = "a maximum comes behind it, and a scale is not above 0"
        takes_d = takes_a and not shiftable
        found = _before(calls[0], activation, layers)
        if not isinstance(found, str):
            before, set_K = found
            if not takes_a and "b" not in activation.free and (a_S > 0).all():
                # a f(v) = f(a v).
                b_S, c_S, a_S = a_S * b_S, a_S * c_S, torch.ones_like(a_S)
            _into_before(before, set_K, b_S, c_S, layers)
            b_S, c_S = torch.ones_like(b_S), torch.zeros_like(c_S)
        elif (b_S != 1).any() or (c_S != 0).any():
            reasons.append(f"the input: {found}")
        if takes_a:
            if not takes_d and (d_S != 0).any() and (a_S == 0).any():
                takes_a, reason = False, "a scale is 0"
            else:
                _into_behind(behind, a_S, d_S if takes_d else torch.zeros_like(d_S), layers)
                d_S = torch.zeros_like(d_S) if takes_d else d_S / a_S
                a_S = torch.ones_like(a_S)
        if (a_S != 1).any() or (d_S != 0).any():
            reasons.append(f"the output: {reason or shiftable}")
        if not takes_a:
            behind = []
    rest_S = {"slope": b_S, "shift": c_S, "scale": a_S, "offset": d_S}
    neutral = {"slope": 1.0, "shift": 0.0, "scale": 1.0, "offset": 0.0}
    rest = {name: x.reshape(activation.shape) for name, x in rest_S.items() if (x != neutral[name]).any()}
    function = activation.function_module()
    name = activation_name(function)
    put_activation(net, path, ScaledFunction(function, rest) if rest else function)
    words = {"slope": "scale before", "shift": "shift before", "scale": "scale behind", "offset": "shift behind"}
    return FoldedActivation(
        path,
        activation.text,
        name,
        "" if before is None else layers.path(before),
        tuple(dict.fromkeys(layers.path(arrival.call) for arrival, _ in behind)),
        tuple(words[name] for name in rest),
        "; ".join(reasons) if rest else "",
    )


def _random_labels(count: int) -> Tensor:
    return 1 + torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort().values


def _index_of(labels: Tensor, known: Tensor) -> Tensor:
    """Return the index of each label; -1 for padding, -2 for elements of other tensors."""
    above = torch.searchsorted(known, labels.nan_to_num(0.0)).clamp(0, len(known) - 1)
    below = (above - 1).clamp(min=0)
    index = torch.where((known[above] - labels).abs() < (known[below] - labels).abs(), above, below)
    return torch.where(labels.isnan(), -2, torch.where(labels == PADDED, -1, index))


def _sets_of(activation: AffineActivation, u: Tensor) -> Tensor:
    """Return the index of the parameter set of each element of an input, in its shape."""
    return torch.arange(torch.Size(activation.shape).numel()).reshape(activation.shape).expand(u.shape)


def _channel_axis(call: FunctionCall, of: Tensor) -> int:
    if call.layer == "linear":
        return of.dim() - 1
    return 1 if call.layer == "batch_norm" else of.dim() - 1 - int(call.name[-2])


def _behind(
    call: FunctionCall, activation: AffineActivation, layers: _Layers
) -> tuple[list[tuple[Arrival, Tensor]], str, str]:
    """Find the layers behind an activation.

    Returns:
        The layers, each with the index of the parameter set of each of its input channels, (K,), -2 for channels of
        other tensors; why they cannot take a scale; why they cannot take a shift. The reasons are "" if they can.
    """
    y = call.output
    known = _random_labels(torch.Size(activation.shape).numel())
    arrivals, reason = layers.flow.follow(y, known[_sets_of(activation, y)])
    if reason or not arrivals:
        return [], reason or "nothing takes it", ""
    found, no_shift = [], ""
    for arrival in arrivals:
        layer = arrival.call
        if layer.activation is not None:
            return [], f"{layer} takes it", ""
        if why := layers.why_not(layer, shifted=False):
            return [], why, ""
        index = _index_of(arrival.labels, known)
        rows = index.movedim(_channel_axis(layer, index), 0).flatten(1)
        padded = rows == -1
        set_K = rows.amax(1)
        if ((rows != set_K[:, None]) & ~padded).any():
            return [], f"its parameters vary within a channel of {layers.path(layer)!r}", ""
        found.append((arrival, set_K))
        no_shift = no_shift or layers.why_not(layer, shifted=True)
        if padded.any() or (layer.layer == "conv" and _has_padding(layer)):
            no_shift = no_shift or f"zero padding before {layers.path(layer)!r} takes no shift"
        if layer.layer == "conv_transpose":
            no_shift = no_shift or f"the transposed convolution {layers.path(layer)!r} takes no shift at its borders"
    return found, "", no_shift


def _has_padding(call: FunctionCall) -> bool:
    padding = call.argument("padding")
    if isinstance(padding, str):
        kernel = call.argument("weight").shape[2:]
        return padding == "same" and any(size > 1 for size in kernel)
    return padding is not None and any(torch.as_tensor(padding).flatten().tolist())


def _before(call: FunctionCall, activation: AffineActivation, layers: _Layers) -> tuple[FunctionCall, Tensor] | str:
    """Return the layer before an activation and the parameter set of each of its K channels; or why there is none."""
    u = tensors_in(list(call.args))[0]
    layer = layers.flow.source(u)
    if isinstance(layer, str):
        return layer
    if why := layers.why_not(layer, shifted=True):
        return why
    out = layer.output
    axis = _channel_axis(layer, out)
    known = _random_labels(out.shape[axis])
    shape = [-1 if at == axis else 1 for at in range(out.dim())]
    arrivals, reason = layers.flow.follow(out, known.reshape(shape).expand(out.shape))
    if reason or len(arrivals) != 1 or arrivals[0].call is not call:
        others = [one.call for one in arrivals if one.call is not call]
        return reason or f"{layers.path(layer)!r} feeds {', '.join(map(str, others)) or 'it twice'} too"
    b_S = activation.constants()[1].flatten()
    if arrivals[0].through_maximum and (b_S <= 0).any():
        return "a maximum comes before it, and a scale is not above 0"
    channel, sets = _index_of(arrivals[0].labels, known).flatten(), _sets_of(activation, u).flatten()
    if (channel < 0).any():
        return "padding comes before it"
    set_K = torch.full((len(known),), -2).scatter(0, channel, sets)
    if (set_K[channel] != sets).any():
        return f"its parameters vary within a channel of {layers.path(layer)!r}"
    return layer, set_K


def _per_channel(values_S: Tensor, set_K: Tensor, neutral: float, device: torch.device) -> Tensor:
    return torch.where(set_K >= 0, values_S.cpu()[set_K.clamp(min=0)], neutral).to(device)


def _per_row(values_K: Tensor, call: FunctionCall, weight: Tensor) -> Tensor:
    """Return values of channels for each row of a weight, which belongs to one group: (rows, channels of a group)."""
    groups = 1 if call.layer == "linear" else call.argument("groups") or 1
    return values_K.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)


def _into_before(call: FunctionCall, set_K: Tensor, b_S: Tensor, c_S: Tensor, layers: _Layers) -> None:
    """Change a layer so that it returns b y + c instead of y, in place."""
    weight = layers.weight(call)
    b_K, c_K = _per_channel(b_S, set_K, 1.0, weight.device), _per_channel(c_S, set_K, 0.0, weight.device)
    # The weight of a transposed convolution is (input channels, output channels of a group, ...).
    scale = _per_row(b_K, call, weight) if call.layer == "conv_transpose" else b_K
    layers.set_weight(call, weight * _trailing(scale, weight))
    layers.set_bias(call, b_K * layers.bias(call) + c_K)


def _into_behind(behind: Sequence[tuple[Arrival, Tensor]], a_S: Tensor, d_S: Tensor, layers: _Layers) -> None:
    """Change layers so that they return for z what they returned for a z + d, in place."""
    for arrival, set_K in behind:
        call = arrival.call
        weight = layers.weight(call)
        a_K, d_K = _per_channel(a_S, set_K, 1.0, weight.device), _per_channel(d_S, set_K, 0.0, weight.device)
        if call.layer == "batch_norm":
            mean_K, eps = call.argument("running_mean").double(), call.argument("eps")
            deviation_K = (call.argument("running_var").double() + (1e-5 if eps is None else eps)).sqrt()
            shift_K = weight * (d_K + (a_K - 1) * mean_K) / deviation_K
            scaled = weight * a_K
        elif call.layer == "conv_transpose":
            scaled, shift_K = weight * _trailing(a_K, weight), torch.zeros_like(layers.bias(call))
        else:
            # The weight of a convolution is (output channels, input channels of a group, ...).
            scaled = weight * _trailing(_per_row(a_K, call, weight), weight)
            shift_K = (weight * _trailing(_per_row(d_K, call, weight), weight)).flatten(1).sum(1)
        layers.set_weight(call, scaled)
        if d_S.any() or call.layer == "batch_norm":
            layers.set_bias(call, layers.bias(call) + shift_K)


def _trailing(values: Tensor, like: Tensor) -> Tensor:
    """Return values with trailing dimensions, so that they broadcast against the leading ones of a weight."""
    return values.reshape(*values.shape, *[1] * (like.dim() - values.dim()))
