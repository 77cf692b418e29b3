"""Elementwise functions with parameters, as autograd functions that save only the input and the parameters.

A formula is written down twice, as `forward(u, *parameters)` and `backward(grad, u, *parameters)`. Each runs as one
pass over the input (see compiled.py), in at least float32 with one rounding at the end, and the backward pass also sums
the gradients of the parameters. Double backward, torch.func, forward-mode AD, torch.compile and tensor subclasses get
the same formulas as plain differentiable operations.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from aafit.activations.compiled import Layout, Pass, one_pass
from aafit.errors import UserError

log = logging.getLogger(__name__)


class ElementwiseFunction:
    """A function of an input and its parameters; a call of it is differentiable.

    The parameters have one shape, (1,) or one that broadcasts against the trailing dimensions of the input; an
    F-Neuron's weight has a further dimension. Subclasses are hashable, and implement the four methods below.
    """

    own_dims = 0

    def __call__(self, u: Tensor, *parameters: Tensor) -> Tensor:
        """Return the output, of the shape and dtype of `u`."""
        if needs_plain_operations(u, *parameters):
            with hidden_from_function_modes():
                return self.plain(u, *parameters)
        if not torch.is_grad_enabled() or not (u.requires_grad or any(p.requires_grad for p in parameters)):
            return self.output(self.layout(u, parameters), u, *parameters)
        result: Tensor = _Fused.apply(self, u, *parameters)
        return result

    def layout(self, u: Tensor, parameters: tuple[Tensor, ...]) -> Layout:
        """Return the layout of an input."""
        shape = parameters[0].shape if parameters else (1,)
        return Layout.of(u, shape[: len(shape) - self.own_dims])

    def output(self, layout: Layout, u: Tensor, *parameters: Tensor) -> Tensor:
        """Return the output, computed in one pass."""
        raise NotImplementedError

    def gradients(
        self, layout: Layout, wanted: tuple[bool, ...], grad: Tensor, u: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients by the input and by each parameter, computed in one pass; None if not wanted."""
        raise NotImplementedError

    def plain(self, u: Tensor, *parameters: Tensor) -> Tensor:
        """Return the output, computed by differentiable torch operations."""
        raise NotImplementedError

    def plain_gradients(self, grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients by the input and by each parameter, computed by differentiable torch operations."""
        raise NotImplementedError


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: ElementwiseFunction, u: Tensor, *parameters: Tensor) -> Tensor:
        ctx.function, ctx.layout = function, function.layout(u, parameters)
        ctx.save_for_backward(u, *parameters)
        return function.output(ctx.layout, u, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain_operations(grad):
            return None, *ctx.function.plain_gradients(grad, u, *parameters)
        return None, *ctx.function.gradients(ctx.layout, ctx.needs_input_grad[1:], grad, u, *parameters)


@dataclass(frozen=True)
class Formula(ElementwiseFunction):
    """A formula with its explicit gradient.

    Attributes:
        forward: (u, *parameters) -> y.
        backward: (grad, u, *parameters) -> gradients by u and by each parameter, all of the shape of u.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]

    def output(self, layout: Layout, u: Tensor, *parameters: Tensor) -> Tensor:
        dtype = compute_dtype(u, *parameters)
        wide = [layout.read_parameter(p.to(dtype)) for p in parameters]
        y, *_ = one_pass(_value_pass(self, dtype), (layout.read(u),), wide)
        return layout.restore(y)

    def gradients(
        self, layout: Layout, wanted: tuple[bool, ...], grad: Tensor, u: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        dtype = compute_dtype(u, *parameters)
        wide = [layout.read_parameter(p.to(dtype)) for p in parameters]
        by_u, *sums = one_pass(_gradient_pass(self, dtype, wanted), (layout.read(grad), layout.read(u)), wide)
        by_parameters = [
            layout.restore_parameter(sums.pop(0), p).to(p.dtype) if want else None
            for p, want in zip(parameters, wanted[1:], strict=True)
        ]
        return None if by_u is None else layout.restore(by_u), *by_parameters

    def plain(self, u: Tensor, *parameters: Tensor) -> Tensor:
        return _plain(self.forward, u, *parameters)

    def plain_gradients(self, grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        dtype = compute_dtype(u, *parameters)
        wide = [_broadcasting(p, u).to(dtype) for p in parameters]
        by_u, *by_parameters = self.backward(grad.to(dtype), u.to(dtype), *wide)
        sums = [
            g.sum_to_size(w.shape).reshape(p.shape).to(p.dtype)
            for g, w, p in zip(by_parameters, wide, parameters, strict=True)
        ]
        return by_u.to(u.dtype), *sums


def apply_formula(formula: Formula | Callable[..., Tensor], u: Tensor, *parameters: Tensor) -> Tensor:
    """Apply a formula, or a function of the input and the parameters whose gradient is left to autograd."""
    if isinstance(formula, Formula):
        return formula(u, *parameters)
    with hidden_from_function_modes():
        return _plain(formula, u, *parameters)


def largest(u: Tensor) -> float:
    """Return a bound for inputs that stand for infinity, small enough that a product with a parameter is finite.

    A mask of -inf would give NaN where a sigmoid is 0: 0 * inf.
    """
    return torch.finfo(u.dtype).max / 1024


@cache
def _value_pass(formula: Formula, dtype: torch.dtype) -> Pass:
    def value(u: Tensor, *parameters: Tensor) -> tuple[Tensor]:
        return (formula.forward(u.to(dtype), *parameters).to(u.dtype),)

    return value


@cache
def _gradient_pass(formula: Formula, dtype: torch.dtype, wanted: tuple[bool, ...]) -> Pass:
    def gradient(grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor | None, ...]:
        by_u, *by_parameters = formula.backward(grad.to(dtype), u.to(dtype), *parameters)
        sums = [_sum_over_rows(g) for g, want in zip(by_parameters, wanted[1:], strict=True) if want]
        return by_u.to(u.dtype) if wanted[0] else None, *sums

    return gradient


def _sum_over_rows(array: Tensor) -> Tensor:
    """Return the sum over each parameter set of an array that `Layout.read` returned."""
    if array.ndim == 1:
        return array.sum()
    # A float32 loop adds few rows one by one but many in chunks, so it is compiled twice; float64 needs one loop.
    dtype = torch.float64 if array.is_cpu else array.dtype
    return array.sum(0 if array.ndim == 2 else (0, 2), dtype=dtype)


def _plain(formula: Callable[..., Tensor], u: Tensor, *parameters: Tensor) -> Tensor:
    dtype = compute_dtype(u, *parameters)
    wide = (_broadcasting(p, u).to(dtype) for p in parameters)
    return formula(u.to(dtype), *wide).to(u.dtype)


def _broadcasting(parameter: Tensor, u: Tensor) -> Tensor:
    """Return a parameter that broadcasts against the input even if that is a scalar."""
    return parameter.reshape(()) if u.ndim == 0 else parameter


def static_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape as Python ints, which a tracer does not record."""
    if torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return tuple(tensor.shape)
    with warnings.catch_warnings():
        # The tracer warns that the sizes become constants, which is right for the parameters of a module.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(map(int, tensor.shape))


def needs_plain_operations(*tensors: Tensor) -> bool:
    """Return whether a compiler, tracer, torch.func transform, forward-mode AD or a tensor subclass is involved."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors)
        or _in_transform()(tensors)
        or (_forward_mode() and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors))
    )


