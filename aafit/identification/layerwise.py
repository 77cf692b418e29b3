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

from aafit.activations import AdaptiveActivation
from aafit.activations.compiled import Layout
from aafit.activations.fitting import LeastSquares
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
    sets, shape = u_ES.shape[1], activation.shape
    start = {
        name: layout.read_parameter(parameter.detach().double()).reshape(sets, *parameter.shape[len(shape) :])
        for name, parameter in activation.named_parameters()
    }
    fit = LeastSquares(activation, start, u_ES.double(), y_ES.double())
    before = fit.errors(fit.at_SQ).mean().item()
    if sets > 1:
        shared = {name: x.mean(0, keepdim=True) for name, x in start.items()}
        flat = _chosen(u_ES.reshape(-1, 1).double(), y_ES.reshape(-1, 1).double(), seed)
        pooled = LeastSquares(activation, shared, *flat)
        _solve(pooled)
        # Begin at what was found for all sets together, and stay near it where a set has little to say.
        _, curvature_SQQ = pooled.normal(pooled.at_SQ)
        fit.at_SQ = fit.prior_SQ = pooled.at_SQ.expand_as(fit.at_SQ)
        fit.prior_weight_Q = curvature_SQQ[0].diagonal() * PRIOR / len(u_ES)
    _solve(fit)
    with torch.no_grad():
        for name, parameter in activation.named_parameters():
            found = fit.parameters()[name]
            # A parameter that serves several sets becomes their mean.
            total, count = (layout.restore_parameter(x, parameter) for x in (found, torch.ones_like(found)))
            parameter.copy_(total / count)
    deviation = max(fit.y_ES.std().item(), 1e-300)
    return before**0.5 / deviation, fit.errors(fit.at_SQ).mean().item() ** 0.5 / deviation


def _solve(fit: LeastSquares) -> None:
    """Go to the least squared error: from where it is and, if that ends far from it, from a smooth sigmoid too."""
    start_SQ, matched_S = fit.at_SQ, MATCHED * fit.y_ES.var(0)
    cost_S = fit.minimise(ITERATIONS, CONVERGED, matched_S)
    if (cost_S > matched_S).any() and fit.is_slope_Q.any():
        first_SQ = fit.at_SQ
        fit.at_SQ = torch.where(fit.is_slope_Q, start_SQ.clamp(-SMOOTH, SMOOTH), start_SQ)
        again_S = fit.minimise(ITERATIONS, CONVERGED, matched_S)
        fit.at_SQ = torch.where((again_S < cost_S)[:, None], fit.at_SQ, first_SQ)
