"""Can the adaptive parameters move at all? Their gradients, their curvature, and what rounding leaves of a step.

Axes in names: B image, P element of all parameters.

What one step of an optimizer does to the elements of a parameter, and in words.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron
from aafit.activations.piecewise_linear import interpolate
from aafit.errors import UserError, check_count
from aafit.identification.coordinates import Coordinates, check_network
from aafit.identification.losses import Loss
from aafit.identification.outputs import check_targets, losses_of
from aafit.identification.problem import Problem
from aafit.identification.samples import first_samples, outputs_of, with_targets
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch, Output
from aafit.networks.running import evaluation_mode, own_modes, watched
from aafit.tables import fit_for_json, listed, ranges, table
from aafit.training.tune import make_optimizers

MINIBATCH = 128
MEASURABLE = 1e-6
MANY_STEPS = 10_000

# What becomes of an element, in the order in which it is asked: said of one, and of several.
STATES = {
    "not finite": ("stuck: its value is not finite", "stuck: their values are not finite"),
    "not called": ("stuck: the forward pass does not call it", "stuck: the forward pass does not call them"),
    "unknown": ("unknown: a value or the output is not finite", "unknown: a value or the output is not finite"),
    "rounds away": (
        "stuck: a step of {full:.2g} is less than half the spacing {spacing:.2g} of {dtype} at {value:.6g}",
        "stuck: steps of {full:.2g} are less than half the {dtype} spacing",
    ),
    "no input": ("stuck: no input reaches it", "stuck: no input reaches them"),
    "no gradient": ("stuck: its gradient is too small to matter", "stuck: their gradients are too small to matter"),
    "tiny step": (
        "stuck: its gradient is far below {optimizer}'s eps, and the step left, {step:.2g}, rounds away",
        "stuck: gradients far below {optimizer}'s eps, and the steps left round away",
    ),
    "weak": (
        "hardly moves: its gradient is below {optimizer}'s eps, which leaves a step of {step:.2g}",
        "hardly move: gradients below {optimizer}'s eps, which leaves less than half a step",
    ),
    "slow": (
        "hardly moves: a change of {way:.2g} takes {steps:,.0f} steps of {step:.2g}",
        "hardly move: they need over 10,000 steps of {step:.2g}",
    ),
    "moves": ("moves", "move"),
}
STUCK = ("not finite", "not called", "rounds away", "no input", "no gradient", "tiny step")


@dataclass(frozen=True)
class Setting:
    """How a parameter is stepped: the optimizer's name, the settings of its group; what was seen on how many images."""

    optimizer: str
    group: Mapping[str, Any]
    images: int
    finite: bool
    called: bool


@dataclass(frozen=True)
class Elements:
    """What was found of one parameter: float64 tensors of its shape on the CPU, and a key of STATES for each element.

    Attributes:
        step: The first of the optimizer.
        full: The same without eps, a bound of `step`.
        spacing: The distance to the next larger value, in size, that the parameter's dtype has.
        way: How far the element has to go, to its own optimum or by its own size.
        states: In flat order.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor
    step: Tensor
    full: float
    spacing: Tensor
    way: Tensor
    states: tuple[str, ...]


def step_settings(
    activations: Mapping[str, AdaptiveActivation], optimizer: str, lr: float | None, p24sl: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """The settings with which `tune`'s optimizer would step each parameter, by path and name."""
    copies = nn.ModuleList([deepcopy(activation) for activation in activations.values()]).requires_grad_(True)
    (made,) = make_optimizers(copies, optimizer, lr, p24sl)
    of = {parameter: group for group in made.param_groups for parameter in group["params"]}
    return {
        (path, own): of[parameter]
        for path, copied in zip(activations, copies, strict=True)
        for own, parameter in copied.named_parameters(recurse=False)
    }


