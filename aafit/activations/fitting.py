"""F-Neuron nearest to a function on the inputs that a layer sees: a linear problem for its weights, and its interval.

Axes in names: E input, N value between two of which a line is straight.

Least squares of a few numbers by Levenberg-Marquardt, for many starts or parameter sets at once.

Each has a damping of its own (Marquardt 1963, https://doi.org/10.1137/0111030). All in float64. The coordinate
of a steepness p is t with p = sinh(t), so that a step in t changes a large one by a share of it.

Axes in names: S start or parameter set, Q parameter.


The parameters with which an activation is nearest to a function, on the inputs that a layer sees.

From several starts at once: activations differ in where they must start from, and the best of all is kept.

Axes in names: E input, S start, Q parameter.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aafit.activations.histogram import Histogram
from aafit.activations.piecewise_linear import Line
from aafit.errors import UserError

FIRST_DAMPING = 1e-2
LARGEST_DAMPING = 1e8
LEAST_DAMPING = 1e-13  # of what is solved: two values may have the same effect on all elements
SMALLEST = 1e-140  # so that products of two scales are still numbers
LONGEST_STEP = 1.0  # of a steepness, in its own coordinate: by a factor of e


class Squares(Protocol):
    """A sum of squares to minimise."""

    @property
    def steep_Q(self) -> Tensor:
        """Which parameters are a steepness."""

    def cost(self, at_SQ: Tensor) -> Tensor:
        """The mean squared error of each, (S,)."""

    def normal(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """Half the gradient of the cost, (S, Q), and half its Gauss-Newton matrix, (S, Q, Q)."""


def levenberg_marquardt(
    squares: Squares, start_SQ: Tensor, iterations: int, converged: float, matched_S: Tensor
) -> tuple[Tensor, Tensor]:
    """The places of least cost that are found from each start, (S, Q), and their costs (S,).

    Args:
        iterations: at most.
        converged: relative decrease of the cost below which a start is done.
        matched_S: cost at which a start is done.
    """
    at_SQ, cost_S = start_SQ, squares.cost(start_SQ)
    damping_S = torch.full_like(cost_S, FIRST_DAMPING)
    done_S = cost_S <= matched_S
    for _ in range(iterations):
        if done_S.all():
            break
        trial_SQ = at_SQ + _steps(*squares.normal(at_SQ), damping_S, squares.steep_Q)
        trial_S = squares.cost(trial_SQ)
        better_S = trial_S < cost_S
        little_S = (cost_S - trial_S) < converged * cost_S
        at_SQ = torch.where(better_S[:, None], trial_SQ, at_SQ)
        cost_S = torch.where(better_S, trial_S, cost_S)
        # One that found no better place is done once its damping leaves it no step worth the name.
        done_S = torch.where(better_S, little_S, damping_S > LARGEST_DAMPING) | (cost_S <= matched_S)
        damping_S = torch.where(better_S, damping_S / 5, damping_S * 4)
    return at_SQ, cost_S


def _steps(gradient_SQ: Tensor, curvature_SQQ: Tensor, damping_S: Tensor, steep_Q: Tensor) -> Tensor:
    # What nothing depends on has no gradient either: any scale will do.
    root_SQ = curvature_SQQ.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST).sqrt()
    scaled_SQQ = curvature_SQQ / (root_SQ[:, :, None] * root_SQ[:, None, :])
    identity = torch.eye(scaled_SQQ.shape[1], dtype=scaled_SQQ.dtype, device=scaled_SQQ.device)
    scaled_SQQ = scaled_SQQ + (damping_S[:, None, None] + LEAST_DAMPING) * identity
    step_SQ: Tensor = torch.linalg.solve_ex(scaled_SQQ, -gradient_SQ / root_SQ)[0] / root_SQ
    longest_S = torch.where(steep_Q, step_SQ.abs(), 0.0).amax(1)
    return step_SQ * (LONGEST_STEP / longest_S.clamp(min=LONGEST_STEP))[:, None]


STEEPNESSES = (-4.0, -1.0, 1.0, 4.0)  # at inputs of standard deviation 1
POINTS = 500
FIRST, LAST = 40, 200  # iterations
CONVERGED = 1e-12  # relative decrease of the squared error
MATCHED = 1e-28  # squared error over the variance of the function


@dataclass(frozen=True)
class Residual:
    """What a fit leaves, on the inputs that it was made for.

    Attributes:
        rms: Root of the mean squared error, over the standard deviation of the function.
        largest: The largest absolute error.
    """

    rms: float
    largest: float


def function_name(function: str | Callable[[Tensor], Tensor]) -> str:
    """What a function is called in the text of what starts as it."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def points_of(histogram: Histogram, family: str) -> tuple[Tensor, Tensor]:
    """The inputs and their shares, see `Histogram.points`.

    Raises:
        UserError: it is no histogram.
    """
    if not isinstance(histogram, Histogram):
        raise UserError(
            f"{family} is fitted over a histogram of inputs, not a {type(histogram).__name__}: give "
            "aafit.Histogram.of(inputs), of a tensor of them."
        )
    return histogram.points()


