"""Piecewise linear functions with free knots: where the knots are, grids, several functions, and wrong values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import aafit
from aafit.activations import FNeuron, Histogram, PiecewiseLinear
from aafit.errors import UserError


@pytest.fixture(scope="module")
def normal() -> Histogram:
    return Histogram.of(2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("function", "kinks"), [(torch.relu, [0.0]), (F.relu6, [0.0, 6.0]), (F.hardtanh, [-1.0, 1.0]), (torch.abs, [0.0])]
)
def test_a_piecewise_linear_function_is_found(function, kinks: list[float], normal: Histogram) -> None:
    fitted = PiecewiseLinear.fit(function, normal, segments=6)
    assert fitted.residual is not None
    assert fitted.residual.rms < 1e-5
    assert all(min(abs(knot - kink) for knot in fitted.knots) < 1e-3 for kink in kinks)


@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.sin])
def test_free_knots_are_better_than_even_ones(function, normal: Histogram) -> None:
    free = PiecewiseLinear.fit(function, normal, segments=8)
    even = FNeuron.fit(function, normal, knots=9, outside="linear")
    assert free.residual is not None
    assert even.residual is not None
    assert free.residual.rms < 0.75 * even.residual.rms
    assert free.segments == 8


def test_more_segments_are_better(normal: Histogram) -> None:
    errors = []
    for segments in (1, 2, 3, 4, 8, 16):
        fitted = PiecewiseLinear.fit(F.gelu, normal, segments=segments)
        assert fitted.segments == segments
        assert fitted.residual is not None
        errors.append(fitted.residual.rms)
    assert errors == sorted(errors, reverse=True)
    # The error of the best approximation falls with the square of the number of segments.
    assert 0.15 < errors[-1] / errors[-2] < 0.4


def test_the_values_are_least_squares_for_given_knots(normal: Histogram) -> None:
    knots = (-3.0, -1.0, 0.5, 4.0)
    fitted = PiecewiseLinear.fit(torch.sin, normal, knots=knots)
    u, share = normal.points()
    tents = [PiecewiseLinear(torch.eye(4)[i][None], knots).double() for i in range(4)]
    columns, root = torch.stack([tent(u).detach() for tent in tents], 1), share.sqrt()[:, None]
    expected = torch.linalg.lstsq(columns * root, u.sin()[:, None] * root).solution[:, 0]
    torch.testing.assert_close(fitted.values[0].double(), expected, rtol=0, atol=1e-4)


@given(grid=st.sampled_from([2.0**-6, 0.125, 0.3, 1.0, 50.0]), segments=st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_knots_on_a_grid(grid: float, segments: int) -> None:
    u = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    fitted = PiecewiseLinear.fit(F.silu, Histogram.of(u), segments=segments, grid=grid)
    assert all(abs(knot / grid - round(knot / grid)) < 1e-9 for knot in fitted.knots[1:-1])
    assert 1 <= fitted.segments <= segments
    assert list(fitted.knots) == sorted(set(fitted.knots))


def test_a_knot_without_inputs_keeps_the_functions_value() -> None:
    u = torch.rand(3000, generator=torch.Generator().manual_seed(1))
    fitted = PiecewiseLinear.fit(torch.tanh, Histogram.of(u), knots=(-4.0, -2.0, 0.0, 1.0))
    torch.testing.assert_close(fitted.values[0, :2], torch.tensor([-4.0, -2.0]).tanh())


def test_large_infinite_and_missing_inputs() -> None:
    made = PiecewiseLinear(torch.tensor([[0.0, 0.0, 1.0]]), (-1.0, 0.0, 1.0))
    u = torch.tensor([-math.inf, -1e30, 1e30, math.inf, math.nan], requires_grad=True)
    y = made(u)
    assert y[:2].tolist() == [0.0, 0.0]
    assert 0.99e30 < y[2] < 1.01e30
    assert 1e35 < y[3] < math.inf
    assert y[4].isnan()
    (by_u,) = torch.autograd.grad(y.sum(), u)
    assert by_u.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_a_state_dict_sets_the_knots() -> None:
    one = PiecewiseLinear.like("GELU", interval=(-2, 3), segments=3)
    other = PiecewiseLinear.like("Tanh", segments=3)
    other.load_state_dict(one.state_dict())
    assert (other.knots, other.interval) == (one.knots, (-2.0, 3.0))
    u = torch.linspace(-4, 4, 101)
    assert torch.equal(other(u), one(u))
    with pytest.raises(UserError, match="ascending"):
        other.load_state_dict({"values": one.values, "_extra_state": torch.zeros(4)})


def test_a_prelu_with_a_slope_for_each_channel_is_fitted_by_channel() -> None:
    base = nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.Linear(3, 2))
    with torch.no_grad():
        base[1].weight.copy_(torch.tensor([0.1, -0.4, 0.8]))
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    net, _ = aafit.replace_activations(base, {"PReLU": aafit.PiecewiseLinear}, sharing="channel", sample=x)
    assert (net(x) - base(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda h: PiecewiseLinear.fit(F.gelu, h, segments=0),
            "segments of PiecewiseLinear .* at least 1; got 0",
        ),
        (lambda h: PiecewiseLinear.fit(F.gelu, h, segments=65), "at most 64 segments; got 65"),
        (lambda h: PiecewiseLinear.fit(F.gelu, h, grid=0), "grid of PiecewiseLinear's knots must be .* above 0; got 0"),
        (lambda h: PiecewiseLinear.fit(F.gelu, h, knots=(0.0, 2.0, 1.0)), r"in ascending order; got \(0, 2, 1\)"),
        (lambda h: PiecewiseLinear.fit(F.gelu, h, knots=(0.0, 0.0)), r"in ascending order; got \(0, 0\)"),
        (lambda h: PiecewiseLinear.fit(F.gelu, h, interval=(20.0, 30.0)), r"No input is in \[20, 30\]"),
        (lambda h: PiecewiseLinear(torch.zeros(1, 3), (1.0, 0.0, 2.0)), r"in ascending order; got \(1, 0, 2\)"),
        (lambda h: PiecewiseLinear(torch.zeros(1, 3), (0.0, 1.0, math.inf)), "finite knots"),
        (lambda h: PiecewiseLinear(torch.zeros(1, 3), "wide"), "must be numbers in ascending order; got 'wide'"),
        (lambda h: PiecewiseLinear(torch.zeros(1, 3), (0.0, 1.0)), r"here with 2 knots; got \(1, 3\)"),
        (lambda h: PiecewiseLinear(torch.zeros(3), (0.0, 1.0, 2.0)), r"here with 3 knots; got \(3,\)"),
        (lambda h: PiecewiseLinear.like("Gelu"), "Did you mean 'GELU'"),
    ],
)
def test_wrong_values(make, says: str, normal: Histogram) -> None:
    with pytest.raises(UserError, match=says):
        make(normal)
