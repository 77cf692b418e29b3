"""What the activations of a network receive in one forward of a sample, and which are called as functions."""

import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from aafit.errors import UserError
from aafit.networks.find import is_activation

FUNCTIONS = {
    "relu": "ReLU",
    "relu_": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "softplus": "Softplus",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "hardsigmoid": "Hardsigmoid",
    "tanh": "Tanh",
    "tanh_": "Tanh",
    "sigmoid": "Sigmoid",
    "sigmoid_": "Sigmoid",
}
"""Activations that can be called as a function, by the function's name, and the kind of each."""

_MOVES_AXES = (
    "permute",
    "transpose",
    "swap",
    "movedim",
    "moveaxis",
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "mT",
    "T",
)
_PRODUCTS = ("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention")


@dataclass(frozen=True)
class Seen:
    """What a module received in a forward: how often it was called, and the tensor of its last call.

    `channel_axis` is that of the layer before it (1 after a convolution, the last after a linear layer), None where
    the operations between do not tell.
    """

    calls: int
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    channel_axis: int | None = None


@dataclass(frozen=True)
class FunctionCall:
    """An activation that a module's forward calls as a function, as `F.relu(x)`."""

    path: str
    kind: str
    calls: int
    line: str


@dataclass
class Observation:
    """What one forward showed: the modules that were called, by path, and the activations called as functions."""

    modules: dict[str, Seen] = field(default_factory=dict)
    functions: list[FunctionCall] = field(default_factory=list)


def observe(model: nn.Module, sample: Tensor | tuple[Tensor, ...], paths: Iterable[str]) -> Observation:
    """What the modules at `paths` receive in one forward of `sample`, without those that are never called.

    Runs on a copy in eval mode without gradients: neither the model nor torch's random state changes.

    Raises:
        UserError: the sample is no tensor or tuple of tensors; the forward fails; the message says why.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise UserError(
            f"sample is a {type(sample).__name__}: give an input of the network, a tensor or a tuple of tensors."
        )
    probe = deepcopy(model).eval()
    watch = _Watch(probe, set(paths))
    devices = {tensor.device.index for tensor in (*inputs, *probe.parameters()) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad(), watch:
        try:
            probe(*inputs)
        except Exception as error:
            given = ", ".join(f"{tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}" for tensor in inputs)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"The network's forward of the sample ({given}) failed: {reason}") from error
    return watch.observation


class _Watch(TorchFunctionMode):
    """Sees each call of a torch function, knows the module it is in, and follows the axis of the channels."""

    def __init__(self, probe: nn.Module, paths: set[str]) -> None:
        super().__init__()
        self.observation = Observation()
        self._paths = paths
        self._around: list[tuple[str, nn.Module]] = []
        self._axes = WeakTensorKeyDictionary()
        for path, module in probe.named_modules():
            module.register_forward_pre_hook(self._entering(path), with_kwargs=True)
            module.register_forward_hook(self._leaving, always_call=True)

    def _entering(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._around.append((path, module))
            received = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if path in self._paths and received is not None:
                seen = self.observation.modules.get(path)
                self.observation.modules[path] = Seen(
                    1 if seen is None else seen.calls + 1,
                    tuple(received.shape),
                    received.device,
                    received.dtype,
                    self._axes.get(received),
                )

        return hook

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._around.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if isinstance(output, Tensor):
            axis = self._axis(name, output, [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])
            if axis is not None:
                self._axes[output] = axis
        if name in FUNCTIONS or _is_relu(name, args, kwargs):
            self._note(FUNCTIONS.get(name, "ReLU"))
        return output

    def _axis(self, name: str, output: Tensor, inputs: list[Tensor]) -> int | None:
        """Where the channels of what a function gives are, None where that is not known."""
        if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d"):
            return output.dim() - int(name[-2]) - 1
        if name == "linear":
            return output.dim() - 1
        if name.startswith(_MOVES_AXES) or name in _PRODUCTS:
            return None
        for tensor in inputs:
            axis: int | None = self._axes.get(tensor)
            if axis is not None and tensor.dim() == output.dim() and tensor.shape[axis] == output.shape[axis]:
                return axis
        return None

    def _note(self, kind: str) -> None:
        path, module = self._around[-1] if self._around else ("", nn.Module())
        if is_activation(module) or "MultiheadAttention" in type(module).__name__:
            return
        line, calls = _line_outside_torch(), self.observation.functions
        for at, call in enumerate(calls):
            if (call.path, call.kind, call.line) == (path, kind, line):
                calls[at] = replace(call, calls=call.calls + 1)
                return
        calls.append(FunctionCall(path, kind, 1, line))


def _is_relu(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is clamp(x, min=0) without an upper end."""
    if name not in ("clamp", "clamp_", "clamp_min", "clamp_min_"):
        return False
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return isinstance(low, (int, float)) and low == 0 and high is None


def _line_outside_torch() -> str:
    """ "file.py:12: x = F.relu(x)" of the innermost line that is neither torch's nor this file's."""
    for frame in _frames():
        file = frame.f_code.co_filename
        if file != __file__ and f"{Path(torch.__file__).parent}/" not in file:
            text = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).name}:{frame.f_lineno}" + (f": {text}" if text else "")
    return "in a line that is not known"


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
