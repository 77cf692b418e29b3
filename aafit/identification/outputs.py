"""The loss of each sample and its curvature, of outputs of any form.

A sample's outputs are M positions of K outputs each: one position in (B, K), T in (B, T, K), H W in (B, C, H, W). Axes
in names: B sample, M position, K output, R row (a position of a sample), C column.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from aafit.errors import UserError
from aafit.identification.losses import CROSS_ENTROPY, LOSSES, Loss
from aafit.training.losses import (
    IGNORED,
    any_counts,
    check_counted,
    check_labels,
    check_probabilities,
    class_axis,
    known_labels,
)


@dataclass(frozen=True)
class _Rows:
    """Outputs and targets by position, and the weight of each position: 1 / M, or 0 where its label is ignored."""

    outputs_BMK: Tensor
    targets_BM: Tensor
    weights_BM: Tensor


def losses_of(loss: Loss, outputs: Tensor, targets: Any) -> Tensor:
    """The loss of each sample, (B,) in float64: the mean over its positions that are not ignored."""
    if loss.whole:
        values_B: Tensor = loss.value(outputs.double(), _wide(targets))
        return values_B
    rows = _rows(loss, outputs.double(), targets)
    values_R = loss.value(rows.outputs_BMK.flatten(0, 1), rows.targets_BM.flatten(0, 1))
    return (values_R.reshape(rows.weights_BM.shape) * rows.weights_BM).sum(1)


def gradient_of(loss: Loss, outputs: Tensor, targets: Any) -> tuple[float, Tensor]:
    """The sum of the samples' losses, and its gradient by the outputs."""
    wide = outputs.detach().double().requires_grad_()
    with torch.enable_grad():
        total = losses_of(loss, wide, targets).sum()
    (gradient,) = torch.autograd.grad(total, wide)
    return total.item(), gradient


