"""Damped steps: to the least value of a quadratic whose curvature is raised by a share of its own diagonal.

Axes in names: P coordinate, K direction of a basis.
"""

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

SMALLEST = 1e-140  # so that products of two scales are still numbers
SMALLEST_SCALE = 1e-12  # of the largest: what nothing depends on must not move at all
EXHAUSTED = 1e-13  # of the curvature: what is left of a product below this is rounding


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


class KrylovSteps:
    """The same steps from products with the curvature alone, for one damping after another.

    Lanczos's method: in an orthonormal basis of what K products reach from the gradient, the scaled curvature is a
    tridiagonal matrix, and the least point of the quadratic is what K iterations of conjugate gradients find. A damping
    adds to the diagonal only, so that one basis serves all dampings, and a stronger one seldom needs another product.

    Args:
        product: the curvature times a direction.
        diagonal_P: the curvature's diagonal or an estimate of it, to scale by.
        products: at most so many; as many vectors (P,) in float64 are kept, and one more.
        tolerance: the residual to reach, relative to the gradient.
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
        # Of the tridiagonal matrix: its diagonal, and the numbers beside it; the last leads to a new direction.
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    def __call__(self, damping: float) -> Tensor:
        """The step, (P,) in float64; of NaN where a product was not finite."""
        if not self._basis:
            return torch.zeros_like(self._root_P)
        if not self._diagonal:
            self._extend()
        while True:
            if not isfinite(self._diagonal[-1] + self._beside[-1]):
                return torch.full_like(self._root_P, torch.nan)
            share_K = self._solved(damping)
            residual = self._beside[-1] * abs(share_K[-1].item())
            if residual <= self._tolerance * self._size or len(self._diagonal) >= self._products:
                break
            self._extend()
        step_P = torch.zeros_like(self._root_P)
        for share, direction_P in zip(share_K.tolist(), self._basis, strict=False):
            step_P += share * direction_P
        return step_P / self._root_P

    def _extend(self) -> None:
        """One more product, and the direction that it leads to."""
        last_P = self._basis[-1]
        applied_P = self._product(last_P / self._root_P) / self._root_P
        self._diagonal.append((last_P @ applied_P).item())
        # From all and twice: what rounding left of known directions would grow.
        for _ in range(2):
            for direction_P in self._basis:
                applied_P = applied_P - (direction_P @ applied_P) * direction_P
        beside = applied_P.norm().item()
        if beside <= EXHAUSTED * max(map(abs, self._diagonal)):
            self._beside.append(0.0)
        else:
            self._beside.append(beside)
            self._basis.append(applied_P / beside)

    def _solved(self, damping: float) -> Tensor:
        """How much of each direction of the basis the step has."""
        diagonal_K = torch.tensor(self._diagonal, dtype=torch.float64)
        beside_K = torch.tensor(self._beside[:-1], dtype=torch.float64)
        damped_KK = (diagonal_K + damping).diag() + beside_K.diag(1) + beside_K.diag(-1)
        right_K = torch.zeros_like(diagonal_K)
        right_K[0] = self._size
        solved_K: Tensor = torch.linalg.lstsq(damped_KK, right_K.unsqueeze(1), driver="gelsd").solution[:, 0]
        return solved_K
