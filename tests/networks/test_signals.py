"""Gates, the layer before and the axis of the channels: what is followed through the functions of a forward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.networks.find import find_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(6))


class OwnSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class OnePlusTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 + torch.tanh(x)


class Two(nn.Module):
    """Two signals, x and g, and what a test makes of them."""

    def __init__(self, made) -> None:
        super().__init__()
        self.a, self.b, self.made = nn.Linear(8, 8), nn.Linear(8, 8), made
        self.sigmoid, self.own, self.plus = nn.Sigmoid(), OwnSigmoid(), OnePlusTanh()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.made(self, self.a(x), self.b(x))
        return out


def _times_in_place(net: Two, x: Tensor, g: Tensor) -> Tensor:
    x *= g.sigmoid()
    return x


def _gru(net: Two, x: Tensor, g: Tensor) -> Tensor:
    z, r = torch.sigmoid(g).chunk(2, 1)
    return (1 - z) * (r * x[:, :4]) + z * x[:, 4:]


def _router(net: Two, x: Tensor, g: Tensor) -> Tensor:
    scores = g.sigmoid()
    weights = scores.gather(1, scores.topk(2).indices)
    weights = weights / weights.sum(1, keepdim=True)
    return sum(x * weights[:, at, None] for at in range(2))


GATES = {
    "x * s": lambda net, x, g: x * torch.sigmoid(g),
    "module": lambda net, x, g: x * net.sigmoid(g),
    "x *= s": _times_in_place,
    "x.mul_(s)": lambda net, x, g: x.mul_(torch.sigmoid(g)),
    "x.mul_(module)": lambda net, x, g: x.mul_(net.sigmoid(g)),
    "chunk": _gru,
    "split, unbind": lambda net, x, g: torch.sigmoid(g).split(4, 1)[0].unbind(1)[0][:, None] * x,
    "index": lambda net, x, g: x * torch.sigmoid(g)[:, :1],
    "view": lambda net, x, g: x.view(-1, 2, 4) * torch.sigmoid(g).view(-1, 2, 4),
    "expand_as": lambda net, x, g: x * torch.sigmoid(g).mean(1, keepdim=True).expand_as(x),
    "2 * s": lambda net, x, g: x * (2 * torch.sigmoid(g)),
    "1 + t": lambda net, x, g: x * (1 + torch.tanh(g)),
    "w * s": lambda net, x, g: x * (net.weight * torch.sigmoid(g)),
    "1 - s": lambda net, x, g: x * (1 - torch.sigmoid(g)),
    "clamped": lambda net, x, g: x * torch.sigmoid(g).clamp(0.1, 0.9),
    "upsampled": lambda net, x, g: x * F.interpolate(torch.sigmoid(g)[:, None, ::2], 8).squeeze(1),
    "lerp": lambda net, x, g: torch.lerp(x, x + 1, torch.sigmoid(g)),
    "addcmul": lambda net, x, g: torch.addcmul(x, x, torch.sigmoid(g)),
    "einsum": lambda net, x, g: torch.einsum("bc,bc->bc", x, torch.sigmoid(g)),
    "x / (1 + s)": lambda net, x, g: x / (1 + torch.sigmoid(g)),
    "relu6(g + 3) / 6": lambda net, x, g: x * (F.relu6(g + 3) / 6),
    "x * relu6(g + 3) / 6": lambda net, x, g: x * F.relu6(g + 3) / 6,
    "clamp(g + 3)": lambda net, x, g: x * (g + 3).clamp(0, 6) / 6,
    "own class": lambda net, x, g: x * net.own(g),
    "own class, 1 + t": lambda net, x, g: x * net.plus(g),
    "of a parameter": lambda net, x, g: x + torch.tanh(net.weight) * g,
    "router of experts": _router,
}
OWN_INPUT = {
    "x * s(x)": lambda net, x, g: x * torch.sigmoid(x),
    "x * s(1.7 x)": lambda net, x, g: x * torch.sigmoid(1.702 * x),
    "x * s(w x)": lambda net, x, g: x * torch.sigmoid(net.weight * x),
    "x.mul_(s)": lambda net, x, g: x.mul_(torch.sigmoid(x)),
    "GELU's tanh form": lambda net, x, g: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "x * relu6(x + 3) / 6": lambda net, x, g: x * F.relu6(x + 3) / 6,
    "x * own(x)": lambda net, x, g: x * net.own(x),
}
NO_GATES = {
    "w * t": lambda net, x, g: net.weight * torch.tanh(x),
    "2 * t": lambda net, x, g: 2 * torch.tanh(x),
    "t + x": lambda net, x, g: torch.tanh(x) + g,
    "h @ W": lambda net, x, g: torch.tanh(x) @ net.b.weight.t(),
    "a product with what it gave": lambda net, x, g: (lambda t: t * net.b(t))(torch.tanh(x)),
    "zeros of its shape": lambda net, x, g: torch.tanh(x) + g * torch.zeros_like(torch.tanh(x)),
    "through a layer": lambda net, x, g: x * net.b(torch.tanh(g)),
    "through another activation": lambda net, x, g: x * F.relu(torch.tanh(g)),
    "relu6": lambda net, x, g: g * F.relu6(x),
    "own class": lambda net, x, g: net.own(x) + g,
    "relu": lambda net, x, g: F.relu(x) * g,
}


class Cutoff(nn.Module):
    """The envelope of an interatomic potential, a polynomial of distances."""

    def forward(self, r: Tensor) -> Tensor:
        return 1 - 21 * (r / 5) ** 5 + 35 * (r / 5) ** 6 - 15 * (r / 5) ** 7


class Potential(nn.Module):
    """Computes an envelope of its raw input, which multiplies what `made` makes of it."""

    def __init__(self, made) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.made = Cutoff(), made
        self.norm, self.a, self.act, self.b = nn.BatchNorm1d(1), nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1)

    def forward(self, r: Tensor) -> Tensor:
        y: Tensor = self.b(self.act(self.a(self.made(self, r))))
        return y


R = 0.8 + 4.2 * torch.rand(64, 1, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("made", "paths"),
    [
        (lambda net, r: net.cut(r) * torch.sin(2 * r) / r, ["act"]),
        (lambda net, r: F.softplus(1 - r) * torch.sin(r), ["act"]),
        (lambda net, r: torch.sin(r) * (1 - F.relu(r / 5)), ["act"]),
        (lambda net, r: net.cut(r), ["cut", "act"]),
        (lambda net, r: net.cut(r) + torch.sin(r), ["cut", "act"]),
        (lambda net, r: F.softplus(net.norm(r)) * torch.sin(r), ["softplus_1", "act"]),
    ],
    ids=["own class", "function", "of a function", "not multiplied", "added", "of what has parameters"],
)
def test_a_function_of_the_raw_input_that_multiplies_another_signal_is_no_activation(made, paths: list[str]) -> None:
    _, report = replace_activations(Potential(made).eval(), {"*": LEAF}, sample=R)
    assert [row.path for row in report.rows] == paths
    for row in report.skipped:
        assert row.reason == "a gate: it multiplies another signal; name its path to replace it"


def _gates(made) -> list[str]:
    torch.manual_seed(0)
    return [row.gate for row in find_activations(Two(made), X) if row.calls]


@pytest.mark.parametrize("form", GATES)
def test_what_multiplies_another_signal_is_a_gate(form: str) -> None:
    assert _gates(GATES[form]) == ["a gate: it multiplies another signal"]
    with pytest.raises(UserError, match="matches no activation"):
        replace_activations(Two(GATES[form]), {"Sigmoid": LEAF, "Tanh": LEAF, "ReLU6": LEAF}, sample=X)


@pytest.mark.parametrize("form", OWN_INPUT)
def test_what_multiplies_its_own_input_is_part_of_an_activation(form: str) -> None:
    assert all(gate.startswith("it multiplies its own input") for gate in _gates(OWN_INPUT[form]))


@pytest.mark.parametrize("form", NO_GATES)
def test_what_is_no_gate(form: str) -> None:
    gates = _gates(NO_GATES[form])
    assert gates == [""] * len(gates) != []


def test_the_signal_of_a_gated_linear_unit_is_another_than_the_gates() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Two(lambda net, x, g: x[:, :4] * torch.sigmoid(x[:, 4:])))
    assert [row.gate for row in find_activations(net, X) if row.calls] == ["a gate: it multiplies another signal"]


class Dense(nn.Module):
    """A block of DenseNet, and channels that are parted and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(7)
        self.conv2, self.out = nn.Conv2d(7, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.norm(torch.cat([x, self.conv1(x)], 1))))
        a, b = F.relu(x).chunk(2, 1)
        x = torch.cat([F.relu(a - b), F.relu(x[:, :2])], 1)
        return self.out(x.mean((2, 3)))


