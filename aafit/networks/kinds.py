"""Activations of classes that are not torch's: told by what they compute.

Which modules and which calls of functions are activations, and of what kind.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
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
"""Activations that can be called as a function (F.relu, torch.relu, x.relu(), x.relu_()), by its name, and the kind."""

GATES = ("Sigmoid", "Tanh", "Hardsigmoid", "Hardtanh")
"""What multiplies another signal in an attention, a squeeze-excite or an LSTM."""

KNOWN: Mapping[str, nn.Module] = MappingProxyType(
    {
        "Identity": nn.Identity(),
        "GELU (tanh)": nn.GELU(approximate="tanh"),
        # A threshold has no usual settings, and with them CELU is ELU.
        **{name: getattr(nn, name)() for name in sorted({*FUNCTIONS.values()} - {"Threshold", "CELU"})},
    }
)
"""The fixed functions that a form can be told by: the elementwise activations of torch, with their usual settings."""


def is_activation(module: nn.Module) -> bool:
    """Whether the module is known to be an activation: one of torch's, or one of this package's."""
    return isinstance(module, (_MODULES, CalledFunction))


def is_elementwise(module: nn.Module) -> bool:
    """Whether the module is known to be an activation that works on each element alone (a softmax does not)."""
    return is_activation(module) and not isinstance(module, _NOT_ELEMENTWISE)


def activation_name(module: nn.Module) -> str:
    """How a module is called in reports: "LEAF as ReLU", "F-Neuron random", "GELU", or the name of its class."""
    if isinstance(module, CalledFunction):
        return module.kind
    return module.text if isinstance(module, AdaptiveActivation) else type(module).__name__


_CLAMPS = ("clamp", "clamp_min")
# By the name that a function has: its own, that of the one that works in place (x.relu_()), or what torch calls it.
_OTHER_NAMES = {
    "clip": "clamp",
    "clip_": "clamp",
    "log_sigmoid": "logsigmoid",
    "special_expit": "sigmoid",
    "_threshold": "threshold",
}
_NAMES = {name: name for name in (*FUNCTIONS, *_CLAMPS)} | {f"{name}_": name for name in (*FUNCTIONS, *_CLAMPS)}
_NAMES |= _OTHER_NAMES


def called_kind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The kind of activation that this call of a torch function is, None where it is none."""
    name = function_name(function)
    if name in _CLAMPS:
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        high = kwargs.get("max", args[2] if len(args) > 2 else None)
        if not isinstance(low, (int, float)) or low != 0:
            return None
        return "ReLU" if high is None else "ReLU6" if isinstance(high, (int, float)) and high == 6 else None
    return FUNCTIONS.get(name)


def function_name(function: Callable[..., Any]) -> str:
    """The name of a torch function, of an activation the same for the one that works in place; "" where it has none."""
    name = getattr(function, "__name__", "")
    return _NAMES.get(name, name)


class CalledFunction(nn.Module):
    """A call of a function such as F.gelu(u, approximate="tanh") as a module.

    Args:
        function: its name in torch.nn.functional, torch or torch.Tensor.
        options: what it is called with beside its input; of those without a name, "1" is the first.
        kind: of the activation.
    """

    def __init__(self, function: str, options: Mapping[str, Any], kind: str) -> None:
        super().__init__()
        self.function, self.options, self.kind = function, dict(options), kind

    def forward(self, u: Tensor) -> Tensor:
        """The function of u."""
        places = next(place for place in (F, torch, torch.special, Tensor) if hasattr(place, self.function))
        positional = [value for name, value in self.options.items() if name.isdecimal()]
        named = {name: value for name, value in self.options.items() if not name.isdecimal()}
        result: Tensor = getattr(places, self.function)(u, *positional, **named)
        return result

    def extra_repr(self) -> str:
        """The call."""
        return ", ".join([self.function, *(f"{name}={value!r}" for name, value in self.options.items())])


def recognised(function: Callable[[Tensor], Tensor]) -> str | None:
    """The name in KNOWN of the function that this one is, to 1e-5 on [-8, 8]; None where it is none of them."""
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    with torch.no_grad():
        y = function(u)
        return next((name for name, known in KNOWN.items() if (known(u) - y).abs().max() < 1e-5), None)


_PROBED = 4096  # elements


def each_its_own(net: nn.Module) -> nn.Module:
    """`net`, in which an activation that is one object under several names is an object for each, in place."""
    known: set[int] = set()
    for around in list(net.modules()):
        for name, child in list(around._modules.items()):
            if child is not None and (is_activation(child) or may_be_an_activation(child)):
                if id(child) in known:
                    around._modules[name] = deepcopy(child)
                known.add(id(child))
    return net


def may_be_an_activation(module: nn.Module) -> bool:
    """Whether a module of a class that is not torch's has nothing in it but activations, and classes like itself."""
    if is_activation(module) or any(True for _ in module.buffers()):
        return False
    return all(is_activation(inner) or not type(inner).__module__.startswith("torch.") for inner in module.modules())


def elementwise_kind(module: nn.Module, u: Tensor) -> str | None:
    """The kind of function that a module computes element by element; None where it does not, or only a straight line.

    Args:
        module: whose class is not known.
        u: what it receives.
    """
    if not u.is_floating_point() or u.numel() < 8 or u.is_meta:
        return None
    few = u.flatten()[:_PROBED].double()
    shuffled = torch.randperm(few.numel(), generator=torch.Generator().manual_seed(0)).to(u.device)
    # Dense near 0, where most functions bend, and as far out as one is compared with those that are known.
    line = 8 * torch.linspace(-1, 1, u.numel(), dtype=torch.float64, device=u.device).reshape(u.shape) ** 3
    try:
        with torch.no_grad():
            own = deepcopy(module).double()
            whole = own(u.double().clone())
            mixed = own(few[shuffled].clone())
            bent = own(line.clone())
    # Of whatever kind: what refuses such inputs is no elementwise function.
    except Exception:
        return None
    if (
        not all(isinstance(y, Tensor) for y in (whole, mixed, bent))
        or whole.shape != u.shape
        or mixed.shape != few.shape
    ):
        return None
    if not torch.allclose(whole.flatten()[: few.numel()][shuffled], mixed, rtol=1e-6, atol=1e-9):
        return None
    ends = bent.flatten()[0] + (bent.flatten()[-1] - bent.flatten()[0]) * (line.flatten() + 8) / 16
    if torch.allclose(bent.flatten(), ends, atol=1e-6):
        return None
    try:
        # Either form of GELU is called by that name, as it is where a function is called.
        return (recognised(own.cpu()) or type(module).__name__).removesuffix(" (tanh)")
    # It may take inputs of its own rank alone.
    except Exception:
        return type(module).__name__
