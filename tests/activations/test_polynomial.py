"""Polynomials beyond what every family has: least squares, powers, what is outside, and wrong values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import aafit
from aafit.activations import Histogram, Polynomial, from_settings
from aafit.errors import UserError


@pytest.fixture(scope="module")
def normal() -> Histogram:
    return Histogram.of(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_the_fit_is_numpys_least_squares(degree: int, normal: Histogram) -> None:
    fitted = Polynomial.fit(F.gelu, normal, interval=(-4.5, 5.0), degree=degree, tails=0.0)
    u, share = (x.numpy() for x in normal.between(-4.5, 5.0).points())
    y = F.gelu(torch.from_numpy(u)).numpy()
    expected = np.polynomial.Chebyshev.fit(u, y, degree, domain=[-4.5, 5.0], w=np.sqrt(share))
    np.testing.assert_allclose(fitted.coefficients[0].detach().numpy(), expected.coef, atol=2e-4)
    np.testing.assert_allclose(fitted(torch.from_numpy(u)).detach().numpy(), expected(u), atol=2e-4)


def test_the_weight_of_the_tails(normal: Histogram) -> None:
    """The heavier the tails, the smaller the largest error in the interval and the larger that on the inputs."""
    even = torch.linspace(-5, 5, 1001)
    fits = [Polynomial.fit(F.gelu, normal, interval=(-5, 5), degree=6, tails=tails) for tails in (0, 0.01, 0.1, 1)]
    largest = [(one(even) - F.gelu(even)).abs().max().item() for one in fits]
    assert largest == sorted(largest, reverse=True)
    rms = [one.residual.rms for one in fits if one.residual is not None]
    assert rms == sorted(rms)


def test_the_margin_of_the_interval(normal: Histogram) -> None:
    left, right = normal.bulk()
    for margin in (0.0, 0.25):
        reach = margin * (right - left)
        fitted = Polynomial.fit(torch.tanh, normal, margin=margin)
        assert fitted.interval == pytest.approx((left - reach, right + reach))


@given(
    degree=st.integers(1, 10),
    left=st.floats(-9, 3),
    width=st.floats(0.5, 12),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_powers_are_the_same_polynomial(degree: int, left: float, width: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, degree + 1, generator=generator, dtype=torch.float64)
    made = Polynomial(values, (left, left + width))
    u = torch.linspace(left, left + width, 50, dtype=torch.float64)
    powers = made.powers()
    assert powers.shape == (2, degree + 1)
    y = made(u[:, None].expand(-1, 2)).detach()
    for at in range(2):
        expected = np.polynomial.polynomial.polyval(u.numpy(), powers[at].numpy())
        scale = np.abs(powers[at].numpy() * max(abs(left), abs(left + width)) ** np.arange(degree + 1)).max()
        np.testing.assert_allclose(y[:, at].numpy(), expected, atol=1e-11 * (1 + scale))


def test_outside_it_goes_on_without_a_clamp() -> None:
    cube = Polynomial(torch.tensor([[0.0, 0.0, 0.0, 4.0]]), (-1.0, 1.0))  # 4 T_3 = 16 u^3 - 12 u
    u = torch.tensor([-10.0, 0.5, 3.0])
    assert cube(u).tolist() == [-15880.0, -4.0, 396.0]
    assert cube.is_outside(u).tolist() == [True, False, True]
    # What overflows is never a finite number.
    assert not cube(torch.tensor([1e30, -1e30, math.inf, -math.inf])).isfinite().any()


def test_the_audit_counts_what_is_outside() -> None:
    net = nn.Sequential(nn.Identity(), Polynomial.like("GELU", interval=(-1, 1), degree=3), nn.Linear(4, 2))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    (row,) = aafit.audit(net, [(x, torch.randint(2, (64,)))]).rows
    assert row.interval == (-1.0, 1.0)
    assert row.outside == pytest.approx((x.abs() > 1).double().mean().item())


def test_a_state_dict_sets_the_interval() -> None:
    one, other = (Polynomial.like("GELU", interval=ends, degree=3) for ends in ((-2, 3), (-4, 4)))
    other.load_state_dict(one.state_dict())
    assert other.interval == (-2.0, 3.0)
    u = torch.linspace(-3, 3, 11)
    assert torch.equal(other(u), one(u))
    third = Polynomial.like("Tanh", interval=(-2, 3), degree=3)
    third.load_state_dict({"coefficients": one.coefficients})
    assert torch.equal(third(u), one(u))
    with pytest.raises(UserError, match="left < right"):
        other.load_state_dict({"coefficients": one.coefficients, "_extra_state": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        Polynomial.like("GELU", degree=4).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda h: Polynomial.fit(F.gelu, h, degree=0), "degree of Polynomial must be an integer of at least 1"),
        (lambda h: Polynomial.fit(F.gelu, h, degree=2.5), "at least 1; got 2.5"),
        (lambda h: Polynomial.fit(F.gelu, h, degree=65), "at most 64; got 65"),
        (lambda h: Polynomial.like("GELU", degree=-1), "at least 1; got -1"),
        (lambda h: Polynomial(torch.ones(1, 1)), "at least 1; got 0"),
        (lambda h: Polynomial(torch.ones(3)), r"shape \(\*shape, degree \+ 1\), e.g. \(1, 9\); got \(3,\)"),
        (lambda h: Polynomial(torch.tensor([[1.0, math.nan]])), "coefficients must be finite"),
        (lambda h: Polynomial.fit(F.gelu, h, interval=(20.0, 30.0)), r"No input is in \[20, 30\]"),
        (
            lambda h: Polynomial.fit(F.gelu, h, interval=(2.0, 1.0)),
            r"left < right; got \(2, 1\)",
        ),
        (lambda h: Polynomial.fit(F.gelu, h, interval="wide"), "two numbers .* got 'wide'"),
        (lambda h: Polynomial.fit(F.gelu, h, tails=-1), "tails must be a number of at least 0; got -1"),
        (lambda h: Polynomial.fit(F.gelu, h, margin=-0.1), "margin is a share of the width .* got -0.1"),
        (lambda h: Polynomial.fit(F.gelu, torch.randn(9)), "fitted over a histogram of inputs, not a Tensor"),
        (lambda h: Polynomial.like("Gelu"), "start of Polynomial 'Gelu'. Did you mean 'GELU'"),
        (lambda h: Polynomial.like(3), "as the name of a function or as a function; got 3"),
        (lambda h: Polynomial.like("GELU", (3,))(torch.randn(2, 4)), r"shape \(3,\).*input of shape \(2, 4\)"),
        (lambda h: Polynomial.like("GELU")(torch.arange(3)), "floating-point input"),
        (lambda h: from_settings({"family": "Polynomial", "start": "GELU", "shape": [1]}), "not the settings"),
    ],
)
def test_wrong_values(make, says: str, normal: Histogram) -> None:
    with pytest.raises(UserError, match=says):
        make(normal)
