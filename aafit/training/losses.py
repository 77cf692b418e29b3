"""Losses, right predictions and metrics of outputs of any form.

Axes in names: B row, T position of a sequence, H height, W width, C and K class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from aafit.errors import UserError, check_name

LOSSES = ("cross-entropy", "mean squared error")
LossFunction = Callable[[Tensor, Any], Tensor]
Loss = str | LossFunction
"""A name of `LOSSES`, or a function of output and target that gives a number, or one for each row or place, as a loss
with a Hessian is too (`aafit.identification.losses`)."""

Metric = Callable[..., Tensor | float]
"""A function of output and target, or of the output alone where there is no target, that gives as a loss does."""

IGNORED = -100
"""A label that does not count, as in F.cross_entropy."""

ROUNDING = 0.01
"""How far from 1 the sum of probabilities may be: in bfloat16 they are good to three digits."""


def check_loss(loss: Loss) -> Loss:
    """The loss by its name, where it has one of `LOSSES`, or the function.

    Raises:
        UserError: it is neither a name nor a function; the message says which names there are.
    """
    if callable(loss):
        name = getattr(loss, "name", None)
        return name if name in LOSSES else loss
    if not isinstance(loss, str):
        raise UserError(
            f"The loss {loss!r} is no loss: give {' or '.join(map(repr, LOSSES))}, or a function of output and target."
        )
    return check_name("loss", loss, LOSSES)


def class_axis(shape: Size, labels: Size | None = None) -> int | None:
    """Where the classes are: the axis without which an output's shape is that of the labels; None where there is none.

    The last of (B, K) and (B, T, K), axis 1 of (B, C, H, W) and of outputs with still more axes; the other one of these
    two where only that fits the labels. Without labels the first of these rules alone says it.
    """
    if len(shape) < 2:
        return None
    axes = (len(shape) - 1, 1) if len(shape) <= 3 else (1, len(shape) - 1)
    if labels is None:
        return axes[0]
    for axis in axes:
        if labels == shape[:axis] + shape[axis + 1 :]:
            return axis
    return None


def check_labels(outside: Tensor, classes: int) -> None:
    """
    Raises:
        UserError: there are labels outside the classes.
    """
    if count := int(outside):
        raise UserError(
            f"{count} of the labels are no class: the network gives {classes} classes, so labels are 0 to "
            f"{classes - 1}, or {IGNORED} for what does not count."
        )


def any_counts(labels: Tensor) -> Tensor:
    """Whether any of the labels counts, left on the device."""
    return (labels != IGNORED).any()


def check_counted(batches: Sequence[Tensor]) -> None:
    """Check what `any_counts` told of some batches.

    Raises:
        UserError: no label of any batch counts.
    """
    if batches and not torch.stack(list(batches)).any():
        raise UserError(f"No label counts: all of them are {IGNORED}. Give some that are classes.")


def check_probabilities(target: Tensor, axis: int = 1) -> None:
    """Nothing, where the target has a probability for each class, on `axis`; NaN shows in the loss itself.

    Raises:
        UserError: some are negative or do not sum to 1, or there is one class only, whose cross-entropy is always 0.
    """
    wide = target.float()
    wrong = (wide < 0).any(axis) | ((wide.sum(axis) - 1).abs() > ROUNDING)
    count = wrong.numel() if target.shape[axis] == 1 else int(wrong.sum())
    if count:
        raise UserError(
            f"{count} of {wrong.numel()} targets are no probabilities of several classes, which are 0 or more and sum "
            'to 1, as cross-entropy takes them: for numbers give loss="mean squared error", for several labels at once '
            "a function of output and target, as F.binary_cross_entropy_with_logits."
        )


def known_labels(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The labels with `IGNORED` for those that are outside the classes, and how many these are, left on the device."""
    outside = ((labels < 0) & (labels != IGNORED)) | (labels >= classes)
    return labels.masked_fill(outside, IGNORED), outside.sum()


