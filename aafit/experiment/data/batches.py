"""Batches of a data set, whose order and augmentation depend on (seed, epoch) alone.

Axes in names: B image of a batch, H row, W column, C colour plane.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from aafit.errors import check_count
from aafit.experiment.data.datasets import Split

MAX_SHIFT = 0.1  # of the image's side


def derived_seed(purpose: str, seed: int, epoch: int) -> int:
    """Return a seed below 2^63 for one purpose in one epoch: the first 63 bits of sha256("purpose/seed/epoch").

    Random numbers for different purposes, seeds or epochs are independent, unlike those of seed, seed + 1, ...
    """
    digest = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def training_batches(
    split: Split,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: bool = True,
    shuffle: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return one epoch of (x_BCHW in [0, 1], y_B) on the split's device; the last batch may be smaller.

    All random numbers of the epoch come from a generator on the CPU, seeded from (seed, epoch) alone: the batches are
    the same on all devices, and in a run that resumes at this epoch. The order does not depend on `augment`, nor the
    augmentation on `shuffle`. x is in the memory format channels_last.

    Args:
        split: the images.
        batch_size: number of images in a batch.
        seed: of the run.
        epoch: number of the epoch.
        augment: flip each image with probability 1/2, then shift it by round(uniform(-m, m)) whole pixels along x and
            along y, with m a tenth of the side (3.2 for 32 pixels), filled with black.
        shuffle: draw a new order; otherwise the images keep the order of the split.
        dtype: data type of x.
    """
    check_count("batch size", batch_size)
    count, device = len(split), split.images_BHWC.device
    order_N = torch.arange(count)
    if shuffle:
        order_N = torch.randperm(count, generator=_generator("order", seed, epoch))
    draws = _draws(split.images_BHWC.shape, seed, epoch) if augment else ()
    order_N, *draws_N = (values.to(device) for values in (order_N, *draws))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, count, batch_size):
            batch = slice(start, start + batch_size)
            chosen_B = order_N[batch]
            images_BHWC = split.images_BHWC[chosen_B]
            if augment:
                flips_N, shifts_N2 = draws_N
                images_BHWC = flip_and_shift(images_BHWC, flips_N[batch], shifts_N2[batch])
            yield _network_input(images_BHWC, dtype), split.labels_B[chosen_B]

    return batches()


def evaluation_batches(
    split: Split, batch_size: int = 200, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the split once, in its order and not augmented: (x_BCHW in [0, 1], y_B) as in `training_batches`.

    Larger batches are no faster on a CPU: their arrays do not fit its caches, and the system takes their memory back.
    """
    check_count("batch size", batch_size)
    pairs = zip(split.images_BHWC.split(batch_size), split.labels_B.split(batch_size), strict=True)
    return ((_network_input(images_BHWC, dtype), labels_B) for images_BHWC, labels_B in pairs)


def flip_and_shift(images_BHWC: Tensor, flips_B: Tensor, shifts_B2: Tensor) -> Tensor:
    """Flip the images in `flips_B` from left to right, then shift each by its (x, y) in `shifts_B2`, filled with black.

    out[b, r, c] = image[b, r - y, c - x], and 0 where that lies outside of the image. In a flipped image the column is
    W - 1 - (c - x). Positive x moves to the right, positive y down.
    """
    B, H, W, C = images_BHWC.shape
    device = images_BHWC.device
    x_B1, y_B1 = shifts_B2[:, :1], shifts_B2[:, 1:]
    rows_BH = torch.arange(H, device=device) - y_B1
    columns_BW = torch.arange(W, device=device) - x_B1
    inside_BHW = _inside(rows_BH, H)[:, :, None] & _inside(columns_BW, W)[:, None, :]
    columns_BW = torch.where(flips_B[:, None], W - 1 - columns_BW, columns_BW).clamp(0, W - 1)
    first_row_B1 = torch.arange(B, device=device)[:, None] * H
    pixels_BHW = ((first_row_B1 + rows_BH.clamp(0, H - 1)) * W)[:, :, None] + columns_BW[:, None, :]
    # One index a pixel, not one for each colour: index_select copies the C bytes of a pixel together.
    moved_BHWC = images_BHWC.reshape(-1, C).index_select(0, pixels_BHW.reshape(-1)).reshape(B, H, W, C)
    return moved_BHWC * inside_BHW[..., None]


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _draws(shape: torch.Size, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    count, height, width, _ = shape
    generator = _generator("augmentation", seed, epoch)
    flips_N = torch.rand(count, generator=generator) < 0.5
    reach_2 = MAX_SHIFT * torch.tensor([width, height])
    uniform_N2 = (2 * torch.rand(count, 2, generator=generator) - 1) * reach_2
    return flips_N, uniform_N2.round().long()


def _generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(purpose, seed, epoch))


def _network_input(images_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bytes as numbers in [0, 1], in channels_last, which B, H, W, C already is."""
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(dtype, memory_format=torch.channels_last)
    # By a tensor, not by a number: a GPU would multiply by 1/255, which differs from a CPU's division in the last bits.
    return x_BCHW.div_(x_BCHW.new_full((), 255))
