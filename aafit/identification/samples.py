"""The samples of an identification: in two parts, one to fit and one held out, seen through the frozen prefix once."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_count
from aafit.identification.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss, as_loss
from aafit.identification.outputs import predictions
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Batch, Output, as_batch, run
from aafit.networks.running import fork_rng
from aafit.training.after_prefix import after_prefix
from aafit.training.precision import autocast

LEAST_HELDOUT = 4  # fewer say nothing of how the outputs depend on the samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """The samples as the network receives them, and as its part behind the frozen prefix does.

    Attributes:
        rest: The part of the network to run on `fitted` and `heldout`: all of it where nothing is kept.
        raw: The samples to fit on, as the whole network receives them.
        fitted, heldout: What `rest` receives, in an order drawn from the seed, with the targets.
        loss: The one that was given; else the squared error where there are no labels, or the cross-entropy.
        memory: Bytes of all that is kept.
    """

    rest: nn.Module
    raw: Batch
    fitted: Batch
    heldout: Batch
    loss: Loss
    memory: int


def prepare(
    net: nn.Module,
    batches: Iterable[Any],
    base: nn.Module | None,
    loss: "Loss | str | Callable[[Tensor, Tensor], Tensor] | None",
    heldout: float,
    memory: int,
    batch_size: int,
    precision: str,
    seed: int,
    output: Output | None = None,
) -> Samples:
    """Gather the samples, split them, and compute what is frozen.

    Args:
        base: the network whose outputs are the targets; None: the labels are.
        heldout: share of the samples held out.
        memory: bytes that the samples, the base's outputs and those of the prefix may take. Further samples are left
            out; a prefix whose outputs do not fit is computed anew each time.

    Raises:
        UserError: no samples, samples that are not finite, a network that refuses them, or a part without any.
    """
    if not 0 < heldout < 1:
        raise UserError(f"The share of held-out images is {heldout}; give one between 0 and 1, such as 0.2.")
    data = gathered(net, batches, memory, base, output, precision)
    data = data.at(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.device))
    count = round(heldout * len(data))
    if count < LEAST_HELDOUT or count == len(data):
        raise UserError(
            f"Of {len(data)} images a share of {heldout} leaves {count} held out and {len(data) - count} to fit on: "
            f"give more images or another share, so that at least {LEAST_HELDOUT} are held out and one is left."
        )
    kept = sum(x.nbytes for x in data.inputs())
    # In two parts from here on: so the base gets the batches that the network will, and the same random numbers.
    parts = data.part(0, count), data.part(count, len(data))
    (held, made), (fitted, _) = (with_targets(part, base, loss, batch_size, precision, output) for part in parts)
    raw, rest = Batch(fitted.args, fitted.kwargs), net
    batches = [batch for part in (held, fitted) for batch in part.batches(batch_size)]
    found = after_prefix(net, batches, memory - kept, precision, output)
    if found is not None and _has_all(found[0], net):
        seen, rest = Batch.joined(found[1]), found[0]
        held, fitted = seen.part(0, count), seen.part(count, len(seen))
        kept += sum(x.nbytes for x in seen.inputs())
    return Samples(rest, raw, fitted, held, made, kept)


def gathered(
    net: nn.Module,
    batches: Iterable[Any],
    memory: int | None = None,
    base: nn.Module | None = None,
    output: Output | None = None,
    precision: str = "float32",
    most: int | None = None,
    what: str = "identify from",
) -> Batch:
    """The samples of all batches as one, on the network's device, as many as the memory or `most` allows.

    Raises:
        UserError: there are none, or they are not finite.
    """
    device = next(net.parameters()).device
    parts: list[Batch] = []
    count = taken = bytes_each = 0
    for given in batches:
        batch = as_batch(given).to(device)
        if most is not None:
            batch = batch.part(0, most - count)
        if not len(batch):
            continue
        if not all(x.isfinite().all() for x in batch.inputs()):
            raise UserError("The images hold values that are not finite (NaN or infinity): clean them first.")
        if isinstance(batch.target, Tensor):
            if batch.target.ndim == 0 or len(batch.target) != len(batch):
                raise UserError(f"A batch has {len(batch)} images and labels of shape {tuple(batch.target.shape)}.")
            if not batch.target.is_floating_point():
                batch = replace(batch, target=batch.target.long())
        if base is not None and not parts:
            bytes_each = outputs_of(base, batch.part(0, 1), 1, precision, output).nbytes
        size = sum(x.nbytes for x in batch.inputs()) + bytes_each * len(batch)
        if memory is not None and taken + size > memory and parts:
            log.info("memory for %d images only: further ones are left out", count)
            break
        parts.append(batch)
        taken, count = taken + size, count + len(batch)
        if count == most:
            break
    if not parts:
        raise UserError(f"There is nothing to {what}: the batches hold no image.")
    if any(isinstance(part.target, Tensor) for part in parts) != all(isinstance(part.target, Tensor) for part in parts):
        raise UserError("Some of the batches have labels, and others have none.")
    return Batch.joined(parts)


def first_samples(
    net: nn.Module, batches: Iterable[Any], most: int, what: str, base: nn.Module | None, output: Output | None
) -> Batch:
    """The first samples of batches, at most so many.

    Raises:
        UserError: there are none, or they are not finite.
    """
    check_count("number of images", most)
    return gathered(net, batches, base=base, output=output, most=most, what=what)


def with_targets(
    data: Batch,
    base: nn.Module | None,
    loss: "Loss | str | Callable[[Tensor, Tensor], Tensor] | None",
    batch_size: int,
    precision: str,
    output: Output | None,
) -> tuple[Batch, Loss]:
    """The samples with the outputs of a base network as targets, where there is one; and the loss that is meant.

    Where none is given that is the cross-entropy; or the squared error, where the target is the base's and the samples
    have no classes as labels.
    """
    if loss is None:
        made = CROSS_ENTROPY if base is None or _are_classes(data.target) else SQUARED_ERROR
    else:
        made = as_loss(loss)
    if base is None:
        return data, made
    outputs = outputs_of(base, data, batch_size, precision, output)
    return replace(data, target=predictions(made, outputs).to(outputs.dtype)), made


def outputs_of(net: nn.Module, data: Batch, batch_size: int, precision: str, output: Output | None = None) -> Tensor:
    """The outputs of a network for all samples, at least in float32.

    One that draws random numbers draws the same for each batch.
    """
    given = []
    with torch.no_grad(), autocast(precision, data.device):
        for batch in data.batches(batch_size):
            # Cloned: a network may work in place on what it receives.
            with fork_rng(0):
                outputs = run(net, batch.cloned(), output)
            given.append(outputs if outputs.dtype == torch.float64 else outputs.float())
    return torch.cat(given)


def _are_classes(target: Any) -> bool:
    return isinstance(target, Tensor) and not target.is_floating_point()


def _has_all(behind: nn.Module, net: nn.Module) -> bool:
    """Whether the adaptive parameters of the network are in its part behind the prefix, too."""
    there = {id(parameter) for parameter in behind.parameters()}
    return all(id(parameter) in there for parameter in adaptive_parameters(net).values())
