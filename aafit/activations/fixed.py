"""The fixed activation functions that adaptive ones start from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aafit.activations.elementwise import Formula, check_input


def _forward(u: Tensor) -> Tensor:
    y: Tensor = u * torch.special.expit(u)
    return y


def _backward(grad: Tensor, u: Tensor) -> tuple[Tensor]:
    s = torch.special.expit(u)
    return (grad * (s + u * (s * (1 - s))),)


FORMULA = Formula(_forward, _backward)


class SiLU(nn.Module):
    """The sigmoid linear unit, SiLU(u) = u * sigmoid(u), elementwise on any shape.

    AHAF and LEAF as SiLU are bit-identical to it. torch.nn.SiLU computes u / (1 + exp(-u)), which rounds differently.

    Source: Elfwing, Uchibe & Doya (2017), https://arxiv.org/abs/1702.03118

    Raises:
        UserError: The input is not floating-point.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply SiLU elementwise."""
        check_input(input, (1,), "SiLU")
        return FORMULA(input)


FIXED: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "SiLU": SiLU,
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "HardTanh": nn.Hardtanh,
    "HardSigmoid": nn.Hardsigmoid,
}

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": torch.relu,
    "SiLU": F.silu,
    "GELU": F.gelu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "HardTanh": F.hardtanh,
    "HardSigmoid": F.hardsigmoid,
}
"""The same functions of a tensor, in any dtype."""
