"""The F-Neuron activation: a piecewise-linear function whose values at equal distances are learnt."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, check_shape, fitted
from aafit.activations.elementwise import check_input
from aafit.activations.fitting import (
    best_interval,
    fit_linear_spline,
    function_name,
    function_values,
    points_of,
    residual,
)
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.activations.piecewise_linear import Line, interpolate
from aafit.errors import UserError, check_name

OUTSIDE = ("flat", "linear")
PIECES = 16


class FNeuron(AdaptiveActivation):
    """The F-Neuron activation, the sum of weight_i * membership_i(u) over n + 2 fuzzy sets on [left, right].

    The centres are left + i * r for i = 0..n+1 with the radius r = (right - left) / (n + 1), n = `pieces`. The n inner
    memberships are triangles max(0, 1 - |u - centre| / r), the two outer ones stay 1 beyond the interval. Their sum is
    1, so the function is the straight line between the weights of the two nearest centres, and flat outside the
    interval: it is computed as that, at a cost that does not depend on n. The gradient by u is 0 where it is flat.

    So `pieces` = 16 makes 17 straight lines between 18 values; the same is asked for by `knots` = 18. With `outside` =
    "linear" the first and the last of these lines go on beyond the interval instead, which suits functions that grow,
    as ReLU, SiLU and GELU.

    A state_dict holds `weight` alone: `interval` and `outside` are settings. So build the same F-Neuron before you load
    one, or take `save_activations` and `load_activations`, which keep them.

    Input (B, *...) of any floating-point dtype, output of the same shape and dtype. `weight` has the shape
    (*shape, n + 2), with the shape (1,) where a layer shares it, else one that broadcasts against the input's trailing
    dimensions.

    As f it equals f at the centres; inside the interval it differs by at most r^2 / 8 * max|f''| for a smooth f, and by
    r / 4 * |jump of f'| at a kink midway between two centres; outside by |f(u) - f(end)|. On [-4, 4] with 16 pieces
    that is at most, for any input, Tanh 0.0192, Sigmoid 0.018 (inside the interval 0.0027), HardTanh 0.111,
    HardSigmoid 0.0086, and inside the interval only ReLU 0.118, SiLU 0.0138; float16 and bfloat16 add one rounding.

    Source: Bodyanskiy & Kostiuk (2022), Deep neural network based on F-neurons and its learning,
    https://doi.org/10.21203/rs.3.rs-2032768/v1

    Raises:
        UserError: the interval is not finite or is empty, the weights are fewer than three or not finite, `outside` is
            neither "flat" nor "linear", or (when called) the weights do not fit the input.
    """

    family: ClassVar[str] = "F-Neuron"
    likes: ClassVar[tuple[str, ...]] = tuple(FUNCTIONS)
    others: ClassVar[tuple[str, ...]] = ("random", "ramp", "constant")
    _own_dims: ClassVar[int] = 1

    weight: nn.Parameter

    def __init__(
        self,
        weight: Tensor,
        interval: tuple[float, float] = (-4.0, 4.0),
        start: str = "custom",
        outside: str = "flat",
    ) -> None:
        super().__init__(weight, start=start)
        self.interval = _check_interval(interval)
        self.outside = check_name("outside", outside, OUTSIDE)
        if self.weight.ndim < 2 or self.weight.shape[-1] < 3:
            raise UserError(
                "F-Neuron's weight must have the shape (*shape, pieces + 2) with at least one piece, e.g. (1, 18); "
                f"got {tuple(self.weight.shape)}."
            )

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """The one parameter, "weight"."""
        return ("weight",)

    @property
    def pieces(self) -> int:
        """The number n of inner membership functions: n + 1 straight lines between n + 2 values."""
        return self.weight.shape[-1] - 2

    @property
    def knots(self) -> int:
        """The number of values, pieces + 2."""
        return self.weight.shape[-1]

    @property
    def line(self) -> Line:
        """Where the values lie, and how it goes on beyond them."""
        return Line(*self.interval, self.outside == "linear")

    @property
    def centres(self) -> Tensor:
        """The n + 2 centres, in float64 on the CPU."""
        return centres(self.interval, self.pieces)

    @classmethod
    def like(
        cls,
        function: str | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int | None = None,
        *,
        knots: int | None = None,
        outside: str = "flat",
    ) -> Self:
        """F-Neuron that starts with the values of a function at its centres.

        Args:
            function: "ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid", or any elementwise function of a
                tensor, such as torch.sin.
            shape: Shape of one parameter set, see the class.
            interval: (left, right).
            pieces: Number n of inner membership functions, 16 by default: 17 straight lines between 18 values.
            knots: The number of values instead, n + 2.
            outside: "flat" or "linear", see the class.

        Raises:
            UserError: an unknown name, a function that is not elementwise or not finite, or a bad shape, interval or
                number of pieces; pieces and knots that disagree.
        """
        at = centres(interval, _pieces(pieces, knots))
        if isinstance(function, str):
            name = check_name("start of F-Neuron", function, cls.likes)
            values = FUNCTIONS[name](at)
        elif callable(function):
            name = function_name(function)
            values = function_values(function, at, cls.family)
        else:
            raise UserError(f"F-Neuron can start as the name of a function or as a function; got {function!r}.")
        return cls._repeated(values, shape, interval, name, outside)

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...] = (1,),
        generator: torch.Generator | None = None,
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int | None = None,
        *,
        knots: int | None = None,
        outside: str = "flat",
    ) -> Self:
        """F-Neuron with weights uniform in [-1, 1), drawn from the CPU `generator`; other arguments as `like` has."""
        size = len(centres(interval, _pieces(pieces, knots)))
        weight = torch.rand((*check_shape(shape), size), generator=generator) * 2 - 1
        return cls(weight, interval, "random", outside)

    @classmethod
    def ramp(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int | None = None,
        *,
        knots: int | None = None,
        outside: str = "flat",
    ) -> Self:
        """F-Neuron whose weights rise evenly from -1 to 1; arguments as `like` has."""
        size = len(centres(interval, _pieces(pieces, knots)))
        return cls._repeated(torch.linspace(-1, 1, size, dtype=torch.float64), shape, interval, "ramp", outside)

    @classmethod
    def constant(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int | None = None,
        *,
        knots: int | None = None,
        outside: str = "flat",
    ) -> Self:
        """F-Neuron whose weights are all 1; arguments as `like` has."""
        size = len(centres(interval, _pieces(pieces, knots)))
        return cls._repeated(torch.ones(size, dtype=torch.float64), shape, interval, "constant", outside)

    @classmethod
    def _repeated(
        cls, values: Tensor, shape: tuple[int, ...], interval: tuple[float, float], start: str, outside: str
    ) -> Self:
        repeated = values.expand((*check_shape(shape), len(values)))
        return cls(fitted(repeated, torch.get_default_dtype(), "F-Neuron's weight"), interval, start, outside)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """One with these `settings()` and some values; without "outside" it is flat there."""
        options = {"interval": tuple(settings["interval"]), "pieces": settings["pieces"]}
        return cls.constant(settings["shape"], **options, outside=settings.get("outside", "flat"))

    @classmethod
    def fit(
        cls,
        function: str | Callable[[Tensor], Tensor],
        histogram: Histogram,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] | None = None,
        pieces: int | None = None,
        *,
        knots: int | None = None,
        outside: str = "flat",
    ) -> Self:
        """F-Neuron that is as near to a function as it can be on the inputs that a layer sees.

        The weights are the least squares over the inputs; where there are none, the function's own values. See
        `AdaptiveActivation.fit` for what is the same there.

        Args:
            function: as for `AdaptiveActivation.fit`.
            histogram: as there.
            shape: as there.
            interval: (left, right); by default the one with the least error, within that of the inputs.
            pieces: Number n of inner membership functions, 16 by default: 17 straight lines between 18 values.
            knots: The number of values instead, n + 2.
            outside: "flat" or "linear", see the class.
        """
        size = len(centres(interval or (-1.0, 1.0), _pieces(pieces, knots)))
        extended = check_name("outside", outside, OUTSIDE) == "linear"
        target = FUNCTIONS[check_name("function", function, FUNCTIONS)] if isinstance(function, str) else function
        u_E, weight_E = points_of(histogram, cls.family)
        y_E = function_values(target, u_E, cls.family)
        if interval is None:
            interval = best_interval(u_E, y_E, weight_E, size, extended)
        own = function_values(target, centres(interval, size - 2), cls.family)
        values = fit_linear_spline(u_E, y_E, weight_E, Line(*interval, extended), own)
        made = cls._repeated(values, shape, interval, function_name(function), outside)
        made.residual = residual(cls._repeated(values, (1,), interval, "", outside), u_E, y_E, weight_E)
        return made

    def settings(self) -> dict[str, Any]:
        """All that rebuilds it, by `from_settings`, except for the weights' values; fit for JSON."""
        outside = {} if self.outside == "flat" else {"outside": self.outside}
        return {**super().settings(), "interval": list(self.interval), "pieces": self.pieces, **outside}

    def extra_repr(self) -> str:
        """The start, the interval, the number of pieces (17 straight lines where it is 16), and what is outside."""
        outside = "" if self.outside == "flat" else f", outside={self.outside}"
        return f"{super().extra_repr()}, interval={self.interval}, pieces={self.pieces}{outside}"

    def forward(self, u: Tensor) -> Tensor:
        """F-Neuron(u), elementwise."""
        check_input(u, self.shape, self.family)
        return interpolate(u, self.weight, self.line)


