"""Which adaptive parameters gradient steps can move: gradients, curvature, and the rounding of the optimizer's steps.

Begin with `audit`; `_audited` determines the state of each element of a parameter.
Axes in names: B sample of a batch, N sample, K output, P element of all parameters.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, IntervalActivation
from aafit.errors import UserError, check_count
from aafit.identification.coordinates import Coordinates
from aafit.identification.hessian import wide_target
from aafit.identification.problem import Problem, check_targets
from aafit.identification.samples import load_samples, with_targets
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch
from aafit.networks.running import check_not_scripted, evaluation_mode, own_modes, watched
from aafit.tables import fit_for_json, listed, ranges, table
from aafit.training.losses import LossLike, scores
from aafit.training.predictor import Output, Predictor, unwrapped
from aafit.training.tune import make_optimizers

MINIBATCH = 128
"""Batch size of the training whose steps are judged."""
MEASURABLE = 1e-6
"""Smallest change of the loss that counts."""
MANY_STEPS = 10_000
"""Number of steps above which an element is slow."""
EXACT_OUTPUTS = 2_000
"""Number of outputs of all samples together up to which the curvature is exact."""
GRADIENT_VALUES = 8_000_000
"""Float64 values that the per-sample gradients of a batch may have; the batch size follows."""
WIDTH = 124
SMALLER_TYPES = (torch.float16, torch.bfloat16)

# The state of an element, in the order in which the conditions are tested: the sentence for one element, for several.
STATES = {
    "not finite": ("stalled: its value is not finite", "stalled: their values are not finite"),
    "not called": ("stalled: the forward pass does not call it", "stalled: the forward pass does not call them"),
    "undetermined": (
        "undetermined: a value or the output is not finite",
        "undetermined: a value or the output is not finite",
    ),
    "rounds away": (
        "stalled: a step of {full:.2g} is less than half the spacing {spacing:.2g} of {dtype} at {value:.6g}",
        "stalled: steps of {full:.2g} are less than half the {dtype} spacing",
    ),
    "no input": ("stalled: no input reaches it", "stalled: no input reaches them"),
    "no gradient": ("stalled: its gradient is negligible", "stalled: their gradients are negligible"),
    "tiny step": (
        "stalled: its gradient is far below {optimizer}'s eps, and the remaining step of {step:.2g} rounds away",
        "stalled: gradients far below {optimizer}'s eps, and the remaining steps round away",
    ),
    "weak": (
        "slow: its gradient is below {optimizer}'s eps, which leaves a step of {step:.2g}",
        "slow: gradients below {optimizer}'s eps, which leaves less than half a step",
    ),
    "slow": (
        "slow: a change of {distance:.2g} takes {steps:,.0f} steps of {step:.2g}",
        "slow: they need over 10,000 steps of {step:.2g}",
    ),
    "trainable": ("trainable", "trainable"),
}
STALLED = ("not finite", "not called", "rounds away", "no input", "no gradient", "tiny step")


@dataclass(frozen=True)
class ParameterAudit:
    """What the steps of an optimizer do to one parameter tensor.

    The tensors are float64, on the CPU, in the shape of the parameter.

    Attributes:
        name: "act1.gamma".
        dtype: "float32".
        values: The parameter.
        gradients: Gradient of the mean loss.
        curvatures: Diagonal of the Gauss-Newton matrix of the mean loss.
        steps: First step of the optimizer.
        spacings: Distance from the value to the next one, away from 0, that the dtype can represent.
        states: A key of `STATES` for each element, in flat order.
        verdict: The states in words.
        interval: The interval of the activation, such as an F-Neuron's; None if it has none, or a separate one for each
            parameter set.
        outside: Share of the inputs outside the interval; None without an interval or without inputs.
        unreached: Elements, in flat order, that no input reaches; for an F-Neuron shared by layer, else empty.
    """

    name: str
    dtype: str
    values: Tensor
    gradients: Tensor
    curvatures: Tensor
    steps: Tensor
    spacings: Tensor
    states: tuple[str, ...]
    verdict: str
    interval: tuple[float, float] | None
    outside: float | None
    unreached: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.values.numel()

    @property
    def value(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.values.min().item(), self.values.max().item()

    @property
    def gradient(self) -> float:
        """The gradient of a single element; of several, the median of the absolute gradients."""
        return self.gradients.item() if self.elements == 1 else self.gradients.abs().median().item()

    @property
    def smallest_gradient(self) -> float:
        """The smallest absolute gradient of an element."""
        return self.gradients.abs().min().item()

    @property
    def curvature(self) -> float:
        """The curvature of a single element; of several, the median."""
        return self.curvatures.median().item()

    @property
    def stalled(self) -> float:
        """Share of the elements whose state is one of `STALLED`."""
        return sum(state in STALLED for state in self.states) / self.elements

    @property
    def too_large_for(self) -> tuple[str, ...]:
        """Smaller dtypes that cannot hold the value."""
        finite = self.values.isfinite()
        return tuple(type_name(dtype) for dtype in SMALLER_TYPES if (finite & self.values.to(dtype).isinf()).any())

    def as_dict(self) -> dict[str, Any]:
        """Return a summary fit for JSON, without the tensors."""
        names = ("name", "dtype", "elements", "value", "gradient", "smallest_gradient", "curvature", "stalled")
        more = ("too_large_for", "outside", "interval", "unreached", "verdict")
        summary = {name: getattr(self, name) for name in (*names, *more)}
        smallest = {"smallest_curvature": self.curvatures.min().item(), "spacing": self.spacings.median().item()}
        return fit_for_json({**summary, **smallest, "step": self.steps.max().item()})


@dataclass(frozen=True)
class Audit:
    """The result of `audit`; prints as a table.

    Attributes:
        rows: One for each parameter tensor, in the order of the network's modules.
        loss: Mean loss over the samples.
        samples: Number of samples.
        optimizer: The optimizer whose steps were judged, with its learning rates.
    """

    rows: tuple[ParameterAudit, ...]
    loss: float
    samples: int
    optimizer: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result fit for JSON; values that are not finite become None."""
        rows = [row.as_dict() for row in self.rows]
        return fit_for_json({"samples": self.samples, "loss": self.loss, "optimizer": self.optimizer, "rows": rows})

    def __str__(self) -> str:
        lines = [_table(self.rows)]
        if any(row.elements > 1 for row in self.rows):
            lines.append("Several elements: smallest to largest value; smallest / median absolute gradient, curvature.")
        for row in self.rows:
            if row.outside is not None:
                layer = row.name.rpartition(".")[0] or "the network"
                reached = f"; none reaches the weights {ranges(row.unreached)}" if row.unreached else ""
                where = "[{:g}, {:g}]".format(*row.interval) if row.interval else "the interval of their parameter set"
                line = f"{layer}: {row.outside:.2%} of the inputs are outside {where}{reached}"
                # An activation may have several parameters.
                lines += [line] if line not in lines else []
        for dtype in SMALLER_TYPES:
            named = [row.name for row in self.rows if type_name(dtype) in row.too_large_for]
            if named:
                lines.append(f"Too large for {type_name(dtype)} (at most {torch.finfo(dtype).max:g}): {listed(named)}")
        lines.append(f"{self.samples} samples, loss {self.loss:.4f}; steps of {self.optimizer}")
        return "\n".join(lines)


