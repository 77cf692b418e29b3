"""The F-Neuron activation: a piecewise-linear function whose values at evenly spaced knots are trainable."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, cast_parameter, check_shape
from aafit.activations.elementwise import check_input
from aafit.activations.fitting import FitTarget, fit_interval, fit_linear_spline, function_name, function_values
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.activations.interval import INTERVAL, check_interval
from aafit.activations.piecewise_linear import Line
from aafit.errors import UserError, check_count, check_name

KNOTS = 18
MOST_KNOTS = 1 << 16
OUTSIDE = ("flat", "linear")


class FNeuron(AdaptiveActivation):
    """The F-Neuron activation: linear interpolation between trainable values at evenly spaced knots.

    F-Neuron(u) = sum_i weight_i * membership_i(u), with one fuzzy set for each of the N knots left + i * r, where
    i = 0..N-1 and r = (right - left) / (N - 1). The inner memberships are the triangles max(0, 1 - |u - knot_i| / r);
    the first and the last one stay 1 beyond the interval. They sum to 1, so the function is linear between neighbouring
    knots and constant outside [left, right]. Its cost does not depend on N.

    The default of 18 knots (17 segments) is the paper's n = 16 inner memberships.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. `weight` has the shape
    (*shape, N), where `shape` is (1,) if one function serves the layer, otherwise it broadcasts against the trailing
    dimensions of the input.

    `FNeuron.like(f)` equals f at the knots. Between them it differs by at most r^2 / 8 * max|f''| for a smooth f, and
    by r / 4 * |jump of f'| at a kink midway between two knots; outside the interval by |f(u) - f(end)|. With the
    default interval and knots the largest difference over all inputs is 0.0192 for Tanh, 0.018 for Sigmoid (0.0027
    inside the interval), 0.111 for HardTanh and 0.0086 for HardSigmoid; inside the interval it is 0.118 for ReLU and
    0.0138 for SiLU. float16 and bfloat16 add one rounding.

    Source: Bodyanskiy & Kostiuk (2022), Deep neural network based on F-neurons and its learning,
    https://doi.org/10.21203/rs.3.rs-2032768/v1

    Args:
        weight: The values at the knots, (*shape, N) with N of at least 3.
        interval: (left, right), the positions of the first and the last knot.
        start: The name of what the weights imitate.
        outside: "flat" (constant outside the interval, as in the paper) or "linear" (the first and the last segment
            are extrapolated, which suits unbounded functions such as ReLU, SiLU and GELU).

    Raises:
        UserError: The interval is empty or not finite, there are fewer than three weights, a weight is not finite,
            `outside` is unknown, or (when called) the weights do not fit the input.

    The state_dict holds the weights, and as extra state the interval and `outside`. Loading the state_dict of another
    F-Neuron sets all of them.

    Example:
        >>> f = aafit.FNeuron.like("Tanh", interval=(-2, 2), knots=5)
        >>> f.knot_positions.tolist()
        [-2.0, -1.0, 0.0, 1.0, 2.0]
        >>> f(torch.tensor([0.0, 9.0]))  # constant outside the interval
        tensor([0.0000, 0.9640], grad_fn=...)
    """

    family: ClassVar[str] = "F-Neuron"
    likes: ClassVar[tuple[str, ...]] = tuple(FUNCTIONS)
    others: ClassVar[tuple[str, ...]] = ("random", "ramp", "constant")
    _own_dims: ClassVar[int] = 1

    weight: nn.Parameter

    def __init__(
        self,
        weight: Tensor,
        interval: tuple[float, float] = INTERVAL,
        start: str = "custom",
        outside: str = "flat",
    ) -> None:
        super().__init__(weight, start=start)
        self.interval = check_interval(interval, "F-Neuron")
        self.outside = check_name("outside", outside, OUTSIDE)
        if self.weight.ndim < 2 or self.weight.shape[-1] < 3:
            raise UserError(
                "F-Neuron's weight must have the shape (*shape, knots) with at least 3 knots, e.g. (1, 18); got "
                f"{tuple(self.weight.shape)}."
            )

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Return the name of the only parameter, "weight"."""
        return ("weight",)

    @property
    def knots(self) -> int:
        """The number of knots N, which is also the number of values."""
        return self.weight.shape[-1]

    @property
    def knot_positions(self) -> Tensor:
        """The positions of the knots, (N,) in float64 on the CPU."""
        return knot_positions(self.interval, self.knots)

    @property
    def line(self) -> Line:
        """The interpolation between the knots."""
        return Line(*self.interval, self.outside == "linear")

    @classmethod
    def like(
        cls,
        function: str | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron that interpolates a function: its weights are the function's values at the knots.

        Args:
            function: "ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid", or any elementwise function of a
                tensor, such as torch.sin.
            shape: Shape of the parameter sets, see the class.
            interval: (left, right), see the class.
            knots: Number of knots, at least 3.
            outside: "flat" or "linear", see the class.
            pieces: No longer in use; the error names the number of knots.

        Raises:
            UserError: The name is unknown, the function is not elementwise or not finite at a knot, or another
                argument is not valid.
        """
        positions = knot_positions(interval, knots, pieces)
        if isinstance(function, str):
            name = check_name("start of F-Neuron", function, cls.likes)
            values = FUNCTIONS[name](positions)
        elif callable(function):
            name = function_name(function)
            values = function_values(function, positions, cls.family)
        else:
            raise UserError(f"F-Neuron can start as the name of a function or as a function; got {function!r}.")
        return cls._repeated(values, shape, interval, name, outside)

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...] = (1,),
        generator: torch.Generator | None = None,
        interval: tuple[float, float] = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron with weights uniform in [-1, 1), drawn from the CPU `generator`.

        The other arguments are those of `like`.
        """
        size = len(knot_positions(interval, knots, pieces))
        weight = torch.rand((*check_shape(shape), size), generator=generator) * 2 - 1
        return cls(weight, interval, "random", outside)

    @classmethod
    def ramp(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron whose weights rise linearly from -1 to 1. The arguments are those of `like`."""
        size = len(knot_positions(interval, knots, pieces))
        return cls._repeated(torch.linspace(-1, 1, size, dtype=torch.float64), shape, interval, "ramp", outside)

    @classmethod
    def constant(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron whose weights are all 1. The arguments are those of `like`."""
        size = len(knot_positions(interval, knots, pieces))
        return cls._repeated(torch.ones(size, dtype=torch.float64), shape, interval, "constant", outside)

    @classmethod
    def fit(
        cls,
        function: str | Callable[[Tensor], Tensor],
        histogram: Histogram,
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] | None = None,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return the F-Neuron with the least squared error to a function on the inputs of a layer.

        A knot that no input reaches keeps the function's value. See `AdaptiveActivation.fit` for `function`,
        `histogram`, `shape`, the residual and the errors, and `like` for the other arguments.

        Args:
            interval: (left, right); by default the interval within the bulk of the inputs that leaves the least error
                there. Outliers do not count, see `Histogram.bulk`; `residual` reports the error on them.

        Example:
            >>> inputs = torch.randn(10_000)
            >>> f = aafit.FNeuron.fit(F.gelu, aafit.Histogram.of(inputs), knots=34, outside="linear")
            >>> f.residual.rms < 1e-3
            True
        """
        size = len(knot_positions(interval or INTERVAL, knots, pieces))
        extrapolates = check_name("outside", outside, OUTSIDE) == "linear"
        target = FitTarget.of(function, histogram, cls.family)
        left, right = histogram.bulk()
        if interval is None:
            inner = target.within(left, right)
            interval = fit_interval(inner.u_E, inner.y_E, inner.weight_E, size, extrapolates)
        inner = target.within(min(left, interval[0]), max(right, interval[1]))
        at_knots = function_values(target.function, knot_positions(interval, size), cls.family)
        line = Line(*interval, extrapolates)
        values = fit_linear_spline(inner.u_E, inner.y_E, inner.weight_E, line, at_knots)
        made = cls._repeated(values, shape, interval, target.name, outside)
        made.residual = target.residual(cls._repeated(values, (1,), interval, "", outside))
        return made

    @classmethod
    def _repeated(
        cls, values: Tensor, shape: tuple[int, ...], interval: tuple[float, float], start: str, outside: str
    ) -> Self:
        repeated = values.expand((*check_shape(shape), len(values)))
        return cls(cast_parameter(repeated, torch.get_default_dtype(), "F-Neuron's weight"), interval, start, outside)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        # Files of before 0.1.0 have the number of inner knots.
        knots = settings["knots"] if "knots" in settings else settings["pieces"] + 2
        outside = settings.get("outside", "flat")
        return cls.constant(settings["shape"], tuple(settings["interval"]), knots=knots, outside=outside)

    def settings(self) -> dict[str, Any]:
        """Return all but the weights that `from_settings` needs to rebuild the activation, fit for JSON."""
        outside = {} if self.outside == "flat" else {"outside": self.outside}
        return {**super().settings(), "interval": list(self.interval), "knots": self.knots, **outside}

    def extra_repr(self) -> str:
        outside = "" if self.outside == "flat" else f", outside={self.outside}"
        return f"{super().extra_repr()}, interval={self.interval}, knots={self.knots}{outside}"

    def get_extra_state(self) -> Tensor:
        """Return the interval and whether the function extrapolates, as a tensor that safetensors can store."""
        return torch.tensor([*self.interval, self.outside == "linear"], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set what `get_extra_state` returned.

        Raises:
            UserError: It is not such a tensor.
        """
        values = state.tolist() if isinstance(state, Tensor) and state.shape == (3,) else [0.0, 0.0, 0.0]
        self.interval = check_interval((values[0], values[1]), "F-Neuron")
        self.outside = OUTSIDE[int(values[2] != 0)]

    def is_outside(self, u: Tensor) -> Tensor:
        """Return which inputs are outside the interval, a bool tensor of the shape of `u`."""
        left, right = self.interval
        return (u < left) | (u > right)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of before 0.1.0 and networks of runs hold the weights alone.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        check_input(input, self.shape, self.family)
        return self.line(input, self.weight)


def knot_positions(interval: tuple[float, float], knots: int, pieces: int | None = None) -> Tensor:
    """Return the positions of the knots of an F-Neuron, (knots,) in float64.

    Raises:
        UserError: The interval is not finite or empty, `knots` is not an integer of at least 3, or `pieces` is given.
    """
    if pieces is not None:
        inner = pieces if isinstance(pieces, int) else 16
        raise UserError(
            f"F-Neuron counts its knots, the values between which it is linear: write knots={inner + 2} instead of "
            f"pieces={pieces!r}."
        )
    left, right = check_interval(interval, "F-Neuron")
    if check_count("number of knots of F-Neuron", knots, 3) > MOST_KNOTS:
        raise UserError(f"The number of knots of F-Neuron must be at most {MOST_KNOTS:,}; got {knots:,}.")
    return torch.linspace(left, right, knots, dtype=torch.float64)
