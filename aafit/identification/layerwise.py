"""Bring a far start near: let each activation give what the base network's gives there, from the input on.

No labels are needed, and each layer is a problem of the few numbers of its activation: least squares over the elements
of its output, with the inputs that it receives once the layers before it are done, or with those that it has in the
base. The first lets a layer make up for what those before it left, the second keeps it from following their errors.
Solved apart for each parameter set where channels or neurons have their own.

Axes in names: E element of an array, Q number of a parameter set, S set.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from aafit.activations import AdaptiveActivation
from aafit.activations.compiled import Layout
from aafit.activations.fitting import levenberg_marquardt
from aafit.identification.elements import (
    by_sets,
    calls_of,
    elements_for,
    input_elements,
    output_elements,
    random_rows,
)
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import as_inputs

ITERATIONS = 100
CONVERGED = 1e-4  # relative decrease of the squared error
MATCHED = 1e-6  # squared error over the variance of the output: nearer is not worth a steepness that cannot move again
SMOOTH = 1.0  # the coordinate of a steepness of 1.2
PRIOR = 10.0  # elements' worth of staying near what all sets share


@dataclass(frozen=True)
class Matched:
    """How well a layer was matched: root of the mean squared error over the standard deviation of the base's output."""

    path: str
    before: float
    after: float


def match_layers(
    net: nn.Module, base: nn.Module, inputs: Iterable[Any], seed: int = 0, inputs_of_base: bool = False
) -> list[Matched]:
    """Let every adaptive activation of `net`, in place, give what the module of `base` at its path gives.

    Args:
        net, base: networks that are built alike, in evaluation mode.
        inputs: what `net` is called with, batch after batch, see `aafit.networks.batches.as_inputs`. Padding does not
            count, see `aafit.networks.batches`.
        inputs_of_base: for the inputs that the activation has in `base`, instead of those that it receives in `net`.

    Returns:
        A row for each layer in the order of the network; one that a forward does not call is left out.
    """
    batches, rows = [as_inputs(given) for given in inputs], []
    calls = calls_of(net, batches[0])
    activations = {path: activation for path, activation in adaptive_activations(net).items() if path in calls}
    wanted = output_elements(base, activations, calls, batches, seed)
    in_base = input_elements(base, activations, calls, batches, seed) if inputs_of_base else None
    for path in calls:
        if in_base is None:
            # Not before: those that came earlier have changed what this one receives.
            received = input_elements(net, {path: activations[path]}, calls, batches, seed)[path]
        else:
            received = in_base.pop(path)
        given_ES = wanted.pop(path).elements_ES
        before, after = _fitted(activations[path], received.layout, received.elements_ES, given_ES, seed)
        rows.append(Matched(path, before, after))
    return rows


def fit_activation(activation: AdaptiveActivation, u: Tensor, y: Tensor, seed: int = 0) -> tuple[float, float]:
    """Fit an activation, in place, to outputs `y` of inputs `u` (B, *...), by least squares.

    Returns:
        The root of the mean squared error, over the standard deviation of y, before and after.
    """
    layout = Layout.of(u.contiguous(), activation.shape)
    u_ES, y_ES = (by_sets(layout.read(x.contiguous())) for x in (u, y))
    return _fitted(activation, layout, *_chosen(u_ES, y_ES, seed), seed)


