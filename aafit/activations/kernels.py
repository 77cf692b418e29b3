"""The forward and the backward of an adaptive activation, each in one pass.

An activation's file writes its formula down twice, as plain functions of tensors: `forward(u, *parameters)` and
`backward(grad, u, *parameters)`, the latter with the gradients of every parameter element by element. This file makes
an autograd function of the pair which saves the input and the parameters and nothing else, runs it in at least float32
with one rounding at the end, and sums the parameter gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aafit.errors import UserError


@dataclass(frozen=True)
class Formula:
    """An elementwise function of an input and its parameters, with its derivatives.

    forward(u, *parameters) -> y; backward(grad, u, *parameters) -> (gradient by u, by parameter 1, ...), every one of
    them elementwise, of the shape of u.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


def inner_dtype(u: Tensor, *parameters: Tensor) -> torch.dtype:
    """The dtype the arithmetic runs in: that of input and parameters, at least float32."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def check_input(u: Tensor, shape: tuple[int, ...], who: str) -> None:
    """One clear sentence where parameters of this shape do not fit the input.

    Raises:
        UserError: the input is not floating-point, or `shape` does not broadcast against its trailing dimensions.
    """
    if not u.is_floating_point():
        raise UserError(f"{who} needs a floating-point input, this one is {u.dtype}.")
    if shape == (1,):
        return
    trailing = tuple(u.shape[u.ndim - len(shape) :]) if len(shape) <= u.ndim else ()
    if len(trailing) != len(shape) or any(mine not in (1, size) for mine, size in zip(shape, trailing, strict=True)):
        raise UserError(
            f"{who} has parameters of shape {shape}, which do not fit an input of shape {tuple(u.shape)}: "
            "they must match its trailing dimensions."
        )


def _scalar_if_shared(parameter: Tensor) -> Tensor:
    return parameter.reshape(()) if parameter.shape == (1,) else parameter


def plain(formula: Formula, u: Tensor, *parameters: Tensor) -> Tensor:
    """The formula in plain differentiable tensor operations."""
    dtype = inner_dtype(u, *parameters)
    return formula.forward(u.to(dtype), *(_scalar_if_shared(p).to(dtype) for p in parameters)).to(u.dtype)


def _backward(formula: Formula, grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    dtype = inner_dtype(u, *parameters)
    by_u, *by_parameters = formula.backward(
        grad.to(dtype), u.to(dtype), *(_scalar_if_shared(p).to(dtype) for p in parameters)
    )
    sums = [
        (g.sum().reshape(1) if p.shape == (1,) else g.sum_to_size(p.shape)).to(p.dtype)
        for g, p in zip(by_parameters, parameters, strict=True)
    ]
    return by_u.to(u.dtype), *sums


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Formula, u: Tensor, *parameters: Tensor) -> Tensor:
        ctx.formula = formula
        ctx.save_for_backward(u, *parameters)
        return plain(formula, u, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_backward(ctx.formula, grad, *ctx.saved_tensors)


def _transformed(*tensors: Tensor) -> bool:
    """Whether torch.func, forward-mode differentiation or a compiler looks at these tensors: they need plain operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


def fused(formula: Formula, u: Tensor, *parameters: Tensor) -> Tensor:
    """The formula applied to `u`: values and gradients in one pass each, u and the parameters saved alone.

    Parameters are of shape (1,), or broadcast against the trailing dimensions of u. The output has the dtype of u.
    """
    if _transformed(u, *parameters):
        return plain(formula, u, *parameters)
    result: Tensor = _Fused.apply(formula, u, *parameters)
    return result


class _Interpolation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
        ctx.interval = left, right
        ctx.save_for_backward(u, weight)
        return plain_interpolation(u, weight, left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_interpolation_backward(grad, *ctx.saved_tensors, *ctx.interval), None, None


def _segments(u: Tensor, weight: Tensor, left: float, right: float) -> tuple[Tensor, Tensor, Tensor]:
    """Position within its segment, index into the flattened weights, and whether it is inside, for each input."""
    points = weight.shape[-1]
    scale = (points - 1) / (right - left)
    at = ((u - left) * scale).clamp(0, points - 1)
    # NaN has no segment: it takes the first one, and its position within it stays NaN.
    segment = at.detach().nan_to_num(0.0).floor().clamp(max=points - 2)
    index = segment.to(torch.int64)
    if weight.ndim > 1 and weight.shape[:-1] != (1,):
        offsets = torch.arange(weight[..., 0].numel(), device=u.device).reshape(weight.shape[:-1])
        index = index + offsets * points
    inside = ~((at <= 0) | (at >= points - 1))
    return at - segment, index, inside


def plain_interpolation(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    """Piecewise-linear interpolation between the weights in plain differentiable tensor operations."""
    dtype = inner_dtype(u, weight)
    table = weight.reshape(-1).to(dtype)
    part, index, _ = _segments(u.to(dtype), weight, left, right)
    below = table[index]
    return (below + part * (table[index + 1] - below)).to(u.dtype)


def _interpolation_backward(
    grad: Tensor, u: Tensor, weight: Tensor, left: float, right: float
) -> tuple[Tensor, Tensor]:
    dtype = inner_dtype(u, weight)
    table = weight.reshape(-1).to(dtype)
    part, index, inside = _segments(u.to(dtype), weight, left, right)
    grad_inner = grad.to(dtype)
    slope = (table[index + 1] - table[index]) * ((weight.shape[-1] - 1) / (right - left))
    by_u = (grad_inner * slope * inside).to(u.dtype)
    upper = grad_inner * part
    by_table = torch.zeros_like(table)
    by_table = by_table.index_add(0, index.reshape(-1), (grad_inner - upper).reshape(-1))
    by_table = by_table.index_add(0, index.reshape(-1) + 1, upper.reshape(-1))
    return by_u, by_table.reshape(weight.shape).to(weight.dtype)


def interpolate(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    """Piecewise-linear interpolation between weights at equal distances over [left, right], flat beyond.

    weight: (1, points), or (*shape, points) with a shape that broadcasts against the trailing dimensions of u. Time
    and memory do not depend on the number of points.
    """
    if _transformed(u, weight):
        return plain_interpolation(u, weight, left, right)
    result: Tensor = _Interpolation.apply(u, weight, left, right)
    return result
