"""Whether standard errors hold: how the loss really rises within them, and from how many images they come.

Axes in names: N image, P coordinate.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aafit.identification.gauss_newton import measured
from aafit.identification.problem import Problem
from aafit.networks.batches import Batch

ERRORS = 2.0
"""How many standard errors to either side is looked: as far as an interval of 95% goes."""

MOST_RISE = 2.5
"""The factor by which the rise may be off. It goes with the square of the distance: the error is then off by 1.6."""

WALKED_IMAGES = 2_000
"""The rise is measured on at most so many images."""


def rise_at(problem: Problem, vector_P: Tensor, images: Batch, ridge: float) -> Callable[[Tensor], float]:
    """A function of a step (P,) from `vector_P`: how much the loss rises there, beyond what its slope alone gives.

    Args:
        images: the first `WALKED_IMAGES` of them are used.
        ridge: weight of half the squared distance, which belongs to the loss.
    """
    walked = images.part(0, WALKED_IMAGES)
    loss, gradient_P = problem.gradient(vector_P, walked)

    def rise(step_P: Tensor) -> float:
        there, _ = measured(problem, vector_P + step_P, walked)
        return there - loss - (gradient_P @ step_P).item() + ridge / 2 * step_P.square().sum().item()

    return rise


def rises_within(
    rise: Callable[[Tensor], float], curvature_PP: Tensor, covariance_PP: Tensor, asked_P: Tensor
) -> tuple[tuple[float, float] | None, ...]:
    """For each coordinate, the rise of the loss two standard errors below and above, over what its quadratic promises.

    The other coordinates are where their estimates are on average when this one is off by twice its error s: with S
    the covariance, the step is d = 2 s S_p / S_pp, and the promise d^T H d / 2. If the network is the true model, S is
    in proportion to H^-1, d goes along the profile of the quadratic, and the ratios are those of the squares of Bates
    and Watts's profile t (Nonlinear Regression Analysis and Its Applications, 1988, section 6.1) at one point to either
    side: 1 where the loss is a quadratic. Far from 1 an error that was computed from the quadratic is not one.

    Args:
        rise: see `rise_at`.
        curvature_PP: H.
        covariance_PP: S.
        asked_P: for which coordinates; None for the others.
    """

    def of(p: int) -> tuple[float, float]:
        if not covariance_PP[p, p] > 0:
            return 1.0, 1.0
        step_P = covariance_PP[:, p] * (ERRORS / covariance_PP[p, p].sqrt())
        promised = (step_P @ curvature_PP @ step_P).item() / 2
        return rise(-step_P) / promised, rise(step_P) / promised

    return tuple(of(p) if asked else None for p, asked in enumerate(asked_P.tolist()))


def is_quadratic(rises: tuple[float, float] | None) -> bool:
    """Whether the loss rises to both sides about as its quadratic does, as far as that was looked at."""
    return rises is None or all(1 / MOST_RISE <= one <= MOST_RISE for one in rises)


def images_in_effect(gradients_NP: Tensor, inverse_PP: Tensor) -> float:
    """From how many images errors come: (sum of q)^2 / sum of q^2 with q_i = g_i^T H^-1 g_i; all where these are equal.

    Args:
        gradients_NP: the images' own gradients g.
        inverse_PP: H^-1.
    """
    each_N = ((gradients_NP @ inverse_PP) * gradients_NP).sum(1)
    return (each_N.sum().square() / each_N.square().sum().clamp(min=torch.finfo(torch.float64).tiny)).item()
