"""Forms: their standard errors, and the known functions they are nearest to."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from aafit import AHAF, LEAF, FNeuron
from aafit.networks.inputs import Batch
from aafit.networks.kinds import KNOWN
from aafit.studies.forms import distance, errors, nearest_functions, points, values
from aafit.studies.inputs import inputs_seen


@pytest.fixture(scope="module")
def seen():
    u = 2 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    (row,) = inputs_seen(torch.nn.Sequential(torch.nn.ReLU()), ["0"], [Batch((u,), {})])
    return row


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("LeakyReLU", "GELU (tanh)")])
def test_a_known_function_is_nearest_to_itself(seen, name):
    rows = nearest_functions(KNOWN[name](seen.centres), seen)
    assert rows[0].name == name
    assert rows[0].distance < 1e-12


def test_what_is_as_near_is_named_too(seen):
    assert [row.name for row in nearest_functions(F.gelu(seen.centres), seen)] == ["GELU", "GELU (tanh)"]


def test_the_distance_is_a_share_of_the_deviation(seen):
    u = seen.centres
    deviation = ((seen.weights * u.square()).sum() - (seen.weights * u).sum() ** 2).sqrt()
    assert distance(u, u + 0.3, seen.weights) == pytest.approx(0.3 / deviation.item(), rel=1e-6)
    assert distance(torch.ones_like(u), u, seen.weights) == float("inf")


@pytest.mark.parametrize("activation", [AHAF.like("SiLU"), LEAF.like("Tanh"), FNeuron.like("Tanh", pieces=3)])
def test_errors_are_those_of_parameters_drawn(activation, seen):
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in activation.named_parameters()]
    vector = torch.cat([parameter.detach().double().flatten() for parameter in activation.parameters()])
    root = 1e-3 * torch.randn(len(vector), len(vector), generator=generator, dtype=torch.float64)
    u = points(seen)
    found = errors(activation, u, root @ root.T)
    own = deepcopy(activation).double()
    drawn = []
    for noise in torch.randn(2000, len(vector), generator=generator, dtype=torch.float64):
        torch.nn.utils.vector_to_parameters(vector + root @ noise, [getattr(own, name) for name in names])
        drawn.append(values(own, u).squeeze(1))
    expected = torch.stack(drawn).std(0)
    assert torch.allclose(found, expected, rtol=0.12, atol=1e-5)


def test_a_parameter_that_is_not_determined_leaves_a_gap(seen):
    activation = FNeuron.like("Tanh", pieces=3)
    covariance = torch.eye(5, dtype=torch.float64)
    covariance[0] = covariance[:, 0] = torch.nan
    u = points(seen)
    found = errors(activation, u, covariance)
    # The first weight counts up to the second centre.
    gap = u < activation.centres[1]
    assert found[gap].isnan().all()
    assert found[u > activation.centres[1]].isfinite().all()
