"""A quotient of two polynomials with trainable coefficients, the safe Padé activation unit."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import TextOption
from aafit.activations.elementwise import Formula, largest
from aafit.activations.fitting import FitTarget, LeastSquares
from aafit.activations.histogram import Histogram
from aafit.activations.interval import INTERVAL, IntervalActivation, interval_of_fit
from aafit.errors import UserError, check_count

DEGREES, MOST_DEGREE = (5, 4), 16
POINTS = 600
"""Inputs to which a rational function is fitted."""
MARGIN, TAILS = 0.1, 0.01
"""Of the default interval beyond the inputs, as a share of their width; weight of evenly spaced inputs in it."""
LINEARIZED, BEST, ITERATIONS = 12, 3, 60
"""Linear fits that find starts, the number of starts from which the error is minimized, and iterations."""


def _horner(z: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Return sum_k coefficients[k] * z^k."""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total


def _slope(z: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Return the derivative of `_horner`."""
    return (
        _horner(z, [k * c for k, c in enumerate(coefficients) if k]) if len(coefficients) > 1 else torch.zeros_like(z)
    )


@cache
def _formula(m: int, n: int) -> Formula:
    """Return the formula of degrees m and n, whose arguments are (u, a_0, ..., a_m, b_1, ..., b_n, 1 / scale)."""

    def split(u: Tensor, values: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
        """Return the coefficients, z, z cut to where its powers are finite, and what replaces it beyond."""
        *coefficients, scale = values
        z = u.clamp(-largest(u), largest(u)) * scale
        limit = torch.finfo(u.dtype).max ** (1 / (max(m, n) + 2))
        beyond = (z.abs() / limit).clamp(min=1.0)
        return coefficients[: m + 1], coefficients[m + 1 :], z, z.clamp(-limit, limit), beyond

    def forward(u: Tensor, *values: Tensor) -> Tensor:
        a, b, _, z, beyond = split(u, values)
        y: Tensor = _horner(z, a) / (1 + (z * _horner(z, b)).abs())
        # What the quotient tends to is a multiple of z^(m - n).
        return y * beyond ** (m - n) if m > n else y

    def backward(grad: Tensor, u: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        a, b, whole, z, beyond = split(u, values)
        below = z * _horner(z, b)
        denominator = 1 + below.abs()
        y = _horner(z, a) / denominator
        inner = (_slope(z, a) - y * below.sign() * _slope(z, [torch.zeros_like(b[0]), *b])) / denominator
        outer = torch.zeros_like(z)
        if m > n:
            inner = inner * beyond ** (m - n)
            outer = (m - n) * y * beyond ** (m - n) / whole
            grad_y = grad * beyond ** (m - n)
        else:
            grad_y = grad
        by_z = grad * torch.where(whole == z, inner, outer)
        part, by_a, by_b = grad_y / denominator, [], []
        rest = -part * y * below.sign()
        power = torch.ones_like(z)
        for k in range(max(m, n) + 1):
            if k <= m:
                by_a.append(part * power)
            if 1 <= k <= n:
                by_b.append(rest * power)
            power = power * z
        return by_z * values[-1], *by_a, *by_b, by_z * u

    return Formula(forward, backward)


class Rational(IntervalActivation):
    """The safe Padé activation unit of degrees (m, n): a quotient of two polynomials without poles.

    Rational(u) = (a_0 + a_1 z + ... + a_m z^m) / (1 + |b_1 z + ... + b_n z^n|), with z = u / max(|left|, |right|).

    The scale of z, which is from -1 to 1 on the interval, keeps the coefficients of one size; the paper has z = u,
    which is the interval (-1, 1). Outside the interval the same formula applies: with m = n + 1, as in the default
    (5, 4), it tends to a straight line. Where the powers of z would overflow (beyond 3e5 in float32) it is continued by
    a multiple of z^(m - n), its asymptote, or by a constant for m <= n, so that no finite or infinite input gives NaN.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `numerator` has the
    shape (*shape, m + 1) and `denominator` (*shape, n), where `shape` is (1,) if one function serves the layer,
    otherwise it broadcasts against the trailing dimensions of the input. The arithmetic is done in at least float32.

    Source: Molina, Schramowski & Kersting (2020), Padé Activation Units, https://arxiv.org/abs/1907.06732, section 3

    Args:
        numerator: a_0 to a_m, (*shape, m + 1) with m from 1 to 16.
        denominator: b_1 to b_n, (*shape, n) with n from 1 to 16.
        interval: (left, right), see above.
        start: The name of what the function imitates.

    Raises:
        UserError: The interval is empty or not finite, a degree is below 1 or above 16, a coefficient is not finite,
            the two differ in shape, or (when called) they do not fit the input.

    Example:
        >>> f = aafit.Rational(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), interval=(-1.0, 1.0))
        >>> f(torch.tensor([1.0, 3.0])).tolist()  # z / (1 + z^2)
        [0.5, 0.30000001192092896]
        >>> net, _ = aafit.replace_activations(nn.Sequential(nn.Linear(2, 3), nn.GELU()), {"GELU": "Rational as GELU"})
    """

    family: ClassVar[str] = "Rational"
    text_option: ClassVar[TextOption | None] = TextOption("degrees", DEGREES, 1, MOST_DEGREE)
    _names: ClassVar[tuple[str, ...]] = ("numerator", "denominator")

    numerator: nn.Parameter
    denominator: nn.Parameter

    def __init__(
        self,
        numerator: Tensor,
        denominator: Tensor,
        interval: tuple[float, float] = INTERVAL,
        start: str = "custom",
    ) -> None:
        super().__init__(numerator, denominator, interval=interval, start=start)
        if self.numerator.ndim < 2 or self.denominator.ndim < 2:
            raise UserError(
                "Rational's numerator must have the shape (*shape, m + 1) and its denominator (*shape, n), e.g. (1, 6) "
                f"and (1, 4); got {tuple(self.numerator.shape)} and {tuple(self.denominator.shape)}."
            )
        _check_degrees(self.degrees)

    @property
    def degrees(self) -> tuple[int, int]:
        """The degrees (m, n) of the numerator and the denominator."""
        return self.numerator.shape[-1] - 1, self.denominator.shape[-1]

    @classmethod
    def fit(
        cls,
        function: str | Callable[[Tensor], Tensor],
        histogram: Histogram,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] | None = None,
        *,
        degrees: tuple[int, int] = DEGREES,
    ) -> Self:
        """Return a rational function with a small squared error to a function on the inputs of a layer.

        The least squares of the linearized quotient (Sanathanan & Koerner 1963) are the start of Levenberg-Marquardt;
        another local minimum may be smaller. Evenly spaced inputs in the interval have a weight of 1% together. See
        `AdaptiveActivation.fit` for `function`, `histogram`, `shape`, the residual and the errors.

        Args:
            function: As for `AdaptiveActivation.fit`.
            histogram: The inputs of the layer.
            shape: Shape of one parameter set.
            interval: (left, right); by default the bulk of the inputs (see `Histogram.bulk`), and 10% of its width more
                on either side.
            degrees: (m, n), each from 1 to 16.

        Raises:
            UserError: No input is in the interval, or another argument is not valid.

        Example:
            >>> inputs = torch.randn(10_000)
            >>> aafit.Rational.fit(F.gelu, aafit.Histogram.of(inputs)).residual.rms < 0.01
            True
        """
        _check_degrees(degrees)
        target = FitTarget.of(function, histogram, cls.family)
        left, right = interval_of_fit(interval, histogram, MARGIN, cls.family)
        inner = FitTarget.of(target.function, target.histogram.between(left, right).coarser(POINTS), cls.family)
        u_E, y_E, weight_E = inner.with_even_inputs(left, right, POINTS // 4, TAILS)
        starts = _linearized(u_E / _scale((left, right)), y_E, weight_E, degrees)
        own = cls(starts["numerator"][:1], starts["denominator"][:1], (left, right))

        def least_squares(starts: Mapping[str, Tensor]) -> LeastSquares:
            u_ES, y_ES = (x_E[:, None].expand(-1, len(starts["numerator"])).contiguous() for x_E in (u_E, y_E))
            return LeastSquares(own, starts, u_ES, y_ES, weight_E / weight_E.sum())

        tried = least_squares(starts)
        best_S = tried.errors(tried.at_SQ).argsort()[:BEST]
        squares = least_squares({name: x[best_S] for name, x in starts.items()})
        cost_S = squares.minimise(ITERATIONS, 1e-6, torch.full((len(best_S),), 1e-26, dtype=torch.float64))
        found = {name: x[cost_S.argmin()] for name, x in squares.parameters().items()}
        return cls._made(found, shape, target, interval=(left, right))

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """Return a rational function with these `settings()` and arbitrary coefficients."""
        (m, n), shape = settings["degrees"], settings["shape"]
        return cls(torch.zeros(*shape, m + 1), torch.zeros(*shape, n), tuple(settings["interval"]))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "degrees": list(self.degrees)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, degrees={self.degrees}"

    def powers(self) -> tuple[Tensor, Tensor]:
        """Return the coefficients of 1, u, u^2, ... in the numerator and of u, u^2, ... in the denominator.

        They have the shapes of `numerator` and `denominator`, in float64 on the CPU.
        """
        m, n = self.degrees
        scale = torch.tensor(_scale(self.interval), dtype=torch.float64)
        above, below = (p.detach().double().cpu() for p in (self.numerator, self.denominator))
        return above / scale ** torch.arange(m + 1), below / scale ** torch.arange(1, n + 1)

    def _formula_of(self, *parameters: Tensor) -> tuple[Formula, tuple[Tensor, ...], tuple[float, ...]]:
        numerator, denominator = parameters
        formula = _formula(numerator.shape[-1] - 1, denominator.shape[-1])
        return formula, (*numerator.unbind(-1), *denominator.unbind(-1)), (1 / _scale(self.interval),)


def _scale(interval: tuple[float, float]) -> float:
    return max(map(abs, interval))


def _linearized(z_E: Tensor, y_E: Tensor, weight_E: Tensor, degrees: tuple[int, int]) -> dict[str, Tensor]:
    """Return starts (S, N) by name: solutions of P - y (1 + Q) = 0, weighted by the denominators of the one before."""
    m, n = degrees
    powers_EN = z_E[:, None] ** torch.arange(max(m, n) + 1)
    root_E, below_E, found = weight_E.sqrt(), torch.zeros_like(z_E), []
    for _ in range(LINEARIZED):
        sign_E, scale_E = torch.where(below_E < 0, -1.0, 1.0), root_E / (1 + below_E.abs())
        matrix = torch.cat([powers_EN[:, : m + 1], -(y_E * sign_E)[:, None] * powers_EN[:, 1 : n + 1]], 1)
        system = matrix * scale_E[:, None], (y_E * scale_E)[:, None]
        found.append(torch.linalg.lstsq(*system, driver="gelsd").solution[:, 0])
        below_E = powers_EN[:, 1 : n + 1] @ found[-1][m + 1 :]
    polynomial = torch.linalg.lstsq(powers_EN[:, : m + 1] * root_E[:, None], (y_E * root_E)[:, None], driver="gelsd")
    # A denominator of exactly 1 has no derivative.
    found.append(torch.cat([polynomial.solution[:, 0], torch.full((n,), 1e-3, dtype=torch.float64)]))
    starts_SN = torch.stack(found)
    return {"numerator": starts_SN[:, : m + 1], "denominator": starts_SN[:, m + 1 :]}


def _check_degrees(degrees: tuple[int, int]) -> None:
    try:
        m, n = degrees
    except (TypeError, ValueError):
        raise UserError(f"Rational's degrees are two numbers (m, n), as (5, 4); got {degrees!r}.") from None
    for name, degree in (("numerator", m), ("denominator", n)):
        if check_count(f"degree of Rational's {name}", degree) > MOST_DEGREE:
            raise UserError(f"The degree of Rational's {name} must be at most {MOST_DEGREE}; got {degree}.")
