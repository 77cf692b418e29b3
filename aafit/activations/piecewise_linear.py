"""A piecewise linear function of few segments, whose knots are where they reduce the error most.

It is meant for the small tables of hardware. F-Neuron, with evenly spaced knots, is in fneuron.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import TextOption
from aafit.activations.elementwise import Formula, largest
from aafit.activations.fitting import FitTarget, LeastSquares, function_values
from aafit.activations.histogram import Histogram
from aafit.activations.interval import IntervalActivation, interval_of_fit
from aafit.errors import UserError, check_count

SEGMENTS, MOST_SEGMENTS = 8, 64
POINTS, FINE = 500, 2048
"""Inputs on which knots are placed, and evenly spaced inputs on which the curvature is measured."""
ITERATIONS = 60
PRIOR = 1e-6
"""Weight of the function's own values at the knots, relative to the inputs."""
CLOSEST = 1e-4
"""Least distance of two knots, as a share of the interval."""


@cache
def _formula(segments: int) -> Formula:
    """Return the formula, whose arguments are (u, v_0, ..., v_K, t_0, ..., t_K, 1 / (t_1 - t_0), ...)."""

    def split(u: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
        v, t, scales = given[: segments + 1], given[segments + 1 : 2 * segments + 2], given[2 * segments + 2 :]
        slopes = [(v[j + 1] - v[j]) * scales[j] for j in range(segments)]
        return u.clamp(-largest(u), largest(u)), v, t, slopes

    def forward(u: Tensor, *given: Tensor) -> Tensor:
        u, v, t, slopes = split(u, given)
        # A comparison with NaN is false: it takes the first segment, and stays NaN.
        y: Tensor = v[0] + slopes[0] * (u - t[0])
        for j in range(1, segments):
            y = torch.where(u >= t[j], v[j] + slopes[j] * (u - t[j]), y)
        return y

    def backward(grad: Tensor, u: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        u, _, t, slopes = split(u, given)
        scales = given[2 * segments + 2 :]
        part, slope = (u - t[0]) * scales[0], slopes[0].expand(u.shape)
        for j in range(1, segments):
            right = u >= t[j]
            part = torch.where(right, (u - t[j]) * scales[j], part)
            slope = torch.where(right, slopes[j], slope)
        always = torch.ones_like(u, dtype=torch.bool)
        begins = [always, *(u >= t[j] for j in range(1, segments)), ~always]
        at_left, at_right, none = grad * (1 - part), grad * part, torch.zeros_like(u)
        lefts, rights = [], []
        for j in range(segments):
            inside = begins[j] & ~begins[j + 1]
            lefts.append(torch.where(inside, at_left, none))
            rights.append(torch.where(inside, at_right, none))
        by_v = [a + b for a, b in zip([*lefts, none], [none, *rights], strict=True)]
        # The knots are constants.
        return grad * slope, *by_v, *[none] * (2 * segments + 1)

    return Formula(forward, backward)


class PiecewiseLinear(IntervalActivation):
    """A piecewise linear function of K segments: linear interpolation between trainable values at fixed knots.

    PiecewiseLinear(u) = v_j + (v_(j+1) - v_j) (u - t_j) / (t_(j+1) - t_j) for t_j <= u < t_(j+1). The first and the
    last segment are extrapolated, so that K segments have K + 1 values and K - 1 inner knots; a table in hardware
    compares an input with the inner knots only.

    The knots are not trained: `fit` places them where they reduce the error most, or on a grid, and identification and
    tuning then change the values. The starts of `like` have their inner knots at multiples of a power of two of about
    1/1000 of the interval. The derivative at a knot is that of the segment to its right. Infinite inputs give large
    finite outputs, NaN gives NaN.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `values` has the shape
    (*shape, K + 1), where `shape` is (1,) if one function serves the layer, otherwise it broadcasts against the
    trailing dimensions of the input. All parameter sets share the knots. The arithmetic is done in at least float32.

    Args:
        values: The values at the knots, (*shape, K + 1) with K from 1 to 64.
        knots: The positions of the knots in ascending order, (K + 1,).
        start: The name of what the function imitates.

    Raises:
        UserError: The knots are not finite or not ascending, their number is not that of the values, a value is not
            finite, or (when called) the values do not fit the input.

    The state_dict holds the values, and the knots as extra state.

    Example:
        >>> f = aafit.PiecewiseLinear(torch.tensor([[0.0, 0.0, 1.0]]), knots=(-1.0, 0.0, 1.0))
        >>> f(torch.tensor([-3.0, 0.5, 4.0])).tolist()  # ReLU
        [0.0, 0.5, 4.0]
        >>> inputs = torch.randn(10_000)
        >>> aafit.PiecewiseLinear.fit(F.gelu, aafit.Histogram.of(inputs), segments=8).residual.rms < 0.01
        True
    """

    family: ClassVar[str] = "PiecewiseLinear"
    text_option: ClassVar[TextOption | None] = TextOption("segments", SEGMENTS, 1, MOST_SEGMENTS)
    _names: ClassVar[tuple[str, ...]] = ("values",)

    values: nn.Parameter

    def __init__(self, values: Tensor, knots: Sequence[float], start: str = "custom") -> None:
        self.knots = _check_knots(knots)
        super().__init__(values, interval=(self.knots[0], self.knots[-1]), start=start)
        if self.values.ndim < 2 or self.values.shape[-1] != len(self.knots):
            raise UserError(
                f"PiecewiseLinear's values must have the shape (*shape, knots), here with {len(self.knots)} knots; got "
                f"{tuple(self.values.shape)}."
            )

    @property
    def segments(self) -> int:
        """The number of segments K."""
        return len(self.knots) - 1

    @classmethod
    def fit(
        cls,
        function: str | Callable[[Tensor], Tensor],
        histogram: Histogram,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] | None = None,
        *,
        segments: int = SEGMENTS,
        grid: float | None = None,
        knots: Sequence[float] | None = None,
    ) -> Self:
        """Return a piecewise linear function with a small squared error to a function on the inputs of a layer.

        The knots and the values are found together by Levenberg-Marquardt from several placements of the knots: by the
        curvature of the function and the density of the inputs, by each alone, and evenly. See
        `AdaptiveActivation.fit` for `function`, `histogram`, `shape`, the residual and the errors.

        Args:
            function: As for `AdaptiveActivation.fit`.
            histogram: The inputs of the layer.
            shape: Shape of one parameter set.
            interval: (first, last knot); by default the bulk of the inputs, see `Histogram.bulk`.
            segments: The number of segments, from 1 to 64.
            grid: Put the inner knots at multiples of this number, such as 2**-4; there are fewer segments if that is
                too coarse.
            knots: Use these knots instead, in ascending order.

        Raises:
            UserError: No input is in the interval, the knots are not ascending, or another argument is not valid.
        """
        if check_count("number of segments of PiecewiseLinear", segments) > MOST_SEGMENTS:
            raise UserError(f"PiecewiseLinear must have at most {MOST_SEGMENTS} segments; got {segments}.")
        if grid is not None and not (isinstance(grid, (int, float)) and 0 < grid < float("inf")):
            raise UserError(f"The grid of PiecewiseLinear's knots must be a number above 0; got {grid!r}.")
        target = FitTarget.of(function, histogram, cls.family)
        if knots is None:
            left, right = interval_of_fit(interval, histogram, 0.0, cls.family)
            knots = _placed_knots(target.within(left, right), left, right, segments)
            if grid is not None:
                knots = _on_grid(knots, grid)
        given = _check_knots(knots)
        inner = target.within(min(given[0], histogram.bulk()[0]), max(given[-1], histogram.bulk()[1]))
        at_N = torch.tensor(given, dtype=torch.float64)
        own_N = function_values(target.function, at_N, cls.family)
        values_N = least_squares_values(at_N, inner.u_E, inner.y_E, inner.weight_E, own_N)
        return cls._made({"values": values_N}, shape, target, knots=given)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """Return a piecewise linear function with these `settings()` and arbitrary values."""
        return cls(torch.zeros(*settings["shape"], len(settings["knots"])), settings["knots"])

    @classmethod
    def _start_options(cls, left: float, right: float) -> dict[str, Any]:
        # The network files of runs hold the values alone: the same text must give the same knots on every machine.
        return {"grid": 2.0 ** (math.ceil(math.log2(right - left)) - 10)}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "knots": list(self.knots)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, segments={self.segments}"

    def get_extra_state(self) -> Tensor:
        """Return the knots as a tensor that safetensors can store, (K + 1,) in float64."""
        return torch.tensor(self.knots, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set what `get_extra_state` returned.

        Raises:
            UserError: It is not such a tensor.
        """
        self.knots = _check_knots(state.flatten().tolist() if isinstance(state, Tensor) else ())
        self.interval = self.knots[0], self.knots[-1]

    def _formula_of(self, *parameters: Tensor) -> tuple[Formula, tuple[Tensor, ...], tuple[float, ...]]:
        scales = (1 / (after - before) for before, after in pairwise(self.knots))
        return _formula(self.segments), parameters[0].unbind(-1), (*self.knots, *scales)


class _FreeKnots(nn.Module):
    """A piecewise linear function whose inner knots are parameters too; NaN where they are not in ascending order."""

    def __init__(self, knots_SN: Tensor, values_SN: Tensor) -> None:
        super().__init__()
        self.knots, self.values = nn.Parameter(knots_SN), nn.Parameter(values_SN)

    def forward(self, u_ES: Tensor) -> Tensor:
        return self._tents(u_ES, self.knots, self.values)[0]

    def parameter_derivatives(self, u_ES: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the derivatives (Q, E, S): to the right by a knot's tent moves the function by slope * tent."""
        knots_SN, values_SN = parameters["knots"], parameters["values"]
        _, slope_ES, tents_NES = self._tents(u_ES, knots_SN, values_SN)
        by_knots_NES = -slope_ES * tents_NES
        by_knots_NES[[0, -1]] = 0
        return torch.cat([by_knots_NES, tents_NES])

    @staticmethod
    def _tents(u_ES: Tensor, knots_SN: Tensor, values_SN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gaps_SN = knots_SN.diff(dim=1)
        place_ES = (u_ES[None] >= knots_SN.T[1:-1, None]).sum(0)
        part_ES = (u_ES - _of(knots_SN, place_ES)) / _of(gaps_SN, place_ES)
        slope_ES = _of(values_SN.diff(dim=1) / gaps_SN, place_ES)
        numbers = torch.arange(knots_SN.shape[1])[:, None, None]
        tents_NES = torch.where(numbers == place_ES, 1 - part_ES, 0.0) + torch.where(
            numbers == place_ES + 1, part_ES, 0.0
        )
        y_ES = _of(values_SN, place_ES) + slope_ES * (u_ES - _of(knots_SN, place_ES))
        closest_S = CLOSEST * (knots_SN[:, -1] - knots_SN[:, 0])
        ascending_S = (gaps_SN > closest_S[:, None]).all(1)
        return torch.where(ascending_S, y_ES, torch.nan), slope_ES, tents_NES


def _of(table_SN: Tensor, place_ES: Tensor) -> Tensor:
    return table_SN.gather(1, place_ES.T).T


def _placed_knots(target: FitTarget, left: float, right: float, segments: int) -> Sequence[float]:
    """Return the knots with the least squared error found, from `left` to `right`."""
    if segments == 1:
        return left, right
    few = FitTarget.of(target.function, target.histogram.coarser(POINTS), target.family)
    even_U = torch.linspace(left, right, FINE, dtype=torch.float64)
    y_U = function_values(target.function, even_U, target.family)
    bend_U = torch.zeros(FINE, dtype=torch.float64)
    bend_U[1:-1] = y_U.diff(n=2).abs()
    inputs_U = torch.zeros(FINE, dtype=torch.float64).index_add_(
        0, torch.bucketize(few.u_E, even_U).clamp(max=FINE - 1), few.weight_E
    )
    # Bins of the histogram are wider than the even spacing.
    inputs_U = nn.functional.avg_pool1d(inputs_U[None, None], 33, 1, 16, count_include_pad=False)[0, 0]
    densities = [
        # The density of the knots of the best approximation by many segments.
        (inputs_U * bend_U.square()) ** 0.2,
        bend_U**0.5,
        bend_U**0.5 * inputs_U**0.1 + 0.3 * bend_U.sqrt().mean(),
        inputs_U,
        torch.ones(FINE, dtype=torch.float64),
    ]
    starts = [_quantiles(density, even_U, segments) for density in densities]
    if left < 0 < right:
        # Most functions with a kink have it at 0.
        moved = starts[0].clone()
        moved[1:-1][(moved[1:-1]).abs().argmin()] = 0.0
        starts.append(moved)
    knots_SN = torch.stack([knots_N for knots_N in starts if (knots_N.diff() > 2 * CLOSEST * (right - left)).all()])
    values_SN = torch.stack(
        [least_squares_values(at_N, few.u_E, few.y_E, few.weight_E, _known(even_U, y_U, at_N)) for at_N in knots_SN]
    )
    u_ES, y_ES = (x_E[:, None].expand(-1, len(knots_SN)).contiguous() for x_E in (few.u_E, few.y_E))
    start = {"knots": knots_SN, "values": values_SN}
    squares = LeastSquares(_FreeKnots(knots_SN[:1], values_SN[:1]), start, u_ES, y_ES, few.weight_E)
    cost_S = squares.minimise(ITERATIONS, 1e-5, torch.full((len(knots_SN),), 1e-24, dtype=torch.float64))
    found: list[float] = squares.parameters()["knots"][cost_S.argmin()].tolist()
    return found


def _quantiles(density_U: Tensor, even_U: Tensor, segments: int) -> Tensor:
    """Return knots (N,) between which the density has equal integrals; it is positive everywhere."""
    density_U = density_U / density_U.sum().clamp(min=1e-300) + 0.02 / len(even_U)
    total_U = density_U.cumsum(0)
    wanted = torch.linspace(0, 1, segments + 1, dtype=torch.float64)[1:-1] * total_U[-1]
    inner = even_U[torch.searchsorted(total_U, wanted).clamp(1, len(even_U) - 2)]
    return torch.cat([even_U[:1], inner, even_U[-1:]])


def _known(even_U: Tensor, y_U: Tensor, at_N: Tensor) -> Tensor:
    return y_U[torch.bucketize(at_N, even_U).clamp(max=len(even_U) - 1)]


def least_squares_values(at_N: Tensor, u_E: Tensor, y_E: Tensor, weight_E: Tensor, own_N: Tensor) -> Tensor:
    """Return the values at knots with the least squared error; one without inputs keeps the function's own.

    Args:
        at_N: The knots in ascending order.
        u_E: Inputs.
        y_E: The function's values there, (E,), or (E, S) for several functions.
        weight_E: The shares of the inputs.
        own_N: The function's values at the knots, (N,) or (N, S).

    Returns:
        The values, (N,) or (N, S).
    """
    place_E = (torch.searchsorted(at_N, u_E, right=True) - 1).clamp(0, len(at_N) - 2)
    part_E = (u_E - at_N[place_E]) / (at_N[place_E + 1] - at_N[place_E])
    tents_EN = torch.zeros(len(u_E), len(at_N), dtype=torch.float64)
    tents_EN.scatter_(1, place_E[:, None], (1 - part_E)[:, None])
    tents_EN.scatter_(1, place_E[:, None] + 1, part_E[:, None])
    weighted_EN = tents_EN * weight_E[:, None]
    matrix_NN = weighted_EN.T @ tents_EN + PRIOR / len(at_N) * torch.eye(len(at_N), dtype=torch.float64)
    change_N: Tensor = torch.linalg.solve(matrix_NN, weighted_EN.T @ (y_E - tents_EN @ own_N))
    return own_N + change_N


def _on_grid(knots: Sequence[float], grid: float) -> list[float]:
    """Return the knots with the inner ones rounded to distinct multiples of `grid` between the ends."""
    rounded = sorted({round(knot / grid) * grid for knot in knots[1:-1]})
    return [knots[0], *(knot for knot in rounded if knots[0] < knot < knots[-1]), knots[-1]]


def _check_knots(knots: Sequence[float]) -> tuple[float, ...]:
    try:
        given = tuple(float(knot) for knot in knots)
    except (TypeError, ValueError):
        raise UserError(f"PiecewiseLinear's knots must be numbers in ascending order; got {knots!r}.") from None
    ascending = all(before < after for before, after in pairwise(given))
    if len(given) < 2 or not ascending or not all(abs(knot) < float("inf") for knot in given):
        shown = ", ".join(f"{knot:g}" for knot in given)
        raise UserError(f"PiecewiseLinear needs two or more finite knots in ascending order; got ({shown}).")
    if len(given) > MOST_SEGMENTS + 1:
        raise UserError(f"PiecewiseLinear must have at most {MOST_SEGMENTS} segments; got {len(given) - 1}.")
    return given
