"""What takes the place of an activation: fitted to the function that stood there, on the inputs of that layer."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import written

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.networks.surgery import replace_activations

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("new", "most"),
    [(LEAF, 0.05), (AHAF, 0.05), (FNeuron, 0.05), (partial(FNeuron.fit, pieces=48, outside="linear"), 0.005)],
    ids=["LEAF", "AHAF", "F-Neuron", "F-Neuron of 48 pieces"],
)
@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_a_class_is_fitted_to_what_stood_there(new, most: float, sharing) -> None:
    base = written(lambda net, x: F.gelu(3 * x))
    net, swap = replace_activations(base, {"GELU": new}, sharing, X)
    assert swap.rows[0].new.endswith(" as GELU")
    assert swap.rows[0].shape == ((1,) if sharing == "layer" else (6,))
    u = 3 * base.fc1(X)
    assert (net.gelu_1(u) - F.gelu(u)).abs().max() < most
    assert net.gelu_1.residual.rms < most


def test_each_layer_is_fitted_on_its_own_inputs() -> None:
    base = written(lambda net, x: torch.tanh(net.fc2(torch.tanh(x)) * 20))
    net, _ = replace_activations(base, {"Tanh": FNeuron}, sample=X)
    (left, right), (far_left, far_right) = net.tanh_1.interval, net.tanh_2.interval
    assert far_right - far_left > right - left


def test_a_family_that_contains_the_function_is_that_function() -> None:
    base = written(lambda net, x: net.relu(F.silu(x)))
    net, _ = replace_activations(base, {"SiLU": LEAF}, sample=X)
    assert [parameter.item() for parameter in net.silu_1.parameters()] == [1, 0, 1, 0]
    assert net.silu_1.residual.rms < 1e-6


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("base", "new", "sample", "message"),
    [
        (lambda: nn.Sequential(nn.ReLU()), LEAF, None, "needs the inputs of that layer: give an input of the network"),
        (Unreached, LEAF, X, "needs the inputs of that layer"),
        (lambda: nn.Sequential(nn.ReLU()), lambda function, histogram: 3, X, "returned 3: let it return an adaptive"),
        (lambda: nn.Sequential(nn.ReLU()), lambda shape: 3, X, "returned 3 for shape"),
    ],
)
def test_what_cannot_be_fitted(base, new, sample, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(base(), {"ReLU": new}, sample=sample)
