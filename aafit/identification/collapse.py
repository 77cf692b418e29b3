"""Notice a network that gives every image the same answer.

The labels' loss has a flat, useless place there: constant outputs that repeat how frequent the classes are. From a far
start every method that follows the labels may walk into it.
"""

import torch
from torch import Tensor

SMALLEST_SHARE = 0.05
"""Of the variation that the outputs should have: below it, they no longer depend on the images."""

LEAST = 0.4
"""Of the variation of the targets: what the outputs should have at least, however little they had at first."""


def variation(outputs_NK: Tensor, probabilities: bool) -> float:
    """How much the outputs depend on the image: their standard deviation over the images, the mean over the outputs.

    Args:
        probabilities: take the softmax first, as for a cross-entropy, where only that matters.
    """
    values_NK = outputs_NK.double().softmax(1) if probabilities else outputs_NK.double()
    return values_NK.std(0, correction=0).mean().item()


def perfect_variation(targets: Tensor, outputs: int) -> float:
    """The variation of outputs that are the targets: classes (N,), probabilities or values (N, K)."""
    if not targets.is_floating_point():
        targets = torch.nn.functional.one_hot(targets, outputs)
    return variation(targets, False)


def collapsed(now: float, before: float) -> bool:
    """Whether outputs of this variation have lost that of the network which they come from; NaN counts as lost."""
    return not now >= SMALLEST_SHARE * before or not torch.tensor(now).isfinite()