def function_values(function: Callable[[Tensor], Tensor], u_E: Tensor, family: str) -> Tensor:
    """The values of a function of a tensor, (E,) in float64.

    Raises:
        UserError: it is not an elementwise function of a tensor, or is not finite there.
    """
    if not callable(function):
        raise UserError(f"{family} can be fitted to the name of a function or to a function; got {function!r}.")
    name = function_name(function)
    try:
        with torch.no_grad():
            y_E = function(u_E.clone())
    except UserError:
        raise
    # Of whatever kind: the function is not ours.
    except Exception as error:
        raise UserError(f"{family} can start only as a function of a tensor; {name} fails: {error}.") from error
    if not isinstance(y_E, Tensor) or y_E.shape != u_E.shape:
        raise UserError(f"{family} can start only as an elementwise function of a tensor; {name} is none.")
    if not y_E.isfinite().all():
        at = u_E[~y_E.isfinite()][0].item()
        raise UserError(f"{family} can start only as a function that is finite; {name}({at:g}) is not.")
    return y_E.detach().to("cpu", torch.float64)


def residual(activation: nn.Module, u_E: Tensor, y_E: Tensor, weight_E: Tensor) -> Residual:
    """How far an activation is from values y at inputs u, where weights say how often these occur (they sum to 1)."""
    with torch.no_grad():
        error_E = activation(u_E.clone()).double() - y_E
    mean = (weight_E * y_E).sum()
    spread = (weight_E * (y_E - mean).square()).sum().sqrt().item()
    rms = (weight_E * error_E.square()).sum().sqrt().item()
    return Residual(rms / spread if spread else float("inf") if rms else 0.0, error_E.abs().max().item())


def fitted_parameters(
    starts: Sequence[nn.Module],
    steep: Collection[str],
    histogram: Histogram,
    function: Callable[[Tensor], Tensor],
    family: str,
) -> dict[str, Tensor]:
    """The parameters by name, (1,) each in float64, with the least squared error that is found from all the starts.

    Each start is also tried with its steepness set to some that suit the width of the inputs, of either sign. First on
    few points from all of them, then on all points from the best.
    """
    activation = starts[0]
    names = [name for name, _ in activation.named_parameters()]
    values = [torch.cat([p.detach().double() for p in start.parameters()]) for start in starts]
    u_E, weight_E = histogram.points()
    centre = (weight_E * u_E).sum()
    width = (weight_E * (u_E - centre).square()).sum().sqrt().clamp(min=1e-150)
    steep_Q = torch.tensor([name in steep for name in names])
    if steep_Q.any():
        values += [torch.where(steep_Q, x / width, one) for one in values[: len(starts)] for x in STEEPNESSES]
    few_E, share_E = histogram.coarser(POINTS).points()
    y_E = function_values(function, few_E, family)
    found_SQ, cost_S = least_squares(activation, steep, torch.stack(values), few_E, y_E, share_E, FIRST)
    best_SQ = found_SQ[cost_S.argmin()][None]
    y_E = function_values(function, u_E, family)
    best_SQ, _ = least_squares(activation, steep, best_SQ, u_E, y_E, weight_E, LAST)
    return {name: value.reshape(1) for name, value in zip(names, best_SQ[0], strict=True)}


