"""Adaptive activations as autograd functions that save the input and the parameters, and nothing else.

An activation's file writes its formula down twice, as plain functions of tensors: `forward(u, *parameters)`, and
`backward(grad, u, *parameters)` with the gradient by every parameter element by element. Here each of the two becomes
one pass over the input, in at least float32 with one rounding at the end, that also sums the parameters' gradients.

Where the gradient itself is differentiated, in torch.func's transforms, in forward-mode differentiation, inside a
caller's torch.compile and for subclasses of Tensor, the same formulas run as plain differentiable operations instead.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from aafit.activations.compiled import Layout, Pass, one_pass
from aafit.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Formula:
    """An elementwise function of an input and its parameters, with its derivatives.

    forward(u, *parameters) -> y; backward(grad, u, *parameters) -> gradients by u and by each parameter, all of the
    shape of u.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


def computed(formula: Formula | Callable[..., Tensor], u: Tensor, *parameters: Tensor) -> Tensor:
    """The formula applied to `u`; with its gradient in one pass forward and one backward, else as it stands.

    The parameters have one shape, (1,) or one that broadcasts against the trailing dimensions of u. The output has the
    shape and the dtype of u.
    """
    if not isinstance(formula, Formula):
        with unseen():
            return _plain(formula, u, *parameters)
    if needs_plain(u, *parameters):
        with unseen():
            return _plain(formula.forward, u, *parameters)
    if not torch.is_grad_enabled() or not (u.requires_grad or any(p.requires_grad for p in parameters)):
        return _output(formula, u, parameters, _layout(u, parameters), inner_dtype(u, *parameters))
    result: Tensor = _Fused.apply(formula, u, *parameters)
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Formula, u: Tensor, *parameters: Tensor) -> Tensor:
        ctx.formula = formula
        ctx.save_for_backward(u, *parameters)
        ctx.layout, ctx.dtype = _layout(u, parameters), inner_dtype(u, *parameters)
        return _output(formula, u, parameters, ctx.layout, ctx.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain(grad):
            return None, *_plain_gradients(ctx.formula, grad, u, *parameters)
        layout, dtype = ctx.layout, ctx.dtype
        wide = [layout.read_parameter(p.to(dtype)) for p in parameters]
        gradient_pass = _gradient_pass(ctx.formula, dtype, ctx.needs_input_grad[1:])
        by_u, *sums = one_pass(gradient_pass, (layout.read(grad), layout.read(u)), wide)
        by_parameters = [
            layout.restore_parameter(sums.pop(0), p).to(p.dtype) if wanted else None
            for p, wanted in zip(parameters, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None if by_u is None else layout.restore(by_u), *by_parameters


def _layout(u: Tensor, parameters: Sequence[Tensor]) -> Layout:
    return Layout.of(u, parameters[0].shape if parameters else (1,))


def _output(formula: Formula, u: Tensor, parameters: Sequence[Tensor], layout: Layout, dtype: torch.dtype) -> Tensor:
    wide = [layout.read_parameter(p.to(dtype)) for p in parameters]
    y, *_ = one_pass(_value_pass(formula, dtype), (layout.read(u),), wide)
    return layout.restore(y)


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
    """The sum for each parameter set of an array as `Layout` reads it, see there."""
    if array.ndim == 1:
        return array.sum()
    # A loop adds few numbers one by one and many in chunks, and is compiled for either: in float64 one serves both.
    dtype = torch.float64 if array.is_cpu else array.dtype
    return array.sum(0 if array.ndim == 2 else (0, 2), dtype=dtype)


def _plain(formula: Callable[..., Tensor], u: Tensor, *parameters: Tensor) -> Tensor:
    dtype = inner_dtype(u, *parameters)
    wide = (broadcasting(p, u).to(dtype) for p in parameters)
    return formula(u.to(dtype), *wide).to(u.dtype)


def _plain_gradients(formula: Formula, grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    dtype = inner_dtype(u, *parameters)
    wide = [broadcasting(p, u).to(dtype) for p in parameters]
    by_u, *by_parameters = formula.backward(grad.to(dtype), u.to(dtype), *wide)
    sums = [
        g.sum_to_size(w.shape).reshape(p.shape).to(p.dtype)
        for g, w, p in zip(by_parameters, wide, parameters, strict=True)
    ]
    return by_u.to(u.dtype), *sums


def broadcasting(parameter: Tensor, u: Tensor) -> Tensor:
    """A parameter that broadcasts against the input, which may be a scalar."""
    return parameter.reshape(()) if u.ndim == 0 else parameter


def sizes_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape as plain numbers, which a tracer does not record."""
    if torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return tuple(tensor.shape)
    with warnings.catch_warnings():
        # It warns that the numbers become constants: so they are for a module's parameters.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(map(int, tensor.shape))


def needs_plain(*tensors: Tensor) -> bool:
    """Whether a compiler, a tracer, a torch.func transform, forward-mode differentiation or their class sees these."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors)
        or _in_transform()(tensors)
        or (_forward_mode() and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors))
    )


def _forward_mode() -> bool:
    # StudyConfig of every tensor at every call it takes longer than a small layer; without the level, it is asked.
    return getattr(forward_ad, "_current_level", 0) >= 0


@cache
def _in_transform() -> Callable[[tuple[Tensor, ...]], bool]:
    """Whether a torch.func transform or a batched gradient looks at these tensors; yes where torch cannot tell."""
    try:
        transforms = torch._C._are_functorch_transforms_active
        batched = torch._C._functorch.is_legacy_batchedtensor
    # torch does not promise that every version has them.
    except AttributeError as error:
        log.warning("No compiled activations with this version of torch, they run slower: %s", error)
        return lambda tensors: True
    return lambda tensors: transforms() or any(map(batched, tensors))


def unseen() -> AbstractContextManager[object]:
    """Inside torch.compile, hide what an activation computes from modes that watch the network's calls of functions."""
    return torch._C.DisableTorchFunction() if torch.compiler.is_dynamo_compiling() else nullcontext()


def inner_dtype(u: Tensor, *parameters: Tensor) -> torch.dtype:
    """The dtype to compute in: that of input and parameters, at least float32."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    for parameter in parameters:
        if parameter.dtype != dtype:
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def fits(shape: tuple[int, ...], u: Tensor) -> bool:
    """Whether a parameter of this shape broadcasts against the trailing dimensions of an input."""
    trailing = u.shape[max(0, u.ndim - len(shape)) :]
    return len(trailing) == len(shape) and all(mine in (1, size) for mine, size in zip(shape, trailing, strict=True))


def check_input(u: Tensor, shape: tuple[int, ...], who: str) -> None:
    """Nothing, where parameters of this shape fit the input; a tracer, which knows no sizes, is told nothing.

    Raises:
        UserError: the input is not floating-point, or `shape` does not broadcast against its trailing dimensions.
    """
    if not u.is_floating_point():
        raise UserError(f"{who} needs a floating-point input, this one is {u.dtype}.")
    if (not torch.compiler.is_compiling() and torch.jit.is_tracing()) or shape == (1,):
        return
    if not fits(shape, u):
        raise UserError(
            f"{who} has parameters of shape {tuple(shape)}, which do not fit an input of shape {tuple(u.shape)}: they "
            "must match its trailing dimensions."
        )
