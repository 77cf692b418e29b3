"""Steepness that can move: the smoothest start that gives almost the same network.

With gamma = 2^16 a sigmoid is a step: hardly any input feels its slope, and no gradient says where to go. Far smaller
values give the same outputs to within what matters, and have a gradient.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_name
from aafit.identification.coordinates import Coordinates
from aafit.identification.samples import load_samples
from aafit.networks.batches import Output
from aafit.networks.running import evaluation_mode
from aafit.training.losses import CROSS_ENTROPY, check_labels, scores
from aafit.training.predictor import Predictor

MEASURES = ("logits", "accuracy")
BISECTIONS = 10
BATCH = 128  # samples at once


def smooth_start(
    net: nn.Module,
    batches: Iterable[Any],
    budget: float = 0.02,
    measure: str = "logits",
    output: Output | None = None,
) -> float | None:
    """Lower every steepness of `net` (AHAF's gamma, LEAF's p3), in place, as far as an equivalence budget allows.

    The ceiling that all of them share is found by bisection of its logarithm, down to 1, on real inputs. Signs stay.

    Args:
        batches: of any form, as for `identify`; all are used, a few hundred samples are enough. Labels are needed for
            "accuracy" alone.
        budget: how much may change. For "logits" the mean absolute difference of the logits, as a share of their
            standard deviation; for "accuracy" the difference of the accuracies.
        output: from what the network returns to its outputs, as for `identify`.

    Returns:
        The ceiling, None where no steepness is above 1 or the budget allows no lower one.

    Raises:
        UserError: no adaptive activation, no images, an unknown measure or a budget that is not above 0.
    """
    check_name("measure", measure, MEASURES)
    coordinates = Coordinates(net)
    before_P = coordinates.read()
    predictor = Predictor(net, output, batch_size=BATCH)
    kept = load_samples(predictor, batches, "measure the outputs on")

    def outputs(vector_P: Tensor) -> Tensor:
        coordinates.write(vector_P)
        with evaluation_mode(net):
            return predictor.outputs(kept)

    changed = logits_changed if measure == "logits" else lambda a, b: _accuracy_changed(a, b, kept.target)
    try:
        vector_P, ceiling = smoothest(coordinates, before_P, outputs, budget, changed)
    except BaseException:
        coordinates.write(before_P)
        raise
    coordinates.write(vector_P)
    return ceiling


def smoothest(
    coordinates: Coordinates,
    vector_P: Tensor,
    outputs: Callable[[Tensor], Tensor],
    budget: float,
    changed: Callable[[Tensor, Tensor], float],
) -> tuple[Tensor, float | None]:
    """The vector whose steepness is lowest within the budget, and its ceiling; see `smooth_start`.

    Args:
        outputs: the network's outputs at a vector.
        changed: how much other outputs differ from those of the start.
    """
    if not budget > 0:
        raise UserError(f"The equivalence budget {budget} cannot be used; give a number above 0.")
    top = (
        coordinates.values(vector_P)[coordinates.is_slope_P].abs().max().item() if coordinates.is_slope_P.any() else 0.0
    )
    if top <= 1:
        return vector_P, None
    start_NK = outputs(vector_P)

    def lowered(ceiling: float) -> Tensor:
        limit = torch.tensor(ceiling, dtype=torch.float64).asinh()
        return torch.where(coordinates.is_slope_P, vector_P.clamp(-limit, limit), vector_P)

    low, high = 0.0, torch.tensor(top).log2().item()
    if changed(start_NK, outputs(lowered(1.0))) <= budget:
        return lowered(1.0), 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = changed(start_NK, outputs(lowered(2**middle))) <= budget
        low, high = (low, middle) if fits else (middle, high)
    if 2**high >= top * 0.99:
        return vector_P, None
    return lowered(2**high), 2**high


def logits_changed(before_NK: Tensor, after_NK: Tensor) -> float:
    """The mean absolute difference as a share of the standard deviation of `before_NK`; infinite where that is 0."""
    spread = before_NK.double().std().item()
    return (after_NK.double() - before_NK.double()).abs().mean().item() / spread if spread else float("inf")


def _accuracy_changed(before: Tensor, after: Tensor, labels: Tensor | None) -> float:
    one, other = (scores(CROSS_ENTROPY, outputs, labels) for outputs in (before, after))
    check_labels(one.outside, one.classes)
    assert one.correct_B is not None
    assert other.correct_B is not None
    return abs((other.correct_B.sum() - one.correct_B.sum()).item()) / max(1, int(one.labelled_B.sum()))
