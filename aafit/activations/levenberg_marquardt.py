"""Least squares of a few numbers by Levenberg-Marquardt, for many starts or parameter sets at once.

Each has a damping of its own (Marquardt 1963, https://doi.org/10.1137/0111030). All in float64. The coordinate
of a steepness p is t with p = sinh(t), so that a step in t changes a large one by a share of it.

Axes in names: S start or parameter set, Q parameter.
"""

from typing import Protocol

import torch
from torch import Tensor

FIRST_DAMPING = 1e-2
LARGEST_DAMPING = 1e8
LEAST_DAMPING = 1e-13  # of what is solved: two values may have the same effect on all elements
SMALLEST = 1e-140  # so that products of two scales are still numbers
LONGEST_STEP = 1.0  # of a steepness, in its own coordinate: by a factor of e


class Squares(Protocol):
    """A sum of squares to minimise."""

    @property
    def steep_Q(self) -> Tensor:
        """Which parameters are a steepness."""

    def cost(self, at_SQ: Tensor) -> Tensor:
        """The mean squared error of each, (S,)."""

    def normal(self, at_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """Half the gradient of the cost, (S, Q), and half its Gauss-Newton matrix, (S, Q, Q)."""


def minimised(
    squares: Squares, start_SQ: Tensor, iterations: int, converged: float, matched_S: Tensor
) -> tuple[Tensor, Tensor]:
    """The places of least cost that are found from each start, (S, Q), and their costs (S,).

    Args:
        iterations: at most.
        converged: relative decrease of the cost below which a start is done.
        matched_S: cost at which a start is done.
    """
    at_SQ, cost_S = start_SQ, squares.cost(start_SQ)
    damping_S = torch.full_like(cost_S, FIRST_DAMPING)
    done_S = cost_S <= matched_S
    for _ in range(iterations):
        if done_S.all():
            break
        trial_SQ = at_SQ + _steps(*squares.normal(at_SQ), damping_S, squares.steep_Q)
        trial_S = squares.cost(trial_SQ)
        better_S = trial_S < cost_S
        little_S = (cost_S - trial_S) < converged * cost_S
        at_SQ = torch.where(better_S[:, None], trial_SQ, at_SQ)
        cost_S = torch.where(better_S, trial_S, cost_S)
        # One that found no better place is done once its damping leaves it no step worth the name.
        done_S = torch.where(better_S, little_S, damping_S > LARGEST_DAMPING) | (cost_S <= matched_S)
        damping_S = torch.where(better_S, damping_S / 5, damping_S * 4)
    return at_SQ, cost_S


def _steps(gradient_SQ: Tensor, curvature_SQQ: Tensor, damping_S: Tensor, steep_Q: Tensor) -> Tensor:
    # What nothing depends on has no gradient either: any scale will do.
    root_SQ = curvature_SQQ.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST).sqrt()
    scaled_SQQ = curvature_SQQ / (root_SQ[:, :, None] * root_SQ[:, None, :])
    identity = torch.eye(scaled_SQQ.shape[1], dtype=scaled_SQQ.dtype, device=scaled_SQQ.device)
    scaled_SQQ = scaled_SQQ + (damping_S[:, None, None] + LEAST_DAMPING) * identity
    step_SQ: Tensor = torch.linalg.solve_ex(scaled_SQQ, -gradient_SQ / root_SQ)[0] / root_SQ
    longest_S = torch.where(steep_Q, step_SQ.abs(), 0.0).amax(1)
    return step_SQ * (LONGEST_STEP / longest_S.clamp(min=LONGEST_STEP))[:, None]
