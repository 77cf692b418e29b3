"""The parameters with which an activation is nearest to a function, on the inputs that a layer sees.

From several starts at once: activations differ in where they must start from, and the best of all is kept.

Axes in names: E input, S start, Q parameter.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aafit.activations.histogram import Histogram
from aafit.activations.levenberg_marquardt import minimised
from aafit.errors import UserError

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
    at_SQ, cost_S = minimised(problem, at_SQ, iterations, CONVERGED, matched)
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