def centres(interval: tuple[float, float], pieces: int) -> Tensor:
    """The centres of F-Neuron's membership functions, shape (pieces + 2,), in float64: 18 for 16 pieces.

    Raises:
        UserError: the interval is not finite or is empty, or pieces is not a positive integer.
    """
    left, right = _check_interval(interval)
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1:
        raise UserError(f"F-Neuron needs at least 1 piece, a whole number; got {pieces!r}.")
    return torch.linspace(left, right, pieces + 2, dtype=torch.float64)


def _pieces(pieces: int | None, knots: int | None) -> int:
    """The number of pieces from either; 16 where neither is given."""
    if knots is None:
        return PIECES if pieces is None else pieces
    if isinstance(knots, bool) or not isinstance(knots, int) or knots < 3:
        raise UserError(f"F-Neuron needs at least 3 knots, a whole number; got {knots!r}.")
    if pieces is not None and pieces != knots - 2:
        raise UserError(
            f"{pieces!r} pieces make {pieces + 2 if isinstance(pieces, int) else '?'} knots, not {knots}: give one of "
            "the two, or knots = pieces + 2."
        )
    return knots - 2


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    try:
        left, right = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise UserError(f"F-Neuron's interval must be two numbers (left, right); got {interval!r}.") from None
    if not (math.isfinite(left) and math.isfinite(right) and left < right):
        raise UserError(f"F-Neuron's interval needs finite ends with left < right; got ({left:g}, {right:g}).")
    return left, right