def columns_of(
    loss: Loss, outputs: Tensor, targets: Any, columns: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """Columns c, each like the outputs, such that the sum of c c^T is the Hessian of each sample's loss by its outputs.

    Args:
        columns: None for the exact ones, as many as a sample has outputs; else so many random ones, right on average.
    """
    wide, size = outputs.detach().double(), outputs[0].numel()
    if loss.whole:
        factor_BKC = loss.factor(wide, _wide(targets))
        if columns is not None and columns < size:
            factor_BKC = _mixed(factor_BKC, columns, generator)
        yield from (column_BK.reshape(outputs.shape) for column_BK in factor_BKC.unbind(2))
        return
    rows = _rows(loss, wide, targets)
    B, M, K = rows.outputs_BMK.shape
    root_BM1 = rows.weights_BM.sqrt().unsqueeze(2)
    axis = _axis(loss, outputs, targets)
    if columns is None or columns >= size:
        for m in range(M):
            factor_BKC = loss.factor(rows.outputs_BMK[:, m], rows.targets_BM[:, m])
            for column_BK in factor_BKC.unbind(2):
                column_BMK = torch.zeros_like(rows.outputs_BMK)
                column_BMK[:, m] = column_BK
                yield _restored(column_BMK * root_BM1, outputs.shape, axis)
        return
    outputs_RK, targets_R = rows.outputs_BMK.flatten(0, 1), rows.targets_BM.flatten(0, 1)
    if loss.sampled is None:
        factor_RKC = _mixed(loss.factor(outputs_RK, targets_R), columns, generator)
    else:
        factor_RKC = loss.sampled(outputs_RK, targets_R, columns, generator)
    factor_BMKC = factor_RKC.reshape(B, M, K, columns)
    if M > 1:
        # Signs of their own, so that positions do not mix on average: the Hessian has no elements between them.
        factor_BMKC = factor_BMKC * _signs((B, M, 1, columns), generator).to(factor_BMKC)
    for column_BMK in factor_BMKC.unbind(3):
        yield _restored(column_BMK * root_BM1, outputs.shape, axis)


def hessian_vector_product(loss: Loss, outputs: Tensor, targets: Any, change: Tensor) -> Tensor:
    """The Hessian of each sample's loss by its outputs, times a change of them."""
    wide = outputs.detach().double()
    if loss.whole:
        factor_BKC = loss.factor(wide, _wide(targets))
        product_BK1 = factor_BKC @ (factor_BKC.mT @ change.double().reshape(len(change), -1, 1))
        return product_BK1.reshape(outputs.shape)
    rows, axis = _rows(loss, wide, targets), _axis(loss, outputs, targets)
    change_BMK = _by_position(change.double(), axis)
    products = []
    for m in range(change_BMK.shape[1]):
        factor_BKC = loss.factor(rows.outputs_BMK[:, m], rows.targets_BM[:, m])
        products.append((factor_BKC @ (factor_BKC.mT @ change_BMK[:, m].unsqueeze(2))).squeeze(2))
    return _restored(torch.stack(products, 1) * rows.weights_BM.unsqueeze(2), outputs.shape, axis)


def predictions(loss: Loss, outputs: Tensor) -> Tensor:
    """What matters of the outputs: their probabilities, where the loss is a cross-entropy; in float64."""
    wide = outputs.double()
    return wide.softmax(_class_axis(outputs.shape)) if loss is CROSS_ENTROPY else wide


def one_hot(outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels as the outputs that would be right without doubt, (N, ...); 0 for what is ignored."""
    axis = _class_axis(Size((len(labels), *outputs.shape[1:])), labels.shape)
    classes = torch.arange(outputs.shape[axis], device=labels.device)
    return (labels.unsqueeze(axis) == classes.reshape(-1, *[1] * (outputs.ndim - 1 - axis))).double()


def check_targets(loss: Loss, outputs: Tensor, targets: Any) -> None:
    """Check that targets fit outputs, of which a few rows are enough to tell.

    Raises:
        UserError: they do not; there are none; labels are no class or none of them counts; targets are no
            probabilities where these are needed; or the loss fails on them.
    """
    if not isinstance(targets, Tensor):
        raise UserError(
            "The batches have no labels, or none that are a tensor: give them as the last of a tuple or under the key "
            '"labels"; without labels give the network that this one was made from as base=, and to identify also '
            'target="logits".'
        )
    shape = (len(targets), *outputs.shape[1:])
    if loss is CROSS_ENTROPY and not targets.is_floating_point():
        classes = shape[_class_axis(Size(shape), targets.shape)]
        check_labels(known_labels(targets, classes)[1], classes)
        check_counted([any_counts(targets)])
    elif loss in LOSSES.values() and targets.shape != shape:
        raise UserError(
            f"Targets of shape {tuple(targets.shape)} do not fit outputs of shape {shape}, as the loss {loss.name!r} "
            "needs it."
        )
    elif loss is CROSS_ENTROPY:
        check_probabilities(targets, _class_axis(outputs.shape))
    elif loss.whole:
        few = targets[: len(outputs)]
        try:
            losses_of(loss, outputs, few)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The loss {loss.name!r} failed on outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(few.shape)}: {error}"
            ) from error


def _rows(loss: Loss, wide: Tensor, targets: Tensor) -> _Rows:
    axis = _axis(loss, wide, targets)
    outputs_BMK = _by_position(wide, axis)
    B, M, _ = outputs_BMK.shape
    if targets.is_floating_point():
        return _Rows(outputs_BMK, _by_position(targets.double(), axis), wide.new_full((B, M), 1 / M))
    labels_BM = targets.reshape(B, M)
    counted_BM = labels_BM != IGNORED
    weights_BM = counted_BM / counted_BM.sum(1, keepdim=True).clamp(min=1)
    return _Rows(outputs_BMK, labels_BM.where(counted_BM, 0), weights_BM.to(wide))


def _axis(loss: Loss, outputs: Tensor, targets: Tensor) -> int:
    labels = targets.shape if loss is CROSS_ENTROPY and not targets.is_floating_point() else None
    # Where there is no axis of classes a sample has one number.
    return _class_axis(outputs.shape, labels) if outputs.ndim > 1 else 0


def _class_axis(shape: Size, labels: Size | None = None) -> int:
    axis = class_axis(shape, labels)
    if axis is not None:
        return axis
    if labels is None or len(shape) < 2:
        raise UserError(
            f"Cross-entropy needs a number for each class, and the outputs have the shape {tuple(shape)}: let output= "
            'give them, or take loss="mean squared error" where they are numbers.'
        )
    raise UserError(
        f"Labels of shape {tuple(labels)} do not fit outputs of shape {tuple(shape)}: cross-entropy takes a class for "
        "each position, or probabilities of the outputs' shape."
    )


def _by_position(outputs: Tensor, axis: int) -> Tensor:
    if outputs.ndim == 1:
        return outputs.reshape(-1, 1, 1)
    last = outputs.movedim(axis, -1)
    return last.reshape(len(outputs), -1, last.shape[-1])


def _restored(values_BMK: Tensor, shape: Size, axis: int) -> Tensor:
    if len(shape) == 1:
        return values_BMK.reshape(shape)
    return values_BMK.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]).movedim(-1, axis)


def _mixed(factor_BKC: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """So many random mixtures of a factor's columns, which have the same product with their transpose on average."""
    signs = _signs((len(factor_BKC), factor_BKC.shape[2], columns), generator)
    mixed_BKC: Tensor = factor_BKC @ signs.to(factor_BKC) / columns**0.5
    return mixed_BKC


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2 - 1


def _wide(targets: Any) -> Any:
    return targets.double() if targets.is_floating_point() else targets
