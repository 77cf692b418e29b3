"""Recognize activations, modules and calls of functions, with their kind, and find the nearest known function.

Modules and functions of torch are known by their names. `elementwise_kind` recognises a module of any other class by
what it computes. `KNOWN` has the fixed functions that activations are compared with.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from inspect import signature
from types import FunctionType, MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

from aafit.activations import FIXED, AdaptiveActivation

_MODULES = (
    AdaptiveActivation,
    *FIXED.values(),
    *(getattr(torch_activations, name) for name in torch_activations.__all__ if name != "MultiheadAttention"),
)
_NOT_ELEMENTWISE = (nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.GLU)

FUNCTIONS: dict[str, str] = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "logsigmoid": "LogSigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "hardsigmoid": "Hardsigmoid",
    "hardshrink": "Hardshrink",
    "softshrink": "Softshrink",
    "tanhshrink": "Tanhshrink",
    "threshold": "Threshold",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}
"""Kinds of the activations that can be called as a function (F.relu, torch.relu, x.relu(), x.relu_()), by its name."""

GATES = ("Sigmoid", "Tanh", "Hardsigmoid", "Hardtanh")
"""Kinds that multiply another signal in an attention, a squeeze-excite or an LSTM."""

KNOWN: Mapping[str, nn.Module] = MappingProxyType(
    {
        "Identity": nn.Identity(),
        "GELU (tanh)": nn.GELU(approximate="tanh"),
        # Threshold has no default arguments, and CELU with its default ones equals ELU.
        **{name: getattr(nn, name)() for name in sorted({*FUNCTIONS.values()} - {"Threshold", "CELU"})},
    }
)
"""The elementwise activations of torch with their default arguments, by name."""

_CLAMPS = ("clamp", "clamp_min")
# Names of a function: the public one, that of the in-place variant (x.relu_()), and torch's internal ones.
_NAMES = {
    **{name: name for name in (*FUNCTIONS, *_CLAMPS)},
    **{f"{name}_": name for name in (*FUNCTIONS, *_CLAMPS)},
    "clip": "clamp",
    "clip_": "clamp",
    "log_sigmoid": "logsigmoid",
    "special_expit": "sigmoid",
    "_threshold": "threshold",
}
_PROBED = 4096  # elements


def is_activation(module: nn.Module) -> bool:
    """Return whether the module is known to be an activation, of torch or of this package."""
    return isinstance(module, (_MODULES, CalledFunction))


def is_elementwise(module: nn.Module) -> bool:
    """Return whether the module is known to be an elementwise activation (a softmax is not)."""
    return is_activation(module) and not isinstance(module, _NOT_ELEMENTWISE)


def cannot_be_elementwise(module: nn.Module) -> bool:
    """Return whether the module is known to be no elementwise activation, as a layer of torch and a softmax are."""
    of_torch = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Identity)
    return (of_torch or is_activation(module)) and not is_elementwise(module)


def activation_name(module: nn.Module) -> str:
    """Return a module's name in reports: "LEAF as ReLU", "F-Neuron random", "GELU", or the name of its class."""
    if isinstance(module, CalledFunction):
        return module.kind
    return module.text if isinstance(module, AdaptiveActivation) else type(module).__name__


def called_kind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the kind of activation that a call of a torch function computes; None if it is no activation."""
    name = function_name(function)
    if name in _CLAMPS:
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        high = kwargs.get("max", args[2] if len(args) > 2 else None)
        if not isinstance(low, (int, float)) or low != 0:
            return None
        return "ReLU" if high is None else "ReLU6" if isinstance(high, (int, float)) and high == 6 else None
    return FUNCTIONS.get(name)


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a torch function, the same for its in-place variant; "" if it has none."""
    name = getattr(function, "__name__", "")
    return _NAMES.get(name, name)


