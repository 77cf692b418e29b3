"""The adaptive hybrid activation function, AHAF."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.elementwise import Formula, largest


def _forward(u: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    u = u.clamp(min=-largest(u))
    y: Tensor = (beta * u) * torch.special.expit(gamma * u)
    return y


def _backward(grad: Tensor, u: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = u.clamp(-largest(u), largest(u))
    s = torch.special.expit(gamma * u)
    # beta * u times the sigmoid's derivative first: with gamma = 2^16 that is 0 where gamma * u may be infinite.
    rise = (beta * u) * (s * (1 - s))
    return grad * (beta * s + rise * gamma), grad * (rise * u), grad * (u * s)


class AHAF(AdaptiveActivation):
    """The adaptive hybrid activation function, AHAF(u) = beta * u * sigmoid(gamma * u).

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `gamma` and `beta` have
    the shape (1,) if the layer shares them, otherwise one that broadcasts against the input's trailing dimensions.

    `AHAF.like("SiLU")` (gamma = beta = 1) is bit-identical to aafit.activations.SiLU, including the gradients.
    `AHAF.like("ReLU")` (gamma = 2^16, beta = 1) differs from ReLU by at most 0.2785 / gamma = 4.25e-6, at
    |u| = 1.28 / gamma = 2e-5, in every dtype of the input (4.3e-6 after rounding to bfloat16), and equals it for
    |u| > 0.0014 (0.011 in float64). At -inf both give 0. With parameters in float16, gamma is 2^15 and the bound
    8.6e-6.

    Source: Bodyanskiy & Kostiuk (2022), Adaptive hybrid activation function for deep neural networks,
    https://doi.org/10.20535/srit.2308-8893.2022.1.07

    Args:
        gamma: The slope.
        beta: The scale.

    Raises:
        UserError: A value is not finite, the two differ in shape, or (when called) they do not fit the input.

    Example:
        >>> f = aafit.AHAF.like("ReLU")
        >>> f(torch.tensor([-1.0, 2.0])).tolist()
        [-0.0, 2.0]
        >>> net, _ = aafit.replace_activations(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), {"ReLU": f})
    """

    family: ClassVar[str] = "AHAF"
    starts: ClassVar[Mapping[str, tuple[float, ...]]] = {"ReLU": (2.0**16, 1.0), "SiLU": (1.0, 1.0)}
    others: ClassVar[tuple[str, ...]] = ("random",)
    slope_parameters: ClassVar[tuple[str, ...]] = ("gamma",)
    formula = Formula(_forward, _backward)

    gamma: nn.Parameter
    beta: nn.Parameter

    @classmethod
    def random(cls, shape: tuple[int, ...] = (1,), generator: torch.Generator | None = None) -> Self:
        """Return an AHAF with gamma and beta uniform in [0, 1), drawn in this order from the CPU `generator`."""
        shape = check_shape(shape)
        return cls(torch.rand(shape, generator=generator), torch.rand(shape, generator=generator), start="random")
