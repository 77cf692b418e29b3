"""Load the samples of an identification, split them into fitted and held-out ones, and run the frozen prefix once.

Begin with `prepare`. The frozen prefix is the part of the network before its adaptive activations.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_count, is_number
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Batch, each_batch
from aafit.networks.running import evaluation_mode
from aafit.training.losses import (
    CROSS_ENTROPY,
    IGNORED,
    SQUARED_ERROR,
    Loss,
    LossLike,
    as_loss,
    predictions,
    with_class_axis,
)
from aafit.training.predictor import Predictor

HELDOUT = 0.2  # share of the samples held out by default
ENOUGH_TO_HOLD_OUT = 500  # samples from which some are held out; for fewer cross-validation is more accurate
LEAST_HELDOUT = 4
MOST_AT_ONCE = 128  # largest default batch size
COMPARED = 8  # samples that are run together and in two halves
INDEPENDENT = 1e-3  # differences, relative to the largest output, that rounding in float32 on a CPU may cause
INDEPENDENT_IN_HALF = 0.02  # the same for float16, bfloat16 and TF32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Samples for the whole network and for the part of it behind the frozen prefix.

    Attributes:
        predictor: Runs the part of the network that takes `fitted` and `heldout`: all of it without a frozen prefix.
        raw: Inputs of the full network for the samples to fit, without targets.
        fitted, heldout: Inputs of that part with their targets, in random order.
        loss: The loss of the arguments, or the default for these targets.
        memory: Bytes of the samples and of the outputs of the frozen prefix.
    """

    predictor: Predictor
    raw: Batch
    fitted: Batch
    heldout: Batch
    loss: Loss
    memory: int


def prepare(
    predictor: Predictor,
    batches: Iterable[Any],
    base: Predictor | None,
    loss: LossLike | None,
    heldout: float | None,
    memory: int,
    seed: int,
) -> Samples:
    """Load the samples, split them, and compute the frozen prefix; see `Samples`.

    For labels and the cross-entropy, samples without a label are left out before the split.

    Args:
        predictor: runs the network; its batch size is set if it has none.
        batches: batches of any form that `aafit.networks.batches.as_batch` takes.
        base: runs the network whose outputs are the targets; None: the batches have targets.
        loss: see `with_targets`.
        heldout: share of the samples held out, 0 for none; None: 0.2, or 0 for fewer than 500 samples.
        memory: bytes that samples, targets and outputs of the frozen prefix may take. Further samples are left out; a
            prefix whose outputs do not fit is computed again for each batch.
        seed: seed of the random order.

    Raises:
        UserError: the share or the memory is not valid, too few samples are left on one side, or for the reasons of
            `load_samples`.
    """
    if heldout is not None and not (is_number(heldout) and 0 <= heldout < 1):
        raise UserError(f"The share of held-out samples must be at least 0 and below 1, such as 0.2; got {heldout}.")
    data = load_samples(predictor, batches, "identify from", base, memory=memory)
    data = data.at(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.device))
    if base is None and (loss is None or as_loss(loss).is_cross_entropy):
        data = _labelled(data)
    if heldout is None:
        heldout = HELDOUT if len(data) >= ENOUGH_TO_HOLD_OUT else 0.0
    count = round(heldout * len(data))
    if (heldout and count < LEAST_HELDOUT) or count == len(data):
        raise UserError(
            f"A share of {heldout} of {len(data)} samples leaves {count} held out and {len(data) - count} to fit. Give "
            f"more samples or another share, so that at least {LEAST_HELDOUT} are held out and one is left."
        )
    kept = sum(x.nbytes for x in data.inputs())
    # Divided here, not after the targets are computed: the base must get the same batches as the network, so that both
    # draw the same random numbers.
    parts = data.part(0, count), data.part(count, len(data))
    fitted, made = with_targets(parts[1], base, loss)
    held = with_targets(parts[0], base, loss)[0] if count else fitted.part(0, 0)
    raw = fitted.without_target()
    found = predictor.after_prefix(
        [batch for part in (held, fitted) for batch in predictor.batches(part)], memory - kept
    )
    if found is not None and _has_all(found[0], predictor):
        predictor, inputs = found[0], Batch.joined(found[1])
        held, fitted = inputs.part(0, count), inputs.part(count, len(inputs))
        kept += sum(x.nbytes for x in inputs.inputs())
    return Samples(predictor, raw, fitted, held, made, kept)


