"""Leave out the positions of sequences that are padding: no activation is fitted to what it receives there."""

from math import prod

import torch
from torch import Tensor

from aafit.networks.inputs import Batch

MASK = "attention_mask"


def without_padding(x: Tensor, batch: Batch, shape: tuple[int, ...] = (1,)) -> Tensor:
    """The positions of x that are no padding, where x is what an activation receives or gives for a batch.

    The batch tells them by a keyword input "attention_mask" of shape (B, T), of 1 and 0 as tokenizers give it: where it
    is 0, there is padding. Of x, (B, T, C), the N positions where it is 1 come back, (N, C).

    All of x comes back, as it is, where x has another shape; where there is no such mask, or it has other values (as
    one that is added to attention scores has) or is 0 everywhere; and where each position has parameters of its own,
    which need the inputs of that position.

    Args:
        shape: of the activation's sets of parameters, see `AdaptiveActivation`; (1,) is one set for all.
    """
    mask_BT = batch.kwargs.get(MASK)
    if not isinstance(mask_BT, Tensor) or x.dim() != 3 or x.shape[:2] != mask_BT.shape or prod(shape[:-1]) != 1:
        return x
    counts_BT = (mask_BT == 1).to(x.device)
    if not counts_BT.any() or not torch.equal(counts_BT, (mask_BT != 0).to(x.device)):
        return x
    return x[counts_BT]
