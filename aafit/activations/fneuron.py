"""The F-Neuron activation: a piecewise-linear function whose values at evenly spaced knots are trainable."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.base import AdaptiveActivation, TextOption, cast_parameter, check_shape
from aafit.activations.elementwise import check_input, compute_dtype
from aafit.activations.fitting import FitTarget, Residual, function_name, function_values
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram, bulk_of
from aafit.activations.interval import INTERVAL, PRECISION, SMALLEST, check_interval
from aafit.activations.linear_spline import Line, fit_intervals, fit_linear_spline, knots_between, spline_values
from aafit.errors import UserError, check_count, check_name

KNOTS = 18
MOST_KNOTS = 1 << 16
OUTSIDE = ("flat", "linear")

Interval = tuple[float, float] | Tensor
"""(left, right), or the left and the right ends of each parameter set, (2, *shape)."""


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
        interval: (left, right), the positions of the first and the last knot; or a tensor (2, *shape) with those of
            each parameter set.
        start: The name of what the weights imitate.
        outside: "flat" (constant outside the interval, as in the paper) or "linear" (the first and the last segment
            are extrapolated, which suits unbounded functions such as ReLU, SiLU and GELU).

    Attributes:
        interval: (left, right); with an interval for each parameter set, the smallest left and the largest right end.
        intervals: The ends of each parameter set, (2, *shape) in float32; None if all have the same.

    Raises:
        UserError: The interval is empty or not finite, there are fewer than three weights, a weight is not finite,
            `outside` is unknown, or (when called) the weights do not fit the input.

    The state_dict holds the weights, and as extra state the intervals and `outside`. Loading the state_dict of another
    F-Neuron sets all of them.

    Example:
        >>> f = aafit.FNeuron.like("Tanh", interval=(-2, 2), knots=5)
        >>> f.knot_positions.tolist()
        [-2.0, -1.0, 0.0, 1.0, 2.0]
        >>> f(torch.tensor([0.0, 9.0]))  # constant outside the interval
        tensor([0.0000, 0.9640], grad_fn=...)
    """

    family: ClassVar[str] = "F-Neuron"
    text_option: ClassVar[TextOption | None] = TextOption("knots", KNOTS, 3, MOST_KNOTS)
    _names: ClassVar[tuple[str, ...]] = ("weight",)
    likes: ClassVar[tuple[str, ...]] = tuple(FUNCTIONS)
    others: ClassVar[tuple[str, ...]] = ("random", "ramp", "constant")
    _own_dims: ClassVar[int] = 1

    weight: nn.Parameter
    interval: tuple[float, float]
    intervals: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        interval: Interval = INTERVAL,
        start: str = "custom",
        outside: str = "flat",
    ) -> None:
        super().__init__(weight, start=start)
        # Not persistent: the extra state has it, so that all F-Neurons have the same keys in a state_dict.
        self.register_buffer("intervals", None, persistent=False)
        self._set_interval(interval)
        self.outside = check_name("outside", outside, OUTSIDE)
        if self.weight.ndim < 2 or self.weight.shape[-1] < 3:
            raise UserError(
                "F-Neuron's weight must have the shape (*shape, knots) with at least 3 knots, e.g. (1, 18); got "
                f"{tuple(self.weight.shape)}."
            )

    @property
    def knots(self) -> int:
        """The number of knots N, which is also the number of values."""
        return self.weight.shape[-1]

    @property
    def knot_positions(self) -> Tensor:
        """The positions of the knots, (N,) or with an interval for each parameter set (*shape, N), in float64."""
        return knot_positions(self.interval if self.intervals is None else self.intervals, self.knots)

    @property
    def line(self) -> Line:
        """The interpolation between the knots, for inputs that `on_line` returns."""
        ends = self.interval if self.intervals is None else (0.0, self.knots - 1.0)
        return Line(*ends, self.outside == "linear")

    def on_line(self, u: Tensor) -> Tensor:
        """Return the inputs of `line`: u itself, or its position in the interval of its set, in numbers of segments."""
        if self.intervals is None:
            return u
        wide = self.intervals.double()
        dtype = compute_dtype(u, self.weight)
        scale = ((self.knots - 1) / (wide[1] - wide[0])).to(dtype)
        return (u.to(dtype) - wide[0].to(dtype)) * scale

    @classmethod
    def like(
        cls,
        function: str | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] = (1,),
        interval: Interval = INTERVAL,
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
            interval: (left, right), or those of each parameter set, (2, *shape); see the class.
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
        interval: Interval = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron with weights uniform in [-1, 1), drawn from the CPU `generator`.

        The other arguments are those of `like`.
        """
        size = knot_positions(interval, knots, pieces).shape[-1]
        weight = torch.rand((*check_shape(shape), size), generator=generator) * 2 - 1
        return cls(weight, interval, "random", outside)

    @classmethod
    def ramp(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: Interval = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron whose weights rise linearly from -1 to 1. The arguments are those of `like`."""
        size = knot_positions(interval, knots, pieces).shape[-1]
        return cls._repeated(torch.linspace(-1, 1, size, dtype=torch.float64), shape, interval, "ramp", outside)

    @classmethod
    def constant(
        cls,
        shape: tuple[int, ...] = (1,),
        interval: Interval = INTERVAL,
        *,
        knots: int = KNOTS,
        outside: str = "flat",
        pieces: int | None = None,
    ) -> Self:
        """Return an F-Neuron whose weights are all 1. The arguments are those of `like`."""
        size = knot_positions(interval, knots, pieces).shape[-1]
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
        size = knot_positions(interval or INTERVAL, knots, pieces).shape[-1]
        extrapolates = check_name("outside", outside, OUTSIDE) == "linear"
        target = FitTarget.of(function, histogram, cls.family)
        left, right = histogram.bulk()
        if interval is None:
            inner = target.within(left, right)
            ends = fit_intervals(inner.u_E[None], inner.y_E[None], inner.weight_E[None], size, extrapolates)
            interval = ends[0].item(), ends[1].item()
        inner = target.within(min(left, interval[0]), max(right, interval[1]))
        at_knots = function_values(target.function, knot_positions(interval, size), cls.family)
        ends = torch.tensor(interval, dtype=torch.float64)[:, None]
        rows = inner.u_E[None], inner.y_E[None], inner.weight_E[None]
        (values,) = fit_linear_spline(*rows, ends, extrapolates, at_knots[None])
        made = cls._repeated(values, shape, interval, target.name, outside)
        made.residual = target.residual(cls._repeated(values, (1,), interval, "", outside))
        return made

    @classmethod
    def fit_each(
        cls,
        function: Callable[[Tensor], Tensor],
        inputs_SE: Tensor,
        shape: tuple[int, ...],
        *,
        knots: int = KNOTS,
        outside: str = "flat",
    ) -> Self:
        """Return the F-Neuron with an interval for each parameter set, fitted to a function on the inputs of that set.

        The intervals and weights of a set are those of `fit` on its own inputs. A set whose inputs are all equal is
        fitted on the inputs of all sets. `residual` is over the inputs of all sets together.

        Args:
            function: Elementwise function of a float64 tensor (S, n); it may be another one for each row.
            inputs_SE: Inputs of each parameter set, such as a sample of them.
            shape: Shape of the parameter sets, of which there are S.
            knots: Number of knots, at least 3.
            outside: "flat" or "linear", see the class.

        Raises:
            UserError: The function is not elementwise or not finite on the inputs or at a knot, the inputs are not
                finite or all equal, or another argument is not valid.

        Example:
            >>> inputs = torch.tensor([[1.0], [100.0]]) * torch.randn(2, 500)
            >>> f = aafit.FNeuron.fit_each(torch.tanh, inputs, shape=(2,))
            >>> f.intervals.shape
            torch.Size([2, 2])
        """
        size = knot_positions(INTERVAL, knots).shape[-1]
        extrapolates = check_name("outside", outside, OUTSIDE) == "linear"
        u_SE = inputs_SE.detach().to("cpu", torch.float64).sort(1).values
        sets, count = u_SE.shape
        if sets != math.prod(check_shape(shape)):
            raise UserError(f"There are inputs of {sets} parameter sets, but the shape {shape} has others.")
        if not u_SE.isfinite().all() or u_SE.min() == u_SE.max():
            raise UserError(f"{cls.family} is fitted to finite inputs, at least two of them different.")
        equal_S = u_SE[:, 0] == u_SE[:, -1]
        if equal_S.any():
            u_SE[equal_S] = u_SE.flatten().sort().values[torch.linspace(0, u_SE.numel() - 1, count).long()]
        y_SE = function_values(function, u_SE, cls.family)
        bulks = [bulk_of(u_E, torch.ones_like(u_E)) for u_E in u_SE]
        left_S1, right_S1 = torch.tensor(bulks, dtype=torch.float64).T.unsqueeze(2)
        bulk_SE = (u_SE >= left_S1) & (u_SE <= right_S1)
        weight_SE = bulk_SE / bulk_SE.sum(1, keepdim=True).double()
        # Outliers weigh nothing, and must not be ends either.
        inner_SE = u_SE.clamp(
            u_SE.where(bulk_SE, torch.inf).amin(1, True), u_SE.where(bulk_SE, -torch.inf).amax(1, True)
        )
        ends_2S = fit_intervals(inner_SE, y_SE, weight_SE, size, extrapolates)
        # Wide enough for float32, see `check_interval`.
        least_S = (2 * PRECISION * ends_2S.abs().amax(0)).clamp(min=SMALLEST)
        lacking_S = (least_S - (ends_2S[1] - ends_2S[0])).clamp(min=0) / 2
        ends_2S = torch.stack([ends_2S[0] - lacking_S, ends_2S[1] + lacking_S]).float().double()
        own_SN = function_values(function, knots_between(ends_2S, size), cls.family)
        values_SN = fit_linear_spline(u_SE, y_SE, weight_SE, ends_2S, extrapolates, own_SN)
        ends = ends_2S.reshape(2, *shape)
        made = cls._repeated(values_SN.reshape(*shape, size), shape, ends, function_name(function), outside)
        error_SE = spline_values(u_SE, values_SN, ends_2S, extrapolates) - y_SE
        share_E = torch.full((u_SE.numel(),), 1 / u_SE.numel(), dtype=torch.float64)
        made.residual = Residual.of(error_SE.flatten(), y_SE.flatten(), share_E, bulk_SE.flatten())
        return made

    @classmethod
    def _repeated(cls, values: Tensor, shape: tuple[int, ...], interval: Interval, start: str, outside: str) -> Self:
        repeated = values.expand((*check_shape(shape), values.shape[-1]))
        return cls(cast_parameter(repeated, torch.get_default_dtype(), "F-Neuron's weight"), interval, start, outside)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        # Files of before 0.1.0 have the number of inner knots.
        knots = settings["knots"] if "knots" in settings else settings["pieces"] + 2
        ends, outside = settings["interval"], settings.get("outside", "flat")
        interval = torch.tensor(ends) if isinstance(ends[0], list) else tuple(ends)
        return cls.constant(settings["shape"], interval, knots=knots, outside=outside)

    def settings(self) -> dict[str, Any]:
        """Return all but the weights that `from_settings` needs to rebuild the activation, fit for JSON."""
        outside = {} if self.outside == "flat" else {"outside": self.outside}
        interval = list(self.interval) if self.intervals is None else self.intervals.tolist()
        return {**super().settings(), "interval": interval, "knots": self.knots, **outside}

    def extra_repr(self) -> str:
        outside = "" if self.outside == "flat" else f", outside={self.outside}"
        left, right = self.interval
        interval = f"interval=({left}, {right})" if self.intervals is None else f"intervals in ({left:g}, {right:g})"
        return f"{super().extra_repr()}, {interval}, knots={self.knots}{outside}"

    def get_extra_state(self) -> Tensor:
        """Return the left ends, the right ends, and whether the function extrapolates, in a tensor for safetensors."""
        ends = torch.tensor(self.interval) if self.intervals is None else self.intervals.flatten().cpu()
        return torch.cat([ends.double(), torch.tensor([self.outside == "linear"], dtype=torch.float64)])

    def set_extra_state(self, state: Tensor) -> None:
        """Set what `get_extra_state` returned.

        Raises:
            UserError: It is not such a tensor.
        """
        sizes = {3: (2,), 2 * math.prod(self.shape) + 1: (2, *self.shape)}
        if not isinstance(state, Tensor) or state.ndim != 1 or len(state) not in sizes:
            raise UserError(
                f"The extra state of an F-Neuron of shape {self.shape} has {' or '.join(map(str, sizes))} numbers: the "
                f"ends of its intervals, and whether it extrapolates. Got {state!r}."
            )
        self._set_interval(state[:-1].reshape(sizes[len(state)]))
        self.outside = OUTSIDE[int(state[-1].item() != 0)]

    def _set_interval(self, interval: Interval) -> None:
        if not isinstance(interval, Tensor) or interval.numel() == 2:
            self.interval, self.intervals = check_interval(interval, "F-Neuron"), None
            return
        if interval.shape != (2, *self.shape):
            raise UserError(
                f"The intervals of an F-Neuron whose parameter sets have the shape {self.shape} need the shape "
                f"{(2, *self.shape)}; got {tuple(interval.shape)}."
            )
        for ends in interval.detach().reshape(2, -1).T.tolist():
            check_interval(ends, "F-Neuron")
        self.intervals = interval.detach().to(self.weight.device, torch.float32)
        self.interval = self.intervals[0].min().item(), self.intervals[1].max().item()

    def is_outside(self, u: Tensor) -> Tensor:
        """Return which inputs are outside the interval, a bool tensor of the shape of `u`."""
        left, right = self.interval if self.intervals is None else self.intervals
        return (u < left) | (u > right)

    def by_column(self, u_ES: Tensor, read: Callable[[Tensor], Tensor]) -> tuple[Self, Tensor]:
        if self.intervals is None:
            return self, u_ES
        ends_S2 = read(self.intervals.movedim(0, -1).double()).to(u_ES.device)
        left_S, width_S = ends_S2[:, 0], ends_S2.diff(dim=1)[:, 0]
        segments = self.knots - 1.0
        shared = type(self)(self.weight.detach().reshape(-1, self.knots)[:1], (0.0, segments), self.start, self.outside)
        return shared, (u_ES - left_S) * (segments / width_S)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        intervals = self.intervals
        super()._apply(fn, recurse)
        if intervals is not None and self.intervals is not None:
            # In bfloat16 the knots would move.
            self.intervals = intervals.to(self.intervals.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of before 0.1.0 and networks of runs hold the weights alone.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        check_input(input, self.shape, self.family)
        if self.intervals is None:
            return self.line(input, self.weight)
        return self.line(self.on_line(input), self.weight).to(input.dtype)


def knot_positions(interval: Interval, knots: int, pieces: int | None = None) -> Tensor:
    """Return the positions of the knots of an F-Neuron, (knots,) or (*shape, knots) in float64 on the CPU.

    Raises:
        UserError: The interval is not finite or empty, `knots` is not an integer of at least 3, or `pieces` is given.
    """
    if pieces is not None:
        inner = pieces if isinstance(pieces, int) else 16
        raise UserError(
            f"F-Neuron counts its knots, the values between which it is linear: write knots={inner + 2} instead of "
            f"pieces={pieces!r}."
        )
    if check_count("number of knots of F-Neuron", knots, 3) > MOST_KNOTS:
        raise UserError(f"The number of knots of F-Neuron must be at most {MOST_KNOTS:,}; got {knots:,}.")
    if isinstance(interval, Tensor) and interval.ndim > 1:
        ends = interval.detach().to("cpu", torch.float64)
        return knots_between(ends.reshape(2, -1), knots).reshape(*ends.shape[1:], knots)
    left, right = check_interval(interval, "F-Neuron")
    return torch.linspace(left, right, knots, dtype=torch.float64)