def spacing_at(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from a value to the next larger one, in size, that the dtype has; in float64."""
    info = torch.finfo(dtype)
    exponent = value.double().abs().clamp(min=info.tiny).frexp().exponent
    return torch.ldexp(torch.full_like(value, info.eps, dtype=torch.float64), exponent - 1)


def examined(parameter: Tensor, sums: Tensor | None, membership: Tensor | None, setting: Setting) -> Elements:
    """What becomes of each element of a parameter, see `aafit.audit`.

    Args:
        parameter: as it is.
        sums: over the images, of the gradients, their squares, and the squares of the curvature's columns, (3, ...);
            None where they are not known.
        membership: of an F-Neuron's weights, summed over all inputs.
        setting: of the step.
    """
    value, dtype, group = parameter.detach().double().cpu(), parameter.dtype, setting.group
    known = torch.full((3, *value.shape), torch.nan, dtype=torch.float64) if sums is None else sums
    gradient, squares, curvature = known / setting.images
    variance = (squares - gradient.square()).clamp(min=0)
    typical = (gradient.square() + variance / MINIBATCH).sqrt()
    # RMSprop's first mean of squares is (1 - alpha) g^2; Adam makes up for that.
    share = (1 - group["alpha"]) ** 0.5 if "alpha" in group else 1.0
    full = group["lr"] / share
    step = group["lr"] * typical / (share * typical + group["eps"])
    size = value.abs().clamp(min=1)
    way = torch.minimum(gradient.abs() / curvature, size)
    towards = torch.where(gradient == 0, value.sign(), -gradient.sign())

    def same(change: Tensor | float) -> Tensor:
        return (value + towards * change).to(dtype) == value.to(dtype)

    never, always = torch.zeros_like(value, dtype=torch.bool), torch.ones_like(value, dtype=torch.bool)
    masks = {
        "not finite": ~value.isfinite(),
        "not called": never if setting.called else always,
        "unknown": never if setting.finite else always,
        "rounds away": same(full) & (full < spacing_at(value, dtype) / 2),
        "no input": never if membership is None else membership == 0,
        "no gradient": (typical * size < MEASURABLE) & (curvature * size.square() / 2 < MEASURABLE),
        "tiny step": same(step),
        "weak": step < full / 2,
        "slow": (way > MANY_STEPS * step) & (gradient.abs() > 2 * (variance / setting.images).sqrt()),
        "moves": always,
    }
    order = list(STATES)
    first = torch.stack([masks[state].flatten() for state in order]).int().argmax(0)
    states = tuple(order[index] for index in first.tolist())
    return Elements(value, gradient, curvature, step, full, spacing_at(value, dtype), way, states)


def verdict(found: Elements, dtype: torch.dtype, optimizer: str) -> str:
    """In words: of one element a sentence, of several how many do what, with semicolons between."""
    count = Counter(found.states)
    if len(found.states) == count["moves"]:
        return "moves"
    numbers = {
        "full": found.full,
        "step": found.step.max().item(),
        "way": found.way.max().item(),
        "steps": (found.way / found.step).max().item(),
        "spacing": found.spacing.max().item(),
        "value": found.value.flatten()[0].item(),
        "dtype": type_name(dtype),
        "optimizer": {"adam": "Adam", "rmsprop": "RMSprop"}[optimizer],
    }
    if len(found.states) == 1:
        return STATES[found.states[0]][0].format(**numbers)
    said = [
        f"{'all' if count[state] == len(found.states) else format(count[state], ',')} {several.format(**numbers)}"
        for state, (_, several) in STATES.items()
        if count[state] and state != "moves"
    ]
    return "; ".join(said + ["the others move"] * (count["moves"] > 0))


def type_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")


EXACT_OUTPUTS = 2_000
WIDTH = 124
SMALLER_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AuditRow:
    """One parameter. Where it has several elements, `gradient` and `curvature` are medians of the absolute values.

    Attributes:
        value: (smallest, largest).
        smallest_gradient: In absolute value.
        step: Of the optimizer, the largest among the elements.
        spacing: Of the parameter's dtype at its value, away from 0; the median.
        stuck: Share of the elements that do not move.
        too_large_for: Smaller dtypes that cannot hold the value.
        outside: Share of an F-Neuron's inputs outside its interval.
        unreached: Elements, in flat order, of an F-Neuron that the layer shares to which no input gives any membership.
    """

    name: str
    dtype: str
    elements: int
    value: tuple[float, float]
    gradient: float
    smallest_gradient: float
    curvature: float
    smallest_curvature: float
    step: float
    spacing: float
    stuck: float
    too_large_for: tuple[str, ...]
    outside: float | None
    interval: tuple[float, float] | None
    unreached: tuple[int, ...]
    verdict: str


@dataclass(frozen=True)
class Audit:
    """What `audit` found: prints as a table.

    Attributes:
        rows: one for each parameter, in the order of the network's modules.
        loss: mean loss over the samples, in the units of the loss.
        images: how many samples it was computed from.
        optimizer: whose steps were judged.
        elements: the tensors behind each row, by its name.
    """

    rows: tuple[AuditRow, ...]
    loss: float
    images: int
    optimizer: str
    elements: Mapping[str, Elements] = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; what is not finite becomes None."""
        rows = [asdict(row) for row in self.rows]
        found = {"images": self.images, "loss": self.loss, "optimizer": self.optimizer, "rows": rows}
        return fit_for_json(found)

    def __str__(self) -> str:
        lines = [_table(self.rows)]
        if any(row.elements > 1 for row in self.rows):
            lines.append("Of several: values from the smallest to the largest; smallest / median size of the others.")
        for row in self.rows:
            if row.outside is not None and row.interval is not None:
                layer = row.name.rpartition(".")[0] or "the network"
                text = (
                    f"{layer}: {row.outside:.2%} of the inputs are outside [{row.interval[0]:g}, {row.interval[1]:g}]"
                )
                reached = f"; none reaches the weights {ranges(row.unreached)}" if row.unreached else ""
                lines.append(f"{text}{reached}")
        for dtype in SMALLER_TYPES:
            named = [row.name for row in self.rows if type_name(dtype) in row.too_large_for]
            if named:
                lines.append(f"Too large for {type_name(dtype)} (at most {torch.finfo(dtype).max:g}): {listed(named)}")
        lines.append(f"{self.images} images, loss {self.loss:.4f}; steps of {self.optimizer}")
        return "\n".join(lines)


def audit(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    base: nn.Module | None = None,
    output: Output | None = None,
    loss: Loss | str | Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: str = "adam",
    lr: float | None = None,
    p24sl: bool = False,
    images: int = 512,
    batch_size: int = 64,
    precision: str = "float32",
) -> Audit:
    """Which adaptive parameters of `net` gradient steps can move, on the first `images` of `batches`.

    Gradient and curvature are of the mean loss, in evaluation mode, by the parameter itself. Batches, `output` and
    `loss` are as for `identify`; the targets are the outputs of `base` where it is given, else the labels. The
    curvature is the diagonal of the Gauss-Newton matrix; where outputs and images are many it is estimated from one
    random column an image, right on average. The network gets `batch_size` images at once, or fewer where its
    parameters are many. `net` is left as it was.

    The step is the first one of `aafit.tune`'s optimizers, from a gradient g: lr |g| / (|g| + eps) of Adam, and
    lr |g| / (sqrt(1 - alpha) |g| + eps) of RMSprop, which no later step of a steady gradient exceeds. For g stands the
    typical gradient of a minibatch of 128, sqrt(g^2 + var / 128) with the variance over the images. Each parameter
    has the lr of its group, so p24sl's slow ones have theirs. What happens to an element is asked in this order:

    - It rounds away: even the step without eps, however large its gradient, is none in its dtype.
    - No input reaches it: the membership of an F-Neuron's weight is 0 for all inputs.
    - No gradient: a change by m = max(|value|, 1) would change the loss by less than 1e-6, to first and second order.
    - It hardly moves: eps takes away more than half of the step; or g exceeds twice its standard error, and it takes
      more than 10,000 steps to the optimum along this parameter alone, |g| / curvature away, or to a change by m.
    - It moves.

    Raises:
        UserError: no adaptive activation, a scripted network, no images, a batch size below 1, images that are not
            finite or that the network refuses, labels that do not fit its outputs, or an unknown optimizer or
            precision.
    """
    check_network(net)
    check_count("batch size", batch_size)
    activations = adaptive_activations(net)
    if not activations:
        raise UserError("The network has no adaptive activation to audit: put some in with replace_activations first.")
    groups = step_settings(activations, optimizer, lr, p24sl)
    data = first_samples(net, batches, images, "audit on", base, output)
    names = {
        parameter: f"{path}.{own}" if path else own
        for path, activation in activations.items()
        for own, parameter in activation.named_parameters(recurse=False)
    }
    # A row of every parameter's gradient for each image is kept, in float64.
    size = max(1, min(batch_size, 8_000_000 // sum(parameter.numel() for parameter in names)))
    with evaluation_mode(net, *([] if base is None else [base])):
        data, made = with_targets(data, base, loss, size, precision, output)
    received = {path: _Received(activation) for path, activation in activations.items()}
    outputs_NK = _watched_outputs(net, data, received, size, precision, output)
    check_targets(made, outputs_NK, data.target)
    finite = bool(outputs_NK.isfinite().all()) and all(bool(parameter.isfinite().all()) for parameter in names)
    called = [activation for path, activation in activations.items() if received[path].inputs]
    measured = {}
    if finite and called:
        problem = Problem(net, Coordinates(nn.ModuleList(called)), made, size, precision, output)
        measured = _measured(problem, data, exact=outputs_NK.numel() <= EXACT_OUTPUTS)
    rows, elements = [], {}
    for path, activation in activations.items():
        for own, parameter in activation.named_parameters(recurse=False):
            name, seen = names[parameter], received[path]
            sums = measured.get(parameter)
            setting = Setting(optimizer, groups[path, own], len(data), finite, bool(seen.inputs))
            elements[name] = examined(parameter, sums, seen.membership, setting)
            rows.append(_row(name, elements[name], seen, parameter.dtype, optimizer))
    mean_loss = losses_of(made, outputs_NK, data.target).mean().item()
    rates = sorted({float(group["lr"]) for group in groups.values()}, reverse=True)
    steps = f"{optimizer} at {rates[0]:g}" + (f", p24sl {rates[1]:g}" if len(rates) > 1 else "")
    return Audit(tuple(rows), mean_loss, len(data), steps, elements)


class _Received:
    """What one activation receives: how many numbers, and of an F-Neuron how many where."""

    def __init__(self, activation: AdaptiveActivation) -> None:
        self.activation, self.inputs, self.outside = activation, 0, 0
        self.interval = activation.interval if isinstance(activation, FNeuron) else None
        self.membership: Tensor | None = None

    def add(self, u: Tensor) -> None:
        activation = self.activation
        self.inputs += u.numel()
        if not isinstance(activation, FNeuron):
            return
        left, right = activation.interval
        self.outside += int(((u < left) | (u > right)).sum())
        # Beyond the ends of a line that goes on there, memberships have signs of their own and may cancel others.
        sides = [u <= left, (u > left) & (u < right), u >= right] if activation.line.extended else [torch.ones_like(u)]
        for side in sides:
            with torch.enable_grad():
                # The output is linear in the weights: its derivative is the sum of the inputs' memberships.
                weight = activation.weight.detach().clone().requires_grad_()
                (membership,) = torch.autograd.grad((interpolate(u, weight, activation.line) * side).sum(), weight)
            before = self.membership
            self.membership = membership.double().abs().cpu() + (0 if before is None else before)


def _watched_outputs(
    net: nn.Module,
    data: Batch,
    received: Mapping[str, _Received],
    size: int,
    precision: str,
    output: Output | None,
) -> Tensor:
    with watched(net, received, lambda path, u, y: received[path].add(u)), evaluation_mode(net):
        return outputs_of(net, data, size, precision, output)


def _measured(problem: Problem, data: Batch, exact: bool) -> dict[nn.Parameter, Tensor]:
    """For each parameter its images' gradients, their squares and the squares of the curvature's columns, (3, ...)."""
    coordinates, net = problem.coordinates, problem.net
    sums_3P = torch.zeros(3, len(coordinates), dtype=torch.float64)
    vector_P, generator = coordinates.read(), torch.Generator().manual_seed(0)
    with own_modes(net):
        net.eval()
        for batch in data.batches(problem.batch_size):
            _, gradients_BP, factors = problem.rows(vector_P, batch, None if exact else 1, generator)
            sums_3P[0] += gradients_BP.sum(0)
            sums_3P[1] += gradients_BP.square().sum(0)
            for rows_BP in factors:
                sums_3P[2] += rows_BP.square().sum(0)
    parameters = list(coordinates.parameters.values())
    pieces = sums_3P.split([parameter.numel() for parameter in parameters], dim=1)
    return {p: piece.reshape(3, *p.shape) for p, piece in zip(parameters, pieces, strict=True)}


def _row(name: str, found: Elements, seen: _Received, dtype: torch.dtype, optimizer: str) -> AuditRow:
    value, gradient = found.value, found.gradient
    several = value.numel() > 1
    shared = seen.membership is not None and seen.membership.shape[:-1].numel() == 1
    unreached = seen.membership.flatten() == 0 if seen.membership is not None and shared else torch.zeros(0)
    return AuditRow(
        name=name,
        dtype=type_name(dtype),
        elements=value.numel(),
        value=(value.min().item(), value.max().item()),
        gradient=gradient.abs().median().item() if several else gradient.item(),
        smallest_gradient=gradient.abs().min().item(),
        curvature=found.curvature.median().item(),
        smallest_curvature=found.curvature.min().item(),
        step=found.step.max().item(),
        spacing=found.spacing.median().item(),
        stuck=sum(state in STUCK for state in found.states) / value.numel(),
        too_large_for=tuple(type_name(t) for t in SMALLER_TYPES if (value.isfinite() & value.to(t).isinf()).any()),
        outside=seen.outside / seen.inputs if seen.interval and seen.inputs else None,
        interval=seen.interval,
        unreached=tuple(unreached.nonzero().flatten().tolist()),
        verdict=verdict(found, dtype, optimizer),
    )


def _table(rows: Sequence[AuditRow]) -> str:
    """With verdicts that go on in lines of their own where they do not fit."""
    header = "parameter", "value", "gradient", "curvature"
    cells = [_cells(row) for row in rows]
    left = sum(max(map(len, column)) + 2 for column in zip(header, *cells, strict=True))
    lines = []
    for row, own in zip(rows, cells, strict=True):
        verdicts = [line for part in row.verdict.split("; ") for line in wrap(part, max(40, WIDTH - left))]
        lines += [(*(own if number == 0 else [""] * 4), verdict) for number, verdict in enumerate(verdicts)]
    return table((*header, "verdict"), lines)


def _cells(row: AuditRow) -> tuple[str, str, str, str]:
    if row.elements == 1:
        return row.name, _number(row.value[0]), f"{row.gradient:.2g}", f"{row.curvature:.2g}"
    low, high = map(_number, row.value)
    return (
        f"{row.name} x{row.elements}",
        low if low == high else f"{low} to {high}",
        f"{row.smallest_gradient:.2g} / {row.gradient:.2g}",
        f"{row.smallest_curvature:.2g} / {row.curvature:.2g}",
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.6g}"
