"""Turn adaptive activations into fixed functions or fixed tables, which have nothing left to train.

Begin with `freeze_activations`, which chooses. knot_table.py and segment_table.py make the tables. Axes in names:
E input, S start of a fit.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, Histogram
from aafit.activations.base import curve_values
from aafit.activations.fitting import LeastSquares
from aafit.activations.piecewise_linear import MOST_SEGMENTS
from aafit.errors import UserError, check_count, check_name
from aafit.networks.fold import ScaledFunction
from aafit.networks.kinds import KNOWN, activation_name
from aafit.networks.knot_table import Table, knot_table
from aafit.networks.running import copied, forward_of_sample, probe_of, receiving
from aafit.networks.segment_table import LEAST_BITS, MOST_BITS, SegmentTable, segment_table
from aafit.networks.surgery import put_activation
from aafit.tables import table

WAYS = ("function", "table")
LIMITS = (-8.0, 8.0)
SIZE = 513
AT_ONCE = 1 << 18
"""Elements that are compared at once."""
POINTS, CLOSEST, ITERATIONS = 500, 6, 40
"""The number of inputs to which a function is fitted, of functions that are fitted, and of iterations."""
WORTHWHILE = 0.9
"""A function is scaled and shifted if that reduces its error below this share."""


@dataclass(frozen=True)
class FrozenActivation:
    """An adaptive activation that became a fixed one.

    Attributes:
        path: Its path.
        old: The adaptive activation.
        new: The fixed activation.
        rms: RMS difference between the two, relative to the standard deviation of the adaptive activation's outputs.
        max_abs: The largest absolute difference, over all inputs.
        inputs: Number of inputs: those in the sample, or points of an even grid.
        least: The smallest input.
        largest: The largest input.
        outside: Share of the inputs outside the limits of the table or of the fit.
    """

    path: str
    old: str
    new: str
    rms: float
    max_abs: float
    inputs: int
    least: float
    largest: float
    outside: float


@dataclass(frozen=True)
class Freeze:
    """The report of `freeze_activations`: prints as a table.

    Attributes:
        rows: One for each path of an adaptive activation, in the order of their calls.
        sampled: Whether the errors are over the inputs in a sample; otherwise they are over an even grid.
    """

    rows: tuple[FrozenActivation, ...]
    sampled: bool

    def __str__(self) -> str:
        header = ("frozen", "adaptive", "fixed", "relative RMS error", "largest error", "inputs", "outside limits")
        cells = [
            (
                row.path,
                row.old,
                row.new,
                f"{row.rms:.2%}",
                f"{row.max_abs:.3g}",
                f"{row.least:.3g} to {row.largest:.3g}",
                f"{row.outside:.2%}",
            )
            for row in self.rows
        ]
        where = "the inputs in the sample" if self.sampled else "an even grid"
        return f"{table(header, cells, numbers=False)}\nErrors are over {where}."


class FittedFunction(nn.Module):
    """A known function, scaled and shifted to fit: scale * function(slope * u + shift) + offset, elementwise.

    Args:
        function: An elementwise module.
        constants: (scale, slope, shift, offset).
    """

    constants: Tensor

    def __init__(self, function: nn.Module, constants: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constants", constants.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function elementwise."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        scale, slope, shift, offset = self.constants.to(dtype).unbind()
        output: Tensor = scale * self.function(slope * input.to(dtype) + shift) + offset
        return output.to(input.dtype)

    def extra_repr(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The formula: "6.3 * ReLU(1 * u + 0) + 0"."""
        scale, slope, shift, offset = self.constants.tolist()
        return f"{scale:.4g} * {_function_name(self.function)}({slope:.4g} * u + {shift:.4g}) + {offset:.4g}"


