"""The images of an identification: in two parts, one to fit and one held out, seen through the frozen prefix once."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.identification.problem import Images
from aafit.networks.frozen_prefix import split_network
from aafit.training.evaluate import Batches
from aafit.training.precision import autocast

LEAST_HELDOUT = 4  # fewer say nothing of how the outputs depend on the images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """The images as the network receives them, and as its part behind the frozen prefix does.

    Attributes:
        rest: The part of the network to run on `fitted` and `heldout`: all of it where nothing is kept.
        raw: The images to fit on, as the whole network receives them.
        fitted, heldout: What `rest` receives, in an order drawn from the seed, with the targets.
        memory: Bytes of all that is kept.
    """

    rest: nn.Module
    raw: Tensor
    fitted: Images
    heldout: Images
    memory: int


def prepare(
    net: nn.Module,
    batches: Batches,
    base: nn.Module | None,
    probabilities: bool,
    heldout: float,
    memory: int,
    batch_size: int,
    precision: str,
    seed: int,
) -> Samples:
    """Gather the images, split them, and compute what is frozen.

    Args:
        base: the network whose outputs are the targets; None: the labels are.
        probabilities: take the softmax of its outputs.
        heldout: share of the images held out.
        memory: bytes that images and the prefix's outputs may take. Further images are left out; a prefix whose
            outputs do not fit is computed anew each time.

    Raises:
        UserError: no images, images that are not finite, or a part without any.
    """
    x_N, y_N = _gathered(net, batches, memory)
    order_N = torch.randperm(len(x_N), generator=torch.Generator().manual_seed(seed)).to(x_N.device)
    x_N, y_N = x_N[order_N], y_N[order_N]
    if not 0 < heldout < 1:
        raise UserError(f"The share of held-out images is {heldout}; give one between 0 and 1, such as 0.2.")
    count = round(heldout * len(x_N))
    if count < LEAST_HELDOUT or count == len(x_N):
        raise UserError(
            f"Of {len(x_N)} images a share of {heldout} leaves {count} held out and {len(x_N) - count} to fit on: give "
            f"more images or another share, so that at least {LEAST_HELDOUT} are held out and one is left."
        )
    targets = y_N if base is None else outputs_of(base, x_N, batch_size, precision)[0]
    if base is not None and probabilities:
        targets = targets.softmax(1)
    inputs: tuple[Tensor, ...] = (x_N,)
    rest = net
    prefix, behind = split_network(net, (x_N[:2],))
    if prefix is not None:
        bytes_each = sum(x[0].numel() * x.element_size() for x in outputs_of(prefix, x_N[:1], 1, precision))
        if x_N.nbytes + bytes_each * len(x_N) <= memory:
            inputs, rest = outputs_of(prefix, x_N, batch_size, precision), behind
    kept = x_N.nbytes + (sum(x.nbytes for x in inputs) if rest is not net else 0)
    images = Images(inputs, targets)
    return Samples(rest, x_N[count:], images.part(count, len(x_N)), images.part(0, count), kept)


def _gathered(net: nn.Module, batches: Batches, memory: int) -> tuple[Tensor, Tensor]:
    device = next(net.parameters()).device
    images: list[Tensor] = []
    labels: list[Tensor] = []
    taken = 0
    for x_B, y_B in batches:
        if not x_B.isfinite().all():
            raise UserError("The images hold values that are not finite (NaN or infinity): clean them first.")
        if taken + x_B.nbytes > memory and images:
            log.info("memory for %d images only: further ones are left out", sum(map(len, images)))
            break
        images.append(x_B.to(device))
        labels.append(y_B.to(device) if y_B.is_floating_point() else y_B.to(device).long())
        taken += x_B.nbytes
    if not sum(map(len, images)):
        raise UserError("There is nothing to identify from: the batches hold no image.")
    return torch.cat(images), torch.cat(labels)


def outputs_of(net: nn.Module, x_N: Tensor, batch_size: int, precision: str) -> tuple[Tensor, ...]:
    """What a network gives for all images: its tensors, joined."""
    given: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), autocast(precision, x_N.device):
        for x_B in x_N.split(batch_size):
            # Cloned: a network may work in place on what it receives.
            out = net(x_B.clone())
            given.append(out if isinstance(out, tuple) else (out,))
    return tuple(torch.cat(column) for column in zip(*given, strict=True))