def _chosen(u_ES: Tensor, y_ES: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Elements chosen at random, the same ones of input and output."""
    wanted = elements_for(u_ES.shape[1])
    u_ES, y_ES = (random_rows(x_ES, wanted, torch.Generator().manual_seed(seed)) for x_ES in (u_ES, y_ES))
    return u_ES, y_ES


def _fitted(
    activation: AdaptiveActivation, layout: Layout, u_ES: Tensor, y_ES: Tensor, seed: int
) -> tuple[float, float]:
    start = {
        name: layout.read_parameter(parameter.detach().double()).reshape(u_ES.shape[1], -1)
        for name, parameter in activation.named_parameters()
    }
    fit = _Fit(activation, start, u_ES.double(), y_ES.double())
    before = fit.error()
    if u_ES.shape[1] > 1:
        shared = {name: x.mean(0, keepdim=True) for name, x in start.items()}
        pooled = _Fit(activation, shared, *_chosen(u_ES.reshape(-1, 1).double(), y_ES.reshape(-1, 1).double(), seed))
        pooled.solve()
        fit.begin_near(pooled)
    fit.solve()
    with torch.no_grad():
        for name, parameter in activation.named_parameters():
            found = fit.parameters()[name]
            # A parameter that serves several sets becomes their mean.
            total, count = (layout.restore_parameter(x, parameter) for x in (found, torch.ones_like(found)))
            parameter.copy_(total / count)
    spread = max(fit.y_ES.std().item(), 1e-300)
    return before**0.5 / spread, fit.error() ** 0.5 / spread


class _Fit:
    """The fit of all S parameter sets of one activation at once, in the coordinates of `Coordinates`."""

    def __init__(self, activation: AdaptiveActivation, start: dict[str, Tensor], u_ES: Tensor, y_ES: Tensor) -> None:
        self.activation, self.u_ES, self.y_ES = activation, u_ES, y_ES
        self.own = {name: parameter.shape[len(activation.shape) :] for name, parameter in activation.named_parameters()}
        sharp = [torch.full(x.shape[1:], name in activation.slope_parameters) for name, x in start.items()]
        self.sizes = [x.shape[1] for x in start.values()]
        self.steep_Q = torch.cat(sharp).to(u_ES.device)
        values_SQ = torch.cat(list(start.values()), 1)
        self.at_SQ = torch.where(self.steep_Q, values_SQ.asinh(), values_SQ)
        self.near_SQ, self.weight_Q = self.at_SQ, torch.zeros_like(self.at_SQ[0])

    def begin_near(self, shared: "_Fit") -> None:
        """Begin at what was found for all sets together, and stay near it where a set has little to say."""
        _, curvature_SQQ = shared.normal(shared.at_SQ)
        self.at_SQ = self.near_SQ = shared.at_SQ.expand_as(self.at_SQ)
        self.weight_Q = curvature_SQQ[0].diagonal() * PRIOR / len(self.u_ES)

    def error(self) -> float:
        """The mean squared error over all elements."""
        return self._errors(self.at_SQ).mean().item()

    def solve(self) -> None:
        """Go to the least squared error: from where it is and, if that ends far from it, from a smooth sigmoid too."""
        start_SQ = self.at_SQ
        cost_S = self._descend()
        if (cost_S > self._matched).any() and self.steep_Q.any():
            first_SQ = self.at_SQ
            self.at_SQ = torch.where(self.steep_Q, start_SQ.clamp(-SMOOTH, SMOOTH), start_SQ)
            again_S = self._descend()
            self.at_SQ = torch.where((again_S < cost_S)[:, None], self.at_SQ, first_SQ)

    def _descend(self) -> Tensor:
        self.at_SQ, cost_S = levenberg_marquardt(self, self.at_SQ, ITERATIONS, CONVERGED, self._matched)
        return cost_S

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, (S, *own)."""
        return self._parameters(self.at_SQ)

    def _parameters(self, at_SQ: Tensor) -> dict[str, Tensor]:
        pieces = torch.where(self.steep_Q, at_SQ.sinh(), at_SQ).split(self.sizes, 1)
        return {name: x.reshape(len(x), *own) for (name, own), x in zip(self.own.items(), pieces, strict=True)}

    @property
    def _matched(self) -> Tensor:
        return MATCHED * self.y_ES.var(0)

    def _errors(self, at_SQ: Tensor) -> Tensor:
        with torch.no_grad():
            y_ES: Tensor = functional_call(self.activation, self._parameters(at_SQ), self.u_ES)
        return (y_ES - self.y_ES).square().mean(0)

    def cost(self, at_SQ: Tensor) -> Tensor:
        return self._errors(at_SQ) + (self.weight_Q * (at_SQ - self.near_SQ).square()).sum(1)

    def normal(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """Half the gradient of the cost by the coordinates and its Gauss-Newton matrix, for each set."""
        columns = []
        slopes_SQ = torch.where(self.steep_Q, at_SQ.cosh(), 1.0)
        values = self._parameters(at_SQ)
        for q in range(len(self.steep_Q)):
            one_SQ = torch.zeros_like(slopes_SQ)
            one_SQ[:, q] = slopes_SQ[:, q]
            pieces = one_SQ.split(self.sizes, 1)
            tangents = (x.reshape(len(x), *own) for x, own in zip(pieces, self.own.values(), strict=True))
            with torch.no_grad(), forward_ad.dual_level():
                duals = {
                    name: forward_ad.make_dual(x, tangent)
                    for (name, x), tangent in zip(values.items(), tangents, strict=True)
                }
                y_ES, by_q_ES = forward_ad.unpack_dual(functional_call(self.activation, duals, self.u_ES))
                columns.append(by_q_ES)
        jacobian_QES = torch.stack(columns)
        count = len(self.u_ES)
        gradient_SQ = torch.einsum("qes,es->sq", jacobian_QES, y_ES - self.y_ES) / count
        curvature_SQQ = torch.einsum("qes,pes->sqp", jacobian_QES, jacobian_QES) / count
        return gradient_SQ + self.weight_Q * (at_SQ - self.near_SQ), curvature_SQQ + self.weight_Q.diag()