@contextmanager
def dual_numbers() -> Iterator[None]:
    """Compute in forward mode, without gradients."""
    with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
        # torch 2.14 itself uses torch.jit.script in forward mode, and warns about it.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        yield


def _forward_mode() -> bool:
    # `unpack_dual` at every call takes longer than a small layer, so the level is checked first, if torch has it.
    return getattr(forward_ad, "_current_level", 0) >= 0


@cache
def _in_transform() -> Callable[[tuple[Tensor, ...]], bool]:
    """Return the check for torch.func transforms and batched gradients; always true if this torch does not offer it."""
    try:
        transforms = torch._C._are_functorch_transforms_active
        batched = torch._C._functorch.is_legacy_batchedtensor
    # Private functions, which a later version of torch may not have.
    except AttributeError as error:
        log.warning("Activations are not compiled with this version of torch and run slower: %s", error)
        return lambda tensors: True
    return lambda tensors: transforms() or any(map(batched, tensors))


def hidden_from_function_modes() -> AbstractContextManager[object]:
    """Hide an activation's operations, inside torch.compile, from modes that intercept the network's function calls."""
    return torch._C.DisableTorchFunction() if torch.compiler.is_dynamo_compiling() else nullcontext()


def compute_dtype(u: Tensor, *parameters: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: that of the input and the parameters, at least float32."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    for parameter in parameters:
        if parameter.dtype != dtype:
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def broadcasts(shape: tuple[int, ...], u: Tensor) -> bool:
    """Return whether a parameter of this shape broadcasts against the trailing dimensions of an input."""
    trailing = u.shape[max(0, u.ndim - len(shape)) :]
    return len(trailing) == len(shape) and all(mine in (1, size) for mine, size in zip(shape, trailing, strict=True))


def check_input(u: Tensor, shape: tuple[int, ...], who: str) -> None:
    """Check the input of an activation whose parameters have this shape. In a trace, only the dtype is checked.

    Raises:
        UserError: The input is not floating-point, or `shape` does not broadcast against its trailing dimensions.
    """
    if not u.is_floating_point():
        raise UserError(f"{who} needs a floating-point input, this one is {u.dtype}.")
    if (not torch.compiler.is_compiling() and torch.jit.is_tracing()) or shape == (1,):
        return
    if not broadcasts(shape, u):
        raise UserError(
            f"{who} has parameters of shape {tuple(shape)}, which do not fit an input of shape {tuple(u.shape)}: they "
            "must match its trailing dimensions."
        )