def audit(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    base: nn.Module | None = None,
    output: Output | None = None,
    loss: LossLike | None = None,
    optimizer: str = "adam",
    lr: float | None = None,
    p24sl: bool = False,
    samples: int = 512,
    batch_size: int | None = None,
    precision: str = "float32",
) -> Audit:
    """Report which adaptive parameters of `net` the steps of a gradient optimizer can move.

    Gradient and curvature are those of the mean loss with respect to the parameter, in evaluation mode. The curvature
    is the diagonal of the Gauss-Newton matrix. It is exact for up to 2,000 outputs of all samples together, and beyond
    that an unbiased estimate from one random probe per sample. `net` is left unchanged.

    The step is the first one of `aafit.tune`'s optimizer, from a gradient g: lr |g| / (|g| + eps) for Adam and
    lr |g| / (sqrt(1 - alpha) |g| + eps) for RMSprop; under a steady gradient no later step is larger. In these formulas
    |g| is the typical gradient of a minibatch of 128, sqrt(g^2 + var / 128), where var is the variance over the
    samples. An element gets the first state that applies:

    - stalled, value not finite, or not called by the forward pass.
    - undetermined: another parameter or an output is not finite.
    - stalled, rounds away: even the step without eps does not change the value in its dtype.
    - stalled, no input: the membership of an F-Neuron's weight is 0 for all inputs.
    - stalled, no gradient: a change by m = max(|value|, 1) changes the loss by less than 1e-6, to first and to second
      order.
    - stalled, tiny step: eps makes the step so small that it does not change the value in its dtype.
    - slow: eps removes more than half of the step; or g exceeds twice its standard error, and the optimum along this
      parameter alone, |g| / curvature away, or a change by m, whichever is nearer, takes more than 10,000 steps.
    - trainable.

    Args:
        net: A network with adaptive activations.
        batches: Batches of any form, as for `identify`.
        base: The network whose outputs are the targets; None: the labels are the targets.
        output: Selects the output tensor of what the network returns, as for `identify`.
        loss: As for `identify`.
        optimizer: "adam" or "rmsprop".
        lr: Learning rate; None: the default of `aafit.tune`.
        p24sl: Whether p2 and p4 of LEAF have their slow learning rate, as for `aafit.tune`.
        samples: Number of samples used, the first ones of `batches`.
        batch_size: Samples per forward pass, at most; by default the size of the largest batch, at most 128. Fewer if
            the per-sample gradients would have more than 8 million values.
        precision: Of the forward passes, as for `aafit.tune`.

    Returns:
        A row per parameter tensor with its verdict; prints as a table.

    Raises:
        UserError: The network has no adaptive activation or is scripted; there are no samples, they are not finite, or
            the network fails on them; labels do not fit its outputs; the number of samples or the batch size is below
            1; the optimizer or the precision is unknown.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), aafit.AHAF.like("SiLU"), nn.Linear(8, 3))
        >>> print(aafit.audit(net, [(torch.randn(64, 4), torch.randint(3, (64,)))]))  # doctest: +SKIP
        parameter  value  gradient  curvature  verdict
        1.gamma    1       -0.0012      0.011  trainable
        1.beta     1      -0.00039     0.0032  trainable
        64 samples, loss 1.1463; steps of adam at 0.001
    """
    net, base = unwrapped(net), None if base is None else unwrapped(base)
    check_not_scripted(net)
    if batch_size is not None:
        check_count("batch size", batch_size)
    activations = adaptive_activations(net)
    if not activations:
        raise UserError("The network has no adaptive activation to audit: call replace_activations first.")
    groups = _optimizer_groups(activations, optimizer, lr, p24sl)
    predictor = Predictor(net, output, precision, batch_size)
    data = load_samples(predictor, batches, "audit on", most=samples)
    count = sum(parameter.numel() for parameter in groups)
    predictor.batch_size = max(1, min(predictor.batch_size or len(data), GRADIENT_VALUES // count))
    received = {path: _Inputs(activation) for path, activation in activations.items()}
    with evaluation_mode(net, *([] if base is None else [base])):
        data, made = with_targets(data, None if base is None else predictor.of(base), loss)
        with watched(net, received, lambda path, u, y: received[path].add(u)):
            outputs_NK = predictor.outputs(data)
    check_targets(made, outputs_NK, data.target)
    finite = bool(outputs_NK.isfinite().all()) and all(bool(parameter.isfinite().all()) for parameter in groups)
    called = [activation for path, activation in activations.items() if received[path].count]
    sums = {}
    if finite and called:
        problem = Problem(predictor, Coordinates(nn.ModuleList(called)), made)
        problem.check_gradient(data)
        sums = _gradient_sums(problem, data, exact=outputs_NK.numel() <= EXACT_OUTPUTS)
    rows = [
        _audited(
            f"{path}.{own}" if path else own,
            parameter,
            sums.get(parameter, torch.full((3, *parameter.shape), torch.nan).double()) / len(data),
            len(data),
            optimizer,
            groups[parameter],
            received[path],
            finite,
        )
        for path, activation in activations.items()
        for own, parameter in activation.named_parameters(recurse=False)
    ]
    found = scores(made, outputs_NK.double(), wide_target(data.target))
    mean_loss = (found.loss_B.sum() / found.labelled_B.sum()).item()
    rates = sorted({float(group["lr"]) for group in groups.values()}, reverse=True)
    steps = f"{optimizer} at {rates[0]:g}" + (f", p24sl {rates[1]:g}" if len(rates) > 1 else "")
    return Audit(tuple(rows), mean_loss, len(data), steps)


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module: "float32"."""
    return str(dtype).removeprefix("torch.")


def _optimizer_groups(
    activations: Mapping[str, AdaptiveActivation], optimizer: str, lr: float | None, p24sl: bool
) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the parameter group of `tune`'s optimizer for each adaptive parameter."""
    copies = nn.ModuleList([deepcopy(activation) for activation in activations.values()]).requires_grad_(True)
    (made,) = make_optimizers(copies, optimizer, lr, p24sl)
    group_of = {parameter: group for group in made.param_groups for parameter in group["params"]}
    return {
        parameter: group_of[copied]
        for activation, copy in zip(activations.values(), copies, strict=True)
        for parameter, copied in zip(activation.parameters(), copy.parameters(), strict=True)
    }


class _Inputs:
    """Counts the inputs of one activation, those outside its interval, and how much each F-Neuron weight receives."""

    def __init__(self, activation: AdaptiveActivation) -> None:
        self.activation, self.count, self.outside = activation, 0, 0
        self.membership: Tensor | None = None

    def add(self, u: Tensor) -> None:
        activation = self.activation
        self.count += u.numel()
        if isinstance(activation, (FNeuron, IntervalActivation)):
            self.outside += int(activation.is_outside(u).sum())
        if not isinstance(activation, FNeuron):
            return
        # Outside an interval with linear extrapolation the memberships have either sign and may cancel.
        line, u = activation.line, activation.on_line(u)
        left, right = line.left, line.right
        sides = [u <= left, (u > left) & (u < right), u >= right] if line.extrapolates else [torch.ones_like(u)]
        for side in sides:
            with torch.enable_grad():
                # The output is linear in the weights: its derivative is the sum of the inputs' memberships.
                weight = activation.weight.detach().clone().requires_grad_()
                (membership,) = torch.autograd.grad((line(u, weight) * side).sum(), weight)
            before = self.membership
            self.membership = membership.double().abs().cpu() + (0 if before is None else before)


def _gradient_sums(problem: Problem, data: Batch, exact: bool) -> dict[nn.Parameter, Tensor]:
    """Return the sums over the samples of gradients, squared gradients and curvatures, (3, ...) for each parameter."""
    coordinates, net, labelled = problem.coordinates, problem.predictor.net, 0
    sums_3P = torch.zeros(3, len(coordinates), dtype=torch.float64)
    vector_P, generator = coordinates.read(), torch.Generator().manual_seed(0)
    with own_modes(net):
        net.eval()
        for batch in problem.predictor.batches(data):
            rows = problem.rows(vector_P, batch, None if exact else 1, generator)
            labelled += rows.labelled
            gradients_BP = rows.gradients()
            sums_3P[0] += gradients_BP.sum(0)
            sums_3P[1] += gradients_BP.square().sum(0)
            for probe_BP in rows.probes:
                sums_3P[2] += probe_BP.square().sum(0)
    # The loss is a mean over labelled positions, not samples: this scale makes the mean over samples its gradient.
    each = labelled / len(data)
    sums_3P /= torch.tensor([[each], [each**2], [each]], dtype=torch.float64)
    parameters = list(coordinates.parameters.values())
    parts = sums_3P.split([parameter.numel() for parameter in parameters], dim=1)
    return {parameter: part.reshape(3, *parameter.shape) for parameter, part in zip(parameters, parts, strict=True)}


def _audited(
    name: str,
    parameter: nn.Parameter,
    means: Tensor,
    samples: int,
    optimizer: str,
    group: Mapping[str, Any],
    inputs: _Inputs,
    finite: bool,
) -> ParameterAudit:
    """Audit one parameter.

    Args:
        name: Its name in the network.
        parameter: The parameter.
        means: Means over the samples of gradients, squared gradients and curvatures, (3, ...).
        samples: Their number.
        optimizer: Name of the optimizer.
        group: The optimizer's settings for the parameter.
        inputs: Counts of its activation's inputs.
        finite: Whether the outputs and all parameters are finite.
    """
    values, dtype = parameter.detach().double().cpu(), parameter.dtype
    gradients, squares, curvatures = means
    variances = (squares - gradients.square()).clamp(min=0)
    typical = (gradients.square() + variances / MINIBATCH).sqrt()
    # RMSprop's first mean of squares is (1 - alpha) g^2; Adam corrects for that.
    share = (1 - group["alpha"]) ** 0.5 if "alpha" in group else 1.0
    full = group["lr"] / share
    steps = group["lr"] * typical / (share * typical + group["eps"])
    sizes = values.abs().clamp(min=1)
    distances = torch.minimum(gradients.abs() / curvatures, sizes)
    direction = torch.where(gradients == 0, values.sign(), -gradients.sign())
    exponents = values.abs().clamp(min=torch.finfo(dtype).tiny).frexp().exponent
    spacings = torch.ldexp(torch.full_like(values, torch.finfo(dtype).eps), exponents - 1)

    def unchanged_by(change: Tensor | float) -> Tensor:
        return (values + direction * change).to(dtype) == values.to(dtype)

    never, always = torch.zeros_like(values, dtype=torch.bool), torch.ones_like(values, dtype=torch.bool)
    masks = {
        "not finite": ~values.isfinite(),
        "not called": never if inputs.count else always,
        "undetermined": never if finite else always,
        "rounds away": unchanged_by(full) & (full < spacings / 2),
        "no input": never if inputs.membership is None else inputs.membership == 0,
        "no gradient": (typical * sizes < MEASURABLE) & (curvatures * sizes.square() / 2 < MEASURABLE),
        "tiny step": unchanged_by(steps),
        "weak": steps < full / 2,
        "slow": (distances > MANY_STEPS * steps) & (gradients.abs() > 2 * (variances / samples).sqrt()),
        "trainable": always,
    }
    first_state = torch.stack([masks[state].flatten() for state in STATES]).int().argmax(0)
    states = tuple(list(STATES)[index] for index in first_state.tolist())
    verdict = _verdict(
        states,
        full=full,
        step=steps.max().item(),
        distance=distances.max().item(),
        steps=(distances / steps).max().item(),
        spacing=spacings.max().item(),
        value=values.flatten()[0].item(),
        dtype=type_name(dtype),
        optimizer={"adam": "Adam", "rmsprop": "RMSprop"}[optimizer],
    )
    activation, membership, unreached = inputs.activation, inputs.membership, torch.zeros(0)
    interval = activation.interval if isinstance(activation, (FNeuron, IntervalActivation)) else None
    if membership is not None and membership.shape[:-1].numel() == 1:
        unreached = membership.flatten() == 0
    return ParameterAudit(
        name=name,
        dtype=type_name(dtype),
        values=values,
        gradients=gradients,
        curvatures=curvatures,
        steps=steps,
        spacings=spacings,
        states=states,
        verdict=verdict,
        interval=interval if getattr(activation, "intervals", None) is None else None,
        outside=inputs.outside / inputs.count if interval is not None and inputs.count else None,
        unreached=tuple(unreached.nonzero().flatten().tolist()),
    )


def _verdict(states: Sequence[str], **quantities: Any) -> str:
    """Return a sentence for one element; for several, how many are in which state, separated by semicolons."""
    count = Counter(states)
    if len(count) == 1 and "trainable" in count:
        return "trainable"
    if len(states) == 1:
        return STATES[states[0]][0].format(**quantities)
    parts = [
        f"{'all' if count[state] == len(states) else format(count[state], ',')} {sentence.format(**quantities)}"
        for state, (_, sentence) in STATES.items()
        if count[state] and state != "trainable"
    ]
    return "; ".join(parts + ["the others are trainable"] * (count["trainable"] > 0))


def _table(rows: Sequence[ParameterAudit]) -> str:
    """Return the rows as text; long verdicts continue on lines of their own."""
    header = "parameter", "value", "gradient", "curvature"
    cells = [_cells(row) for row in rows]
    left = sum(max(map(len, column)) + 2 for column in zip(header, *cells, strict=True))
    lines = []
    for row, own in zip(rows, cells, strict=True):
        verdicts = [line for part in row.verdict.split("; ") for line in wrap(part, max(40, WIDTH - left))]
        lines += [(*(own if number == 0 else [""] * 4), verdict) for number, verdict in enumerate(verdicts)]
    return table((*header, "verdict"), lines)


def _cells(row: ParameterAudit) -> tuple[str, str, str, str]:
    if row.elements == 1:
        return row.name, _number(row.value[0]), f"{row.gradient:.2g}", f"{row.curvature:.2g}"
    low, high = map(_number, row.value)
    return (
        f"{row.name} x{row.elements}",
        low if low == high else f"{low} to {high}",
        f"{row.smallest_gradient:.2g} / {row.gradient:.2g}",
        f"{row.curvatures.min().item():.2g} / {row.curvature:.2g}",
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.6g}"
