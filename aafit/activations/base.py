"""`AdaptiveActivation`, the base class of all activations with trainable parameters, and how they are evaluated."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from aafit.activations.elementwise import Formula, apply_formula, check_input
from aafit.activations.fitting import FitTarget, Residual, fit_parameters, function_name
from aafit.activations.histogram import Histogram
from aafit.errors import UserError, check_name

EXACT = 1e-6
"""Relative RMS error up to which a start counts as the function itself."""
AT_ONCE = 30_000
"""Elements that `curve_values` evaluates at once: for larger inputs an activation would compile a loop first."""


class TextOption(NamedTuple):
    """An argument of `like` and `fit` that a text form can give, as "Polynomial(degree=4) as ReLU".

    Attributes:
        name: Name of the argument, and of the attribute that holds its value.
        default: Default value: an integer, or a tuple of integers.
        least: The least valid number.
        most: The largest valid number.
    """

    name: str
    default: int | tuple[int, ...]
    least: int
    most: int

    def written(self, value: int | tuple[int, ...]) -> str:
        """Return the option with a value as it stands in a text form, "(degree=4)" or "(degrees=5,4)"."""
        return f"({self.name}={','.join(map(str, value)) if isinstance(value, tuple) else value})"


class AdaptiveActivation(nn.Module):
    """An activation function with trainable parameters.

    To define an activation, write a class with `family`, `starts` and `formula`. The arguments of the formula after the
    input are its parameters; its gradient is autograd's.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. Every parameter has the
    shape `shape`: (1,) if the layer shares it, (C, 1, 1) or (F,) for one per channel, (C, H, W) or (F,) for one per
    neuron. It broadcasts against the trailing dimensions of the input. The arithmetic is done in at least float32.

    Attributes:
        family: Name of the kind of function, e.g. "LEAF".
        starts: The values of the parameters, in their order, for each name that `like` accepts.
        formula: (u, *parameters) -> output, made of differentiable elementwise torch operations; or a `Formula`, which
            also has the gradient.
        likes: The names in `starts`.
        others: Further starts, each a class method of that name, e.g. "random".
        slow_parameters: Names of the parameters that the p24sl procedure trains at a lower rate.
        slope_parameters: Names of the parameters that multiply the input, e.g. inside a sigmoid. A step of a fit or of
            the identification changes a large one by a factor, and `smooth_start` lowers them.
        text_option: The argument that a text form can give; None if there is none.
        start: Name of the values it was constructed with: "ReLU", "random", ...
        replaced: Name of the activation that it replaced, None if it replaced none.
        call_position: Its position among the calls of a network's activations; infinity if it is not known.
        residual: Error of the fit if `fit` made it, otherwise None.

    Raises:
        UserError: A parameter is missing or unknown, a value is not finite, the parameters differ in shape, or (when
            called) they do not fit the input. For a class: its starts do not fit its formula.

    Example:
        >>> class Quotient(aafit.AdaptiveActivation):
        ...     family = "Quotient"
        ...     starts = {"Identity": (0.0, 1.0, 0.0, 0.0), "ReLU": (0.2, 0.5, 0.5, 0.9)}
        ...
        ...     @staticmethod
        ...     def formula(u, a0, a1, a2, b):
        ...         return (a0 + a1 * u + a2 * u * u) / (1 + (b * u).abs())
        >>> Quotient.like("Identity")(torch.tensor([-1.0, 2.0])).tolist()
        [-1.0, 2.0]
    """

    family: ClassVar[str]
    starts: ClassVar[Mapping[str, tuple[float, ...]]]
    formula: ClassVar[Callable[..., Tensor] | Formula]
    likes: ClassVar[tuple[str, ...]]
    others: ClassVar[tuple[str, ...]] = ()
    slow_parameters: ClassVar[tuple[str, ...]] = ()
    slope_parameters: ClassVar[tuple[str, ...]] = ()
    text_option: ClassVar[TextOption | None] = None
    call_position: float = math.inf
    # The names of the parameters of a family that has no formula.
    _names: ClassVar[tuple[str, ...]] = ()
    # Dimensions of a parameter beyond `shape`: F-Neuron has a vector of weights in each parameter set.
    _own_dims: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"family", "starts", "formula"} & vars(cls).keys() and not hasattr(cls, "likes"):
            cls._check_complete()
        if "starts" in vars(cls):
            cls.likes = tuple(cls.starts)
            names = cls.parameter_names()
            wrong = [name for name, values in cls.starts.items() if len(values) != len(names)]
            if wrong or not cls.starts:
                raise UserError(
                    f"{cls.__name__} needs starts with a value for each of {', '.join(names)}; got {wrong or 'none'}."
                )

    def __init__(self, *values: float | Tensor, start: str = "custom", **named: float | Tensor) -> None:
        super().__init__()
        self.start = start
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
            setattr(self, name, _as_parameter(given[name], f"{self.family}'s {name}"))
        shapes = [tuple(p.shape[: p.ndim - self._own_dims]) for p in self.parameters()]
        if len(set(shapes)) > 1:
            raise UserError(f"{self.family}'s {', '.join(names)} need one shape; got {', '.join(map(str, shapes))}.")

    @classmethod
    def _check_complete(cls) -> None:
        missing = [name for name in ("family", "starts", "formula") if not hasattr(cls, name)]
        if missing:
            raise UserError(f"{cls.__name__} needs family, starts and formula; it has no {' and no '.join(missing)}.")

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Return the names of the parameters: the formula's arguments after the input."""
        if cls._names:
            return cls._names
        cls._check_complete()
        formula = cls.formula.forward if isinstance(cls.formula, Formula) else cls.formula
        return tuple(inspect.signature(formula).parameters)[1:]

    @classmethod
    def like(cls, name: str, shape: tuple[int, ...] = (1,)) -> Self:
        """Return an activation that starts as a known function.

        Args:
            name: One of `likes`.
            shape: Shape of one parameter.

        Raises:
            UserError: The family has no such start, or `shape` is not a tuple of positive integers.
        """
        cls._check_complete()
        if not isinstance(name, str):
            raise UserError(
                f"{cls.family} starts as a name ({', '.join(cls.likes)}), not as {function_name(name)}: give the class "
                f"itself as a replacement, or {cls.__name__}.fit(function, histogram), which approximates any function."
            )
        values = cls.starts[check_name(f"start of {cls.family}", name, cls.likes)]
        tensors = (
            cast_parameter(
                torch.full(check_shape(shape), value, dtype=torch.float64),
                torch.get_default_dtype(),
                f"{cls.family} as {name}: {own}",
            )
            for value, own in zip(values, cls.parameter_names(), strict=True)
        )
        return cls(*tensors, start=name)

    @classmethod
    def fit(
        cls, function: str | Callable[[Tensor], Tensor], histogram: Histogram, shape: tuple[int, ...] = (1,)
    ) -> Self:
        """Return the activation of this family with the least squared error to a function on the inputs of a layer.

        If the family contains the function, the result is that function. The fit is made on the bulk of the inputs, see
        `Histogram.bulk`. `residual` holds what remains: the RMS error there and on all inputs, relative to the standard
        deviation of the function and weighted by how often an input occurs, and the largest absolute error.

        Args:
            function: "ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid", or any elementwise function of a
                tensor, such as F.gelu. It is called with float64.
            histogram: The inputs of the layer.
            shape: Shape of one parameter; all parameter sets get the same values.

        Raises:
            UserError: The name is unknown, the function is not elementwise or not finite on the inputs, all inputs are
                equal, or `shape` is not valid.
        """
        shape = check_shape(shape)
        cls._check_complete()
        target = FitTarget.of(function, histogram, cls.family)
        for name in cls.likes:
            made = cls.like(name)
            made.residual = target.residual(made)
            if made.residual.worst <= EXACT:
                return made.reshaped(shape)
        starts = [cls.like(name).double() for name in cls.likes]
        found = fit_parameters(starts, cls.slope_parameters, target.within(*histogram.bulk()))
        made = cls.like(cls.likes[0])
        made.start = target.name
        with torch.no_grad():
            for name, value in found.items():
                own = made.get_parameter(name)
                own.copy_(cast_parameter(value, own.dtype, f"{cls.family}'s {name}"))
        made.residual = target.residual(made)
        return made.reshaped(shape)

    @classmethod
    def blank(cls, settings: Mapping[str, Any]) -> Self:
        """Return an activation with these `settings()` and arbitrary parameter values."""
        return cls.like(cls.likes[0], settings["shape"])

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        # `parameters()` would take longer than a small layer.
        parameters: tuple[Any, ...] = tuple(self._parameters.values())
        check_input(input, parameters[0].shape, self.family)
        return apply_formula(type(self).formula, input, *parameters)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one parameter; (1,) if the layer shares it."""
        parameter = next(self.parameters())
        return tuple(parameter.shape[: parameter.ndim - self._own_dims])

    @property
    def text(self) -> str:
        """The text form, which `from_text` reads: "LEAF as Tanh", "F-Neuron random", "Polynomial(degree=4) as ReLU".

        An option that has its default is left out.
        """
        option, name = self.text_option, self.family
        if option is not None and (value := getattr(self, option.name)) != option.default:
            name += option.written(value)
        return f"{name} {self.start}" if self.start in self.others else f"{name} as {self.start}"

    def settings(self) -> dict[str, Any]:
        """Return what `from_settings` needs to rebuild the activation without its values, fit for JSON."""
        return {"family": self.family, "start": self.start, "shape": list(self.shape)}

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        """Return a copy with one parameter set for each element of `shape`, all with this activation's values.

        Raises:
            UserError: The parameters are not shared by the layer, or `shape` is not valid.
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

    def by_column(self, u_ES: Tensor, read: Callable[[Tensor], Tensor]) -> tuple[Self, Tensor]:
        """Return an activation and inputs for calls with a parameter set for each column: (S, *own) and (E, S).

        Args:
            u_ES: Inputs of each parameter set.
            read: From a tensor (*shape, n) to the rows of the columns' sets, (S, n).
        """
        return self, u_ES

    def extra_repr(self) -> str:
        if self.shape != (1,) or self._own_dims:
            return f"{self.start}, shape={self.shape}"
        return ", ".join([self.start, *(f"{name}={p.item():.6g}" for name, p in self.named_parameters())])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: parameter.detach() for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype != before[name].dtype:
                with torch.no_grad():
                    wide = before[name].to(parameter.device)
                    parameter.copy_(cast_parameter(wide, parameter.dtype, f"{self.text}: {name}"))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype != parameter.dtype:
                state_dict[prefix + name] = cast_parameter(given, parameter.dtype, f"{self.text}: {name}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def parameter_shape(activation: nn.Module) -> tuple[int, ...]:
    """Return the shape of the parameter sets of an activation: (1,) if it applies one function to all its inputs."""
    if isinstance(activation, nn.PReLU):
        return (activation.weight.numel(),)
    return activation.shape if isinstance(activation, AdaptiveActivation) else (1,)


def curve_values(activation: nn.Module, u_U: Tensor) -> Tensor:
    """Return the values of an activation at the inputs `u_U` (U,), for each of its C parameter sets: (U, C).

    The activation is evaluated in float64 on the CPU, and left unchanged.

    Raises:
        UserError: The module is not an elementwise function.
    """
    own, shape = copy.deepcopy(activation).to("cpu", torch.float64).eval(), parameter_shape(activation)
    u = u_U.to("cpu", torch.float64).reshape(-1, *[1] * len(shape))
    values = []
    with torch.no_grad():
        for part in u.split(max(1, AT_ONCE // torch.Size(shape).numel())):
            inputs = part.expand(-1, *shape).clone()
            values.append(own(inputs.clone()))
            if not isinstance(values[-1], Tensor) or values[-1].shape != inputs.shape:
                raise UserError(f"{type(activation).__name__} is not an elementwise function of a tensor.")
    return torch.cat(values).reshape(len(u), -1)


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` as a tuple.

    Raises:
        UserError: It is not a non-empty sequence of positive integers.
    """
    given = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if not given or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in given):
        raise UserError(f"The shape of a parameter must be one or more positive integers, e.g. (1,); got {shape!r}.")
    return given


def cast_parameter(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return `values` in another dtype, with the largest power of two of that dtype for finite values that overflow.

    An overflow to infinity would give NaN: 0 * inf. A UserWarning reports the replaced value.
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


def _as_parameter(values: Tensor | float, what: str) -> nn.Parameter:
    try:
        tensor = values.detach().clone() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise UserError(f"{what} must be a number or a tensor of floating-point numbers; got {values!r}.")
    if not tensor.isfinite().all():
        raise UserError(f"{what} must be finite; got {values!r}.")
    if not isinstance(values, Tensor):
        tensor = cast_parameter(tensor, torch.get_default_dtype(), what)
    return nn.Parameter(tensor.reshape(1) if tensor.ndim == 0 else tensor)
