"""Per-sample gradients: the sample axis of activations' inputs, and samples that are run one at a time."""

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF
from aafit.identification import identify
from aafit.identification.coordinates import Coordinates
from aafit.identification.per_sample import Placement, placements
from aafit.identification.problem import Problem
from aafit.networks.batches import Batch
from aafit.networks.surgery import replace_activations
from aafit.training.losses import SQUARED_ERROR
from aafit.training.predictor import Predictor


class Folded(nn.Module):
    """The activation receives positions and samples folded into one axis, positions first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.out = nn.Linear(3, 8), AHAF.like("SiLU"), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc(x).transpose(0, 1).flatten(0, 1))
        y: Tensor = self.out(h.unflatten(0, (x.shape[1], len(x))).mean(0))
        return y


def test_the_sample_axis_is_found_from_samples_that_differ() -> None:
    x = torch.randn(12, 5, 3)
    x[:4] = 0
    found = placements(Predictor(Folded()), Batch((x,), {}))
    assert found == {"act": Placement(2, 0, 5, together=False)}


def test_samples_that_are_all_alike_tell_no_axis() -> None:
    assert placements(Predictor(Folded()), Batch((torch.zeros(6, 5, 3),), {})) is None


class PerAtom(nn.Module):
    """Runs its activation on the rows that are atoms, of which samples have different numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.out = nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        there = x.abs().sum(2) > 0
        y = torch.zeros(*x.shape[:2], 1, dtype=x.dtype)
        y[there] = self.out(self.act(self.fc(x[there])))
        return y.sum(1)


def atoms(samples: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 5, 3, generator=generator, dtype=torch.float64)
    x[torch.rand(samples, 5, generator=generator) < 0.3] = 0
    return x


@pytest.mark.parametrize("probes", [None, 1])
def test_samples_with_ragged_rows_are_run_one_at_a_time(probes: int | None) -> None:
    net = replace_activations(PerAtom().double(), {"SiLU": LEAF.like("Tanh")})[0].eval()
    coordinates = Coordinates(net)
    samples = Batch((atoms(),), {}, torch.randn(20, 1, dtype=torch.float64))
    problem, vector_P = Problem(Predictor(net, batch_size=8), coordinates, SQUARED_ERROR), coordinates.read()
    quadratic = problem.quadratic(vector_P, samples, probes)
    loss, gradient_P = problem.gradient(vector_P, samples)
    assert quadratic.loss == pytest.approx(loss, rel=1e-12)
    assert torch.allclose(quadratic.gradient_P, gradient_P)
    direction_P = torch.linspace(-1, 1, len(vector_P), dtype=torch.float64)
    assert torch.allclose(quadratic.curvature_PP @ direction_P, problem.product(vector_P, samples, direction_P))


def test_a_network_with_ragged_rows_is_identified() -> None:
    base, x = PerAtom().double(), atoms(80)
    net, _ = replace_activations(base, {"SiLU": LEAF.like("ReLU")}, sample=x)
    found = identify(net, [(x, None)], base=base, target="logits", errors=False)
    assert found.steps[-1].loss < found.steps[0].loss
