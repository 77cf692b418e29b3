"""What takes the place of an activation: fitted to the function that stood there, on the inputs of that layer."""

import re
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
    [(LEAF, 0.05), (AHAF, 0.05), (FNeuron, 0.05), (partial(FNeuron.fit, knots=50, outside="linear"), 0.005)],
    ids=["LEAF", "AHAF", "F-Neuron", "F-Neuron of 50 knots"],
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


def per_channel(layer: nn.Module, channels: int) -> nn.Module:
    """A PReLU with a slope for each channel."""
    torch.manual_seed(0)
    net = nn.Sequential(layer, nn.PReLU(channels))
    nn.init.uniform_(net[1].weight, 0, 0.6)
    return net


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
@pytest.mark.parametrize(
    "new",
    [
        FNeuron,
        LEAF,
        AHAF,
        partial(FNeuron.fit, knots=32, outside="linear"),
        lambda function, histogram: LEAF.fit(function, histogram),
    ],
    ids=["F-Neuron", "LEAF", "AHAF", "partial", "function"],
)
def test_a_slope_for_each_channel_is_fitted_by_channel_or_in_the_mean(new, sharing) -> None:
    base = per_channel(nn.Linear(6, 4), 4)
    net, swap = replace_activations(base, {"PReLU": new}, sharing, X)
    assert swap.rows[0].shape == ((1,) if sharing == "layer" else (4,))
    u, slopes = base[0](X), base[1].weight
    mean = u.clamp(min=0) + slopes.mean() * u.clamp(max=0)
    wanted = mean if sharing == "layer" else base[1](u)
    assert (net[1](u) - wanted).std() < 0.2 * wanted.std()
    if sharing == "layer":
        # What is left is what the channels differ by.
        assert net[1].residual.rms > 0.15


@pytest.mark.parametrize(("sharing", "shape"), [("channel", (4, 1, 1)), ("neuron", (4, 4, 4))])
def test_a_slope_for_each_channel_of_an_image(sharing, shape) -> None:
    base, x = per_channel(nn.Conv2d(3, 4, 3), 4), torch.randn(8, 3, 6, 6)
    net, swap = replace_activations(base, {"*": FNeuron}, sharing, x)
    assert swap.rows[0].shape == shape
    torch.testing.assert_close(net(x), base(x), rtol=0, atol=0.05)


def test_what_differs_by_channel_already_is_fitted_by_channel() -> None:
    base, _ = replace_activations(per_channel(nn.Linear(6, 4), 4), {"PReLU": FNeuron}, "channel", X)
    net, _ = replace_activations(base, {"*": partial(FNeuron.fit, knots=62)}, "channel", X)
    torch.testing.assert_close(net(X), base(X), rtol=0, atol=0.05)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_call_may_receive_one_value_where_another_receives_more(value: float) -> None:
    def calls(net: nn.Module, x: Tensor) -> Tensor:
        state = torch.full_like(x, value)
        for _ in range(3):
            state = torch.tanh(state) + x
        return state

    net, _ = replace_activations(written(calls), {"Tanh": FNeuron}, sample=X)
    assert net.tanh_1.residual.rms < 0.05


def silent(net: nn.Module, x: Tensor) -> Tensor:
    return F.relu(net.fc1(x)) + torch.tanh(torch.zeros_like(x))


def test_what_cannot_be_fitted_is_left_out_by_a_star() -> None:
    # Its modules are not called.
    _, swap = replace_activations(written(silent), {"*": FNeuron}, sample=X)
    assert [row.path for row in swap.rows] == ["relu_1"]
    assert [(row.path, row.reason) for row in swap.skipped][:2] == [
        ("tanh_1", "in the sample it receives 0 only: there is nothing to fit to"),
        ("relu", "the sample does not reach it: there is nothing to fit to"),
    ]


