"""Losses with the curvature that Gauss-Newton needs: the Hessian by the network's outputs, as a product of factors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aafit.errors import UserError


@dataclass(frozen=True)
class Loss:
    """A loss by image, convex in the network's outputs.

    Axes in names: B image, K output, R column.

    Attributes:
        value: (outputs_BK, targets) -> loss_B.
        factor: (outputs_BK, targets) -> F_BKR with F F^T the Hessian of an image's loss by its outputs.
        sampled: (outputs_BK, targets, columns, generator) -> F_BKR of so many random columns, with F F^T the Hessian
            on average; None where there is no cheap one.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    factor: Callable[[Tensor, Tensor], Tensor]
    sampled: Callable[[Tensor, Tensor, int, torch.Generator], Tensor] | None = None


def loss_with_hessian(
    name: str, value: Callable[[Tensor, Tensor], Tensor], hessian: Callable[[Tensor, Tensor], Tensor] | None
) -> Loss:
    """Any loss by image, given with its Hessian by the outputs: hessian(outputs_BK, targets) -> H_BKK.

    Where the Hessian is not positive semidefinite its negative part is left out, as Gauss-Newton needs.

    Raises:
        UserError: there is no Hessian.
    """
    if not callable(hessian):
        raise UserError(f"The loss {name!r} has no Hessian by the outputs, which Gauss-Newton needs: give hessian=.")

    def factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
        values_BK, vectors_BKK = torch.linalg.eigh(hessian(outputs_BK, targets))
        root_BK: Tensor = values_BK.clamp(min=0).sqrt()
        factor_BKR: Tensor = vectors_BKK * root_BK.unsqueeze(1)
        return factor_BKR

    return Loss(name, value, factor)


def check_targets(loss: Loss, outputs_BK: Tensor, targets: Tensor) -> None:
    """Whether targets fit outputs, of which a few rows are enough to tell.

    Raises:
        UserError: they do not.
    """
    shape, given, classes = tuple(outputs_BK.shape[1:]), tuple(targets.shape[1:]), outputs_BK.shape[-1]
    whole = not targets.is_floating_point()
    if loss is CROSS_ENTROPY and whole:
        if given != ():
            raise UserError(
                f"Labels of shape (B, {', '.join(map(str, given))}) do not fit outputs of shape (B, {classes}): "
                "cross-entropy takes classes of shape (B,), or probabilities of the outputs' shape."
            )
        outside = int(((targets < 0) | (targets >= classes)).sum())
        if outside:
            raise UserError(
                f"{outside} of {len(targets)} labels are no class of the network, which has {classes} outputs: give "
                f"labels from 0 to {classes - 1}; they are {targets.min().item()} to {targets.max().item()}."
            )
    elif loss in LOSSES.values() and given != shape:
        raise UserError(
            f"Targets of shape {tuple(targets.shape)} do not fit outputs of shape (B, {', '.join(map(str, shape))}), "
            f"as the loss {loss.name!r} needs it."
        )


def _cross_entropy(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs_BK, targets, reduction="none")


def _cross_entropy_factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    """diag(p) - p p^T = F F^T with F = diag(sqrt p) - p sqrt(p)^T."""
    p_BK = outputs_BK.softmax(1)
    root_BK = p_BK.sqrt()
    return torch.diag_embed(root_BK) - p_BK.unsqueeze(2) * root_BK.unsqueeze(1)


def _cross_entropy_sampled(outputs_BK: Tensor, targets: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Gradients e_k - p of labels k, drawn and scaled such that they have diag(p) - p p^T on average.

    A label is drawn with a probability in proportion to p_k |e_k - p|^2, and its gradient scaled to the root of the
    Hessian's trace, so that every draw has the right trace. Drawn with the probability p_k, a label other than the
    one that a network is sure of would hardly ever come, and nearly all of the curvature with it.
    """
    p_BK = outputs_BK.softmax(1)
    square_BK = 1 - 2 * p_BK + p_BK.square().sum(1, keepdim=True)
    share_BK = (p_BK * square_BK.clamp(min=0)).double()
    trace_B1 = share_BK.sum(1, keepdim=True)
    # Drawn on the CPU from uniform numbers, so that every device draws the same labels.
    uniform_BR = torch.rand(len(p_BK), columns, generator=generator, dtype=torch.float64).to(p_BK.device)
    labels_BR = torch.searchsorted(share_BK.cumsum(1), uniform_BR * trace_B1).clamp(max=p_BK.shape[1] - 1)
    gradient_BRK = F.one_hot(labels_BR, p_BK.shape[1]).to(p_BK.dtype) - p_BK.unsqueeze(1)
    length_BR1 = gradient_BRK.square().sum(2, keepdim=True).sqrt()
    unit_BRK = torch.where(length_BR1 > 0, gradient_BRK / length_BR1, 0)
    factor_BKR: Tensor = unit_BRK.mT * (trace_B1.to(p_BK) / columns).sqrt().unsqueeze(2)
    return factor_BKR


def _squared_error(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    return (outputs_BK - targets).square().mean(1)


def _squared_error_factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    outputs = outputs_BK.shape[1]
    return (
        torch.eye(outputs, dtype=outputs_BK.dtype, device=outputs_BK.device)
        .mul((2 / outputs) ** 0.5)
        .expand(len(outputs_BK), -1, -1)
    )


def _squared_error_sampled(outputs_BK: Tensor, targets: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    B, K = outputs_BK.shape
    signs_BKR = torch.randint(0, 2, (B, K, columns), generator=generator) * 2 - 1
    scale: float = (2 / K / columns) ** 0.5
    return signs_BKR.to(outputs_BK) * scale


CROSS_ENTROPY = Loss("cross-entropy", _cross_entropy, _cross_entropy_factor, _cross_entropy_sampled)
"""F.cross_entropy, in nats: targets are classes (B,) or probabilities (B, K)."""

SQUARED_ERROR = Loss("mean squared error", _squared_error, _squared_error_factor, _squared_error_sampled)
"""The mean over the outputs of their squared differences from the targets (B, K)."""

LOSSES = {"cross-entropy": CROSS_ENTROPY, "mean squared error": SQUARED_ERROR}
