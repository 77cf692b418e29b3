"""Lower steep slopes until they are trainable, with nearly the same outputs.

With gamma = 2^16 a sigmoid is a step function: its slope affects hardly any input, and has practically no gradient. Far
smaller slopes give nearly the same outputs and have a gradient. Begin with `smooth_start`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, is_number
from aafit.identification.coordinates import Coordinates
from aafit.identification.samples import load_samples
from aafit.networks.running import evaluation_mode
from aafit.training.predictor import Output, Predictor

BISECTIONS = 10


def smooth_start(
    net: nn.Module, batches: Iterable[Any], budget: float = 0.02, output: Output | None = None
) -> float | None:
    """Lower the slopes of `net` (`slope_parameters`, as LEAF's p3), in place, with nearly the same outputs.

    Every slope is clamped to one largest absolute value, which is found by bisection of its logarithm, down to 1. Signs
    are kept.

    Args:
        net: a network with adaptive activations.
        batches: batches of inputs of any form, as for `identify`; a few hundred samples suffice.
        budget: largest mean absolute difference of the outputs, relative to their standard deviation.
        output: selects the output tensor, as for `identify`.

    Returns:
        The largest absolute value that slopes were clamped to; None if no slope is above 1, or the budget allows no
        lower one.

    Raises:
        UserError: the network has no adaptive activation, there are no samples, they are not finite, or the budget is
            not above 0.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), aafit.LEAF.like("ReLU"), torch.nn.Linear(8, 2))
        >>> aafit.smooth_start(net, [torch.randn(256, 4)]) < 2**16
        True
    """
    coordinates = Coordinates(net)
    before_P = coordinates.read()
    predictor = Predictor(net, output)
    samples = load_samples(predictor, batches, "measure the outputs on")

    def outputs(vector_P: Tensor) -> Tensor:
        coordinates.write(vector_P)
        with evaluation_mode(net):
            return predictor.outputs(samples)

    try:
        vector_P, largest = smoothest(coordinates, before_P, outputs, budget)
    except BaseException:
        coordinates.write(before_P)
        raise
    coordinates.write(vector_P)
    return largest


def smoothest(
    coordinates: Coordinates, vector_P: Tensor, outputs: Callable[[Tensor], Tensor], budget: float
) -> tuple[Tensor, float | None]:
    """Return the coordinates with the lowest slopes within the budget, and the largest slope; see `smooth_start`.

    Args:
        coordinates: the coordinates of the adaptive parameters.
        vector_P: the initial vector.
        outputs: returns the outputs of the network at a vector.
        budget: largest relative change of the outputs.

    Raises:
        UserError: the budget is not above 0.
    """
    if not (is_number(budget) and budget > 0):
        raise UserError(f"The equivalence budget {budget} cannot be used; give a number above 0.")
    slopes = coordinates.values(vector_P)[coordinates.is_slope_P].abs()
    top = slopes.max().item() if len(slopes) else 0.0
    if top <= 1:
        return vector_P, None
    start_NK = outputs(vector_P)

    def lowered(largest: float) -> Tensor:
        limit = torch.tensor(largest, dtype=torch.float64).asinh()
        return torch.where(coordinates.is_slope_P, vector_P.clamp(-limit, limit), vector_P)

    low, high = 0.0, torch.tensor(top).log2().item()
    if outputs_changed(start_NK, outputs(lowered(1.0))) <= budget:
        return lowered(1.0), 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = outputs_changed(start_NK, outputs(lowered(2**middle))) <= budget
        low, high = (low, middle) if fits else (middle, high)
    if 2**high >= top * 0.99:
        return vector_P, None
    return lowered(2**high), 2**high


def outputs_changed(before_NK: Tensor, after_NK: Tensor) -> float:
    """Return the mean absolute difference over the standard deviation of `before_NK`; infinite where that is 0."""
    deviation = before_NK.double().std().item()
    return (after_NK.double() - before_NK.double()).abs().mean().item() / deviation if deviation else float("inf")