def freeze_activations(
    net: nn.Module,
    as_: str = "function",
    sample: Any = None,
    *,
    size: int = SIZE,
    limits: tuple[float, float] | None = None,
    tolerance: float = 0.1,
    segments: int | None = None,
    bits: int = MOST_BITS,
) -> tuple[nn.Module, Freeze]:
    """Return a copy of a network whose adaptive activations are fixed, and a report with their errors.

    As "function", each becomes the nearest of torch's activation functions, if necessary scaled and shifted as
    a * f(b * u + c) + d: one function for the whole layer, however its parameters are shared. As "table", each becomes
    a `Table` with the same sharing. Its knots are denser where inputs are frequent or the curvature is large, there is
    one at each kink, and it is extrapolated linearly. An F-Neuron with one interval becomes its own table, equal up to
    rounding. With `segments=`, each becomes a `SegmentTable` instead, which has at most that many segments and integers
    of `bits` bits, as hardware needs them: `PiecewiseLinear` and F-Neurons with few knots keep theirs, for others the
    knots are placed.

    Args:
        net: A network with adaptive activations; it is left unchanged.
        as_: "function" or "table".
        sample: An input of the network, as for `replace_activations`. Errors are over all inputs of an activation in
            it, and tables are made for them; without a sample, they are over an even grid.
        size: Number of knots of a table.
        limits: The range that tables span and functions are fitted on; by default the bulk of an activation's inputs
            in the sample (see `Histogram.bulk`), or (-8, 8) without inputs.
        tolerance: The largest relative RMS error of a function.
        segments: The most segments of a table in integers, from 1 to 64; None: tables in floating point.
        bits: Bits of an integer in such a table, from 4 to 16.

    Returns:
        The network and the report.

    Raises:
        UserError: The network has no adaptive activation, no function is within the tolerance of one, an argument is
            not valid, the network fails on the sample, or an activation receives or gives NaN or infinity.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), aafit.LEAF.like("SiLU"), nn.Linear(8, 2))
        >>> frozen, report = aafit.freeze_activations(net, "table", sample=torch.randn(100, 4))
        >>> report.rows[0].rms < 1e-3
        True
    """
    if not isinstance(as_, str):
        raise UserError(f'as_= is "function" or "table", not a {type(as_).__name__}: an input is given as sample=.')
    check_name("way to freeze", as_, WAYS)
    check_count("number of knots (size)", size, 2)
    _check_segments(as_, segments, bits)
    limits = None if limits is None else _check_limits(limits)
    if not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise UserError(f"The tolerance must be a number above 0; got {tolerance!r}.")
    frozen = copied(net)
    # With duplicates, because one activation may be at several paths.
    named = frozen.named_modules(remove_duplicate=False)
    found = [(path, module) for path, module in named if isinstance(module, AdaptiveActivation)]
    activations = dict(sorted(found, key=lambda item: item[1].call_position))
    if not activations:
        raise UserError("There is nothing to freeze: the network has no adaptive activation.")
    if "" in activations:
        raise UserError("The network itself is an adaptive activation: put it into an nn.Sequential to freeze it.")
    inputs = {} if sample is None else _histograms(net, sample, activations)
    made: dict[int, nn.Module] = {}
    spans: dict[int, tuple[float, float]] = {}
    for path, activation in activations.items():
        if id(activation) in made:
            continue
        own = [inputs[other] for other, same in activations.items() if same is activation and other in inputs]
        histogram = reduce(Histogram.merged, own) if own else _even(limits or LIMITS)
        spans[id(activation)] = span = limits or histogram.bulk()
        wide = deepcopy(activation).double()
        if not curve_values(wide, histogram.points()[0][[0, -1]]).isfinite().all():
            raise UserError(f"{path!r} ({activation.text}) gives NaN or infinity: it cannot be frozen.")
        if segments is not None:
            new: nn.Module = segment_table(wide, histogram.between(*span), path, segments, bits)
        else:
            new = _function(wide, histogram, span) if as_ == "function" else knot_table(wide, histogram, span, size)
        made[id(activation)] = new.to(next(activation.parameters()).device)
    errors = {
        path: _Errors(path, activation, made[id(activation)], spans[id(activation)])
        for path, activation in activations.items()
    }
    with torch.no_grad():
        if inputs:
            probe = probe_of(net)
            forward_of_sample(probe, sample, receiving(probe, inputs, lambda path, u: errors[path].add(u)))
        for path in activations.keys() - inputs.keys():
            errors[path].add(_even_inputs(activations[path], limits or LIMITS))
    rows = tuple(errors[path].row() for path in activations)
    for row in rows:
        if as_ == "function" and row.rms > tolerance:
            raise UserError(
                f"No function is near {row.path!r} ({row.old}): the nearest is {row.new}, with a relative RMS error of "
                f'{row.rms:.1%}. Freeze it as a "table", or allow the error with tolerance={row.rms + 0.005:.2f}.'
            )
        put_activation(frozen, row.path, made[id(activations[row.path])])
    return frozen, Freeze(rows, sample is not None)


