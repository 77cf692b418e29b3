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


def _cross_entropy(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs_BK, targets, reduction="none")


def _cross_entropy_factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    """diag(p) - p p^T = F F^T with F = diag(sqrt p) - p sqrt(p)^T."""
    p_BK = outputs_BK.softmax(1)
    root_BK = p_BK.sqrt()
    return torch.diag_embed(root_BK) - p_BK.unsqueeze(2) * root_BK.unsqueeze(1)


def _cross_entropy_sampled(outputs_BK: Tensor, targets: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Labels drawn from the network's own probabilities: the gradients e_label - p have diag(p) - p p^T on average."""
    p_BK = outputs_BK.softmax(1)
    # Drawn on the CPU from uniform numbers, so that every device draws the same labels.
    uniform_BR = torch.rand(len(p_BK), columns, generator=generator, dtype=torch.float64).to(p_BK.device)
    labels_BR = torch.searchsorted(p_BK.double().cumsum(1), uniform_BR).clamp(max=p_BK.shape[1] - 1)
    drawn_BRK = F.one_hot(labels_BR, p_BK.shape[1]).to(p_BK.dtype)
    factor_BKR: Tensor = (drawn_BRK - p_BK.unsqueeze(1)).transpose(1, 2) / columns**0.5
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
