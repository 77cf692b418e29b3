"""Which activations a key means, and what is said of one that means none."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF, FNeuron
from aafit.errors import UserError
from aafit.networks.surgery import replace_activations

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
LIKE, OTHER = LEAF.like("ReLU"), LEAF.like("Tanh")


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Net(nn.Module):
    """Modules and functions, a gate, and a function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.tanh, self.own = nn.Linear(3, 3), nn.ReLU(), nn.Tanh(), Swish()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.tanh(F.relu(self.relu(self.fc(x)))))
        return x * torch.sigmoid(self.fc(x)) * F.softplus(self.scale) * F.softplus(self.scale.view(1, -1))


def replaced(replacements, sample=X) -> dict[str, str]:
    _, swap = replace_activations(Net(), replacements, sample=sample)
    return {row.path: row.new for row in swap.rows}


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        (nn.ReLU, ["relu", "relu_1"]),
        (nn.Tanh, ["tanh"]),
        (nn.SiLU, ["own"]),
        (Swish, ["own"]),
        ("ReLU", ["relu", "relu_1"]),
        (lambda row: row.kind == "Tanh", ["tanh"]),
        ("*", ["relu", "relu_1", "tanh", "own"]),
        ("sigmoid_1", ["sigmoid_1"]),
        ("softplus_1", ["softplus_1"]),
    ],
)
def test_what_a_key_matches(key, paths: list[str]) -> None:
    assert [*replaced({key: LIKE})] == paths


def test_without_a_sample_a_class_matches_its_modules() -> None:
    assert [*replaced({nn.ReLU: LIKE, Swish: LIKE}, None)] == ["relu", "own"]


@pytest.mark.parametrize(
    ("replacements", "news"),
    [
        ({"*": LIKE, "tanh": OTHER}, {"tanh": "LEAF as Tanh"}),
        ({"tanh": OTHER, "*": LIKE}, {"tanh": "LEAF as Tanh"}),
        ({"*": LIKE, "Tanh": OTHER}, {"tanh": "LEAF as Tanh"}),
        ({"ReLU": LIKE, "relu": OTHER}, {"relu": "LEAF as Tanh"}),
        ({"*": LIKE, nn.ReLU: OTHER}, {"relu": "LEAF as Tanh", "relu_1": "LEAF as Tanh"}),
    ],
)
def test_a_path_comes_before_other_keys_and_a_star_after_all(replacements, news: dict[str, str]) -> None:
    made = replaced(replacements)
    assert {path: new for path, new in made.items() if path in news} == news
    assert {new for path, new in made.items() if path not in news} == {"LEAF as ReLU"}


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        ({nn.GELU: LIKE}, r"The class GELU matches no activation of the network. It has: relu \(ReLU\)"),
        ({nn.Sigmoid: LIKE}, r"It leaves 'sigmoid_1' out \(a gate: .*\): name its path"),
        ({"Sigmoid": LIKE}, r"'Sigmoid' matches no activation of the network. It leaves 'sigmoid_1' out"),
        ({"Softplus": LIKE}, r"It leaves 'softplus_1' out \(it is given a parameter, not a signal\)"),
        ({nn.Linear: LIKE}, "'fc' is a Linear, not an elementwise activation"),
        ({F.relu: LIKE}, "The function relu is no key: write its kind, 'ReLU'. A key is a kind"),
        ({torch.tanh: LIKE}, "The function tanh is no key: write its kind, 'Tanh'"),
        ({nn.ReLU(): LIKE}, r"ReLU\(\) is no key. A key is a kind \(\"ReLU\"\), a class"),
        ({re.compile("relu"): LIKE}, r"re.compile\('relu'\) is no key. A key is a kind"),
        ({3: LIKE}, "3 is no key. A key is a kind"),
        ({int: LIKE}, "<class 'int'> is no key. A key is a kind"),
        ({lambda row: row.sort: LIKE}, "the function <lambda> failed for 'relu' .*no attribute 'sort'.* A key is"),
        ({"after ": LIKE}, "'after ' names no layer: write \"after conv\""),
        ({"after convolution": LIKE}, "Did you mean 'after Linear'"),
        ({"ReLU": LIKE, nn.ReLU: OTHER}, "'relu' is matched by 'ReLU' and by the class ReLU"),
        ([LIKE], "The replacements are a list: give a dictionary"),
    ],
)
def test_keys_that_mean_nothing(replacements, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replaced(replacements)


def test_a_function_of_a_parameter_is_left_out_with_its_reason() -> None:
    _, swap = replace_activations(Net(), {"*": FNeuron}, sample=X)
    reasons = {row.path: row.reason for row in swap.skipped}
    assert [*reasons] == ["sigmoid_1", "softplus_1", "softplus_2"]
    assert reasons["softplus_2"] == "it is given a parameter, not a signal; name its path to replace it"
    with pytest.raises(UserError, match="'softplus_1' cannot be fitted: in the sample it receives 0 only"):
        replace_activations(Net(), {"softplus_1": FNeuron}, sample=X)
