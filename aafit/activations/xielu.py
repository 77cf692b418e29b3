"""The expanded integral of the exponential linear unit, xIELU."""

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.elementwise import Formula, largest

BETA = 0.5
EPS = -1e-6


def _bounded(u: Tensor) -> Tensor:
    # The square of a float32 above 1.8e19 would be infinite, and its product with a zero gradient NaN.
    limit = math.sqrt(largest(u))
    return u.clamp(-limit, limit)


def _forward(u: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
    u = _bounded(u)
    right = F.softplus(alpha_p) * u * u
    left = (BETA + F.softplus(alpha_n)) * (u.clamp(max=EPS).expm1() - u)
    y: Tensor = torch.where(u > 0, right, left) + BETA * u
    return y


def _backward(grad: Tensor, u: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inside, u = u.abs() <= math.sqrt(largest(u)), _bounded(u)
    positive, below = u > 0, u.clamp(max=EPS)
    right = 2 * F.softplus(alpha_p) * u
    left = (BETA + F.softplus(alpha_n)) * (torch.where(u <= EPS, below.exp(), 0.0) - 1)
    by_u = grad * torch.where(inside, torch.where(positive, right, left) + BETA, 0.0)
    by_p = grad * torch.where(positive, u * u, 0.0) * torch.special.expit(alpha_p)
    by_n = grad * torch.where(positive, 0.0, below.expm1() - u) * torch.special.expit(alpha_n)
    return by_u, by_p, by_n


def _raw(alpha: float) -> float:
    """Return the parameter whose softplus is `alpha`."""
    return math.log(math.expm1(alpha))


class XIELU(AdaptiveActivation):
    """The expanded integral of the exponential linear unit, an activation of recent language models.

    xIELU(u) = a_p * u^2 + beta * u                          for u > 0,
    xIELU(u) = a_n * (exp(min(u, eps)) - 1 - u) + beta * u   otherwise,

    with a_p = softplus(alpha_p), a_n = beta + softplus(alpha_n), beta = 0.5 and eps = -1e-6. It is quadratic on the
    right and tends to the line (beta - a_n) * u - a_n on the left, which rises to the left because a_n > beta.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `alpha_p` and `alpha_n`
    have the shape (1,) if the layer shares them, otherwise one that broadcasts against the input's trailing dimensions.
    They are the parameters before the softplus, with the names that they have in the models' checkpoints.

    `XIELU.initial()` has the values with which the paper begins training, a_p = a_n = 0.8. No start is the function
    after which it is named: `XIELU.like(f)` has the least squared error to f over a standard normal input, with an
    RMS error relative to the standard deviation of f of 28% for ReLU, 6% for SiLU and 12% for GELU. Inputs beyond
    5.7e17 in float32 count as that value, so that an infinite input gives a large finite output.

    Source: Huang & Schlag (2024), Deriving Activation Functions Using Integration, https://arxiv.org/abs/2411.13010

    Args:
        alpha_p: Curvature of the positive part, before the softplus.
        alpha_n: Scale of the negative part, before the softplus.

    Raises:
        UserError: A value is not finite, the two differ in shape, or (when called) they do not fit the input.

    Example:
        >>> f = aafit.XIELU.initial()
        >>> f(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([-2.0570e-01, -8.0000e-07,  4.2000e+00], grad_fn=...)
        >>> net, _ = aafit.replace_activations(nn.Sequential(nn.Linear(2, 3), nn.GELU()), {"GELU": "XIELU as GELU"})
    """

    family: ClassVar[str] = "XIELU"
    starts: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "ReLU": (_raw(0.265962), _raw(0.978832 - BETA)),
        "SiLU": (_raw(0.185822), _raw(0.658748 - BETA)),
        "GELU": (_raw(0.235079), _raw(0.845622 - BETA)),
    }
    others: ClassVar[tuple[str, ...]] = ("initial",)
    formula = Formula(_forward, _backward)

    alpha_p: nn.Parameter
    alpha_n: nn.Parameter

    @classmethod
    def initial(cls, shape: tuple[int, ...] = (1,)) -> Self:
        """Return an XIELU with the values with which the paper begins training: a_p = a_n = 0.8."""
        values = (torch.full(check_shape(shape), _raw(alpha)) for alpha in (0.8, 0.8 - BETA))
        return cls(*values, start="initial")

    @property
    def curvatures(self) -> tuple[Tensor, Tensor]:
        """The factors (a_p, a_n) of the formula, after the softplus."""
        return F.softplus(self.alpha_p.detach()), BETA + F.softplus(self.alpha_n.detach())