def with_classes(output: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """The output with its classes on axis 1 and the target, labels or probabilities, as F.cross_entropy takes them.

    Raises:
        UserError: there is no target, or it does not fit the output.
    """
    if not isinstance(target, Tensor):
        what = "no labels" if target is None else f"labels that are a {type(target).__name__}, not a tensor"
        raise UserError(f"Cross-entropy needs labels, and the batch has {what}.")
    shape = tuple(output.shape)
    if target.is_floating_point() and target.shape == output.shape:
        axis = class_axis(output.shape)
    elif not target.is_floating_point() and not target.is_complex():
        axis = class_axis(output.shape, target.shape)
    else:
        axis = None
    if axis is None:
        wanted = " or ".join(str(shape[:at] + shape[at + 1 :]) for at in sorted({1, len(shape) - 1}) if at > 0)
        raise UserError(
            f"Labels of shape {tuple(target.shape)} and type {str(target.dtype).removeprefix('torch.')} do not fit "
            f"outputs of shape {shape}: cross-entropy takes integers of shape {wanted or '(B,) with outputs (B, K)'}, "
            f'or probabilities of shape {shape}; for numbers give loss="mean squared error".'
        )
    if not target.is_floating_point():
        target = target.long()
    elif axis != 1:
        target = target.movedim(axis, 1)
    return output if axis == 1 else output.movedim(axis, 1), target


def objective(loss: Loss = "cross-entropy", check: bool = False) -> LossFunction:
    """The mean loss of a batch as a function of output and target, to be made smaller by gradient steps.

    Labels outside the classes, and targets that are no probabilities, are refused: always on a CPU, elsewhere, where
    that waits for the device, on `check`.
    """
    loss = check_loss(loss)
    if loss == "cross-entropy":
        return lambda output, target: _mean_cross_entropy(output, target, check)

    def mean(output: Tensor, target: Any) -> Tensor:
        value, count = total_loss(loss, output, target)
        of_one: Tensor = value / count
        return of_one

    return mean


def _mean_cross_entropy(output: Tensor, target: Any, check: bool) -> Tensor:
    logits, target = with_classes(output, target)
    check = check or target.device.type == "cpu"
    if target.is_floating_point():
        if check:
            check_probabilities(target)
        return F.cross_entropy(logits, target)
    if check:
        check_labels(known_labels(target, logits.shape[1])[1], logits.shape[1])
    if target.dim() == 1:
        return F.cross_entropy(logits, target, ignore_index=IGNORED)
    # Not the mean of F.cross_entropy, which is NaN for a batch in which nothing counts.
    counted = (target != IGNORED).sum().clamp(min=1)
    mean: Tensor = F.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORED) / counted
    return mean


@dataclass(frozen=True)
class Score:
    """Of a batch: the sum of its losses and their number; where there are classes, how much is right, out of how many.

    Numbers are left on the device. `outside` is how many labels are no class.
    """

    loss: Tensor
    count: Tensor
    right: Tensor | None = None
    labelled: Tensor | None = None
    outside: Tensor | None = None
    classes: int = 0


def score(loss: Loss, output: Tensor, target: Any) -> Score:
    """Loss and right predictions of a batch. A prediction from outputs that are not finite is not right.

    Raises:
        UserError: there is no target, it does not fit the output or is neither labels nor probabilities where these are
            needed, or the user's function gives no tensor.
    """
    if loss != "cross-entropy" and not _has_labels(output, target):
        return Score(*total_loss(loss, output, target))
    logits_BK, target = with_classes(output, target)
    if target.is_floating_point():
        check_probabilities(target)
    labels_B, outside = known_labels(target.argmax(1) if target.is_floating_point() else target, logits_BK.shape[1])
    if loss == "cross-entropy" and not target.is_floating_point():
        total = total_loss(loss, output, labels_B)
    else:
        total = total_loss(loss, output, target)
    right_B = (logits_BK.argmax(1) == labels_B) & logits_BK.isfinite().all(1)
    return Score(*total, right_B.sum(), (labels_B != IGNORED).sum(), outside, logits_BK.shape[1])


def total_loss(loss: Loss, output: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """The loss of a batch as a sum, and over how many: what is labelled, all numbers, or as the user's function says.

    Raises:
        UserError: there is no target, it does not fit the output, or the user's function gives no tensor.
    """
    if callable(loss):
        return _of_rows(loss(output, target), output, "loss")
    if loss == "cross-entropy":
        logits_BK, target = with_classes(output, target)
        value = F.cross_entropy(logits_BK, target, reduction="sum", ignore_index=IGNORED)
        rows = (target.argmax(1) if target.is_floating_point() else target) != IGNORED
        return value, rows.sum()
    if not isinstance(target, Tensor) or target.shape != output.shape:
        what = f"has the shape {tuple(target.shape)}" if isinstance(target, Tensor) else f"is a {type(target).__name__}"
        raise UserError(
            f"The mean squared error needs a target of the output's shape, {tuple(output.shape)}; this one {what}."
        )
    return F.mse_loss(output, target.to(output.dtype), reduction="sum"), output.new_tensor(output.numel())


def total_metric(metric: Metric, output: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """The user's metric of a batch as a sum and over how many.

    Raises:
        UserError: it gives neither a number nor a tensor.
    """
    value = metric(output) if target is None else metric(output, target)
    return _of_rows(torch.as_tensor(value) if isinstance(value, (int, float)) else value, output, "metric")


def _has_labels(output: Tensor, target: Any) -> bool:
    return (
        isinstance(target, Tensor)
        and not target.is_floating_point()
        and class_axis(output.shape, target.shape) is not None
    )


def _of_rows(value: Any, output: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """A number counts for each row of the batch, a tensor for each of its numbers."""
    if not isinstance(value, Tensor):
        raise UserError(f"The function given as {what} returned a {type(value).__name__}: let it return a tensor.")
    count = len(output) if value.dim() == 0 else value.numel()
    return (value * count if value.dim() == 0 else value.sum()), torch.tensor(count, device=value.device)
