"""A fixed function with trainable scales and shifts: `Affine("ReLU")` is a family like LEAF or AHAF.

`Affine` returns a class. Begin with `AffineActivation`, its base, which has the formula.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aafit.activations.base import AdaptiveActivation
from aafit.activations.elementwise import Formula, largest
from aafit.activations.fitting import FitTarget, fit_parameters, function_name
from aafit.activations.fixed import FIXED, FUNCTIONS
from aafit.activations.histogram import Histogram
from aafit.errors import UserError, check_name

INTERVAL, CELLS = (-4.0, 4.0), 400
"""The even grid on which a start is fitted to a function that the family does not contain."""
NEUTRAL: Mapping[str, float] = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
"""The values with which a f(b u + c) + d is f."""


def _silu_slope(v: Tensor) -> Tensor:
    s: Tensor = torch.special.expit(v)
    return s + v * (s * (1 - s))


def _sigmoid_slope(v: Tensor) -> Tensor:
    s: Tensor = torch.special.expit(v)
    return s * (1 - s)


def _normal_share(v: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(v * math.sqrt(0.5)))


def _gelu_slope(v: Tensor) -> Tensor:
    return _normal_share(v) + v * (torch.exp(-0.5 * v * v) * (1 / math.sqrt(2 * math.pi)))


DERIVATIVES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "ReLU": (torch.relu, lambda v: (v > 0).to(v.dtype)),
    "SiLU": (lambda v: v * torch.special.expit(v), _silu_slope),
    "GELU": (lambda v: v * _normal_share(v), _gelu_slope),
    "Tanh": (torch.tanh, lambda v: 1 - torch.tanh(v).square()),
    "Sigmoid": (torch.special.expit, _sigmoid_slope),
    "HardTanh": (lambda v: v.clamp(-1, 1), lambda v: ((v > -1) & (v < 1)).to(v.dtype)),
    "HardSigmoid": (lambda v: (v + 3).clamp(0, 6) / 6, lambda v: ((v > -3) & (v < 3)).to(v.dtype) * (1 / 6)),
}
"""The fixed functions, each with its derivative, made of differentiable elementwise operations."""

EQUAL: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("Tanh", "Sigmoid"): (0.5, 0.5, 0.0, 0.5),
    ("Sigmoid", "Tanh"): (2.0, 2.0, 0.0, -1.0),
    ("HardTanh", "HardSigmoid"): (0.5, 1 / 3, 0.0, 0.5),
    ("HardSigmoid", "HardTanh"): (2.0, 3.0, 0.0, -1.0),
}
"""Values (a, b, c, d) with which the first function is the second one."""


class AffineActivation(AdaptiveActivation):
    """A fixed function with a scale and a shift of its input and of its output, y = a f(b u + c) + d.

    It is the base of the classes that `Affine` returns, which set `function`.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. All parameters have the
    shape (1,) if the layer shares them, otherwise one that broadcasts against the input's trailing dimensions.

    Attributes:
        function: The fixed function f: a name in `FIXED`, or a function of a tensor.
        free: The names of the parameters, of a, b, c and d. A b that is none is 1, a d that is none is 0.
    """

    function: ClassVar[Any]
    free: ClassVar[tuple[str, ...]] = tuple(NEUTRAL)

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Return the names of the parameters."""
        return cls.free

    @classmethod
    def like(cls, name: str, shape: tuple[int, ...] = (1,)) -> Self:
        """Return an activation that starts as a known function.

        As f itself it is f (a = b = 1, c = d = 0). As another function it is that function where scales and shifts make
        it of f (tanh and sigmoid, hard tanh and hard sigmoid), otherwise the least-squares fit to it on an even grid
        over [-4, 4]; `fit` fits it to the inputs of a layer instead.

        Args:
            name: One of `likes`.
            shape: Shape of one parameter.

        Raises:
            UserError: The family has no such start, or `shape` is not a tuple of positive integers.
        """
        if isinstance(name, str) and name in cls.likes and name not in cls.starts:
            # Fitted when it is first asked for: most programs use one or two starts.
            cls.starts = {**cls.starts, name: cls._values_as(name)}
        return super().like(name, shape)

    @classmethod
    def _values_as(cls, name: str) -> tuple[float, ...]:
        if cls.free == tuple(NEUTRAL) and isinstance(cls.function, str) and (cls.function, name) in EQUAL:
            return EQUAL[cls.function, name]
        grid = Histogram(torch.linspace(*INTERVAL, CELLS + 1, dtype=torch.float64), torch.ones(CELLS))
        own = super().like(cls.likes[0]).double()
        found = fit_parameters([own], cls.slope_parameters, FitTarget.of(name, grid, cls.family))
        return tuple(found[own_name].item() for own_name in cls.parameter_names())

    @classmethod
    def function_module(cls) -> nn.Module:
        """Return f alone as a module."""
        if isinstance(cls.function, str):
            return FIXED[cls.function]()
        return deepcopy(cls.function) if isinstance(cls.function, nn.Module) else Function(cls.function)

    def constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (a, b, c, d), detached, of the shape of a parameter."""
        own = {name: parameter.detach() for name, parameter in self.named_parameters()}
        a, b, c, d = (own.get(name, torch.full_like(own["a"], value)) for name, value in NEUTRAL.items())
        return a, b, c, d

    # The class is made at run time: it is copied as it is, and pickled as the call that makes it.
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(deepcopy(self.__dict__, memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (self.function, "d" in self.free), self.__dict__


class Function(nn.Module):
    """An elementwise function of a tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(input)

    def extra_repr(self) -> str:
        return function_name(self.function)


