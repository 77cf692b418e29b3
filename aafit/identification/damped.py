"""One damped step of Gauss-Newton: with the matrix, or by conjugate gradients where it would be too large."""

from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST = 1e-140  # so that products of two scales are still numbers
SMALLEST_SCALE = 1e-12  # of the largest: what nothing depends on must not move at all


def scales(diagonal_P: Tensor) -> Tensor:
    """Marquardt's scaling: the curvature's own diagonal, so that damping means the same in any units; above 0."""
    return diagonal_P.clamp(min=max(diagonal_P.max().item() * SMALLEST_SCALE, SMALLEST))


def dense_step(gradient_P: Tensor, curvature_PP: Tensor, damping: float) -> Tensor:
    """The d of least gradient . d + d . (curvature + damping * diag(curvature)) . d / 2, (P,) in float64."""
    root_P = scales(curvature_PP.diagonal()).sqrt()
    scaled_PP = curvature_PP / (root_P[:, None] * root_P) + damping * torch.eye(len(root_P), dtype=torch.float64)
    step_P: Tensor = torch.linalg.lstsq(scaled_PP, -(gradient_P / root_P).unsqueeze(1), driver="gelsd").solution[:, 0]
    # What nothing depends on does not move, not even by a rounding.
    return torch.where(curvature_PP.diagonal() > 0, step_P / root_P, 0.0)


def conjugate_gradient_step(
    gradient_P: Tensor,
    product: Callable[[Tensor], Tensor],
    diagonal_P: Tensor,
    damping: float,
    iterations: int = 20,
    tolerance: float = 1e-2,
) -> Tensor:
    """The same step from products with the curvature alone, to a relative residual of `tolerance`.

    Args:
        product: the curvature times a direction.
        diagonal_P: the curvature's diagonal or an estimate of it, to scale by.
    """
    root_P = scales(diagonal_P).sqrt()
    residual_P = -gradient_P / root_P
    first = residual_P.norm()
    step_P, direction_P = torch.zeros_like(residual_P), residual_P
    square = residual_P @ residual_P
    for _ in range(iterations):
        if residual_P.norm() <= tolerance * first:
            break
        applied_P = product(direction_P / root_P) / root_P + damping * direction_P
        length = square / (direction_P @ applied_P)
        step_P, residual_P = step_P + length * direction_P, residual_P - length * applied_P
        before, square = square, residual_P @ residual_P
        direction_P = residual_P + square / before * direction_P
    return step_P / root_P
