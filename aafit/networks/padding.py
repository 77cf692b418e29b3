"""Which positions of sequences are padding: an activation is not fitted to what it receives there."""

from math import prod

import torch
from torch import Tensor

from aafit.networks.inputs import Batch

MASK = "attention_mask"


def without_padding(x: Tensor, batch: Batch, shape: tuple[int, ...] = (1,)) -> Tensor:
    """Of what an activation receives or gives for a batch, the positions that are no padding.

    Where the batch has a keyword input "attention_mask" of shape (B, T), of 1 and 0 as tokenizers give it, a position
    where it is 0 is padding; of x, (B, T, C), the others come back, (N, C).

    All of x comes back as it is where it has another shape, where the mask has other values (one that is added to
    attention scores) or is 0 everywhere, and where parameters of the given shape differ by position, each of which
    needs its own inputs.
    """
    mask_BT = batch.kwargs.get(MASK)
    if not isinstance(mask_BT, Tensor) or x.dim() != 3 or x.shape[:2] != mask_BT.shape or prod(shape[:-1]) != 1:
        return x
    counts_BT = (mask_BT == 1).to(x.device)
    if not counts_BT.any() or not torch.equal(counts_BT, (mask_BT != 0).to(x.device)):
        return x
    return x[counts_BT]
