"""Activations of classes that are not torch's: told by what they compute, the outermost one of those in each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.networks.find import find_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))


class HSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x + 3) / 6
        return y


class HSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.sigmoid(x)
        return y


class Clamp(nn.Module):
    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.end, self.end)


class NewGELU(nn.Module):
    """As GPT-2's."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class ErfGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (HSigmoid(), "Hardsigmoid"),
        (HSwish(), "Hardswish"),
        (Clamp(4.0), "Clamp"),
        (Clamp(7.5), "Clamp"),
        (Clamp(1e4), None),
        (NewGELU(), "GELU"),
        (ErfGELU(), "GELU"),
        (Scale(), None),
        (Softmax(), None),
    ],
)
def test_a_class_is_told_by_what_it_computes(module: nn.Module, kind: str | None) -> None:
    found = find_activations(nn.Sequential(nn.Linear(8, 8), module), X)
    assert [(row.path, row.kind) for row in found] == ([] if kind is None else [("1", kind)])


def test_gelu_is_that_function_however_it_is_written() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.gelu(x), approximate="tanh") + 1 * F.relu(x).mean(-1, keepdim=True)

    acts = [nn.GELU(), nn.GELU("tanh"), NewGELU(), ErfGELU()]
    net = nn.Sequential(nn.Linear(8, 8), *acts, nn.Sequential(Calls()), nn.Linear(8, 2))
    _, swap = replace_activations(net, {"GELU": LEAF.like("SiLU")}, sample=X)
    assert [row.path for row in swap.rows] == ["1", "2", "3", "4", "5.0.gelu_1", "5.0.gelu_2"]


class SqueezeExcite(nn.Module):
    """As in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), HSwish()
        self.fc = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), HSigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        y: Tensor = x * self.fc(x).view(len(x), 8)
        return y


def test_classes_within_classes_are_replaced_as_a_whole_and_gates_are_not() -> None:
    base = SqueezeExcite()
    net, swap = replace_activations(base, {"*": LEAF}, sample=X)
    assert [row.path for row in swap.rows] == ["act", "fc.1"]
    assert [(row.path, row.name) for row in swap.skipped] == [("fc.3", "Hardsigmoid")]
    assert torch.equal(swap.restore(net)(X), base(X))


def test_one_object_of_a_class_within_a_class_at_two_places() -> None:
    act = HSwish()
    net = nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act)
    assert [(row.path, row.kind) for row in find_activations(net, X)] == [("1", "Hardswish"), ("3", "Hardswish")]
