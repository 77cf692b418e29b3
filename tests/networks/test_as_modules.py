"""What a network returns is looked through, whatever objects it holds."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.networks.surgery import replace_activations

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Node:
    """An object that holds another one, which holds it."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.around = value, {"of": [self]}
        self.around["all"] = [self.around]


class Cyclic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return {"out": Node(F.relu(self.fc(x)))}


def test_an_output_that_holds_itself() -> None:
    net, swap = replace_activations(Cyclic(), {"ReLU": LEAF.like("ReLU")}, sample=X)
    assert [row.path for row in swap.rows] == ["relu_1"]
    assert net(X)["out"].value.shape == (3, 4)
