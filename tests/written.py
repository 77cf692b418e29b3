"""Networks whose activations are written in every way that a program has."""

import warnings
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swish(nn.Module):
    """A class of the network's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class HardSwish(nn.Module):
    """A class of the network's own that has another one in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class HardSigmoid(nn.Module):
    """What is in it is a module of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + 3) / 6
        return out


class Written(nn.Module):
    """Two linear layers and between them what a subclass writes down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.own = nn.ReLU(), Swish()
        self.act, self.in_place, self.nested = F.gelu, nn.ReLU(inplace=True), HardSwish()

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.between(self.fc1(x)))
        return out


def written(between, name: str = "Net") -> Written:  # type: ignore[no-untyped-def]
    """A network with this between its layers; `between` is called with the network and the first layer's output."""
    return type(name, (Written,), {"between": between})()


def _helper(x: Tensor) -> Tensor:
    """A function of the network's own that calls one of torch's."""
    return F.softplus(x) - 1


def _in_a_loop(net: Written, x: Tensor) -> Tensor:
    for _ in range(3):
        x = F.relu(net.fc2(x))
    return x


def _now_one_now_another(net: Written, x: Tensor) -> Tensor:
    for act in (F.relu, torch.tanh):
        x = act(net.fc2(x))
    return x


def _options_of_its_own(net: Written, x: Tensor) -> Tensor:
    for high in (None, 6):
        x = net.fc2(x).clamp(min=0, max=high)
    return x


def _layer(x: Tensor, fc: nn.Module) -> Tensor:
    return F.silu(fc(x))


def _three_layers(net: Written, x: Tensor) -> Tensor:
    x = _layer(x, net.fc2)
    x = _layer(x, net.fc1)
    return _layer(x, net.fc2)


_leaky = partial(F.leaky_relu, negative_slope=0.2)
_BY_NAME = {"relu": F.relu, "tanh": torch.tanh}


# How it is written, the kinds and paths that are found.
FORMS = OrderedDict(
    {
        "module": (lambda net, x: net.relu(x), [("ReLU", "relu")]),
        "class of its own": (lambda net, x: net.own(x), [("SiLU", "own")]),
        "class within a class": (lambda net, x: net.nested(x), [("Hardswish", "nested")]),
        "F.relu": (lambda net, x: F.relu(x), [("ReLU", "relu_1")]),
        "F.relu in place": (lambda net, x: F.relu(x, inplace=True), [("ReLU", "relu_1")]),
        "torch.relu": (lambda net, x: torch.relu(x), [("ReLU", "relu_1")]),
        "torch.relu_": (lambda net, x: torch.relu_(x), [("ReLU", "relu_1")]),
        "x.relu()": (lambda net, x: x.relu(), [("ReLU", "relu_1")]),
        "x.relu_()": (lambda net, x: x.relu_(), [("ReLU", "relu_1")]),
        "x.clamp(min=0)": (lambda net, x: x.clamp(min=0), [("ReLU", "clamp_1")]),
        "x.clamp(0, 6)": (lambda net, x: x.clamp(0, 6), [("ReLU6", "clamp_1")]),
        "x.clip(min=0)": (lambda net, x: x.clip(min=0), [("ReLU", "clamp_1")]),
        "x.clamp_min(0)": (lambda net, x: x.clamp_min(0), [("ReLU", "clamp_min_1")]),
        "F.relu6": (lambda net, x: F.relu6(x), [("ReLU6", "relu6_1")]),
        "F.silu": (lambda net, x: F.silu(x), [("SiLU", "silu_1")]),
        "F.gelu": (lambda net, x: F.gelu(x), [("GELU", "gelu_1")]),
        "F.gelu(tanh)": (lambda net, x: F.gelu(x, approximate="tanh"), [("GELU", "gelu_1")]),
        "F.leaky_relu": (lambda net, x: F.leaky_relu(x, 0.2), [("LeakyReLU", "leaky_relu_1")]),
        "F.elu": (lambda net, x: F.elu(input=x, alpha=0.5), [("ELU", "elu_1")]),
        "torch.tanh": (lambda net, x: torch.tanh(x), [("Tanh", "tanh_1")]),
        "torch.sigmoid": (lambda net, x: torch.sigmoid(x), [("Sigmoid", "sigmoid_1")]),
        "F.hardswish": (lambda net, x: F.hardswish(x), [("Hardswish", "hardswish_1")]),
        "F.logsigmoid": (lambda net, x: F.logsigmoid(x), [("LogSigmoid", "logsigmoid_1")]),
        "F.threshold": (lambda net, x: F.threshold(x, 0.1, 0.0), [("Threshold", "threshold_1")]),
        "F.softshrink": (lambda net, x: F.softshrink(x), [("Softshrink", "softshrink_1")]),
        "F.hardtanh": (lambda net, x: F.hardtanh(x), [("Hardtanh", "hardtanh_1")]),
        "torch.special.expit": (lambda net, x: torch.special.expit(x), [("Sigmoid", "sigmoid_1")]),
        "functools.partial": (lambda net, x: _leaky(x), [("LeakyReLU", "leaky_relu_1")]),
        "dictionary": (lambda net, x: _BY_NAME["relu"](x), [("ReLU", "relu_1")]),
        "F.mish": (lambda net, x: F.mish(x), [("Mish", "mish_1")]),
        "attribute": (lambda net, x: net.act(x), [("GELU", "gelu_1")]),
        "helper, three layers": (_three_layers, [("SiLU", "silu_1"), ("SiLU", "silu_2"), ("SiLU", "silu_3")]),
        "helper": (lambda net, x: _helper(x), [("Softplus", "softplus_1")]),
        "one line, two calls": (lambda net, x: F.relu(x - 1) + F.relu(x + 1), [("ReLU", "relu_1"), ("ReLU", "relu_2")]),
        "one module, two places": (
            lambda net, x: net.relu(net.fc2(net.relu(x))),
            [("ReLU", "relu_1"), ("ReLU", "relu_2")],
        ),
        "one own class, two places": (
            lambda net, x: net.own(net.fc2(net.own(x))),
            [("SiLU", "own_1"), ("SiLU", "own_2")],
        ),
        "loop": (_in_a_loop, [("ReLU", "relu_1")]),
        "loop, two functions": (_now_one_now_another, [("ReLU", "relu_1"), ("Tanh", "tanh_1")]),
        "loop, other options": (_options_of_its_own, [("ReLU", "clamp_1"), ("ReLU6", "clamp_2")]),
        "module in place": (lambda net, x: net.in_place(x), [("ReLU", "in_place")]),
        "module and function": (lambda net, x: net.relu(F.relu(x - 1)), [("ReLU", "relu_1"), ("ReLU", "relu")]),
    }
)


