"""Rational functions beyond what every family has: exact fits, tails, scales, and wrong values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from aafit.activations import Histogram, Rational
from aafit.errors import UserError


@pytest.fixture(scope="module")
def normal() -> Histogram:
    return Histogram.of(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("function", "degrees"),
    [
        (lambda u: (1 - 2 * u) / (1 + (0.3 * u).abs()), (1, 1)),
        (lambda u: (u**3 - u) / (1 + 0.2 * u**2), (3, 2)),
        (lambda u: 2 * u - 1, (5, 4)),
        (lambda u: u / (1 + u**2 / 9), (5, 4)),
    ],
)
def test_a_rational_function_is_found(function, degrees: tuple[int, int], normal: Histogram) -> None:
    fitted = Rational.fit(function, normal, degrees=degrees)
    assert fitted.degrees == degrees
    assert fitted.residual is not None
    assert fitted.residual.rms < 1e-5


@pytest.mark.parametrize(
    ("function", "rms"),
    [(F.gelu, 0.002), (F.silu, 1e-4), (torch.tanh, 1e-4), (torch.relu, 0.03), (F.hardswish, 0.01), (torch.sin, 1e-3)],
)
def test_any_function_is_a_start(function, rms: float, normal: Histogram) -> None:
    fitted = Rational.fit(function, normal)
    assert fitted.residual is not None
    assert fitted.residual.rms < rms


@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    seed=st.integers(0, 500),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_no_input_gives_nan(m: int, n: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    made = Rational(torch.randn(1, m + 1, generator=generator), torch.randn(1, n, generator=generator), (-1.0, 1.0))
    made = made.to(torch.promote_types(dtype, torch.float32))
    largest = torch.finfo(dtype).max
    sizes = [0.0, 1e-30, 1.0, 1e3, 6e4, *([1e9, 1e20, 1e30] if dtype != torch.float16 else []), largest, math.inf]
    u = torch.tensor([*sizes, *(-size for size in sizes)], dtype=dtype, requires_grad=True)
    y = made(u)
    assert not y.isnan().any()
    if m <= n + 1:
        gradients = torch.autograd.grad(made(u[:5]).sum(), (u, *made.parameters()))
        assert not any(gradient.isnan().any() for gradient in gradients)


def test_the_default_degrees_tend_to_a_line() -> None:
    made = Rational.like("SiLU").double()
    (slope,) = (made.powers()[0][0, 5] / made.powers()[1][0, 3].abs()).reshape(1)
    for u in (1e9, 1e12, 1e20, 1e50):
        y = made(torch.tensor([u, -u], dtype=torch.float64))
        torch.testing.assert_close(y / u, torch.stack([slope, -slope]), rtol=1e-6, atol=0)


def test_the_tails_continue_the_formula_in_value_and_slope() -> None:
    """In float32 the powers end at 3e5 (degrees 5 and 4); float64 has them there still."""
    made = Rational.like("GELU", interval=(-1.0, 1.0))
    u = torch.logspace(4, 8, 41).repeat(2) * torch.tensor([1.0, -1.0]).repeat_interleave(41)
    one, other = u.clone().requires_grad_(), u.double().requires_grad_()
    wide = Rational(*(p.double() for p in made.parameters()), made.interval)
    given, expected = made(one), wide(other)
    torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=0)
    slopes = torch.autograd.grad(given.sum(), one)[0].double(), torch.autograd.grad(expected.sum(), other)[0]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=0)


def test_the_interval_is_a_scale_only() -> None:
    wide = Rational(torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([[0.5, 4.0]]), (-10.0, 6.0)).double()
    above, below = wide.powers()
    torch.testing.assert_close(above, torch.tensor([[1.0, 0.2, -0.03]], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(below, torch.tensor([[0.05, 0.04]], dtype=torch.float64), rtol=1e-6, atol=0)
    u = torch.linspace(-20, 20, 101, dtype=torch.float64)
    torch.testing.assert_close(wide(u), Rational(above, below, (-1.0, 1.0))(u), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda h: Rational.fit(F.gelu, h, degrees=(0, 4)), "degree of Rational's numerator .* at least 1; got 0"),
        (lambda h: Rational.fit(F.gelu, h, degrees=(5, 0)), "degree of Rational's denominator .* at least 1; got 0"),
        (lambda h: Rational.fit(F.gelu, h, degrees=(5, 17)), "denominator must be at most 16; got 17"),
        (lambda h: Rational.fit(F.gelu, h, degrees=5), r"two numbers \(m, n\), as \(5, 4\); got 5"),
        (lambda h: Rational(torch.ones(1, 1), torch.ones(1, 2)), "numerator must be an integer of at least 1"),
        (lambda h: Rational(torch.ones(3), torch.ones(2)), r"\(1, 6\) and \(1, 4\); got \(3,\) and \(2,\)"),
        (lambda h: Rational(torch.ones(2, 3), torch.ones(1, 2)), r"need one shape; got \(2,\), \(1,\)"),
        (lambda h: Rational(torch.ones(1, 3), torch.tensor([[math.inf]])), "denominator must be finite"),
        (lambda h: Rational.fit(F.gelu, h, interval=(20.0, 30.0)), r"No input is in \[20, 30\]"),
        (lambda h: Rational.like("Relu"), "start of Rational 'Relu'. Did you mean 'ReLU'"),
        (lambda h: Rational.like(nn.Softmax(-1).forward, degrees=(2, 0)), "at least 1; got 0"),
        (lambda h: Rational.like(lambda u: 1 / u.clamp(min=0)), "a function that is finite"),
    ],
)
def test_wrong_values(make, says: str, normal: Histogram) -> None:
    with pytest.raises(UserError, match=says):
        make(normal)
