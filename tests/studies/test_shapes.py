"""Learned shapes: their standard errors, and the known functions they are nearest to."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from aafit import AHAF, LEAF, FNeuron
from aafit.activations.base import curve_values
from aafit.networks.batches import Batch
from aafit.studies.inputs import input_distributions
from aafit.studies.shapes import LearnedShape, nearest, points, standard_errors


@pytest.fixture(scope="module")
def seen():
    u = 2 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    (row,) = input_distributions(torch.nn.Sequential(torch.nn.ReLU()), ["0"], [Batch((u,), {})])
    return row


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (F.silu, ["SiLU"]),
        (F.gelu, ["GELU", "GELU (tanh)"]),
        (lambda u: u, ["Identity"]),
        (torch.zeros_like, ["the constant 0"]),
        (lambda u: 0.3 + 0.01 * torch.sin(7 * u), ["the constant 0.3"]),
    ],
)
def test_what_a_shape_is_nearest_to_and_all_that_are_as_near(shape, names, seen):
    assert [row.name for row in nearest(shape(seen.centres), seen)] == names


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (F.silu, "SiLU, 0.0%"),
        (lambda u: torch.full_like(u, 0.3), "the constant 0.3, 0.0%"),
        (lambda u: torch.sin(7 * u), "none (closest: the constant "),
        (lambda u: u.relu() + 0.3 * torch.sin(4 * u), "none (closest: ReLU, "),
    ],
)
def test_a_name_is_given_below_ten_percent_only(shape, text, seen):
    named = SimpleNamespace(nearest=nearest(shape(seen.centres), seen))
    assert LearnedShape.nearest_text(named).startswith(text)


@pytest.mark.parametrize("activation", [AHAF.like("SiLU"), LEAF.like("Tanh"), FNeuron.like("Tanh", knots=5)])
def test_errors_are_those_of_parameters_drawn(activation, seen):
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in activation.named_parameters()]
    vector = torch.cat([parameter.detach().double().flatten() for parameter in activation.parameters()])
    root = 1e-3 * torch.randn(len(vector), len(vector), generator=generator, dtype=torch.float64)
    u = points(seen)
    found = standard_errors(activation, u, root @ root.T)
    own = deepcopy(activation).double()
    drawn = []
    for noise in torch.randn(2000, len(vector), generator=generator, dtype=torch.float64):
        torch.nn.utils.vector_to_parameters(vector + root @ noise, [getattr(own, name) for name in names])
        drawn.append(curve_values(own, u).squeeze(1))
    expected = torch.stack(drawn).std(0)
    assert torch.allclose(found, expected, rtol=0.12, atol=1e-5)


def test_a_parameter_that_is_not_determined_leaves_a_gap(seen):
    activation = FNeuron.like("Tanh", knots=5)
    covariance = torch.eye(5, dtype=torch.float64)
    covariance[0] = covariance[:, 0] = torch.nan
    u = points(seen)
    found = standard_errors(activation, u, covariance)
    # The first weight counts up to the second centre.
    gap = u < activation.knot_positions[1]
    assert found[gap].isnan().all()
    assert found[u > activation.knot_positions[1]].isfinite().all()
