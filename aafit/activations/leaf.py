"""LEAF, the learnable extended activation function."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.elementwise import Formula


def _forward(u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> Tensor:
    y: Tensor = (p1 * u + p2) * torch.special.expit(p3 * u) + p4
    return y


def _backward(
    grad: Tensor, u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    s = torch.special.expit(p3 * u)
    # The sigmoid's slope first: with p3 = 2^16 it is 0 where p3 * u may be infinite.
    rise = (p1 * u + p2) * (s * (1 - s))
    return grad * (p1 * s + rise * p3), grad * (u * s), grad * s, grad * (rise * u), grad


FORMULA = Formula(_forward, _backward)


class LEAF(AdaptiveActivation):
    """The learnable extended activation function, LEAF(u) = (p1 * u + p2) * sigmoid(p3 * u) + p4.

    Input (B, *...) of any floating-point dtype, output of the same shape and dtype. `p1` to `p4` have the shape (1,)
    where a layer shares them, else one that broadcasts against the input's trailing dimensions.

    As SiLU (1, 0, 1, 0) and as Sigmoid (0, 1, 1, 0) it is the fixed function of this package to the last bit. As ReLU
    (1, 0, 2^16, 0) it differs from ReLU by at most 0.2785 / p3 = 4.25e-6, at |u| = 1.28 / p3 = 2e-5, in every dtype of
    the input (4.3e-6 once rounded to bfloat16); where |u| > 0.0014 the two are equal (0.011 in float64). With
    parameters in float16, p3 is 2^15 and the bound 8.6e-6. As Tanh (0, 2, 2, -1) it differs from the hyperbolic tangent
    by at most 4e-16 in float64, 2e-7 in float32, and one rounding in float16 (2.5e-4) and bfloat16 (2e-3). It is
    defined for finite inputs: inf * 0 is NaN.

    Source: Bodyanskiy & Kostiuk (2023), Learnable Extended Activation Function for Deep Neural Networks,
    https://doi.org/10.47839/ijc.22.3.3225

    Raises:
        UserError: a value is not finite, the four have different shapes, or (when called) they do not fit the input.
    """

    family: ClassVar[str] = "LEAF"
    starts: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "ReLU": (1.0, 0.0, 2.0**16, 0.0),
        "SiLU": (1.0, 0.0, 1.0, 0.0),
        "Tanh": (0.0, 2.0, 2.0, -1.0),
        "Sigmoid": (0.0, 1.0, 1.0, 0.0),
    }
    others: ClassVar[tuple[str, ...]] = ("random",)
    slow_parameters: ClassVar[tuple[str, ...]] = ("p2", "p4")
    slope_parameters: ClassVar[tuple[str, ...]] = ("p3",)
    formula = staticmethod(_forward)
    _formula: ClassVar[Formula | None] = FORMULA

    p1: nn.Parameter
    p2: nn.Parameter
    p3: nn.Parameter
    p4: nn.Parameter

    @classmethod
    def random(cls, shape: tuple[int, ...] = (1,), generator: torch.Generator | None = None) -> Self:
        """LEAF with p1 and p3 uniform in [0, 1), drawn from the CPU `generator` in that order; p2 and p4 are 0."""
        shape = check_shape(shape)
        p1, p3 = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        return cls(p1, torch.zeros(shape), p3, torch.zeros(shape), start="random")
