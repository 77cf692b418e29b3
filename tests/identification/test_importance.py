"""The expected gain of adapting each layer alone, against what adapting it really gains."""

import json
import math
from typing import Any

import pytest
import torch
from small import network, problem
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.importance import importance, importance_of
from aafit.identification.problem import Problem, Quadratic
from aafit.networks.batches import as_batch
from aafit.training.losses import SQUARED_ERROR
from aafit.training.predictor import Predictor


class Sum(nn.Module):
    """Three F-Neurons side by side whose outputs are added: with the squared error a quadratic problem."""

    def __init__(self) -> None:
        super().__init__()
        for name, pieces in {"a": 3, "b": 6, "c": 1}.items():
            setattr(self, name, FNeuron(torch.zeros(1, pieces + 2, dtype=torch.float64), (-2.0, 2.0)))

    def forward(self, u_B3: Tensor) -> Tensor:
        y_B1: Tensor = self.a(u_B3[:, :1]) + self.b(u_B3[:, 1:2]) + self.c(u_B3[:, 2:])
        return y_B1


def sum_data(noise: float, samples: int = 600, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(samples, 3, generator=generator, dtype=torch.float64) * 4 - 2
    y = 0.5 * u[:, :1] + (2 * u[:, 1:2]).sin() + noise * torch.randn(samples, 1, generator=generator).double()
    return [(u, y)]


def really_gained(net: nn.Module, batches: list[tuple[Tensor, Tensor]], fresh: list[tuple[Tensor, Tensor]]) -> dict:
    """What fitting the weights of one F-Neuron alone by least squares gains on fresh samples."""
    gains = {}
    for number, name in enumerate("abc"):
        weight = net.get_submodule(name).weight
        size = weight.shape[1]
        columns, (u, y) = [], batches[0]
        for at in range(size):
            one = FNeuron(torch.eye(size, dtype=torch.float64)[at : at + 1], (-2.0, 2.0))
            columns.append(one(u[:, number : number + 1]).detach())
        solution = torch.linalg.lstsq(torch.cat(columns, 1), y).solution
        u, y = fresh[0]
        fitted = FNeuron(solution.T.clone(), (-2.0, 2.0))(u[:, number : number + 1]).detach()
        gains[name] = (y.square().mean() - (y - fitted).square().mean()).item()
    return gains


def test_the_ranking_is_that_of_the_real_gains() -> None:
    net, batches = Sum(), sum_data(noise=0.5)
    found = importance(net, batches, samples=600, loss=SQUARED_ERROR)
    real = really_gained(net, batches, sum_data(noise=0.5, samples=50_000, seed=1))
    assert [row.layer for row in found.rows] == sorted(real, key=lambda name: -real[name]) == ["b", "a", "c"]
    for row in found.rows:
        assert row.gain == pytest.approx(real[row.layer], abs=3 * row.error + 0.01)
    assert [row.significant for row in found.rows] == [True, True, False]
    assert found.together.gain == pytest.approx(sum(real.values()), rel=0.15)
    assert [row.parameters for row in (*found.rows, found.together)] == [8, 5, 3, 16]


def test_noise_is_not_credited() -> None:
    """Targets of pure noise: on average over draws no layer gains anything, however many parameters it has."""
    gains = []
    for seed in range(60):
        batches = [(u, torch.randn(len(u), 1, generator=torch.Generator().manual_seed(seed)).double())
                   for u, _ in sum_data(0, 200, 1000 + seed)]  # fmt: skip
        found = importance(Sum(), batches, samples=200, loss=SQUARED_ERROR)
        gains.append([row.gain for row in sorted(found.rows, key=lambda row: row.layer)])
        raw = [row.gain + row.noise for row in found.rows]
        assert min(raw) >= 0
    mean, error = torch.tensor(gains).mean(0), torch.tensor(gains).std(0) / math.sqrt(60)
    # Damping shrinks what is small most, so what is left is just below 0 on average.
    assert (mean < 3 * error).all()
    assert (mean > -0.02).all()


LEAF_TWO = nn.ModuleDict(
    {"one": AHAF(torch.ones(1).double(), torch.ones(1).double()), "two": LEAF(*torch.ones(4, 1).double())}
)


def given(gradient: list[float], curvature: Tensor, noise: float = 0.0) -> Quadratic:
    g = torch.tensor(gradient, dtype=torch.float64)
    S = torch.outer(g, g) + noise * torch.eye(len(g), dtype=torch.float64)
    return Quadratic(1.0, g, curvature.double(), S, 100)


def test_without_noise_the_gain_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 6, generator=generator).double()
    H, g = rows.T @ rows, [0.3, -0.2, 0.1, 0.5, -1.0, 0.2]
    found = importance_of(given(g, H), Coordinates(LEAF_TWO), ("one", "two"))
    of = {row.layer: row for row in found.rows}
    for layer, part in {"one": slice(0, 2), "two": slice(2, 6)}.items():
        gradient = torch.tensor(g[part], dtype=torch.float64)
        expected = (gradient @ torch.linalg.solve(H[part, part], gradient) / 2).item()
        assert of[layer].gain == pytest.approx(expected, rel=1e-9)
        assert (of[layer].noise, of[layer].error) == pytest.approx((0, 0), abs=1e-9)