def test_a_poor_fit_is_told() -> None:
    base = written(lambda net, x: F.gelu(net.fc2(torch.tanh(net.fc1(3 * x)))))
    _, swap = replace_activations(base, {"*": AHAF}, sample=X)
    assert [*swap.residuals] == ["tanh_1", "gelu_1"]
    line = str(swap).splitlines()[-1]
    assert line.startswith("Poor fits, with an RMS error on the sample above 5% ")
    assert re.search(r": tanh_1 \d\d%\.$", line)
    _, swap = replace_activations(base, {"*": FNeuron}, sample=X)
    assert "Poor" not in str(swap)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 6:
            raise IndexError("six features")
        return x.relu() * 1.5


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
        (Unreached, LEAF, X, "'relu' cannot be fitted: the sample does not reach it"),
        (lambda: nn.Sequential(nn.ReLU()), lambda function, histogram: 3, X, "returned 3: let it return an adaptive"),
        (lambda: nn.Sequential(nn.ReLU()), lambda f, h: 3, X, "returned 3: let it return an adaptive"),
        (lambda: nn.Sequential(nn.ReLU()), lambda shape: 3, X, "returned 3 for shape"),
        (lambda: nn.Sequential(nn.ReLU()), F.silu, X, "is to be replaced by <function silu .*: give a text"),
        (
            lambda: nn.Sequential(nn.ReLU()),
            torch.tanh,
            X,
            "is to be replaced by <built-in method tanh.*: give a text",
        ),
        (lambda: nn.Sequential(nn.ReLU()), lambda s: LEAF.like("ReLU", s), X, r"called as make\(shape=...\)"),
        (lambda: nn.Sequential(nn.ReLU()), 3, X, "'ReLU' is to be replaced by 3: give a text"),
        (lambda: nn.Sequential(nn.ReLU()), LEAF, torch.zeros(4, 6), "'0' cannot be fitted: .* receives 0 only"),
        (lambda: nn.Sequential(nn.ReLU()), LEAF, X / 0, "Nothing can be fitted at '0'. The inputs hold values"),
    ],
)
def test_what_cannot_be_fitted(base, new, sample, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(base(), {"ReLU": new}, sample=sample)


@pytest.mark.parametrize(
    ("base", "key", "new", "message"),
    [
        (
            lambda: nn.Sequential(Own()),
            "0",
            FNeuron,
            r"'0' .* The Own there fails for a vector of \d+ inputs \(IndexError: six",
        ),
        (
            lambda: per_channel(nn.Linear(6, 4), 4),
            "PReLU",
            lambda function, histogram: FNeuron.fit(function, histogram),
            r"It computes 4 functions, and fits .* functools.partial\(FNeuron.fit",
        ),
    ],
)
def test_what_cannot_be_fitted_by_channel(base, key, new, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(base(), {key: new}, "channel", X)


def test_slopes_of_a_prelu_tell_the_axis() -> None:
    """A linear layer's channels come last, the slopes of what follows lie along axis 1."""
    base, x = per_channel(nn.Linear(6, 7), 4), torch.randn(8, 4, 6)
    assert replace_activations(base, {"PReLU": FNeuron}, "channel", x)[1].rows[0].shape == (4, 1)


class Spare(nn.Module):
    """One activation, and another that no forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.spare = nn.Linear(6, 4), nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.fc(x))
        return y


@pytest.mark.parametrize("key", ["Tanh", "*"])
def test_what_the_sample_does_not_reach_is_not_fitted(key: str) -> None:
    _, swap = replace_activations(Spare(), {key: LEAF}, sample=torch.randn(8, 6))
    assert [row.path for row in swap.rows] == ["act"]
    assert [(row.path, row.reason) for row in swap.skipped] == [
        ("spare", "the sample does not reach it: there is nothing to fit to")
    ]
    with pytest.raises(UserError, match="'spare' cannot be fitted: the sample does not reach it"):
        replace_activations(Spare(), {"spare": LEAF}, sample=torch.randn(8, 6))
    with pytest.raises(UserError, match=r"needs the inputs of that layer: .* as sample="):
        replace_activations(Spare(), {key: LEAF})
