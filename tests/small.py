"""A small network like KerasNet, images for it, and an activation of one's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation
from aafit.networks.surgery import replace_activations

Batches = list[tuple[Tensor, Tensor]]
LEAF_AND_AHAF = {"act1": LEAF.like("SiLU"), "act2": AHAF.like("SiLU")}


class Quotient(AdaptiveActivation):
    """Quotient(u) = (a0 + a1 u + a2 u^2) / (1 + |b u|)."""

    family = "Quotient"
    starts = {"Identity": (0.0, 1.0, 0.0, 0.0), "ReLU": (0.2, 0.5, 0.5, 0.9)}  # noqa: RUF012

    @staticmethod
    def formula(u: Tensor, a0: Tensor, a1: Tensor, a2: Tensor, b: Tensor) -> Tensor:
        return (a0 + a1 * u + a2 * u * u) / (1 + (b * u).abs())


class Small(nn.Module):
    """KerasNet in small: convolution, batch norm, both kinds of dropout, two activations."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.act1 = nn.ReLU()
        self.drop1 = nn.Dropout2d(dropout)
        self.fc = nn.Linear(12, 5)
        self.act2 = nn.ReLU()
        self.drop2 = nn.Dropout(dropout)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act1(self.norm(self.conv(x))))
        logits: Tensor = self.out(self.drop2(self.act2(self.fc(x.flatten(1)))))
        return logits


def network(
    replacements: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    sharing: Any = "layer",
    dropout: float = 0.5,
) -> nn.Module:
    torch.manual_seed(0)
    net = Small(dropout).to(dtype)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return replace_activations(net, replacements or LEAF_AND_AHAF, sharing, torch.zeros(1, 2, 4, 4, dtype=dtype))[0]


def problem(dtype: torch.dtype = torch.float32, count: int = 24, size: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 2, 4, 4, generator=generator).to(dtype)
    y = torch.randint(3, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def freeze(net: nn.Module, which: Callable[[str], bool]) -> nn.Module:
    """`net`, in which the parameters of these names do not train, and all others do."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not which(name))
    return net
