"""Standard errors against closed forms, and parameters that cannot be told apart."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.problem import Problem, Quadratic
from aafit.identification.uncertainty import scaled_inverse, uncertainty, uncertainty_at
from aafit.networks.batches import Batch
from aafit.training.losses import CROSS_ENTROPY, SQUARED_ERROR
from aafit.training.predictor import Predictor

CENTRES = torch.linspace(-2, 2, 5, dtype=torch.float64)


def hats(u: Tensor) -> Tensor:
    """The memberships of an F-Neuron of 3 pieces on [-2, 2], written down again: (N, 5)."""
    return (1 - (u.clamp(-2, 2) - CENTRES).abs()).clamp(min=0)


def line(images: int = 400) -> tuple[nn.Module, Batch]:
    """An F-Neuron alone is linear regression on its memberships; its errors grow with |u|."""
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(images, 1, generator=generator, dtype=torch.float64) * 5 - 2.5
    noise = torch.randn(images, 1, generator=generator, dtype=torch.float64) * (0.1 + u.abs())
    return FNeuron(torch.zeros(1, 5, dtype=torch.float64), (-2.0, 2.0)), Batch((u,), {}, u.sin() + noise)


def solved(net: nn.Module, data: Batch) -> tuple[Coordinates, Quadratic]:
    coordinates = Coordinates(net)
    problem = Problem(Predictor(net), coordinates, SQUARED_ERROR)
    quadratic = problem.quadratic(coordinates.read(), data)
    step_P = torch.linalg.solve(quadratic.curvature_PP, quadratic.gradient_P)
    coordinates.write(coordinates.read() - step_P)
    return coordinates, problem.quadratic(coordinates.read(), data)


def test_linear_regression_against_the_closed_form() -> None:
    net, data = line()
    coordinates, quadratic = solved(net, data)
    found = uncertainty(quadratic, coordinates, coordinates.read())
    A, n = hats(data.args[0]), len(data)
    weights = torch.linalg.lstsq(A, data.target).solution.flatten()
    inverse = torch.linalg.inv(A.T @ A)
    residuals = (A @ weights - data.target.flatten()).square()
    # White's covariance of least squares, for errors of unequal size.
    robust = inverse @ (A.T * residuals) @ A @ inverse
    assert [row.name for row in found.rows] == [f"weight[{i}]" for i in range(5)]
    assert [row.value for row in found.rows] == pytest.approx(weights.tolist(), rel=1e-9)
    assert [row.error for row in found.rows] == pytest.approx(robust.diag().sqrt().tolist(), rel=1e-6)
    assert torch.allclose(found.covariance_PP, robust, rtol=1e-6, atol=1e-12)
    # The loss is the squared error, whose second derivative is twice that of the sum of squares.
    assert [row.model_error for row in found.rows] == pytest.approx((inverse.diag() / 2).sqrt().tolist(), rel=1e-6)
    assert found.images == n


def test_the_errors_are_those_of_refitting_on_bootstrap_samples() -> None:
    net, data = line()
    coordinates, quadratic = solved(net, data)
    errors = torch.tensor([row.error for row in uncertainty(quadratic, coordinates, coordinates.read()).rows])
    A, n = hats(data.args[0]), len(data)
    generator = torch.Generator().manual_seed(2)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(400)]
    refitted = torch.stack([torch.linalg.lstsq(A[at], data.target[at]).solution.flatten() for at in draws])
    assert torch.allclose(refitted.std(0).float(), errors, rtol=0.15)


def logistic(images: int, seed: int) -> tuple[nn.Module, Batch]:
    """Two classes with logits (0, p1 u): labels drawn from the model itself, at p1 = 1."""
    head = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(images, 1, generator=generator, dtype=torch.float64) * 2
    labels = (torch.rand(images, generator=generator, dtype=torch.float64) < (u * 1.0).sigmoid().flatten()).long()
    # With p3 = 0 the sigmoid is 1/2 and LEAF is a line with slope p1 / 2.
    leaf = LEAF(*torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64).split(1))
    return nn.Sequential(leaf, head), Batch((u,), {}, labels)


def test_where_the_model_is_true_both_errors_agree_with_logistic_regression() -> None:
    net, data = logistic(20_000, 3)
    coordinates = Coordinates(net)
    quadratic = Problem(Predictor(net), coordinates, CROSS_ENTROPY).quadratic(coordinates.read(), data)
    keep = slice(0, 1)
    only = Quadratic(
        quadratic.loss,
        quadratic.gradient_P[keep],
        quadratic.curvature_PP[keep, keep],
        quadratic.scatter_PP[keep, keep],
        quadratic.samples,
    )
    alone = Coordinates(FNeuron(torch.zeros(1, 3, dtype=torch.float64)))
    alone.names, alone.is_slope_P = ["p1"], coordinates.is_slope_P[keep]
    (row,) = uncertainty(only, alone, coordinates.read()[keep]).rows
    u = data.args[0].flatten()
    p = u.sigmoid()
    expected = (u.square() / 4 * p * (1 - p)).sum().rsqrt().item()
    assert row.model_error == pytest.approx(expected, rel=1e-9)
    assert row.error == pytest.approx(expected, rel=0.03)


def test_from_coordinates_to_parameters_by_the_slopes() -> None:
    net = AHAF(torch.tensor([3.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
    coordinates = Coordinates(net)
    H = torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    quadratic = Quadratic(1.0, torch.zeros(2).double(), H, H, 100)
    found = uncertainty(quadratic, coordinates, coordinates.read())
    gamma, beta = found.rows
    # d sinh(t) / dt = cosh(t) = sqrt(1 + sinh(t)^2)
    assert gamma.error == pytest.approx(math.sqrt(1 + 9) / math.sqrt(4 * 100))
    assert beta.error == pytest.approx(1 / math.sqrt(9 * 100))
    assert (gamma.model_error, beta.model_error) == pytest.approx((gamma.error, beta.error))


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def leaf() -> Coordinates:
    return Coordinates(LEAF(*torch.ones(4, 1, dtype=torch.float64)))


def of(H: Tensor, S: Tensor | None = None, images: int = 100) -> Quadratic:
    return Quadratic(1.0, torch.zeros(len(H)).double(), H, H if S is None else S, images)


def test_what_has_no_curvature_is_not_determined() -> None:
    H = matrix([1.0, 0, 0, 0], [0, 1e-20, 1e-20, 0], [0, 1e-20, 1e-20, 0], [0, 0, 0, 0])
    found = uncertainty(of(H), leaf(), torch.ones(4).double())
    assert [row.determined for row in found.rows] == [True, False, False, False]
    assert found.rows[0].error == pytest.approx(0.1)
    assert [row.error for row in found.rows[1:]] == [math.inf] * 3
    # One can rise by what the other falls; the fourth takes part in nothing.
    assert [(pair.first, pair.second) for pair in found.pairs] == [("p2", "p3")]
    assert found.pairs[0].correlation == pytest.approx(-1)
    assert str(found).count("not determined") == 3
    assert found.covariance_PP.isfinite().sum() == 1


def test_a_small_curvature_is_one_all_the_same() -> None:
    found = uncertainty(of(torch.diag(torch.tensor([1.0, 1e-18, 1e6, 1.0]).double())), leaf(), torch.ones(4).double())
    assert all(row.determined for row in found.rows)
    assert found.rows[1].error == pytest.approx(1e8)


@pytest.mark.parametrize(
    ("spread", "says"), [(0.5, ""), (2.0, "known to a factor of 7.4"), (8.0, "not determined by these images")]
)
def test_a_steepness_is_known_to_a_factor(spread: float, says: str) -> None:
    curvature = torch.tensor([1.0, 1.0, 1 / (100 * spread**2), 1.0]).double().diag()
    found = uncertainty(of(curvature), leaf(), torch.ones(4).double())
    assert str(found).splitlines()[3].endswith(says or f"{math.cosh(1) * spread:.2g}")
    assert [row.determined for row in found.rows] == [True, True, spread < 8, True]
    assert found.rows[2].error == pytest.approx(math.cosh(1) * spread if spread < 8 else math.inf)


@pytest.mark.parametrize(("r", "listed"), [(0.94, 0), (0.96, 1), (-0.96, 1)])
def test_pairs_that_cannot_be_told_apart(r: float, listed: int) -> None:
    H = torch.eye(4, dtype=torch.float64)
    H[0, 2] = H[2, 0] = -r
    found = uncertainty(of(H), leaf(), torch.ones(4).double())
    assert [(pair.first, pair.second) for pair in found.pairs] == [("p1", "p3")] * listed
    assert [pair.correlation for pair in found.pairs] == pytest.approx([r] * listed)


def test_a_ridge_determines_what_the_images_do_not() -> None:
    H = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]).double())
    without = uncertainty(of(H), leaf(), torch.ones(4).double())
    ridge_P = torch.tensor([0.0, 2.0, 0.0, 0.0]).double()
    found = uncertainty(of(H), leaf(), torch.ones(4).double(), ridge_P)
    assert (without.rows[1].determined, found.rows[1].determined) == (False, True)
    # The images say nothing of it: they cannot move it, and the ridge alone would as a prior.
    assert found.rows[1].error == 0
    assert found.rows[1].model_error == pytest.approx(1 / math.sqrt(2 * 100))


def test_the_mean_gradient_is_no_scatter() -> None:
    H = torch.eye(4, dtype=torch.float64)
    g = torch.tensor([3.0, 0.0, 0.0, 1.0]).double()
    shifted = Quadratic(1.0, g, H, H + torch.outer(g, g), 100)
    whole, other = (uncertainty(q, leaf(), torch.ones(4).double()) for q in (of(H), shifted))
    assert [row.error for row in other.rows] == pytest.approx([row.error for row in whole.rows])


def test_the_scaled_inverse_does_not_know_units() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    H, units = rows.T @ rows, torch.tensor([1.0, 1e8, 1e-8, 1e3]).double()
    inverse, flat = scaled_inverse(H * torch.outer(units, units))
    assert flat.shape == (4, 0)
    assert torch.allclose(inverse * torch.outer(units, units), torch.linalg.inv(H), rtol=1e-9)


def test_it_prints_and_is_fit_for_json() -> None:
    H = torch.diag(torch.tensor([1.0, 0.0, 4.0, 1.0]).double())
    H[0, 3] = H[3, 0] = 0.99
    found = uncertainty(of(H), leaf(), torch.ones(4).double())
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["images"] == 100
    undetermined = {"value": 1, "error": None, "model_error": None, "determined": False, "factor": 1, "rises": None}
    assert content["rows"][1] == {"name": "p2", **undetermined}
    assert content["pairs"] == [{"first": "p1", "second": "p4", "correlation": pytest.approx(-0.99)}]
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:2] == ["parameter", "value"]
    assert any(line.split() == ["-0.990", "p1", "and", "p4"] for line in lines)
    assert "No two" in str(uncertainty(of(torch.eye(4).double()), leaf(), torch.ones(4).double()))


EYE = torch.eye(4, dtype=torch.float64)
ONES = torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("quadratic", "vector", "ridge", "says"),
    [
        (of(EYE), ONES[:3], None, "4 adaptive parameters"),
        (of(EYE), ONES, ONES[:2], r"ridge \(2,\)"),
        (of(EYE[:3, :3]), ONES, None, r"curvature \(3, 3\)"),
        (of(EYE, images=1), ONES, None, "at least 2 images; got 1"),
        (of(EYE), ONES, -ONES, "0 or more"),
        (of(EYE), ONES, ONES * math.nan, "0 or more"),
        (of(EYE * math.nan), ONES, None, "must be finite"),
        (of(EYE), ONES * math.inf, None, "must be finite"),
    ],
)
def test_what_cannot_be_used(quadratic: Quadratic, vector: Tensor, ridge: Tensor | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        uncertainty(quadratic, leaf(), vector, ridge)


def sure(outputs: int, images: int = 600) -> tuple[Problem, Tensor, Batch]:
    """A network that is sure of most of its answers, and as often right as it says."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), AHAF.like("SiLU"), nn.Linear(8, outputs)).double().eval()
    with torch.no_grad():
        net[2].weight.mul_(10)
    x = 4 * torch.randn(images, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coordinates = Coordinates(net)
    labels = torch.multinomial(net(x).detach().softmax(1), 1, generator=torch.Generator().manual_seed(2)).flatten()
    data = Batch((x,), {}, labels)
    return Problem(Predictor(net), coordinates, CROSS_ENTROPY), coordinates.read(), data


def test_the_curvature_at_the_end_is_exact_where_the_outputs_are_few() -> None:
    problem, vector_P, data = sure(3)
    found = uncertainty_at(problem, vector_P, data)
    expected = uncertainty(problem.quadratic(vector_P, data), problem.coordinates, vector_P)
    assert [row.error for row in found.rows] == pytest.approx([row.error for row in expected.rows])
    assert (found.draws, found.noise) == (None, 0.0)
    assert "random columns" not in str(found)


def test_where_the_outputs_are_many_the_noise_of_the_draws_is_stated() -> None:
    problem, vector_P, data = sure(40)
    exact = uncertainty_at(problem, vector_P, data, exact=True)
    drawn = [uncertainty_at(problem, vector_P, data, seed=10 * seed) for seed in range(8)]
    errors_RP = torch.tensor([[row.error for row in found.rows] for found in drawn])
    away = (errors_RP / torch.tensor([row.error for row in exact.rows]) - 1).square().mean().sqrt().item()
    stated = sum(found.noise for found in drawn) / len(drawn)
    assert 0 < away < 0.2
    # The mean of eight estimates, each from the difference of two halves.
    assert stated == pytest.approx(away, rel=0.7)
    assert "with 8 random columns of the curvature for each, whose draw changes the errors by about" in str(drawn[0])