def _scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


with warnings.catch_warnings():
    # Scripting is deprecated.
    warnings.simplefilter("ignore")
    _SCRIPTED = torch.jit.script(_scripted)


def _in_one_operation(net: Written, x: Tensor) -> Tensor:
    net.lstm = nn.LSTM(6, 6)
    out: Tensor = net.lstm(x)[0]
    return out


# What is not found. A part of it may be: the kind and path of that, and why it is replaced by its path only.
NOT_FOUND = OrderedDict(
    {
        "arithmetic": (lambda net, x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), []),
        "x * sigmoid(x)": (
            lambda net, x: x * torch.sigmoid(x),
            [("Sigmoid", "sigmoid_1", "it multiplies its own input")],
        ),
        "arithmetic with tanh": (
            lambda net, x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
            [("Tanh", "tanh_1", "it multiplies its own input")],
        ),
        "x * relu6(x + 3) / 6": (
            lambda net, x: x * F.relu6(x + 3) / 6,
            [("ReLU6", "relu6_1", "it multiplies its own input")],
        ),
        "torch.where": (lambda net, x: torch.where(x > 0, x, 0.1 * x), []),
        "torch.maximum": (lambda net, x: torch.maximum(x, torch.zeros_like(x)), []),
        "x * (x > 0)": (lambda net, x: x * (x > 0), []),
        "1 / (1 + exp(-x))": (lambda net, x: 1 / (1 + torch.exp(-x)), []),
        "x.clamp(0, 1)": (lambda net, x: x.clamp(0, 1), []),
        "F.prelu": (lambda net, x: F.prelu(x, x.new_full((1,), 0.2)), []),
        "F.rrelu": (lambda net, x: F.rrelu(x), []),
        "F.softmax, F.glu": (lambda net, x: F.glu(torch.cat([x, F.softmax(x, 1)], 1)), []),
        "torch.ops.aten.relu.default": (lambda net, x: torch.ops.aten.relu.default(x), []),
        "scripted function": (lambda net, x: _SCRIPTED(x), []),
        "inside nn.LSTM": (_in_one_operation, []),
    }
)
