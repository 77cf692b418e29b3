"""LEAF, the learnable extended activation function."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from aafit.activations.base import AdaptiveActivation, check_shape, filled, parameter
from aafit.activations.elementwise import Formula, check_input, fused
from aafit.errors import UserError, check_name

STARTS = {
    "ReLU": (1.0, 0.0, 2.0**16, 0.0),
    "SiLU": (1.0, 0.0, 1.0, 0.0),
    "Tanh": (0.0, 2.0, 2.0, -1.0),
    "Sigmoid": (0.0, 1.0, 1.0, 0.0),
}


def _forward(u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> Tensor:
    return (p1 * u + p2) * torch.sigmoid(p3 * u) + p4


def _backward(
    grad: Tensor, u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    s = torch.sigmoid(p3 * u)
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
    likes: ClassVar[tuple[str, ...]] = tuple(STARTS)
    slow_parameters: ClassVar[tuple[str, ...]] = ("p2", "p4")
    steepness_parameters: ClassVar[tuple[str, ...]] = ("p3",)

    def __init__(
        self,
        p1: float | Tensor,
        p2: float | Tensor,
        p3: float | Tensor,
        p4: float | Tensor,
        start: str = "custom",
    ) -> None:
        super().__init__(start)
        self.p1 = parameter(p1, "LEAF's p1")
        self.p2 = parameter(p2, "LEAF's p2")
        self.p3 = parameter(p3, "LEAF's p3")
        self.p4 = parameter(p4, "LEAF's p4")
        shapes = [tuple(p.shape) for p in self.parameters()]
        if len(set(shapes)) > 1:
            raise UserError(f"LEAF's p1 to p4 must have one shape; got {', '.join(map(str, shapes))}.")

    @classmethod
    def like(cls, name: str, shape: tuple[int, ...] = (1,)) -> Self:
        """LEAF that starts as the fixed function `name`: "ReLU", "SiLU", "Tanh" or "Sigmoid".

        Raises:
            UserError: LEAF cannot start as that, or `shape` is not one of positive integers.
        """
        values = STARTS[check_name("start of LEAF", name, cls.likes)]
        p1, p2, p3, p4 = (filled(shape, value, f"LEAF as {name}: p{i}") for i, value in enumerate(values, 1))
        return cls(p1, p2, p3, p4, start=name)

    @classmethod
    def random(cls, shape: tuple[int, ...] = (1,), generator: torch.Generator | None = None) -> Self:
        """LEAF with p1 and p3 uniform in [0, 1), drawn from the CPU `generator` in that order; p2 and p4 are 0."""
        shape = check_shape(shape)
        p1, p3 = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        return cls(p1, torch.zeros(shape), p3, torch.zeros(shape), start="random")

    def forward(self, u: Tensor) -> Tensor:
        """LEAF(u), elementwise."""
        check_input(u, self.p1.shape, self.family)
        return fused(FORMULA, u, self.p1, self.p2, self.p3, self.p4)
