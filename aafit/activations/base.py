"""What all adaptive activations have in common."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.activations.elementwise import Formula, check_input, computed
from aafit.activations.fitting import (
    Residual,
    fitted_parameters,
    function_name,
    function_values,
    points_of,
    residual,
)
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.errors import UserError, check_name

EXACT = 1e-6
"""Root mean squared error, over the function's standard deviation, at which a start is the function itself."""


class AdaptiveActivation(nn.Module):
    """An activation function whose own parameters are learnt.

    Every parameter has the shape `shape`: (1,) where a layer shares it, (C, 1, 1) or (F,) for one a channel,
    (C, H, W) or (F,) for one a neuron; it broadcasts against the trailing dimensions of an input (B, *...). The
    arithmetic is done in at least float32 whatever the dtype of the input, which is also that of the output.

    An activation of one's own is a class with `family`, `starts` and `formula`, whose arguments after the input are its
    parameters: Rational(a0, a1, a2, b), Rational.like("ReLU"), Rational.fit(torch.tanh, histogram).

        class Rational(AdaptiveActivation):
            family = "Rational"
            starts = {"Identity": (0.0, 1.0, 0.0, 0.0), "ReLU": (0.2, 0.5, 0.5, 0.9)}

            @staticmethod
            def formula(u, a0, a1, a2, b):
                return (a0 + a1 * u + a2 * u * u) / (1 + (b * u).abs())

    Attributes:
        family: Name of the kind of function, e.g. "LEAF".
        starts: What `like` can start from, by name, e.g. of a fixed function: the parameters' values, in their order.
        formula: (u, *parameters) -> output: elementwise, of differentiable torch operations.
        likes: The names of `starts`.
        others: Further starts, each a class method of that name: "random", and what the family has beside.
        slow_parameters: Names of the parameters that the p24sl procedure trains at a lower rate.
        slope_parameters: Names of the parameters that multiply the input inside a sigmoid.
        start: What it was constructed as: "ReLU", "random", ...
        residual: What `fit` left of the function that it was fitted to; None where it was not.

    Raises:
        UserError: a parameter is missing or unknown, a value is not finite, the shapes differ, or (when called) they do
            not fit the input; of a class, where its formula and its starts do not fit.
    """

    family: ClassVar[str]
    starts: ClassVar[Mapping[str, tuple[float, ...]]]
    formula: ClassVar[Callable[..., Tensor]]
    likes: ClassVar[tuple[str, ...]]
    others: ClassVar[tuple[str, ...]] = ()
    slow_parameters: ClassVar[tuple[str, ...]] = ()
    slope_parameters: ClassVar[tuple[str, ...]] = ()
    # Of a formula whose gradient is written down too, and so is computed in one pass.
    _formula: ClassVar[Formula | None] = None
    # Dimensions of a parameter beyond `shape`: one for F-Neuron's table of weights.
    _own_dims: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"family", "starts", "formula"} & vars(cls).keys() and "likes" not in vars(cls):
            cls._check_whole()
        if "starts" in vars(cls):
            cls.likes = tuple(cls.starts)
            names = cls.parameter_names()
            unlike = [name for name, values in cls.starts.items() if len(values) != len(names)]
            if unlike or not cls.starts:
                raise UserError(
                    f"{cls.__name__} needs starts with a value for each of {', '.join(names)}; {unlike or 'none'} has "
                    "not."
                )

    def __init__(self, *values: float | Tensor, start: str = "custom", **named: float | Tensor) -> None:
        super().__init__()
        self.start = start
        # The name of the activation that it took the place of, where it took one.
        self.replaced: str | None = None
        self.residual: Residual | None = None
        names = self.parameter_names()
        given = dict(zip(names, values, strict=False)) | named
        if len(values) + len(named) != len(names) or set(given) != set(names):
            raise UserError(
                f"{self.family} takes {', '.join(names)}, each once; got {len(values)} values"
                + (f" and {', '.join(named)}." if named else ".")
            )
        for name in names:
            setattr(self, name, parameter(given[name], f"{self.family}'s {name}"))
        shapes = [tuple(p.shape) for p in self.parameters()]
        if len(set(shapes)) > 1:
            raise UserError(f"{self.family}'s {', '.join(names)} need one shape; got {', '.join(map(str, shapes))}.")

    @classmethod
    def _check_whole(cls) -> None:
        missing = [name for name in ("family", "starts", "formula") if not hasattr(cls, name)]
        if missing:
            raise UserError(f"{cls.__name__} needs family, starts and formula; it has no {' and no '.join(missing)}.")

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """The names of the parameters, which are those of the formula's arguments after the input."""
        cls._check_whole()
        return tuple(inspect.signature(cls.formula).parameters)[1:]

    @classmethod
    def like(cls, name: str, shape: tuple[int, ...] = (1,)) -> Self:
        """One that starts as the function `name`, one of `likes`.

        Raises:
            UserError: the family cannot start as that, or `shape` is not one of positive integers.
        """
        cls._check_whole()
        if not isinstance(name, str):
            raise UserError(
                f"{cls.family} starts as a name ({', '.join(cls.likes)}), not as {function_name(name)}: give the class "
                f"itself in a replacement, or {cls.__name__}.fit(function, histogram), which comes near any function."
            )
        values = cls.starts[check_name(f"start of {cls.family}", name, cls.likes)]
        what = f"{cls.family} as {name}:"
        tensors = (filled(shape, x, f"{what} {own}") for x, own in zip(values, cls.parameter_names(), strict=True))
        return cls(*tensors, start=name)

    @classmethod
    def fit(
        cls, function: str | Callable[[Tensor], Tensor], histogram: Histogram, shape: tuple[int, ...] = (1,)
    ) -> Self:
        """One that is as near to a function as it can be on the inputs that a layer sees.

        Where the family contains the function, it is the function; otherwise the least squared error over the inputs.
        `residual` says what is left: the root mean squared error over the function's standard deviation, both weighted
        by how often an input occurs, and the largest error among the inputs.

        Args:
            function: "ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid", or any elementwise function of a
                tensor, such as F.gelu; it is called with float64.
            histogram: Of the inputs of the layer.
            shape: Shape of one parameter; every one is the same.

        Raises:
            UserError: an unknown name, a function that is not elementwise or not finite on the inputs, a bad shape.
        """
        shape = check_shape(shape)
        cls._check_whole()
        target = FUNCTIONS[check_name("function", function, FUNCTIONS)] if isinstance(function, str) else function
        u_E, weight_E = points_of(histogram, cls.family)
        y_E = function_values(target, u_E, cls.family)
        for name in cls.likes:
            made = cls.like(name)
            made.residual = residual(made, u_E, y_E, weight_E)
            if made.residual.rms <= EXACT:
                return made.reshaped(shape)
        starts = [cls.like(name).double() for name in cls.likes]
        found = fitted_parameters(starts, cls.slope_parameters, histogram, target, cls.family)
        made = cls.like(cls.likes[0])
        made.start = function_name(function)
        with torch.no_grad():
            for name, value in found.items():
                own = made.get_parameter(name)
                own.copy_(fitted(value, own.dtype, f"{cls.family}'s {name}"))
        made.residual = residual(made, u_E, y_E, weight_E)
        return made.reshaped(shape)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """One with these `settings()` and some values."""
        return cls.like(cls.likes[0], settings["shape"])

    def forward(self, u: Tensor) -> Tensor:
        """The formula, elementwise."""
        # Not parameters(), which takes longer than a small layer; each was set by its name.
        parameters: tuple[Any, ...] = tuple(self._parameters.values())
        check_input(u, parameters[0].shape, self.family)
        return computed(self._formula or type(self).formula, u, *parameters)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one parameter; (1,) means shared by the layer."""
        parameter = next(self.parameters())
        return tuple(parameter.shape[: parameter.ndim - self._own_dims])

    @property
    def text(self) -> str:
        """How `from_text` calls it: "LEAF as Tanh", "F-Neuron random"."""
        return f"{self.family} {self.start}" if self.start in self.others else f"{self.family} as {self.start}"

    def settings(self) -> dict[str, Any]:
        """All that rebuilds it, by `from_settings`, except for the parameters' values; fit for JSON."""
        return {"family": self.family, "start": self.start, "shape": list(self.shape)}

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        """A copy whose parameters have another shape, each repeating this one's.

        Raises:
            UserError: the parameters are not shared by the layer, or `shape` is not one of positive integers.
        """
        if self.shape != (1,):
            raise UserError(
                f"Only an activation shared by its layer (shape (1,)) can be reshaped; this {self.text} has shape "
                f"{self.shape}."
            )
        shape = check_shape(shape)
        copied = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            own = parameter.shape[1:]
            repeated = parameter.detach().reshape((1,) * len(shape) + own).expand(shape + own).clone()
            setattr(copied, name, nn.Parameter(repeated, requires_grad=parameter.requires_grad))
        return copied

    def extra_repr(self) -> str:
        """The start and, where the layer shares them, the values."""
        if self.shape != (1,) or self._own_dims:
            return f"{self.start}, shape={self.shape}"
        return ", ".join([self.start, *(f"{name}={p.item():.6g}" for name, p in self.named_parameters())])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: parameter.detach() for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype != before[name].dtype:
                with torch.no_grad():
                    parameter.copy_(fitted(before[name].to(parameter.device), parameter.dtype, f"{self.text}: {name}"))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype != parameter.dtype:
                state_dict[prefix + name] = fitted(given, parameter.dtype, f"{self.text}: {name}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` as a tuple.

    Raises:
        UserError: it is not a non-empty sequence of positive integers.
    """
    given = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if not given or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in given):
        raise UserError(f"The shape of a parameter must be one or more positive integers, e.g. (1,); got {shape!r}.")
    return given


def fitted(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """`values` in another dtype; the finite ones too large for it become the largest power of two that fits.

    Infinity is no stand-in for a large number here: 0 * inf is NaN. A UserWarning says what was replaced.
    """
    converted = values.to(dtype)
    overflowed = converted.isinf() & values.isfinite()
    if not overflowed.any():
        return converted
    largest = 2.0 ** (torch.tensor(torch.finfo(dtype).max, dtype=torch.float64).frexp().exponent.item() - 1)
    warnings.warn(
        f"{what} = {values[overflowed][0].item():g} does not fit {dtype}; {largest:g} is used instead.", stacklevel=3
    )
    return torch.where(overflowed, values.sign().to(dtype) * largest, converted)


def filled(shape: tuple[int, ...], value: float, what: str) -> Tensor:
    """A tensor of one value, in torch's default dtype.

    Raises:
        UserError: `shape` is not one of positive integers.
    """
    return fitted(torch.full(check_shape(shape), value, dtype=torch.float64), torch.get_default_dtype(), what)


def parameter(values: Tensor | float, what: str) -> nn.Parameter:
    """A parameter from a number or from a tensor, which is copied; numbers take torch's default dtype.

    Raises:
        UserError: a value is not finite, or a tensor is not floating-point or is empty.
    """
    tensor = values.detach().clone() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise UserError(f"{what} must be a number or a tensor of floating-point numbers; got {values!r}.")
    if not tensor.isfinite().all():
        raise UserError(f"{what} must be finite; got {values!r}.")
    if not isinstance(values, Tensor):
        tensor = fitted(tensor, torch.get_default_dtype(), what)
    return nn.Parameter(tensor.reshape(1) if tensor.ndim == 0 else tensor)