def _check_segments(as_: str, segments: int | None, bits: int) -> None:
    if segments is None:
        if bits != MOST_BITS:
            raise UserError(f"bits={bits!r} is for tables of few segments: give segments= too, as segments=8.")
        return
    if as_ != "table":
        raise UserError(f'segments={segments!r} is for tables: give as_="table" too.')
    if check_count("number of segments", segments) > MOST_SEGMENTS:
        raise UserError(f"A table must have at most {MOST_SEGMENTS} segments; got {segments}.")
    if check_count("number of bits", bits, LEAST_BITS) > MOST_BITS:
        raise UserError(f"An entry of a table has at most {MOST_BITS} bits; got {bits}.")


def _check_limits(limits: tuple[float, float]) -> tuple[float, float]:
    try:
        left, right = (float(end) for end in limits)
        valid = -3e38 < left < right < 3e38 and torch.tensor([left, right]).diff().item() > 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError(f"The limits {limits!r} are not valid: give (left, right) with left < right.")
    return left, right


def _histograms(net: nn.Module, sample: Any, activations: Mapping[str, AdaptiveActivation]) -> dict[str, Histogram]:
    """Return the histograms of the activations' inputs in the sample."""
    histograms: dict[str, Histogram] = {}

    def see(path: str, u: Tensor) -> None:
        # Minus infinity is a mask, which does not count.
        if not u.isfinite().any() or u.isnan().any() or (u == math.inf).any():
            raise UserError(f"{path!r} ({activations[path].text}) receives NaN or infinity: it cannot be frozen.")
        histogram = Histogram.of(u[u.isfinite()])
        histograms[path] = histograms[path].merged(histogram) if path in histograms else histogram

    probe = probe_of(net)
    forward_of_sample(probe, sample, receiving(probe, activations, see))
    return histograms


def _even(limits: tuple[float, float]) -> Histogram:
    return Histogram(torch.linspace(*limits, 4002, dtype=torch.float64), torch.ones(4001))


def _function(activation: AdaptiveActivation, histogram: Histogram, span: tuple[float, float]) -> nn.Module:
    """Return the known function nearest to an activation, scaled and shifted if that is clearly nearer."""
    u_E, weight_E = histogram.between(*span).coarser(POINTS).points()
    y_E = curve_values(activation, u_E).mean(1)
    known = {name: (function, _affine_error(function(u_E), y_E, weight_E)) for name, function in KNOWN.items()}
    plain = {name: (weight_E @ (function(u_E) - y_E).square()).item() for name, function in KNOWN.items()}
    nearest = min(plain, key=plain.__getitem__)
    best, least = None, plain[nearest]
    for name in sorted(known, key=lambda name: known[name][1])[:CLOSEST]:
        fitted = _fit_affine(KNOWN[name], u_E, y_E, weight_E)
        if fitted is not None and fitted[1] < WORTHWHILE**2 * least:
            best, least = FittedFunction(deepcopy(KNOWN[name]), fitted[0]), fitted[1]
    variance = (weight_E @ (y_E - weight_E @ y_E).square()).item()
    if best is None or plain[nearest] <= 1e-6 * variance:
        return deepcopy(KNOWN[nearest])
    return best.to(torch.get_default_dtype())


def _affine_error(f_E: Tensor, y_E: Tensor, weight_E: Tensor) -> float:
    """Return the least mean squared error of scale * f + offset."""
    f_E, y_E = f_E - weight_E @ f_E, y_E - weight_E @ y_E
    square = (weight_E @ f_E.square()).item()
    scale = (weight_E @ (f_E * y_E)).item() / square if square > 0 else 0.0
    return (weight_E @ (y_E - scale * f_E).square()).item()


