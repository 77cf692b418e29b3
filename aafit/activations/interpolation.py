"""Piecewise-linear interpolation between learnt values: the kernel of F-Neuron, with the means of kernels.py.

Time and memory do not depend on the number of values: each input takes the two next to it, and the gradient by the
values is gathered as two sums for each segment between them.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from aafit.activations.kernels import inner_dtype, needs_plain
from aafit.activations.layout import Layout
from aafit.activations.passes import Pass, one_pass


def interpolate(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    """The straight line between the weights next to u, which lie evenly over [left, right]; flat beyond.

    u is of shape (B, *...), weight of shape (*shape, points) where `shape` is (1,) or broadcasts against the
    trailing dimensions of u. The gradient by u is 0 at and beyond the ends, and that of the segment above at the other
    points. The output has the shape and the dtype of u; NaN stays NaN.
    """
    if needs_plain(u, weight):
        return _plain(u, weight, left, right)
    result: Tensor = _Interpolation.apply(u, weight, left, right)
    return result


class _Interpolation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
        ctx.interval = left, right
        ctx.save_for_backward(u, weight)
        layout, dtype, tables = _prepared(u, weight)
        y, *_ = one_pass(_value_pass(dtype), (layout.read(u),), (*tables, *_scale(weight, left, right)))
        return layout.restore(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain(grad):
            return *_plain_gradients(grad, u, weight, *ctx.interval), None, None
        layout, dtype, (_, slopes, offsets) = _prepared(u, weight)
        wanted = ctx.needs_input_grad[:2]
        by_u, *sums = one_pass(
            _gradient_pass(dtype, wanted),
            (layout.read(grad), layout.read(u)),
            (slopes, offsets, *_scale(weight, *ctx.interval)),
            # Threads that add to one table would do so in any order.
            serial=wanted[1],
        )
        by_weight = None
        if wanted[1]:
            by_weight = layout.restore_parameter(_by_points(*sums).to(dtype), weight).to(weight.dtype)
        return None if by_u is None else layout.restore(by_u), by_weight, None, None


def _prepared(u: Tensor, weight: Tensor) -> tuple[Layout, torch.dtype, tuple[Tensor, Tensor, Tensor]]:
    layout = Layout.of(u, weight.shape[:-1])
    dtype = inner_dtype(u, weight)
    return layout, dtype, _tables(layout.read_parameter(weight.to(dtype)), len(layout.array) == 3)


def _tables(weight: Tensor, several: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Value below each segment and rise over it, (*sets, segments), and where each set begins in the flat tables."""
    below, rise = weight[..., :-1], weight.diff(dim=-1)
    sets = rise.shape[:-1]
    offsets = torch.arange(sets.numel(), device=weight.device).mul(rise.shape[-1]).reshape(sets)
    return below, rise, offsets.unsqueeze(1) if several else offsets


def _scale(weight: Tensor, left: float, right: float) -> tuple[float, float]:
    return left, (weight.shape[-1] - 1) / (right - left)


def _segment(u: Tensor, segments: int, offsets: Tensor, left: float, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """How far along its segment each input is, the segment's place in the flat tables, and whether the line is flat."""
    at = ((u - left) * scale).clamp(0, segments)
    flat = (at <= 0) | (at >= segments)
    # A comparison with NaN is false: it takes segment 0, and how far along it is stays NaN.
    segment = torch.where(at > 0, at.detach().floor().clamp(max=segments - 1), 0.0)
    return torch.where(flat, at.detach(), at) - segment, segment.to(torch.int64) + offsets, flat


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    return table.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


def _value(u: Tensor, below: Tensor, rise: Tensor, offsets: Tensor, left: float, scale: float) -> Tensor:
    part, index, _ = _segment(u, rise.shape[-1], offsets, left, scale)
    return _look_up(below, index) + part * _look_up(rise, index)


def _gradient_by_u(grad: Tensor, rise: Tensor, index: Tensor, flat: Tensor, scale: float) -> Tensor:
    return torch.where(flat, 0.0, grad * (_look_up(rise, index) * scale))


def _segment_sums(grad: Tensor, part: Tensor, index: Tensor, rise: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of grad and of grad * part over each segment, both of the shape of `rise`, in float64."""
    empty = torch.zeros(rise.numel(), dtype=torch.float64, device=rise.device)
    place = index.reshape(-1)
    of_grad = empty.index_add(0, place, grad.double().reshape(-1))
    of_upper = empty.index_add(0, place, (grad * part).double().reshape(-1))
    return of_grad.reshape(rise.shape), of_upper.reshape(rise.shape)


def _by_points(of_grad: Tensor, of_upper: Tensor) -> Tensor:
    """The gradient by the weights: each segment's sums go to the points below and above it."""
    pad = torch.nn.functional.pad
    return pad(of_grad - of_upper, (0, 1)) + pad(of_upper, (1, 0))


@cache
def _value_pass(dtype: torch.dtype) -> Pass:
    def value(u: Tensor, below: Tensor, rise: Tensor, offsets: Tensor, left: float, scale: float) -> tuple[Tensor]:
        return (_value(u.to(dtype), below, rise, offsets, left, scale).to(u.dtype),)

    return value


@cache
def _gradient_pass(dtype: torch.dtype, wanted: tuple[bool, bool]) -> Pass:
    def gradient(
        grad: Tensor, u: Tensor, rise: Tensor, offsets: Tensor, left: float, scale: float
    ) -> tuple[Tensor | None, ...]:
        part, index, flat = _segment(u.to(dtype), rise.shape[-1], offsets, left, scale)
        inner = grad.to(dtype)
        by_u = _gradient_by_u(inner, rise, index, flat, scale).to(u.dtype) if wanted[0] else None
        return by_u, *(_segment_sums(inner, part, index, rise) if wanted[1] else ())

    return gradient


def _plain(u: Tensor, weight: Tensor, left: float, right: float) -> Tensor:
    dtype = inner_dtype(u, weight)
    tables = _plain_tables(weight.to(dtype))
    return _value(u.to(dtype), *tables, *_scale(weight, left, right)).to(u.dtype)


def _plain_gradients(grad: Tensor, u: Tensor, weight: Tensor, left: float, right: float) -> tuple[Tensor, Tensor]:
    dtype = inner_dtype(u, weight)
    _, rise, offsets = _plain_tables(weight.to(dtype))
    start, scale = _scale(weight, left, right)
    part, index, flat = _segment(u.to(dtype), rise.shape[-1], offsets, start, scale)
    inner = grad.to(dtype)
    by_u = _gradient_by_u(inner, rise, index, flat, scale).to(u.dtype)
    by_weight = _by_points(*_segment_sums(inner, part, index, rise))
    return by_u, by_weight.reshape(weight.shape).to(weight.dtype)


def _plain_tables(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _tables(weight.reshape(-1) if weight.shape[:-1] == (1,) else weight, several=False)