def Affine(function: str | Callable[[Tensor], Tensor], offset: bool = True) -> type[AffineActivation]:
    """Return the family of a fixed function with trainable scales and shifts, y = a f(b u + c) + d.

    The result is a class of adaptive activations, which is used as LEAF is: given as a replacement it is fitted to the
    original activations, `Affine("ReLU").like("ReLU")` starts as plain ReLU. The same function gives the same class.

    The parameters are a, b, c and d. A positively homogeneous f, such as ReLU, has no b: it would be redundant, since
    a ReLU(b u + c) = a b ReLU(u + c / b) for b > 0. Without `offset` there is no d.

    `fold_activations` moves the scales and shifts into the layers around, so that the plain function remains. A
    following convolution with zero padding takes a scale, but no offset.

    Source: the formula is elementary; that scales move through a ReLU into the layers around it is the equalization of
    Nagel et al. (2019), Data-free quantization through weight equalization and bias correction,
    https://arxiv.org/abs/1906.04721 (section 4.1).

    Args:
        function: "ReLU", "SiLU", "GELU", "Tanh", "Sigmoid", "HardTanh" or "HardSigmoid", with text forms such as
            "Affine(ReLU) as ReLU"; or an elementwise function of a tensor such as F.relu6, or a module without
            parameters such as nn.LeakyReLU(0.1). A file with such a family is loaded with `families=[Affine(F.relu6)]`.
        offset: Whether d is a parameter. Without it the family is called "Affine(ReLU,d=0)".

    Raises:
        UserError: The name is unknown, or it is no function, or a module with parameters.

    Example:
        >>> f = aafit.Affine("ReLU").like("ReLU", shape=(3, 1, 1))
        >>> f(torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4))[:, 0, 0, 0].tolist()
        [0.0, 2.0]
        >>> net, _ = aafit.replace_activations(base, {"SiLU": aafit.Affine("ReLU")}, sample=images)
    """
    if isinstance(function, str):
        return _family(check_name("fixed function", function, FIXED), bool(offset))
    if isinstance(function, type) or not callable(function):
        raise UserError(
            f"Affine takes the name of a fixed function ({', '.join(FIXED)}), a function of a tensor, or a module; got "
            f"{function!r}."
        )
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise UserError(f"Affine takes a fixed function; {function!r} has parameters.")
    known = next((name for name in FIXED if _is_known(function, name)), None)
    if known is None and type(function).__module__.startswith("torch.nn."):
        # A module of torch says in its repr all that it computes: equal ones give one family, copies too.
        function = _modules.setdefault(repr(function), function)
    return _family(known or function, bool(offset))


_modules: dict[str, Any] = {}


def _is_known(function: Any, name: str) -> bool:
    if isinstance(function, nn.Module):
        # With the settings, such as the limits of nn.Hardtanh, that the name stands for.
        own = FIXED[name]()
        same = type(function) is type(own) or type(function) is getattr(nn, name, None)
        return same and repr(function).replace("inplace=True", "") == repr(own)
    return any(function is getattr(place, name.lower(), None) for place in (torch, F))


@cache
def _family(function: str | Callable[[Tensor], Tensor], offset: bool) -> type[AffineActivation]:
    name = repr(function) if isinstance(function, nn.Module) else function_name(function)
    value, slope = DERIVATIVES[function] if isinstance(function, str) else (function, None)
    left_out = {"b": _is_homogeneous(value), "d": not offset}
    free = tuple(own for own in NEUTRAL if not left_out.get(own))
    formula = _formula(value, free)
    body = {
        "__module__": __name__,
        "__doc__": AffineActivation.__doc__,
        "family": f"Affine({name}{'' if offset else ',d=0'})",
        # A function called without self.
        "function": function if isinstance(function, str) else staticmethod(function),
        "free": free,
        "slope_parameters": tuple(own for own in free if own == "b"),
        "formula": staticmethod(formula) if slope is None else Formula(formula, _backward(value, slope, free)),
        "starts": {name: tuple(NEUTRAL[own] for own in free)},
    }
    shown = f"Affine{name[:1].upper()}{name[1:]}" if name.isidentifier() else "AffineFunction"
    made: type[AffineActivation] = type(shown, (AffineActivation,), body)
    made.likes = (name, *(other for other in FUNCTIONS if other != name))
    return made


def _is_homogeneous(function: Any) -> bool:
    """Return whether f(2 v) = 2 f(v), in any case if it fails: the first call of the activation reports that."""
    v = torch.linspace(-9, 9, 181, dtype=torch.float64)
    try:
        return torch.equal(function(2 * v), 2 * function(v.clone()))
    # Of any type: the function is the user's.
    except Exception:
        return True


def _inner(u: Tensor, values: Mapping[str, Any]) -> Tensor:
    v: Tensor = (values["b"] * u if "b" in values else u) + values["c"]
    return v.clamp(min=-largest(u))


def _formula(function: Any, free: tuple[str, ...]) -> Callable[..., Tensor]:
    def forward(u: Tensor, *parameters: Tensor) -> Tensor:
        values = dict(zip(free, parameters, strict=True))
        y: Tensor = values["a"] * function(_inner(u.clamp(min=-largest(u)), values))
        if "d" in values:
            y = y + values["d"]
        return y

    return forward


def _backward(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], free: tuple[str, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    def backward(grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(free, parameters, strict=True))
        u = u.clamp(-largest(u), largest(u))
        v = _inner(u, values).clamp(max=largest(u))
        by_v = grad * (values["a"] * slope(v))
        by = {"a": grad * function(v), "b": by_v * u, "c": by_v, "d": grad}
        return by_v * values["b"] if "b" in values else by_v, *(by[name] for name in free)

    return backward


def _empty(function: str | Callable[[Tensor], Tensor], offset: bool) -> AffineActivation:
    cls = Affine(function, offset)
    return cls.__new__(cls)