def _fit_affine(function: nn.Module, u_E: Tensor, y_E: Tensor, weight_E: Tensor) -> tuple[Tensor, float] | None:
    """Return (scale, slope, shift, offset) and the mean squared error; None if the function has no derivative."""
    starts = torch.tensor([1.0, 0.5, 2.0, -1.0], dtype=torch.float64)
    f_ES = function(u_E[:, None] * starts)
    centred_ES, y = f_ES - weight_E @ f_ES, y_E - weight_E @ y_E
    scale_S = (weight_E @ (centred_ES * y[:, None])) / (weight_E @ centred_ES.square()).clamp(min=1e-300)
    offset_S = weight_E @ y_E - scale_S * (weight_E @ f_ES)
    start = {"scale": scale_S, "slope": starts, "shift": torch.zeros_like(starts), "offset": offset_S}
    u_ES, y_ES = (x_E[:, None].expand(-1, len(starts)) for x_E in (u_E, y_E))
    formula = ScaledFunction(function, {name: value_S[:1] for name, value_S in start.items()})
    problem = LeastSquares(formula, start, u_ES, y_ES, weight_E)
    try:
        cost_S = problem.minimise(ITERATIONS, 1e-9, torch.zeros_like(starts))
    except (RuntimeError, NotImplementedError):
        return None
    # The first start has slope 1, which a ReLU can exchange for its scale.
    at = int((cost_S <= 1.01 * cost_S.min() + 1e-12 * (weight_E @ y.square())).nonzero()[0])
    found = problem.parameters()
    constants = torch.stack([found[name][at] for name in ("scale", "slope", "shift", "offset")])
    return constants, cost_S[at].item()


class _Errors:
    """The differences between an adaptive activation and a fixed one, accumulated over their inputs."""

    def __init__(self, path: str, old: AdaptiveActivation, new: nn.Module, span: tuple[float, float]) -> None:
        self.path, self.text = path, old.text
        self.names = path, activation_name(old), _name(new)
        self.old, self.new = deepcopy(old).double(), deepcopy(new).double()
        self.span = (new.limits[0].item(), new.limits[1].item()) if isinstance(new, Table) else span
        self.count = self.outside = 0
        self.squares = self.sum = self.sum_of_squares = self.largest = 0.0
        self.least_input, self.largest_input = math.inf, -math.inf

    def add(self, u: Tensor) -> None:
        """Add inputs; those of a mask, which are minus infinity, do not count."""
        for part in u.detach().double().split(max(1, AT_ONCE // max(1, u[:1].numel()))):
            finite = part.isfinite()
            inputs = torch.where(finite, part, 0.0)
            y, z = self.old(inputs)[finite], self.new(inputs)[finite]
            if not y.isfinite().all():
                raise UserError(f"{self.path!r} ({self.text}) gives NaN or infinity: it cannot be frozen.")
            if not len(y):
                continue
            inputs, error = inputs[finite], z - y
            self.count += len(y)
            self.outside += int(((inputs < self.span[0]) | (inputs > self.span[1])).sum())
            self.squares += error.square().sum().item()
            self.sum += y.sum().item()
            self.sum_of_squares += y.square().sum().item()
            self.largest = max(self.largest, error.abs().max().item())
            self.least_input = min(self.least_input, inputs.min().item())
            self.largest_input = max(self.largest_input, inputs.max().item())

    def row(self) -> FrozenActivation:
        rms, mean = math.sqrt(self.squares / self.count), self.sum / self.count
        deviation = math.sqrt(max(0.0, self.sum_of_squares / self.count - mean**2))
        relative = rms / deviation if deviation else math.inf if rms else 0.0
        ends = self.least_input, self.largest_input
        return FrozenActivation(*self.names, relative, self.largest, self.count, *ends, self.outside / self.count)


def _even_inputs(activation: AdaptiveActivation, limits: tuple[float, float]) -> Tensor:
    shape, device = activation.shape, next(activation.parameters()).device
    points = max(33, min(4001, AT_ONCE // torch.Size(shape).numel()))
    grid = torch.linspace(*limits, points, dtype=torch.float64, device=device)
    return grid.reshape(-1, *[1] * len(shape)).expand(-1, *shape)


def _name(module: nn.Module) -> str:
    if isinstance(module, SegmentTable):
        return f"Table of {module.segments} segments in {module.bits} bits"
    if isinstance(module, Table):
        return f"Table with {len(module.knots)} knots"
    return module.text if isinstance(module, FittedFunction) else _function_name(module)


def _function_name(module: nn.Module) -> str:
    return "GELU (tanh)" if isinstance(module, nn.GELU) and module.approximate == "tanh" else type(module).__name__
