"""The learnable extended activation function, LEAF."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.elementwise import Formula, largest


def _forward(u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> Tensor:
    u = u.clamp(min=-largest(u))
    y: Tensor = (p1 * u + p2) * torch.special.expit(p3 * u) + p4
    return y


def _backward(
    grad: Tensor, u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    u = u.clamp(-largest(u), largest(u))
    s = torch.special.expit(p3 * u)
    # The sigmoid's derivative first: with p3 = 2^16 it is 0 where p3 * u may be infinite.
    rise = (p1 * u + p2) * (s * (1 - s))
    return grad * (p1 * s + rise * p3), grad * (u * s), grad * s, grad * (rise * u), grad


class LEAF(AdaptiveActivation):
    """The learnable extended activation function, LEAF(u) = (p1 * u + p2) * sigmoid(p3 * u) + p4.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `p1` to `p4` have the
    shape (1,) if the layer shares them, otherwise one that broadcasts against the input's trailing dimensions.

    `LEAF.like("SiLU")` (1, 0, 1, 0) and `LEAF.like("Sigmoid")` (0, 1, 1, 0) are bit-identical to the fixed functions of
    this package. `LEAF.like("ReLU")` (1, 0, 2^16, 0) differs from ReLU by at most 0.2785 / p3 = 4.25e-6, at
    |u| = 1.28 / p3 = 2e-5, in every dtype of the input (4.3e-6 after rounding to bfloat16), and equals it for
    |u| > 0.0014 (0.011 in float64). With parameters in float16, p3 is 2^15 and the bound 8.6e-6. `LEAF.like("Tanh")`
    (0, 2, 2, -1) differs from the hyperbolic tangent by at most 4e-16 in float64, 2e-7 in float32, and one rounding in
    float16 (2.5e-4) and bfloat16 (2e-3).

    Source: Bodyanskiy & Kostiuk (2023), Learnable Extended Activation Function for Deep Neural Networks,
    https://doi.org/10.47839/ijc.22.3.3225

    Args:
        p1: The scale of the input.
        p2: The offset inside the product.
        p3: The slope of the sigmoid.
        p4: The offset of the output.

    Raises:
        UserError: A value is not finite, the four differ in shape, or (when called) they do not fit the input.

    Example:
        >>> leaf = aafit.LEAF.like("Tanh", shape=(3, 1, 1))  # its own parameters for each of 3 channels
        >>> leaf(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
        >>> aafit.LEAF(1.0, 0.0, 1.0, 0.5)(torch.tensor([0.0])).item()
        0.5
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
    formula = Formula(_forward, _backward)

    p1: nn.Parameter
    p2: nn.Parameter
    p3: nn.Parameter
    p4: nn.Parameter

    @classmethod
    def random(cls, shape: tuple[int, ...] = (1,), generator: torch.Generator | None = None) -> Self:
        """Return a LEAF with p2 = p4 = 0, and p1 and p3 uniform in [0, 1), drawn in this order from the `generator`."""
        shape = check_shape(shape)
        p1, p3 = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        return cls(p1, torch.zeros(shape), p3, torch.zeros(shape), start="random")