def full_options(function: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by name, with the defaults of a function of torch.nn.functional; without `inplace`."""
    full = dict(_defaults(function))
    names = list(full)
    for name, value in options.items():
        position = int(name) - 1 if name.isdecimal() else len(names)
        full[names[position] if position < len(names) else name] = value
    full.pop("inplace", None)
    return full


@cache
def _defaults(name: str) -> Mapping[str, Any]:
    """Return the defaults of a function's arguments beside its input, by name; empty if they are not known."""
    function = getattr(F, name, None)
    if not isinstance(function, FunctionType):
        return {}
    _, *others = signature(function).parameters.values()
    return {one.name: None if one.default is one.empty else one.default for one in others}


def is_plain(options: Mapping[str, Any]) -> bool:
    """Return whether all options are plain values, which can be compared and saved."""
    return all(value is None or isinstance(value, (bool, int, float, str)) for value in options.values())


class CalledFunction(nn.Module):
    """A call of a function such as F.gelu(u, approximate="tanh") as a module.

    Args:
        function: its name in torch.nn.functional, torch or torch.Tensor.
        options: its arguments beside the input; positional ones are named "1", "2", ...
        kind: kind of the activation.
    """

    def __init__(self, function: str, options: Mapping[str, Any], kind: str) -> None:
        super().__init__()
        self.function, self.options, self.kind = function, dict(options), kind

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the input."""
        place = next(place for place in (F, torch, torch.special, Tensor) if hasattr(place, self.function))
        positional = [value for name, value in self.options.items() if name.isdecimal()]
        named = {name: value for name, value in self.options.items() if not name.isdecimal()}
        result: Tensor = getattr(place, self.function)(input, *positional, **named)
        return result

    def extra_repr(self) -> str:
        """Return the call."""
        return ", ".join([self.function, *(f"{name}={value!r}" for name, value in self.options.items())])


def with_separate_activations(net: nn.Module) -> nn.Module:
    """Give an activation that is registered under several names a copy for each, in place; return `net`."""
    met: set[int] = set()
    for around in list(net.modules()):
        for name, child in list(around._modules.items()):
            if child is not None and (is_activation(child) or may_be_an_activation(child)):
                if id(child) in met:
                    around._modules[name] = deepcopy(child)
                met.add(id(child))
    return net


def may_be_an_activation(module: nn.Module) -> bool:
    """Return whether a module that is not known to be an activation may be one.

    It may if it has no buffers, and each module in it is an activation or of a class that is not torch's.
    """
    if is_activation(module) or any(True for _ in module.buffers()):
        return False
    return all(is_activation(inner) or not type(inner).__module__.startswith("torch.") for inner in module.modules())


def elementwise_kind(module: nn.Module, u: Tensor) -> str | None:
    """Return the kind of the elementwise function that a module computes; None if there is none, or it is linear.

    Args:
        module: a module of an unknown class.
        u: its input.
    """
    if not u.is_floating_point() or u.numel() < 8 or u.is_meta:
        return None
    few = u.flatten()[:_PROBED].double()
    shuffled = torch.randperm(few.numel(), generator=torch.Generator().manual_seed(0)).to(u.device)
    # Dense near 0, where most functions bend, and as far out as functions are compared with the known ones.
    line = 8 * torch.linspace(-1, 1, u.numel(), dtype=torch.float64, device=u.device).reshape(u.shape) ** 3
    try:
        with torch.no_grad():
            own = deepcopy(module).double()
            full, mixed, bent = own(u.double().clone()), own(few[shuffled].clone()), own(line.clone())
    # The error may be of any type; a module that refuses these inputs computes no elementwise function.
    except Exception:
        return None
    if not all(isinstance(y, Tensor) for y in (full, mixed, bent)):
        return None
    if full.shape != u.shape or mixed.shape != few.shape:
        return None
    if not torch.allclose(full.flatten()[: few.numel()][shuffled], mixed, rtol=1e-6, atol=1e-9):
        return None
    ends = bent.flatten()[0] + (bent.flatten()[-1] - bent.flatten()[0]) * (line.flatten() + 8) / 16
    if torch.allclose(bent.flatten(), ends, atol=1e-6):
        return None
    try:
        # Either variant of GELU has that name, as it has where a function is called.
        return (_recognised(own.cpu()) or type(module).__name__).removesuffix(" (tanh)")
    # It may take inputs of one rank only.
    except Exception:
        return type(module).__name__


def _recognised(function: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name in KNOWN of the function that this one equals to 1e-5 on [-8, 8]; None if there is none."""
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    with torch.no_grad():
        y = function(u)
        return next((name for name, known in KNOWN.items() if (known(u) - y).abs().max() < 1e-5), None)


@dataclass(frozen=True)
class Near:
    """A known function and its distance from a curve over the same inputs.

    Attributes:
        name: Name in `KNOWN`.
        rms: Root mean squared difference, in units of the output.
        distance: `rms` divided by the standard deviation of the curve; infinite if only the curve is constant.
    """

    name: str
    rms: float
    distance: float


def nearest_functions(u: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Near, ...]:
    """Return all known functions, the nearest first.

    Args:
        u: inputs of any shape, in float64.
        y: values of the curve at `u`, of the same shape.
        weights: weights of the inputs that sum to 1; None for equal ones.
    """
    with torch.no_grad():
        near = [Near(name, rms(y - known(u), weights), distance(y, known(u), weights)) for name, known in KNOWN.items()]
    return tuple(sorted(near, key=lambda row: row.rms))


def distance(y: Tensor, other: Tensor, weights: Tensor | None = None) -> float:
    """Return the RMS difference over the standard deviation of `y`; infinite if only `y` is constant."""
    deviation = rms(y - _mean(y, weights), weights)
    difference = rms(y - other, weights)
    return difference / deviation if deviation > 0 else 0.0 if difference == 0 else float("inf")


def rms(values: Tensor, weights: Tensor | None = None) -> float:
    """Return the root mean square, with `weights` that sum to 1."""
    return _mean(values.square(), weights).sqrt().item()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (weights * values).sum()
