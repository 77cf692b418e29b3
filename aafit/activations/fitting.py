"""Least-squares fits of activations to a function or to given outputs, all in float64.

`LeastSquares` fits any activation by Levenberg-Marquardt, for many starts or parameter sets at once. linear_spline.py
fits F-Neurons, which are linear in their weights.

Axes in names: E input, S start or parameter set, Q parameter of a set.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from aafit.activations.elementwise import dual_numbers
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.errors import UserError, check_name

FIRST_DAMPING = 1e-2
LARGEST_DAMPING = 1e8
LEAST_DAMPING = 1e-13  # relative to the scaled matrix: two parameters may have the same effect on all outputs
SMALLEST = 1e-140  # so that the product of two scales does not underflow
LONGEST_STEP = 1.0  # of the coordinate of a slope: a factor of e

SLOPES = (-4.0, -1.0, 1.0, 4.0)  # of further starts, for inputs of standard deviation 1
POINTS = 500
FIRST, LAST = 40, 200  # iterations on few points from all starts, then on all points from the best
CONVERGED = 1e-12  # relative decrease of the squared error
MATCHED = 1e-28  # squared error relative to the variance of the function


@dataclass(frozen=True)
class Residual:
    """The error of a fit on the inputs for which it was made.

    Attributes:
        rms: Root mean squared error on the bulk of the inputs (see `Histogram.bulk`), relative to the standard
            deviation of the function there.
        largest: The largest absolute error on all inputs.
        outliers: The share of the inputs outside the bulk.
        rms_all: As `rms`, on all inputs.
    """

    rms: float
    largest: float
    outliers: float = 0.0
    rms_all: float = 0.0

    @property
    def worst(self) -> float:
        """The larger of the relative errors on the bulk and on all inputs."""
        return max(self.rms, self.rms_all)

    @classmethod
    def of(cls, error_E: Tensor, y_E: Tensor, weight_E: Tensor, bulk_E: Tensor) -> "Residual":
        """Return the residual of errors (E,) or (E, S) of a function's values y.

        Args:
            error_E: The errors.
            y_E: The values, of the same shape.
            weight_E: The shares of the inputs, (E,).
            bulk_E: Whether an input belongs to the bulk, (E,).
        """
        every, largest = _relative_rms(error_E, y_E, weight_E), error_E.abs().max().item()
        if bulk_E.all():
            return cls(every, largest, 0.0, every)
        share = weight_E[bulk_E].sum()
        inner = _relative_rms(error_E[bulk_E], y_E[bulk_E], weight_E[bulk_E] / share)
        return cls(inner, largest, 1 - share.item(), every)


def _relative_rms(error_E: Tensor, y_E: Tensor, weight_E: Tensor) -> float:
    rms = (weight_E @ error_E.square()).mean().sqrt().item()
    deviation = (weight_E @ (y_E - weight_E @ y_E).square()).mean().sqrt().item()
    return rms / deviation if deviation else float("inf") if rms else 0.0


@dataclass(frozen=True, eq=False)
class FitTarget:
    """A function, and the inputs on which an activation is fitted to it.

    Attributes:
        function: Called with a float64 tensor on the CPU.
        name: Its name in text forms and messages.
        family: The family that is fitted, for messages.
        u_E: The inputs.
        y_E: The function's values there.
        weight_E: The share of each input; they sum to 1.
        bulk_E: Whether the input belongs to the bulk of the inputs, see `Histogram.bulk`.
        histogram: The histogram of the inputs.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    family: str
    u_E: Tensor
    y_E: Tensor
    weight_E: Tensor
    bulk_E: Tensor
    histogram: Histogram

    @classmethod
    def of(cls, function: str | Callable[[Tensor], Tensor], histogram: Histogram, family: str) -> "FitTarget":
        """Evaluate a function, or one of `FUNCTIONS` by name, at the inputs of a histogram.

        Raises:
            UserError: The name is unknown, the function is not elementwise or not finite on the inputs, `histogram` is
                not a histogram, or all its inputs are equal.
        """
        if isinstance(function, str):
            name, function = function, FUNCTIONS[check_name("function", function, FUNCTIONS)]
        else:
            name = function_name(function)
        if not isinstance(histogram, Histogram):
            raise UserError(
                f"{family} is fitted over a histogram of inputs, not a {type(histogram).__name__}: give "
                "aafit.Histogram.of(inputs), where inputs is a tensor."
            )
        u_E, weight_E = histogram.points()
        if len(u_E) < 2:
            raise UserError(f"All inputs are {u_E.item():.6g}: {family} is fitted to at least two different inputs.")
        left, right = histogram.bulk()
        bulk_E = (u_E >= left) & (u_E <= right)
        return cls(function, name, family, u_E, function_values(function, u_E, family), weight_E, bulk_E, histogram)

    def within(self, left: float, right: float) -> "FitTarget":
        """Return the target on the inputs in [left, right] only."""
        if left <= self.u_E[0] and self.u_E[-1] <= right:
            return self
        inner = FitTarget.of(self.function, self.histogram.between(left, right), self.family)
        return replace(inner, name=self.name)

    def with_even_inputs(self, left: float, right: float, number: int, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs with evenly spaced ones in [left, right] added, the function's values, and the weights.

        The weights of the added inputs sum to `weight`, those of the others to 1.
        """
        even_E = torch.linspace(left, right, number, dtype=torch.float64)
        y_E = torch.cat([self.y_E, function_values(self.function, even_E, self.family)])
        weight_E = torch.cat([self.weight_E, torch.full_like(even_E, weight / number)])
        return torch.cat([self.u_E, even_E]), y_E, weight_E

    def residual(self, activation: nn.Module) -> Residual:
        """Return the error of an activation with one parameter set."""
        with torch.no_grad():
            error_E = activation(self.u_E.clone()).double() - self.y_E
        return Residual.of(error_E, self.y_E, self.weight_E, self.bulk_E)


def function_name(function: str | Callable[[Tensor], Tensor]) -> str:
    """Return the name of a function in the text form of an activation that starts as it."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def function_values(function: Callable[[Tensor], Tensor], u_E: Tensor, family: str) -> Tensor:
    """Return the values of an elementwise function, (E,) in float64 on the CPU.

    Raises:
        UserError: It is not an elementwise function of a tensor, or not finite at one of the inputs.
    """
    if not callable(function):
        raise UserError(f"{family} can be fitted to the name of a function or to a function; got {function!r}.")
    name = function_name(function)
    try:
        with torch.no_grad():
            y_E = function(u_E.clone())
    except UserError:
        raise
    # The user's function may raise anything.
    except Exception as error:
        raise UserError(f"{family} can start only as a function of a tensor; {name} fails: {error}.") from error
    if not isinstance(y_E, Tensor) or y_E.shape != u_E.shape:
        raise UserError(f"{family} can start only as an elementwise function of a tensor; {name} is not elementwise.")
    if not y_E.isfinite().all():
        at = u_E[~y_E.isfinite()][0].item()
        raise UserError(f"{family} can start only as a function that is finite; {name}({at:g}) is not.")
    return y_E.detach().to("cpu", torch.float64)


def to_coordinates(values: Tensor, is_slope: Tensor) -> Tensor:
    """Map parameters p to coordinates t: t = asinh(p) for a slope, t = p for any other parameter.

    A step in t changes a large slope by a factor, and a small one, which may change its sign, by an amount.
    """
    return torch.where(is_slope, values.asinh(), values)


def from_coordinates(at: Tensor, is_slope: Tensor) -> Tensor:
    """Map coordinates to parameters, the inverse of `to_coordinates`."""
    return torch.where(is_slope, at.sinh(), at)


def coordinate_derivative(at: Tensor, is_slope: Tensor) -> Tensor:
    """Return dp/dt at coordinates t."""
    return torch.where(is_slope, at.cosh(), 1.0)


class LeastSquares:
    """The least squared error between an activation and given outputs, for S parameter sets (or starts) at once.

    It is minimised by Levenberg-Marquardt with one damping for each set (Marquardt 1963,
    https://doi.org/10.1137/0111030), in the coordinates of `to_coordinates`.

    Args:
        activation: Gives the formula; its own parameters are not changed.
        start: The parameters of each set by name, (S, *own), where `own` is () or an F-Neuron's (N,).
        u_ES: The inputs of each set.
        y_ES: The outputs to fit, of the same shape.
        weight_E: Weights of the inputs that sum to 1; None weighs them alike.

    Attributes:
        is_slope_Q: Which parameters are slopes.
        at_SQ: The coordinates: those of `start`, then those that `minimise` found.
        prior_SQ, precision_SQQ: The cost includes d^T precision d with d = at_SQ - prior_SQ; a precision of 0 by
            default.
    """

    def __init__(
        self,
        activation: nn.Module,
        start: Mapping[str, Tensor],
        u_ES: Tensor,
        y_ES: Tensor,
        weight_E: Tensor | None = None,
    ) -> None:
        self.activation, self.u_ES, self.y_ES, self.weight_E = activation, u_ES, y_ES, weight_E
        self._own = {name: x.shape[1:] for name, x in start.items()}
        rows = {name: x.reshape(len(x), -1) for name, x in start.items()}
        self._sizes = [x.shape[1] for x in rows.values()]
        slopes: Collection[str] = getattr(activation, "slope_parameters", ())
        self.is_slope_Q = torch.cat([torch.full(x.shape[1:], name in slopes) for name, x in rows.items()])
        self.is_slope_Q = self.is_slope_Q.to(u_ES.device)
        self.at_SQ = to_coordinates(torch.cat(list(rows.values()), 1), self.is_slope_Q)
        self.prior_SQ, self.precision_SQQ = self.at_SQ, self.at_SQ.new_zeros(1, 1, 1)

    def minimise(self, iterations: int, converged: float, matched_S: Tensor) -> Tensor:
        """Minimise the cost of each set, and return the costs (S,).

        Args:
            iterations: The most iterations.
            converged: The relative decrease of the cost below which a set is done.
            matched_S: The cost at which a set is done.
        """
        cost_S = self.cost(self.at_SQ)
        damping_S = torch.full_like(cost_S, FIRST_DAMPING)
        done_S = cost_S <= matched_S
        for _ in range(iterations):
            if done_S.all():
                break
            trial_SQ = self.at_SQ + self._steps(damping_S)
            trial_S = self.cost(trial_SQ)
            better_S = trial_S < cost_S
            little_S = (cost_S - trial_S) < converged * cost_S
            self.at_SQ = torch.where(better_S[:, None], trial_SQ, self.at_SQ)
            cost_S = torch.where(better_S, trial_S, cost_S)
            # With the largest damping the steps are too short to find anything better.
            done_S = torch.where(better_S, little_S, damping_S > LARGEST_DAMPING) | (cost_S <= matched_S)
            damping_S = torch.where(better_S, damping_S / 5, damping_S * 4)
        return cost_S

    def parameters(self, at_SQ: Tensor | None = None) -> dict[str, Tensor]:
        """Return the parameters by name, (S, *own), at `at_SQ` or at the coordinates found so far."""
        values_SQ = from_coordinates(self.at_SQ if at_SQ is None else at_SQ, self.is_slope_Q)
        return self._split(values_SQ)

    def outputs(self, at_SQ: Tensor) -> Tensor:
        """Return the outputs of each set, (E, S)."""
        with torch.no_grad():
            y_ES: Tensor = functional_call(self.activation, self.parameters(at_SQ), self.u_ES)
        return y_ES

    def errors(self, at_SQ: Tensor) -> Tensor:
        """Return the weighted mean squared error of each set, (S,); infinite where an output is not finite."""
        square_ES = (self.outputs(at_SQ) - self.y_ES).square()
        error_S = square_ES.mean(0) if self.weight_E is None else (self.weight_E[:, None] * square_ES).sum(0)
        return error_S.nan_to_num(nan=float("inf"), posinf=float("inf"))

    def cost(self, at_SQ: Tensor) -> Tensor:
        """Return the cost of each set, (S,): its mean squared error and the prior."""
        return self.errors(at_SQ) + (self._pull(at_SQ) * (at_SQ - self.prior_SQ)).sum(1)

    def normal(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return half the gradient of the cost (S, Q) and half its Gauss-Newton matrix (S, Q, Q)."""
        y_ES, jacobian_QES = self._linearized(at_SQ)
        jacobian_QES = jacobian_QES.nan_to_num(0.0, 0.0, 0.0)
        error_ES = (y_ES - self.y_ES).nan_to_num(0.0, 0.0, 0.0)
        weighted_QES = jacobian_QES if self.weight_E is None else jacobian_QES * self.weight_E[:, None]
        total = len(self.u_ES) if self.weight_E is None else 1
        gradient_SQ = torch.einsum("qes,es->sq", weighted_QES, error_ES) / total
        matrix_SQQ = torch.einsum("qes,pes->sqp", weighted_QES, jacobian_QES) / total
        return gradient_SQ + self._pull(at_SQ), matrix_SQQ + self.precision_SQQ

    def _linearized(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (E, S) and their derivatives with respect to the coordinates, (Q, E, S)."""
        scale_SQ = coordinate_derivative(at_SQ, self.is_slope_Q)
        values = self.parameters(at_SQ)
        # A family may have them in closed form, which is much faster than forward-mode AD.
        derivatives: Any = getattr(self.activation, "parameter_derivatives", None)
        if derivatives is not None:
            with torch.no_grad():
                found_QES: Tensor = derivatives(self.u_ES, values)
            return self.outputs(at_SQ), found_QES * scale_SQ.T.unsqueeze(1)
        columns = []
        for q in range(len(self.is_slope_Q)):
            tangent_SQ = torch.zeros_like(scale_SQ)
            tangent_SQ[:, q] = scale_SQ[:, q]
            tangents = self._split(tangent_SQ)
            with dual_numbers():
                duals = {name: forward_ad.make_dual(x, tangents[name]) for name, x in values.items()}
                y_ES, column_ES = forward_ad.unpack_dual(functional_call(self.activation, duals, self.u_ES))
                columns.append(torch.zeros_like(y_ES) if column_ES is None else column_ES)
        return y_ES, torch.stack(columns)

    def _pull(self, at_SQ: Tensor) -> Tensor:
        return (self.precision_SQQ * (at_SQ - self.prior_SQ).unsqueeze(1)).sum(2)

    def _steps(self, damping_S: Tensor) -> Tensor:
        gradient_SQ, matrix_SQQ = self.normal(self.at_SQ)
        # A parameter without any effect has no gradient either, so any scale serves.
        root_SQ = matrix_SQQ.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST).sqrt()
        scaled_SQQ = matrix_SQQ / (root_SQ[:, :, None] * root_SQ[:, None, :])
        identity = torch.eye(scaled_SQQ.shape[1], dtype=scaled_SQQ.dtype, device=scaled_SQQ.device)
        scaled_SQQ = scaled_SQQ + (damping_S[:, None, None] + LEAST_DAMPING) * identity
        step_SQ: Tensor = torch.linalg.solve_ex(scaled_SQQ, -gradient_SQ / root_SQ)[0] / root_SQ
        longest_S = torch.where(self.is_slope_Q, step_SQ.abs(), 0.0).amax(1)
        return step_SQ * (LONGEST_STEP / longest_S.clamp(min=LONGEST_STEP))[:, None]

    def _split(self, values_SQ: Tensor) -> dict[str, Tensor]:
        parts = values_SQ.split(self._sizes, 1)
        return {name: x.reshape(len(x), *own) for (name, own), x in zip(self._own.items(), parts, strict=True)}


def fit_parameters(starts: Sequence[nn.Module], slopes: Collection[str], target: FitTarget) -> dict[str, Tensor]:
    """Return the parameters with the least squared error found from several starts, by name, (1,) each in float64.

    Every start is also tried with its slopes set to `SLOPES`, scaled to the width of the inputs.
    """
    activation = starts[0]
    names = [name for name, _ in activation.named_parameters()]
    values = [torch.cat([p.detach().double() for p in start.parameters()]) for start in starts]
    is_slope_Q = torch.tensor([name in slopes for name in names])
    if is_slope_Q.any():
        centre = target.weight_E @ target.u_E
        width = (target.weight_E @ (target.u_E - centre).square()).sqrt().clamp(min=1e-150)
        values += [torch.where(is_slope_Q, slope / width, one) for one in values[: len(starts)] for slope in SLOPES]
    few = FitTarget.of(target.function, target.histogram.coarser(POINTS), target.family)
    found, cost_S = _fit_from(activation, dict(zip(names, torch.stack(values, 1), strict=True)), few, FIRST)
    best = {name: value_S[cost_S.argmin()][None] for name, value_S in found.items()}
    found, _ = _fit_from(activation, best, target, LAST)
    return found


def _fit_from(
    activation: nn.Module, start: Mapping[str, Tensor], target: FitTarget, iterations: int
) -> tuple[dict[str, Tensor], Tensor]:
    sets = len(next(iter(start.values())))
    u_ES, y_ES = (x_E[:, None].expand(-1, sets) for x_E in (target.u_E, target.y_E))
    problem = LeastSquares(activation, start, u_ES, y_ES, target.weight_E)
    mean = target.weight_E @ target.y_E
    cost_S = problem.minimise(iterations, CONVERGED, MATCHED * (target.weight_E @ (target.y_E - mean).square()))
    return problem.parameters(), cost_S