def test_the_layer_and_its_channels_are_followed_through_parts() -> None:
    found = find_activations(Dense(), IMAGES)
    assert [row.after for row in found] == [("Conv2d", "conv1"), *[("Conv2d", "conv2")] * 3]
    assert [row.sets["channel"] for row in found] == [7, 4, 2, 2]
    net, swap = replace_activations(Dense(), {"after conv": LEAF.like("ReLU")}, "channel", IMAGES)
    assert [row.shape for row in swap.rows] == [(7, 1, 1), (4, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert net(IMAGES).isfinite().all()


class Functional(nn.Module):
    """Layers without modules of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))
        self.kernel, self.rnn = nn.Parameter(torch.randn(4, 3, 1)), nn.GRU(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.w + self.b)
        y = torch.tanh(self.rnn(y)[0])
        z: Tensor = y.sum(2, keepdim=True) + torch.tanh(F.conv1d(x.transpose(1, 2), self.kernel)).transpose(1, 2)
        return z


def test_layers_that_are_functions_tell_their_channels() -> None:
    found = find_activations(nn.Sequential(Functional()), torch.randn(2, 7, 3))
    assert [(row.after, row.channel_axis) for row in found] == [
        (("Linear", "0"), 2),
        (("GRU", "0.rnn"), 2),
        (("Conv1d", "0"), 1),
    ]


class Moved(nn.Module):
    """Channels in three places: told by the layer before for two activations, and not told for one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        x = F.relu(self.linear(F.relu(x)))
        return x


def test_a_given_channel_axis_is_used_where_the_layer_before_does_not_tell() -> None:
    _, swap = replace_activations(Moved(), {"*": LEAF.like("ReLU")}, "channel", IMAGES, channel_axis=-1)
    assert [row.shape for row in swap.rows] == [(4, 1, 1), (4,), (5,)]