def least_squares(
    activation: nn.Module,
    steep: Collection[str],
    start_SQ: Tensor,
    u_E: Tensor,
    y_E: Tensor,
    weight_E: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """The least squared error from each of S starts: parameters (S, Q), and mean squared errors (S,).

    `activation` has Q parameters of one number each, in their order; those in `steep` multiply the input in a sigmoid.
    """
    names = [name for name, _ in activation.named_parameters()]
    problem = _Problem(activation, names, torch.tensor([name in steep for name in names]), u_E, y_E, weight_E)
    at_SQ = torch.where(problem.steep_Q, start_SQ.asinh(), start_SQ)
    matched = MATCHED * (weight_E * (y_E - (weight_E * y_E).sum()).square()).sum()
    at_SQ, cost_S = levenberg_marquardt(problem, at_SQ, iterations, CONVERGED, matched)
    return problem.values(at_SQ), cost_S


@dataclass(frozen=True)
class _Problem:
    activation: nn.Module
    names: list[str]
    steep_Q: Tensor
    u_E: Tensor
    y_E: Tensor
    weight_E: Tensor

    def values(self, at_SQ: Tensor) -> Tensor:
        return torch.where(self.steep_Q, at_SQ.sinh(), at_SQ)

    def cost(self, at_SQ: Tensor) -> Tensor:
        """The mean squared error of each start; infinite where the function is not finite."""
        with torch.no_grad():
            error_ES = self._output(dict(zip(self.names, self.values(at_SQ).T, strict=True)))
        cost_S = (self.weight_E[:, None] * (error_ES - self.y_E[:, None]).square()).sum(0)
        return cost_S.nan_to_num(nan=float("inf"), posinf=float("inf"))

    def normal(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        values_SQ = self.values(at_SQ)
        slopes_SQ = torch.where(self.steep_Q, at_SQ.cosh(), 1.0)
        # A parameter for every input, so that the gradient of the sum is each output's own.
        each = {
            name: value_S.expand(len(self.u_E), -1).clone().requires_grad_()
            for name, value_S in zip(self.names, values_SQ.T, strict=True)
        }
        with torch.enable_grad():
            y_ES = self._output(each)
            by_parameter = torch.autograd.grad(y_ES.sum(), list(each.values()), materialize_grads=True)
        columns = [by_q_ES * slope_S for by_q_ES, slope_S in zip(by_parameter, slopes_SQ.T, strict=True)]
        y_ES = y_ES.detach()
        jacobian_QES = torch.stack(columns).nan_to_num(0.0, 0.0, 0.0)
        weighted_QES = jacobian_QES * self.weight_E[:, None]
        error_ES = (y_ES - self.y_E[:, None]).nan_to_num(0.0, 0.0, 0.0)
        gradient_SQ = torch.einsum("qes,es->sq", weighted_QES, error_ES)
        curvature_SQQ = torch.einsum("qes,pes->sqp", weighted_QES, jacobian_QES)
        return gradient_SQ, curvature_SQQ

    def _output(self, parameters: Mapping[str, Tensor]) -> Tensor:
        u_ES = self.u_E[:, None].expand(-1, next(iter(parameters.values())).shape[-1])
        y_ES: Tensor = functional_call(self.activation, dict(parameters), u_ES)
        return y_ES


PRIOR = 1e-6
"""What all of the function's own values at the centres weigh together, beside inputs that weigh 1."""
TAILS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Shares of the inputs that are tried as left out at one end."""
SHRINKS = 12


def fit_linear_spline(u_E: Tensor, y_E: Tensor, weight_E: Tensor, line: Line, own_N: Tensor) -> Tensor:
    """The values (N,) with the least weighted squared error, drawn a little to the function's own, `own_N`."""
    place_E, part_E = _along(u_E, line, len(own_N))
    ends_2E = torch.stack([1 - part_E, part_E])
    rows_2E = torch.stack([place_E, place_E + 1])
    size = len(own_N)
    # Each input concerns two neighbours: the matrix is banded, but so small that it is kept whole.
    matrix = torch.zeros(size * size, dtype=torch.float64)
    for one in range(2):
        for other in range(2):
            matrix.index_add_(0, rows_2E[one] * size + rows_2E[other], weight_E * ends_2E[one] * ends_2E[other])
    right_N = torch.zeros(size, dtype=torch.float64).index_add_(
        0, rows_2E.flatten(), (ends_2E * (weight_E * (y_E - _lines(place_E, part_E, own_N)))).flatten()
    )
    prior = PRIOR / size * torch.eye(size, dtype=torch.float64)
    change_N: Tensor = torch.linalg.solve(matrix.reshape(size, size) + prior, right_N)
    return own_N + change_N


def best_interval(u_E: Tensor, y_E: Tensor, weight_E: Tensor, size: int, extended: bool) -> tuple[float, float]:
    """The interval on which `size` values give the least squared error, within that of the inputs.

    Some shares of the inputs are tried as left out at either end; then the ends move in steps that become smaller.
    """
    below_E, above_E = weight_E.cumsum(0), weight_E.flip(0).cumsum(0)
    last = len(u_E) - 1
    lefts = {u_E[min(last, int((below_E <= share).sum()))].item() for share in TAILS}
    rights = {u_E[max(0, last - int((above_E <= share).sum()))].item() for share in TAILS}

    def error(interval: tuple[float, float]) -> float:
        left, right = interval
        if right - left < 1e-3 * width:
            return float("inf")
        place_E, part_E = _along(u_E, Line(left, right, extended), size)
        own_N = _own_values(u_E, y_E, torch.linspace(left, right, size, dtype=torch.float64))
        values_N = fit_linear_spline(u_E, y_E, weight_E, Line(left, right, extended), own_N)
        return (weight_E * (_lines(place_E, part_E, values_N) - y_E).square()).sum().item()

    width = (u_E[-1] - u_E[0]).item()
    tried = {(left, right): error((left, right)) for left in lefts for right in rights if left < right}
    if not tried:
        return u_E[0].item(), u_E[-1].item()
    best = min(tried, key=tried.__getitem__)
    least = tried[best]
    step = (best[1] - best[0]) / size
    for _ in range(SHRINKS):
        # Either end, both apart, or both alike.
        for move in ((step, 0.0), (0.0, step), (step, step), (step, -step)):
            for sign in (1, -1):
                trial = best[0] + sign * move[0], best[1] + sign * move[1]
                if (trial_error := error(trial)) < least:
                    best, least = trial, trial_error
        step /= 2
    # Most functions with a kink have it at 0.
    left, right = best
    radius = (right - left) / (size - 1)
    offset = -round(-left / radius) * radius - left
    at_zero = left + offset, right + offset
    return at_zero if left < 0 < right and error(at_zero) < least else best


def _along(u_E: Tensor, line: Line, size: int) -> tuple[Tensor, Tensor]:
    at_E = (u_E - line.left) * ((size - 1) / (line.right - line.left))
    if not line.extended:
        at_E = at_E.clamp(0, size - 1)
    place_E = at_E.floor().clamp(0, size - 2).to(torch.int64)
    return place_E, at_E - place_E


def _lines(place_E: Tensor, part_E: Tensor, values_N: Tensor) -> Tensor:
    return values_N[place_E] * (1 - part_E) + values_N[place_E + 1] * part_E


def _own_values(u_E: Tensor, y_E: Tensor, at_N: Tensor) -> Tensor:
    """The function's values between inputs where it is known, by straight lines."""
    above_N = torch.searchsorted(u_E, at_N).clamp(1, len(u_E) - 1)
    low_N, high_N = u_E[above_N - 1], u_E[above_N]
    part_N = ((at_N - low_N) / (high_N - low_N)).clamp(0, 1)
    return y_E[above_N - 1] + part_N * (y_E[above_N] - y_E[above_N - 1])
