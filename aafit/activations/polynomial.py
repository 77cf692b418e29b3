"""A polynomial with trainable coefficients, in a Chebyshev basis."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from aafit.activations.base import TextOption
from aafit.activations.elementwise import Formula
from aafit.activations.fitting import FitTarget
from aafit.activations.histogram import Histogram
from aafit.activations.interval import INTERVAL, IntervalActivation, interval_of_fit
from aafit.errors import UserError, check_count

DEGREE, MOST_DEGREE = 8, 64
MARGIN, TAILS = 0.1, 0.01


def _forward(u: Tensor, *values: Tensor) -> Tensor:
    *c, scale, shift = values
    z = u * scale + shift
    # Clenshaw's recurrence.
    one, two = torch.zeros_like(z), torch.zeros_like(z)
    for coefficient in reversed(c[1:]):
        one, two = coefficient + 2 * z * one - two, one
    return c[0] + z * one - two


def _backward(grad: Tensor, u: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    *c, scale, shift = values
    z = u * scale + shift
    # Chebyshev's polynomials of the first and the second kind: the derivative of the first is k * U_(k - 1).
    first, before = z, torch.ones_like(z)
    second, below = torch.ones_like(z), torch.zeros_like(z)
    by_c, slope = [grad], torch.zeros_like(z)
    for k, coefficient in enumerate(c[1:], start=1):
        by_c.append(grad * first)
        slope = slope + k * coefficient * second
        first, before = 2 * z * first - before, first
        second, below = 2 * z * second - below, second
    by_z = grad * slope
    return by_z * scale, *by_c, by_z * u, by_z


FORMULA = Formula(_forward, _backward)


class Polynomial(IntervalActivation):
    """A polynomial of degree n, in a Chebyshev basis on an interval taken from the inputs.

    Polynomial(u) = sum_k coefficient_k * T_k(z), k = 0..n, with z = (2 u - left - right) / (right - left) and
    T_k(cos t) = cos(k t). Every T_k is within [-1, 1] on the interval, so that the coefficients are of one scale, which
    powers of u are not. `powers()` returns the coefficients of 1, u, u^2, ... instead.

    Outside the interval the same polynomial is evaluated, without a clamp, as in encrypted inference: it grows like
    u^n, and overflows to infinity or NaN for very large inputs. `is_outside` finds such inputs, and `aafit.audit`
    reports their share. The fit can be weighted towards the tails of the inputs, see `fit`.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `coefficients` has the
    shape (*shape, n + 1), where `shape` is (1,) if one polynomial serves the layer, otherwise it broadcasts against the
    trailing dimensions of the input. The arithmetic is done in at least float32.

    Source: Clenshaw (1955), A note on the summation of Chebyshev series, https://doi.org/10.1090/S0025-5718-1955-0071856-0

    Args:
        coefficients: Of T_0 to T_n, (*shape, n + 1) with n of at least 1.
        interval: (left, right), for which z is -1 and 1.
        start: The name of what the polynomial imitates.

    Raises:
        UserError: The interval is empty or not finite, the degree is below 1 or above 64, a coefficient is not finite,
            or (when called) the coefficients do not fit the input.

    Example:
        >>> f = aafit.Polynomial(torch.tensor([[0.5, 0.0, 0.5]]), interval=(-2.0, 2.0))  # (u / 2)^2
        >>> f(torch.tensor([1.0, 4.0])).tolist()
        [0.25, 4.0]
        >>> f.powers().tolist()
        [[0.0, 0.0, 0.25]]
    """

    family: ClassVar[str] = "Polynomial"
    text_option: ClassVar[TextOption | None] = TextOption("degree", DEGREE, 1, MOST_DEGREE)
    _names: ClassVar[tuple[str, ...]] = ("coefficients",)

    coefficients: nn.Parameter

    def __init__(self, coefficients: Tensor, interval: tuple[float, float] = INTERVAL, start: str = "custom") -> None:
        super().__init__(coefficients, interval=interval, start=start)
        if self.coefficients.ndim < 2:
            raise UserError(
                "Polynomial's coefficients must have the shape (*shape, degree + 1), e.g. (1, 9); got "
                f"{tuple(self.coefficients.shape)}."
            )
        _check_degree(self.degree)

    @property
    def degree(self) -> int:
        """The degree n."""
        return self.coefficients.shape[-1] - 1

    @classmethod
    def fit(
        cls,
        function: str | Callable[[Tensor], Tensor],
        histogram: Histogram,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] | None = None,
        *,
        degree: int = DEGREE,
        margin: float = MARGIN,
        tails: float = TAILS,
    ) -> Self:
        """Return the polynomial with the least squared error to a function on the inputs of a layer.

        The error is the mean over the inputs plus `tails` times the mean over evenly spaced inputs in the interval: a
        polynomial that is fitted to the inputs alone may be far off where inputs are rare. See `AdaptiveActivation.fit`
        for `function`, `histogram`, `shape`, the residual and the errors.

        Args:
            function: As for `AdaptiveActivation.fit`.
            histogram: The inputs of the layer.
            shape: Shape of one parameter set.
            interval: (left, right); by default the bulk of the inputs (see `Histogram.bulk`) with a margin.
            degree: The degree, from 1 to 64.
            margin: Width that the default interval has beyond the bulk on either side, as a share of the bulk's width.
            tails: Weight of the evenly spaced inputs, at least 0.

        Raises:
            UserError: No input is in the interval, or another argument is not valid.

        Example:
            >>> inputs = torch.randn(10_000)
            >>> f = aafit.Polynomial.fit(F.gelu, aafit.Histogram.of(inputs), degree=4)
            >>> f.residual.rms < 0.05
            True
        """
        _check_degree(degree)
        if isinstance(tails, bool) or not isinstance(tails, (int, float)) or not 0 <= tails < float("inf"):
            raise UserError(f"The weight of Polynomial's tails must be a number of at least 0; got {tails!r}.")
        target = FitTarget.of(function, histogram, cls.family)
        left, right = interval_of_fit(interval, histogram, margin, cls.family)
        inner = target.within(left, right)
        u_E, y_E, weight_E = inner.with_even_inputs(left, right, 40 * (degree + 1), max(tails, 1e-12))
        root_E = weight_E.sqrt()
        z_E = (2 * u_E - left - right) / (right - left)
        basis_EN = torch.from_numpy(np.polynomial.chebyshev.chebvander(z_E.numpy(), degree))
        found_N = torch.linalg.lstsq(basis_EN * root_E[:, None], (y_E * root_E)[:, None], driver="gelsd").solution[:, 0]
        return cls._made({"coefficients": found_N}, shape, target, interval=(left, right))

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """Return a polynomial with these `settings()` and arbitrary coefficients."""
        sizes = (*settings["shape"], settings["degree"] + 1)
        return cls(torch.zeros(sizes), tuple(settings["interval"]))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "degree": self.degree}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, degree={self.degree}"

    def powers(self) -> Tensor:
        """Return the coefficients of 1, u, u^2, ..., (*shape, n + 1) in float64 on the CPU."""
        left, right = self.interval
        rows = []
        for own in self.coefficients.detach().double().cpu().reshape(-1, self.degree + 1).numpy():
            powers = np.polynomial.Chebyshev(own, domain=[left, right]).convert(kind=np.polynomial.Polynomial).coef
            rows.append(np.pad(powers, (0, self.degree + 1 - len(powers))))
        return torch.from_numpy(np.stack(rows)).reshape(self.coefficients.shape)

    def _formula_of(self, *parameters: Tensor) -> tuple[Formula, tuple[Tensor, ...], tuple[float, ...]]:
        left, right = self.interval
        constants = 2 / (right - left), -(left + right) / (right - left)
        return FORMULA, parameters[0].unbind(-1), constants


def _check_degree(degree: int) -> None:
    if check_count("degree of Polynomial", degree) > MOST_DEGREE:
        raise UserError(f"The degree of Polynomial must be at most {MOST_DEGREE}; got {degree}.")