def test_the_formula_with_noise() -> None:
    g, s, n = [0.5, 0.0, 0.2, 0.0, 0.0, 0.0], 2.0, 100
    found = importance_of(given(g, torch.eye(6), s), Coordinates(LEAF_TWO), ("one", "two"))
    one = next(row for row in found.rows if row.layer == "one")
    damping = 2 * s / n / 0.25
    A = 1 / (1 + damping)
    assert one.noise == pytest.approx(A * 2 * s / (2 * n))
    assert one.gain == pytest.approx(A * 0.25 / 2 - one.noise)
    assert one.error == pytest.approx(A * math.sqrt(0.25 * s / n + 2 * s**2 / (2 * n**2)))


def test_what_has_no_curvature_predicts_nothing() -> None:
    H = torch.diag(torch.tensor([0.0, 0.0, 1.0, 1e-12, 1.0, 1.0]))
    found = importance_of(given([0, 0, 1.0, 1e-9, 0, 0], H), Coordinates(LEAF_TWO), ("one", "two"))
    assert [(row.layer, row.gain, row.silent) for row in found.rows] == [
        ("two", pytest.approx(0.5), ("two.p2",)),
        ("one", 0, ("one.gamma", "one.beta")),
    ]
    text = str(found)
    assert "no gradient: no prediction" in text
    assert "No curvature, so no prediction: one.gamma, one.beta, two.p2" in text


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
def test_a_network_is_left_as_it_was(sharing: str) -> None:
    net = network(dtype=torch.float64, sharing=sharing)
    net.train().norm.eval()
    net.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    found = importance(net, problem(torch.float64))
    assert (found.samples, {row.layer for row in found.rows}) == (24, {"act1", "act2"})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert flags == ([p.requires_grad for p in net.parameters()], [m.training for m in net.modules()])
    assert all(p.grad is None for p in net.parameters())
    again = importance(net, problem(torch.float64, size=24))
    assert [row.gain for row in again.rows] == pytest.approx([row.gain for row in found.rows])


def test_the_first_samples_in_evaluation_mode() -> None:
    net, batches = network(dtype=torch.float64), problem(torch.float64)
    found = importance(net, batches, samples=10, batch_size=4)
    x, y = (torch.cat(parts)[:10] for parts in zip(*batches, strict=True))
    assert found.as_dict() == importance(net, [(x, y)], samples=99, batch_size=4).as_dict()
    assert found.as_dict() == importance(net.eval(), [(x, y)], batch_size=4).as_dict()
    assert found.samples == 10


def test_probes_of_many_outputs_are_drawn_from_the_seed_and_unbiased() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), AHAF.like("SiLU"), nn.Linear(4, 300)).double()
    batches = [(torch.randn(400, 3).double(), torch.randn(400, 300).double())]
    coordinates = Coordinates(net)
    exact = Problem(Predictor(net), coordinates, SQUARED_ERROR).quadratic(coordinates.read(), as_batch(batches[0]))
    due = importance_of(exact, coordinates, ("1",)).together.gain
    first, again, other = (importance(net, batches, loss=SQUARED_ERROR, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.together.gain == pytest.approx(due, rel=0.2)


def test_a_loss_that_is_not_finite() -> None:
    with pytest.raises(UserError, match="derivatives are not finite"):
        importance_of(given([math.nan] * 6, torch.eye(6)), Coordinates(LEAF_TWO), ("one", "two"))


def test_it_prints_and_is_fit_for_json() -> None:
    found = importance(network(dtype=torch.float64), problem(torch.float64))
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert {row["layer"] for row in content["rows"]} == {"act1", "act2"}
    assert content["together"]["parameters"] == 6
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["layer", *(row.layer for row in found.rows)]
    assert max(map(len, lines)) <= 120


def test_a_gain_of_more_than_the_loss_is_not_believed() -> None:
    found = importance_of(given([2.0, 0, 0.1, 0, 0, 0], torch.eye(6)), Coordinates(LEAF_TWO), ("one", "two"))
    assert str(found).splitlines()[1].endswith("too far for a quadratic model")


@pytest.mark.parametrize(
    ("net", "batches", "settings", "says"),
    [
        (nn.Linear(2, 2), [], {}, "no adaptive activation"),
        (network(), [], {}, "nothing to predict from"),
        (network(), problem(), {"samples": 0}, "must be an integer of at least 1; got 0"),
        (network(), problem(), {"samples": 1}, "from 2 samples or more"),
        (network(), [(x * math.nan, y) for x, y in problem()], {}, "not finite"),
        (FNeuron(torch.zeros(2000, 3)), [], {}, "6000 adaptive parameters"),
        (
            network(),
            [(x, y + 3) for x, y in problem()],
            {},
            "24 of the labels are no class: the network has 3 classes",
        ),
        (network(), problem(), {"precision": "int8"}, "Unknown precision"),
    ],
)
def test_what_cannot_be_used(net: nn.Module, batches: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        importance(net, batches, **settings)