def load_samples(
    predictor: Predictor,
    batches: Iterable[Any],
    purpose: str,
    base: Predictor | None = None,
    *,
    memory: int | None = None,
    most: int | None = None,
) -> Batch:
    """Return the samples of all batches as one batch on the network's device.

    The batch sizes of `predictor` and `base` are set, if they have none, to the size of the largest batch, at most 128.

    Args:
        predictor: runs the network.
        batches: batches of any form that `aafit.networks.batches.as_batch` takes.
        purpose: purpose of the samples in messages, such as "identify from".
        base: runs the network whose outputs will be the targets; they count as memory.
        memory: bytes that samples and targets may take; further samples are left out. None: no limit.
        most: maximum number of samples, the first ones.

    Raises:
        UserError: there are no samples, they are not finite, or only some have a target; `memory` or `most` is not
            valid; the network fails on them, or its outputs for a sample depend on the others.
    """
    if most is not None:
        check_count("number of samples", most)
    if memory is not None:
        check_memory(memory)
    device = next(predictor.net.parameters()).device
    parts: list[Batch] = []
    count = taken = bytes_each = 0
    for given in each_batch(batches):
        batch = given.to(device)
        if most is not None:
            batch = batch.part(0, most - count)
        if not len(batch):
            continue
        batch = _checked(batch)
        if base is not None and not parts:
            bytes_each = base.outputs(batch.part(0, 1)).nbytes
        size = sum(x.nbytes for x in batch.inputs()) + bytes_each * len(batch)
        if memory is not None and taken + size > memory and parts:
            log.info("memory suffices for %d samples; the others are left out", count)
            break
        parts.append(batch)
        taken, count = taken + size, count + len(batch)
        if count == most:
            break
    if not parts:
        raise UserError(f"There is nothing to {purpose}: the batches hold no sample.")
    if len({isinstance(part.target, Tensor) for part in parts}) > 1:
        raise UserError("Some of the batches have a target, and others have none.")
    largest = max(map(len, parts))
    for one in (predictor, base):
        if one is not None:
            one.batch_size = one.batch_size or min(largest, MOST_AT_ONCE)
    data = Batch.joined(parts)
    check_independent(predictor, data)
    return data


def _labelled(data: Batch) -> Batch:
    """Return the samples with a label other than -100; all samples if none has one, or if the target has no labels."""
    if not isinstance(data.target, Tensor) or data.target.is_floating_point():
        return data
    labelled_N = (data.target != IGNORED).flatten(1).any(1) if data.target.ndim > 1 else data.target != IGNORED
    if labelled_N.all() or not labelled_N.any():
        return data
    log.info("%d of %d samples have no label and are left out", int((~labelled_N).sum()), len(data))
    return data.at(labelled_N.nonzero()[:, 0])


def check_memory(memory: float) -> None:
    """Check that `memory` is a number of bytes.

    Raises:
        UserError: it is no number, or below 0.
    """
    if not (memory == inf or (is_number(memory) and memory >= 0)):
        raise UserError(f"The memory is a number of bytes, such as 2 << 30; got {memory!r}.")


