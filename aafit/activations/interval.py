"""The interval of inputs for which an activation is made, and the base class of the families that have one."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from aafit.activations.base import AdaptiveActivation, cast_parameter, check_shape
from aafit.activations.elementwise import Formula, apply_formula, check_input, compute_dtype
from aafit.activations.fitting import FitTarget, function_name
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.errors import UserError, check_name

INTERVAL = (-4.0, 4.0)
LARGEST, SMALLEST, PRECISION = 1e30, 1e-30, 1e-5
"""Bounds of the ends of an interval and of its width, absolute and relative to the ends."""
EVEN = 1024
"""Evenly spaced inputs over an interval to which a start is fitted."""


class IntervalActivation(AdaptiveActivation):
    """An adaptive activation that is made for the inputs in an interval, and has vectors of parameters.

    The state_dict holds the parameters, and the interval as extra state. Subclasses define `family`, `_names`, `fit`
    and `_formula_of`.

    Attributes:
        interval: (left, right). Inputs outside it are computed by the same formula.
    """

    likes: ClassVar[tuple[str, ...]] = tuple(FUNCTIONS)
    _own_dims: ClassVar[int] = 1

    def __init__(self, *values: Tensor, interval: tuple[float, float] = INTERVAL, start: str = "custom") -> None:
        super().__init__(*values, start=start)
        self.interval = check_interval(interval, self.family)

    # Any function is a start, not only a name.
    @classmethod
    def like(  # type: ignore[override]
        cls,
        function: str | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = INTERVAL,
        **options: Any,
    ) -> Self:
        """Return the activation with the least squared error to a function over an interval, evenly weighted.

        Args:
            function: One of `likes`, or any elementwise function of a tensor, such as torch.sin.
            shape: Shape of the parameter sets, see the class.
            interval: (left, right), see the class.
            **options: Further arguments of `fit`.

        Raises:
            UserError: The name is unknown, the function is not elementwise or not finite in the interval, or another
                argument is not valid.
        """
        if isinstance(function, str):
            check_name(f"start of {cls.family}", function, cls.likes)
        elif not callable(function):
            raise UserError(f"{cls.family} can start as the name of a function or as a function; got {function!r}.")
        left, right = check_interval(interval, cls.family)
        edges = torch.linspace(left, right, EVEN + 1, dtype=torch.float64)
        fit: Any = cls.fit
        options = {**cls._start_options(left, right), **options}
        made: Self = fit(function, Histogram(edges, torch.ones(EVEN)), shape, interval=(left, right), **options)
        made.start, made.residual = function_name(function), None
        return made

    @classmethod
    def _start_options(cls, left: float, right: float) -> dict[str, Any]:
        """Return the arguments of `fit` that `like` gives unless its caller does."""
        return {}

    @classmethod
    def _made(cls, values: dict[str, Tensor], shape: tuple[int, ...], target: FitTarget, **settings: Any) -> Self:
        """Return the activation with fitted parameters (N,) in float64 by name, and its residual."""
        shape, dtype = check_shape(shape), torch.get_default_dtype()
        cast = {name: cast_parameter(x, dtype, f"{cls.family}'s {name}") for name, x in values.items()}
        make: Any = cls
        made: Self = make(*(x.unsqueeze(0) for x in cast.values()), start=target.name, **settings)
        made.residual = target.residual(made)
        return made.reshaped(shape)

    def settings(self) -> dict[str, Any]:
        """Return all but the parameters that `from_settings` needs to rebuild the activation, fit for JSON."""
        return {**super().settings(), "interval": list(self.interval)}

    def extra_repr(self) -> str:
        left, right = self.interval
        return f"{super().extra_repr()}, interval=({left:.6g}, {right:.6g})"

    def is_outside(self, u: Tensor) -> Tensor:
        """Return which inputs are outside the interval, a bool tensor of the shape of `u`."""
        left, right = self.interval
        return (u < left) | (u > right)

    def get_extra_state(self) -> Tensor:
        """Return the interval as a tensor that safetensors can store, (2,) in float64."""
        return torch.tensor(self.interval, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set what `get_extra_state` returned.

        Raises:
            UserError: It is not such a tensor.
        """
        values = state.tolist() if isinstance(state, Tensor) and state.shape == (2,) else [0.0, 0.0]
        self.interval = check_interval((values[0], values[1]), self.family)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The networks of runs hold the parameters alone: the configuration of the run has the interval.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        check_input(input, self.shape, self.family)
        formula, values, constants = self._formula_of(*self._parameters.values())
        return apply_formula(formula, input, *values, *_as_tensors(constants, input, *values))

    def parameter_derivatives(self, u: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the derivatives of the output with respect to each element of the parameter sets.

        Args:
            u: The inputs, of any shape.
            parameters: As the module's own, by name; their sets broadcast against `u`.

        Returns:
            (Q, *u.shape), with Q elements of a parameter set in their order.
        """
        formula, values, constants = self._formula_of(*parameters.values())
        _, *found = formula.backward(torch.ones_like(u), u, *values, *_as_tensors(constants, u, *values))
        return torch.stack([x.expand(u.shape) for x in found[: len(values)]])

    def _formula_of(self, *parameters: Any) -> tuple[Formula, tuple[Tensor, ...], tuple[float, ...]]:
        """Return the formula, its arguments after the input for these parameters, and the constants after those."""
        raise NotImplementedError


def _as_tensors(constants: tuple[float, ...], u: Tensor, *values: Tensor) -> list[Tensor]:
    """Return the constants of a formula in the shape of a parameter and the dtype of the arithmetic."""
    dtype, own = compute_dtype(u, *values), values[0]
    return [torch.full((1,), value, dtype=dtype, device=own.device).expand(own.shape) for value in constants]


def check_interval(interval: Iterable[Any], family: str) -> tuple[float, float]:
    """Return the ends of an interval.

    Raises:
        UserError: They are not two finite numbers in ascending order, or not usable in float32.
    """
    try:
        left, right = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise UserError(f"{family}'s interval must be two numbers (left, right); got {interval!r}.") from None
    if not (math.isfinite(left) and math.isfinite(right) and left < right):
        raise UserError(f"{family}'s interval needs finite ends with left < right; got ({left:g}, {right:g}).")
    width, size = right - left, max(abs(left), abs(right))
    if size > LARGEST or width < max(SMALLEST, PRECISION * size):
        raise UserError(
            f"{family}'s interval ({left:g}, {right:g}) is not usable in float32: the ends must be at most {LARGEST:g}"
            f", and at least {SMALLEST:g} and {PRECISION:g} of their size apart."
        )
    return left, right


def interval_of_fit(
    interval: Iterable[Any] | None, histogram: Histogram, margin: float, family: str
) -> tuple[float, float]:
    """Return the interval; None: the bulk of the inputs (see `Histogram.bulk`), widened on both sides.

    Args:
        interval: Its ends, or None.
        histogram: The inputs.
        margin: By how much the bulk is widened, as a share of its width.
        family: For messages.

    Raises:
        UserError: The interval is not valid, or the margin is not a number of at least 0.
    """
    if interval is not None:
        return check_interval(interval, family)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < math.inf:
        raise UserError(f"{family}'s margin is a share of the width of the inputs, at least 0; got {margin!r}.")
    left, right = histogram.bulk()
    reach = margin * (right - left)
    return check_interval((left - reach, right + reach), family)
