"""Match each activation to the original one, layer by layer: a better initialization for the joint steps.

It needs no labels: each layer is a `LeastSquares` problem in the few parameters of its activation. Its inputs are
either those that it receives after the layers before it were matched, so that it can compensate for their errors, or
those of the base network. Begin with `match_layers`.

Axes in names: E element of an array, Q parameter of a set, S set.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, IntervalActivation, Polynomial
from aafit.activations.fitting import LeastSquares
from aafit.identification.elements import Elements, calls_of, input_elements, output_elements
from aafit.identification.prior import EVEN, Block, Prior, solve
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import as_inputs


@dataclass(frozen=True)
class Matched:
    """The error of a matched layer.

    Attributes:
        path: Path of the activation.
        before, after: RMS error before and after the fit, relative to the standard deviation of the base's output.
    """

    path: str
    before: float
    after: float


def match_layers(
    net: nn.Module,
    base: nn.Module,
    inputs: Iterable[Any],
    prior: Prior,
    seed: int = 0,
    inputs_of_base: bool = False,
) -> list[Matched]:
    """Fit every adaptive activation of `net`, in place, to the outputs of the module of `base` at its path.

    Args:
        net: the network with adaptive activations, in evaluation mode.
        base: the network that `net` was made from, in evaluation mode.
        inputs: batches for `net`, see `aafit.networks.batches.as_inputs`. Padding does not count.
        prior: its mean is the initial value of the fit, and determines the activation where there are no inputs.
        seed: seed of the selection of elements.
        inputs_of_base: whether to use the inputs of the activation in `base`, instead of those it receives in `net`.

    Returns:
        A row for each layer in the order of the calls, without layers that the forward pass does not call.
    """
    batches, rows = [as_inputs(given) for given in inputs], []
    calls = calls_of(net, batches[0])
    activations = {path: activation for path, activation in adaptive_activations(net).items() if path in calls}
    blocks = {block.path: block for block in prior.blocks}
    wanted = output_elements(base, activations, calls, batches, seed)
    in_base = input_elements(base, activations, calls, batches, seed) if inputs_of_base else None
    for path in calls:
        if in_base is None:
            # Not before the loop: matching the layers before this one has changed its inputs.
            received = input_elements(net, {path: activations[path]}, calls, batches, seed)[path]
        else:
            received = in_base.pop(path)
        before, after = _fit(activations[path], blocks[path], prior.mean_P, received, wanted.pop(path).elements_ES)
        rows.append(Matched(path, before, after))
    return rows


def _fit(
    activation: AdaptiveActivation, block: Block, mean_P: Tensor, received: Elements, y_ES: Tensor
) -> tuple[float, float]:
    """Fit one activation, in place, and return its relative RMS errors before and after."""
    layout, u_ES, y_ES = received.layout, received.elements_ES.double(), y_ES.double()
    S = u_ES.shape[1]
    if isinstance(activation, Polynomial):
        # A polynomial grows like u^n outside its interval, so that a few inputs there would dominate the fit.
        inside_E = ~activation.is_outside(u_ES).any(1)
        if inside_E.double().mean() >= 0.5:
            u_ES, y_ES = u_ES[inside_E], y_ES[inside_E]

    def read(x: Tensor) -> Tensor:
        return layout.read_parameter(x.detach().double()).reshape(S, *x.shape[len(activation.shape) :])

    start = {name: read(parameter) for name, parameter in activation.named_parameters()}
    called, u_ES = activation.by_column(u_ES, read)
    squares = LeastSquares(called, start, u_ES, y_ES)
    before = squares.errors(squares.at_SQ).mean().item()
    # A family with an interval must be near the original where inputs are rare too, as when `fit` creates it.
    weight = max(1 / len(u_ES), EVEN if isinstance(activation, IntervalActivation) else 0.0)
    mean_SQ, function_SQQ = mean_P[block.index_SQ], block.function_SQQ * block.variance * weight
    squares.at_SQ = squares.prior_SQ = read(mean_SQ.to(u_ES.device).reshape(*activation.shape, -1))
    precision_SQQ = function_SQQ.to(u_ES.device).reshape(*activation.shape, *function_SQQ.shape[1:])
    squares.precision_SQQ = read(precision_SQQ)
    solve(squares)
    with torch.no_grad():
        for name, parameter in activation.named_parameters():
            values = squares.parameters()[name]
            # A parameter that several sets share gets the mean of their values.
            total, count = (layout.restore_parameter(x, parameter) for x in (values, torch.ones_like(values)))
            parameter.copy_(total / count)
    deviation = max(y_ES.std().item(), 1e-300)
    return before**0.5 / deviation, squares.errors(squares.at_SQ).mean().item() ** 0.5 / deviation
