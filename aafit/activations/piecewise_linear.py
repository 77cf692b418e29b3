"""Piecewise-linear interpolation between learnt values: the kernel of F-Neuron, with the means of kernels.py.

Time and memory do not depend on the number of values: each input takes the two next to it, and the gradient by the
values is gathered as two sums for each segment between them.
"""

from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from aafit.activations.compiled import Pass, one_pass
from aafit.activations.elementwise import inner_dtype, needs_plain, unseen
from aafit.activations.memory_layout import Layout


def interpolate(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    """The straight line between the weights next to u, which lie evenly over [left, right]; flat beyond.

    u is of shape (B, *...), weight of shape (*shape, points) where `shape` is (1,) or broadcasts against the
    trailing dimensions of u. The gradient by u is 0 at and beyond the ends, and that of the segment above at the other
    points. The output has the shape and the dtype of u; NaN stays NaN.
    """
    if needs_plain(u, weight):
        with unseen():
            return _plain(u, weight, left, right)
    result: Tensor = _Interpolation.apply(u, weight, left, right)
    return result


class _Interpolation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
        ctx.interval = left, right
        ctx.save_for_backward(u, weight)
        ctx.layout = layout = Layout.of(u, weight.shape[:-1])
        ctx.dtype = dtype = inner_dtype(u, weight)
        tables = _tables(layout.read_parameter(weight.to(dtype)))
        y, *_ = one_pass(_value_pass(dtype), (layout.read(u),), (*tables, *_scale(weight, left, right)))
        return layout.restore(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain(grad):
            return *_plain_gradients(grad, u, weight, *ctx.interval), None, None
        layout, dtype = ctx.layout, ctx.dtype
        tables = _tables(layout.read_parameter(weight.to(dtype)))
        wanted = ctx.needs_input_grad[:2]
        by_u, *sums = one_pass(
            _gradient_pass(dtype, wanted),
            (layout.read(grad), layout.read(u)),
            (*tables, *_scale(weight, *ctx.interval)),
            # Threads that add to one table would do so in any order.
            serial=wanted[1],
        )
        by_weight = layout.restore_parameter(sums[0].to(dtype), weight).to(weight.dtype) if wanted[1] else None
        return None if by_u is None else layout.restore(by_u), by_weight, None, None


def _tables(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and, of all its places in a row, the rise to the next; between two sets it is no segment's."""
    return weight, weight.reshape(-1).diff()


def _scale(weight: Tensor, left: float, right: float) -> tuple[float, float]:
    return left, (weight.shape[-1] - 1) / (right - left)


def _segment(u: Tensor, weight: Tensor, left: float, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """How far along its segment each input is, the segment's place in the flattened weight, and whether it is flat.

    The weight is of shape (*sets, points), where the sets broadcast against u. A segment's place is where it begins.
    """
    segments, sets = weight.shape[-1] - 1, weight.shape[:-1]
    at = ((u - left) * scale).clamp(0, segments)
    flat = (at <= 0) | (at >= segments)
    # A comparison with NaN is false: it takes segment 0, and how far along it is stays NaN.
    segment = torch.where(at > 0, at.detach().floor().clamp(max=segments - 1), 0.0)
    place = segment.to(torch.int64)
    if sets:
        place = place + torch.arange(prod(sets), device=weight.device).mul(weight.shape[-1]).reshape(sets)
    return torch.where(flat, at.detach(), at) - segment, place, flat


def _look_up(table: Tensor, place: Tensor) -> Tensor:
    return table.reshape(-1).index_select(0, place.reshape(-1)).reshape(place.shape)


def _value(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> Tensor:
    part, place, _ = _segment(u, weight, left, scale)
    return _look_up(weight, place) + part * _look_up(rises, place)


def _gradient_by_u(grad: Tensor, rises: Tensor, place: Tensor, flat: Tensor, scale: float) -> Tensor:
    return torch.where(flat, 0.0, grad * (_look_up(rises, place) * scale))


def _gradient_by_weight(grad: Tensor, part: Tensor, place: Tensor, weight: Tensor) -> Tensor:
    """The sums of grad * (1 - part) at each segment's beginning and of grad * part at its end, in float64."""
    none = torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
    at = place.reshape(-1)
    # Two tables, so that one loop fills both.
    of_grad = none.index_add(0, at, grad.double().reshape(-1))
    of_ends = none.index_add(0, at, (grad * part).double().reshape(-1))
    # No segment begins at a set's last place, so the last end of a set does not roll over into the next.
    return (of_grad - of_ends + of_ends.roll(1)).reshape(weight.shape)


@cache
def _value_pass(dtype: torch.dtype) -> Pass:
    def value(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> tuple[Tensor]:
        return (_value(u.to(dtype), weight, rises, left, scale).to(u.dtype),)

    return value


@cache
def _gradient_pass(dtype: torch.dtype, wanted: tuple[bool, bool]) -> Pass:
    def gradient(
        grad: Tensor, u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float
    ) -> tuple[Tensor | None, ...]:
        part, place, flat = _segment(u.to(dtype), weight, left, scale)
        inner = grad.to(dtype)
        by_u = _gradient_by_u(inner, rises, place, flat, scale).to(u.dtype) if wanted[0] else None
        return by_u, *([_gradient_by_weight(inner, part, place, weight)] if wanted[1] else [])

    return gradient


def _plain(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    dtype = inner_dtype(u, weight)
    tables = _tables(_plain_weight(weight.to(dtype)))
    return _value(u.to(dtype), *tables, *_scale(weight, left, right)).to(u.dtype)


def _plain_gradients(grad: Tensor, u: Tensor, weight: Tensor, left: float, right: float) -> tuple[Tensor, Tensor]:
    dtype = inner_dtype(u, weight)
    table, rises = _tables(_plain_weight(weight.to(dtype)))
    start, scale = _scale(weight, left, right)
    part, place, flat = _segment(u.to(dtype), table, start, scale)
    inner = grad.to(dtype)
    by_u = _gradient_by_u(inner, rises, place, flat, scale).to(u.dtype)
    return by_u, _gradient_by_weight(inner, part, place, table).reshape(weight.shape).to(weight.dtype)


def _plain_weight(weight: Tensor) -> Tensor:
    """A weight that broadcasts against inputs of every rank, scalars included."""
    return weight.reshape(-1) if weight.shape[:-1] == (1,) else weight
