"""Measures of how closely a network with replaced activations reproduces its base."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.networks.adaptive import adaptive_parameters


def adaptive_numbers(net: nn.Module) -> int:
    """Return the number of adaptive parameters of a network."""
    return sum(parameter.numel() for parameter in adaptive_parameters(net).values())


@dataclass(frozen=True)
class Kept:
    """Two sets of embeddings of the same texts, (N, C) each of length 1.

    Attributes:
        cosine: Mean cosine of the two embeddings of a text.
        lowest: The least of them.
        nearest: Share of texts whose nearest neighbour among the others is unchanged.
        ranks: Mean over the texts of the rank correlation of its cosines with all the others.
    """

    cosine: float
    lowest: float
    nearest: float
    ranks: float

    @classmethod
    def of(cls, before_NC: Tensor, after_NC: Tensor) -> "Kept":
        cosine_N = (before_NC.double() * after_NC.double()).sum(1)
        others = [_others(e_NC.double()) for e_NC in (before_NC, after_NC)]
        nearest = (others[0].argmax(1) == others[1].argmax(1)).double().mean()
        ranks = [other.argsort(1).argsort(1).double() for other in others]
        return cls(cosine_N.mean().item(), cosine_N.min().item(), nearest.item(), _correlation(*ranks))

    def row(self) -> dict[str, str]:
        """Return the cells of a table."""
        return {
            "cosine": f"{self.cosine:.5f}",
            "lowest": f"{self.lowest:.4f}",
            "same neighbour": f"{self.nearest:.1%}",
            "rank correlation": f"{self.ranks:.4f}",
        }


def _others(e_NC: Tensor) -> Tensor:
    """Return the cosine of each text with every other one, (N, N - 1)."""
    count = len(e_NC)
    return (e_NC @ e_NC.T)[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)


def _correlation(one_NN: Tensor, other_NN: Tensor) -> float:
    one, other = (x - x.mean(1, keepdim=True) for x in (one_NN, other_NN))
    found: float = ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).mean().item()
    return found


@dataclass(frozen=True)
class SameClasses:
    """Compare two sets of logits, (N, K) each: prediction agreement and relative error."""

    agreement: float
    relative: float

    @classmethod
    def of(cls, before_NK: Tensor, after_NK: Tensor) -> "SameClasses":
        same = (before_NK.argmax(1) == after_NK.argmax(1)).double().mean().item()
        error = (after_NK - before_NK).double().norm() / before_NK.double().norm()
        return cls(same, error.item())

    def row(self) -> dict[str, str]:
        """Return the cells of a table."""
        return {"same top-1": f"{self.agreement:.1%}", "relative error": f"{self.relative:.2e}"}
