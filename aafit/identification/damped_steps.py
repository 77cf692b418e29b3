"""Levenberg-Marquardt steps: minimize a quadratic model whose curvature is increased by a multiple of its diagonal.

Begin with `dense_step`; `KrylovSteps` computes the same steps without the curvature matrix.

Axes in names: P coordinate, K direction of a basis.
"""

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

SMALLEST = 1e-140  # least scale: the product of two scales must not underflow
SMALLEST_SCALE = 1e-12  # least scale, relative to the largest: no division by 0 for coordinates without curvature
EXHAUSTED = 1e-13  # relative to the curvature: a smaller remainder of a product is rounding error


def scales(diagonal_P: Tensor) -> Tensor:
    """Return Marquardt's scaling, (P,): the diagonal of the curvature, clamped to be positive.

    With it, the effect of a damping does not depend on the units of the coordinates.
    """
    return diagonal_P.clamp(min=max(diagonal_P.max().item() * SMALLEST_SCALE, SMALLEST))


def dense_step(gradient_P: Tensor, curvature_PP: Tensor, damping: float) -> Tensor:
    """Return the step d, (P,) in float64, that minimizes g . d + d . (H + damping * diag(H)) . d / 2.

    Args:
        gradient_P: the gradient g, in float64.
        curvature_PP: the curvature H, in float64.
        damping: multiple of the diagonal to add; 0 for an undamped Newton step.
    """
    root_P = scales(curvature_PP.diagonal()).sqrt()
    scaled_PP = curvature_PP / (root_P[:, None] * root_P) + damping * torch.eye(len(root_P), dtype=torch.float64)
    step_P: Tensor = torch.linalg.lstsq(scaled_PP, -(gradient_P / root_P).unsqueeze(1), driver="gelsd").solution[:, 0]
    # A coordinate without curvature has no effect: rounding errors must not change it.
    return torch.where(curvature_PP.diagonal() > 0, step_P / root_P, 0.0)


class KrylovSteps:
    """Compute the steps of `dense_step` from curvature-vector products alone, for one damping after another.

    It uses the Lanczos method. In an orthonormal basis of the Krylov space of K products, the scaled curvature is a
    tridiagonal matrix, and the minimum of the quadratic within this space is the result of K iterations of conjugate
    gradients. A damping adds to the diagonal only, so one basis serves all dampings, and a stronger damping seldom
    needs another product.

    Args:
        gradient_P: the gradient, in float64.
        product: returns the curvature times a direction, (P,) -> (P,).
        diagonal_P: the curvature's diagonal or an estimate of it, to scale by.
        products: maximum number of products; up to `products` + 1 vectors (P,) in float64 are kept.
        tolerance: residual at which the iteration ends, relative to the scaled gradient.
    """

    def __init__(
        self,
        gradient_P: Tensor,
        product: Callable[[Tensor], Tensor],
        diagonal_P: Tensor,
        products: int = 20,
        tolerance: float = 1e-2,
    ) -> None:
        self._product, self._products, self._tolerance = product, products, tolerance
        self._root_P = scales(diagonal_P).sqrt()
        start_P = -gradient_P / self._root_P
        self._size = start_P.norm().item()
        self._basis = [start_P / self._size] if self._size > 0 else []
        # The tridiagonal matrix; the last off-diagonal element belongs to the next direction of the basis.
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []

    def __call__(self, damping: float) -> Tensor:
        """Return the step, (P,) in float64; all NaN if a product was not finite."""
        if not self._basis:
            return torch.zeros_like(self._root_P)
        if not self._diagonal:
            self._extend()
        while True:
            if not isfinite(self._diagonal[-1] + self._off_diagonal[-1]):
                return torch.full_like(self._root_P, torch.nan)
            weight_K = self._solve(damping)
            residual = self._off_diagonal[-1] * abs(weight_K[-1].item())
            if residual <= self._tolerance * self._size or len(self._diagonal) >= self._products:
                break
            self._extend()
        step_P = torch.zeros_like(self._root_P)
        for weight, direction_P in zip(weight_K.tolist(), self._basis, strict=False):
            step_P += weight * direction_P
        return step_P / self._root_P

    def _extend(self) -> None:
        """Compute one more product, and add the direction to which it leads to the basis."""
        last_P = self._basis[-1]
        applied_P = self._product(last_P / self._root_P) / self._root_P
        self._diagonal.append((last_P @ applied_P).item())
        # Full reorthogonalization, twice: without it, rounding errors along earlier directions would grow.
        for _ in range(2):
            for direction_P in self._basis:
                applied_P = applied_P - (direction_P @ applied_P) * direction_P
        norm = applied_P.norm().item()
        if norm <= EXHAUSTED * max(map(abs, self._diagonal)):
            self._off_diagonal.append(0.0)
        else:
            self._off_diagonal.append(norm)
            self._basis.append(applied_P / norm)

    def _solve(self, damping: float) -> Tensor:
        """Return the coefficients of the scaled step in the basis, (K,)."""
        diagonal_K = torch.tensor(self._diagonal, dtype=torch.float64)
        off_diagonal = torch.tensor(self._off_diagonal[:-1], dtype=torch.float64)
        damped_KK = (diagonal_K + damping).diag() + off_diagonal.diag(1) + off_diagonal.diag(-1)
        right_K = torch.zeros_like(diagonal_K)
        right_K[0] = self._size
        solved_K: Tensor = torch.linalg.lstsq(damped_KK, right_K.unsqueeze(1), driver="gelsd").solution[:, 0]
        return solved_K