def check_independent(predictor: Predictor, data: Batch) -> None:
    """Check on a few samples that the outputs for each do not depend on the others.

    Raises:
        UserError: they do, or the outputs have no sample axis or different shapes.
    """
    count = min(COMPARED, len(data))
    half = count // 2
    if not half:
        return
    # Halves of `data`, not of `few`: a tensor that belongs to all samples may have as many rows as `few`, and would be
    # divided too.
    few, *halves = (data.part(*ends) for ends in ((0, count), (0, half), (half, count)))
    with evaluation_mode(predictor.net):
        together = predictor.outputs(few)
        if len(together) != count:
            raise UserError(
                f"The network returns outputs of shape {tuple(together.shape)} for {count} samples: the first axis of "
                "outputs has to be the sample axis, and so has that of the inputs: move the axis of the outputs with "
                "output=, and declare another one of the inputs by aafit.Batch(..., axis=1)."
            )
        each = [predictor.outputs(part) for part in halves]
        if len({own.shape[1:] for own in (together, *each)}) > 1:
            shapes = ", ".join(str(tuple(own.shape)) for own in (together, *each))
            raise UserError(
                f"The outputs are ragged: for the first {count} samples, and each half of them, they have the shapes "
                f"{shapes}. Let output= bring them to one shape, such as by a mean over the positions that vary "
                "in number; if a sample that runs alone has outputs of one shape, set batch_size=1."
            )
        alone = torch.cat(each)
        exact = data.device.type == "cpu" and predictor.precision != "bf16" and not _has_half_precision(predictor.net)
        tolerance = INDEPENDENT if exact else INDEPENDENT_IN_HALF
        if alone.shape == together.shape and _close(alone, together, tolerance):
            return
        if not _close(predictor(few, seed=1), predictor(few, seed=2), tolerance):
            return  # The network draws random numbers, which differ between batch sizes.
    raise UserError(
        "The outputs for a sample depend on the other samples of the batch: run alone, the first samples have other "
        f"outputs. Axis {data.axis} of the inputs has to be the sample axis, not time or the nodes of a graph: declare "
        "another one by aafit.Batch(..., axis=1). If it is, and samples differ with their batch, as by the length that "
        "they are padded to, set batch_size=1."
    )


def _has_half_precision(net: nn.Module) -> bool:
    return any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in net.parameters())


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether outputs differ by at most `tolerance`, relative to the largest; NaN equals NaN."""
    scale = other.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(one, other, rtol=0, atol=tolerance * max(scale, 1e-30), equal_nan=True)


def _checked(batch: Batch) -> Batch:
    """Return a batch whose integer labels are int64.

    Raises:
        UserError: it has inputs that are not finite, or not one target for each sample. Minus infinity is allowed in
            all inputs but the first, because masks of attention scores have it.
    """
    first, *others = batch.inputs()
    if not first.isfinite().all() or any(x.isnan().any() or x.isposinf().any() for x in others):
        raise UserError("The samples hold values that are not finite (NaN or infinity): clean them first.")
    if not isinstance(batch.target, Tensor):
        return batch
    if batch.target.ndim == 0 or len(batch.target) != len(batch):
        raise UserError(f"A batch has {len(batch)} samples and a target of shape {tuple(batch.target.shape)}.")
    return batch if batch.target.is_floating_point() else replace(batch, target=batch.target.long())


def with_targets(data: Batch, base: Predictor | None, loss: LossLike | None) -> tuple[Batch, Loss]:
    """Return the samples with their targets, and the loss.

    With a base network the targets are its outputs, or for a cross-entropy its class probabilities; labels in `data`
    then determine the class axis. The default loss is the cross-entropy; with a base network and without integer labels
    it is the squared error.

    Args:
        data: the samples, with or without targets.
        base: runs the network whose outputs become the targets; None: keep the targets of `data`.
        loss: the loss; None: the default.
    """
    labels = data.target if isinstance(data.target, Tensor) and not data.target.is_floating_point() else None
    if loss is not None:
        made = as_loss(loss)
    else:
        made = SQUARED_ERROR if base is not None and labels is None else CROSS_ENTROPY
    if base is None:
        return data, made
    outputs = base.outputs(data)
    made = with_class_axis(made, outputs, labels)
    return replace(data, target=predictions(made, outputs).to(outputs.dtype)), made


def _has_all(behind: Predictor, whole: Predictor) -> bool:
    """Return whether the part of the network behind the frozen prefix has all adaptive parameters."""
    there = {id(parameter) for parameter in behind.net.parameters()}
    return all(id(parameter) in there for parameter in adaptive_parameters(whole.net).values())
