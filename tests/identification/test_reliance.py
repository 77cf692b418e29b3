"""Standard errors held against the loss: where it is a quadratic within them, and where it is not."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, FNeuron
from aafit.identification.coordinates import Coordinates
from aafit.identification.problem import Problem, Quadratic
from aafit.identification.reliance import is_quadratic, rises_within
from aafit.identification.uncertainty import uncertainty, uncertainty_at
from aafit.networks.batches import Batch
from aafit.training.losses import SQUARED_ERROR
from aafit.training.predictor import Predictor

CURVATURE = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.25, -0.1], [-0.1, 4.0]], dtype=torch.float64)
BOTH = torch.tensor([True, True])


def test_a_quadratic_rises_as_it_promises() -> None:
    rises = rises_within(lambda d: (d @ CURVATURE @ d / 2).item(), CURVATURE, COVARIANCE, BOTH)
    assert [one for pair in rises for one in pair or ()] == pytest.approx([1.0] * 4)


def test_the_step_is_two_errors_and_where_the_other_estimates_are_then() -> None:
    steps: list[Tensor] = []

    def rise(step_P: Tensor) -> float:
        steps.append(step_P)
        return 1.0

    rises_within(rise, CURVATURE, COVARIANCE, BOTH)
    expected = torch.tensor([[-1.0, 0.4], [1.0, -0.4], [0.1, -4.0], [-0.1, 4.0]], dtype=torch.float64)
    assert torch.allclose(torch.stack(steps), expected)


def test_where_the_model_is_true_the_step_goes_along_the_profile() -> None:
    steps: list[Tensor] = []
    rises_within(lambda d: steps.append(d) or 1.0, CURVATURE, torch.linalg.inv(CURVATURE) / 100, BOTH)
    # With one parameter held, the slope by the other is 0.
    assert [(CURVATURE @ steps[1])[1].item(), (CURVATURE @ steps[3])[0].item()] == pytest.approx([0, 0], abs=1e-12)


def test_what_is_not_asked_for_is_not_measured() -> None:
    rises = rises_within(lambda d: 0.0, CURVATURE, COVARIANCE, torch.tensor([False, True]))
    assert rises == (None, (0.0, 0.0))


@pytest.mark.parametrize(
    ("rises", "holds"),
    [
        (None, True),
        ((1.0, 1.0), True),
        ((0.41, 2.4), True),
        ((0.39, 1.0), False),
        ((1.0, 2.6), False),
        ((1.0, -1.0), False),
        ((1.0, math.inf), False),
        ((math.nan, 1.0), False),
    ],
)
def test_off_by_at_most_two_and_a_half_to_either_side(rises: tuple[float, float] | None, holds: bool) -> None:
    assert is_quadratic(rises) is holds


@pytest.mark.parametrize(
    ("rise", "holds"),
    [
        (lambda d: 50 * d**2, True),
        # Ten times as steep on one side, and a plateau on one side.
        (lambda d: (500 if d > 0 else 50) * d**2, False),
        (lambda d: min(50 * d**2, 0.05) if d > 0 else 50 * d**2, False),
        (lambda d: math.nan if d else 0.0, False),
    ],
)
def test_where_the_loss_is_no_quadratic_no_error_is_given(rise: Callable[[float], float], holds: bool) -> None:
    # Of 100 images, beta's error is 1 / sqrt(100 * 100) = 0.01 by the curvature, and ten times that by the scatter.
    coordinates = Coordinates(AHAF(*torch.ones(2, 1, dtype=torch.float64)))
    H = torch.tensor([1.0, 100.0], dtype=torch.float64).diag()
    quadratic = Quadratic(1.0, torch.zeros(2).double(), H, H * torch.tensor([1.0, 100.0]).double(), 100)

    def of_beta(step_P: Tensor) -> float:
        return rise(step_P[1].item()) + step_P[0].item() ** 2 / 2

    unchecked, found = (uncertainty(quadratic, coordinates, coordinates.read(), rise=r) for r in (None, of_beta))
    assert [row.determined for row in unchecked.rows] == [True, True]
    assert unchecked.rows[1].error == pytest.approx(0.1)
    assert "was not measured" in str(unchecked)
    gamma, beta = found.rows
    assert (gamma.determined, beta.determined) == (True, holds)
    assert gamma.rises == pytest.approx((1.0, 1.0))
    assert beta.error == pytest.approx(0.1 if holds else math.inf)
    assert found.covariance_PP[1, 1].item() == pytest.approx(0.01)
    assert ("no quadratic" in str(found)) is not holds
    assert "was not measured" not in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def fitted(net: nn.Module, data: Batch) -> tuple[Problem, Tensor]:
    problem = Problem(Predictor(net), Coordinates(net), SQUARED_ERROR)
    vector_P = problem.coordinates.read()
    for _ in range(60):
        quadratic = problem.quadratic(vector_P, data)
        vector_P = vector_P - torch.linalg.solve(quadratic.curvature_PP, quadratic.gradient_P).clamp(-0.3, 0.3)
    return problem, vector_P


def test_linear_regression_is_a_quadratic_whatever_the_ridge() -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(400, 1, generator=generator, dtype=torch.float64) * 5 - 2.5
    y = u.sin() + torch.randn(400, 1, generator=generator, dtype=torch.float64)
    net = FNeuron(torch.zeros(1, 5, dtype=torch.float64), (-2.0, 2.0))
    problem, vector_P = fitted(net, data := Batch((u,), {}, y))
    for ridge in (0.0, 0.5):
        # Not at the optimum: its slope there is no rise.
        rows = uncertainty_at(problem, vector_P + 0.1, data, ridge).rows
        assert [one for row in rows for one in row.rises or ()] == pytest.approx([1.0] * 10, rel=1e-6)


def test_a_steepness_beyond_which_the_loss_is_flat_has_no_error_and_the_slope_has_one() -> None:
    """AHAF fitted to a noisy ReLU: by the curvature alone its gamma would be known to a factor of two."""
    generator = torch.Generator().manual_seed(1)
    u, noise = (torch.randn(400, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    data = Batch((u,), {}, u.relu() + 0.1 * noise)
    problem, vector_P = fitted(AHAF(*torch.tensor([8.0, 1.0], dtype=torch.float64).split(1)), data)
    gamma, beta = uncertainty_at(problem, vector_P, data).rows
    by_curvature, _ = uncertainty(problem.quadratic(vector_P, data), problem.coordinates, vector_P).rows
    assert (by_curvature.determined, gamma.determined, beta.determined) == (True, False, True)
    assert 50 < (uncertainty_at(problem, vector_P, data).effective or 0) < 400
    assert beta.error == pytest.approx(0.1 / 200**0.5, rel=0.2)


@pytest.mark.parametrize(("images", "told"), [(1, False), (3, True), (50, True)])
def test_errors_that_come_from_fewer_images_than_parameters_are_not_given(images: int, told: bool) -> None:
    coordinates = Coordinates(AHAF(*torch.ones(2, 1, dtype=torch.float64)))
    H = torch.tensor([1.0, 100.0], dtype=torch.float64).diag()
    quadratic = Quadratic(1.0, torch.zeros(2).double(), H, H, 100)
    gradients_NP = torch.zeros(100, 2, dtype=torch.float64)
    gradients_NP[:images, 1] = 1
    found = uncertainty(quadratic, coordinates, coordinates.read(), gradients_NP=gradients_NP)
    assert found.effective == pytest.approx(images)
    assert [row.determined for row in found.rows] == [told] * 2
    assert f"about {images} of them in effect" in str(found)
