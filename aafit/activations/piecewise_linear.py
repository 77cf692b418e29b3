"""Piecewise-linear interpolation between learnt values, which F-Neuron computes, as `elementwise` does formulas.

Time and memory do not depend on the number of values: each input takes the two next to it, and the gradient by the
values is gathered as two sums for each segment between them.
"""

from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aafit.activations.compiled import Layout, Pass, one_pass
from aafit.activations.elementwise import inner_dtype, needs_plain, sizes_of, unseen
from aafit.activations.look_up import gradient_loop, value_loop


class Line(NamedTuple):
    """Where the values lie: evenly over [left, right]; beyond, the first and last segments go on where `extended`."""

    left: float
    right: float
    extended: bool = False


def interpolate(u: Tensor, weight: Tensor, line: Line) -> Tensor:
    """The straight line between the weights next to u; beyond the interval flat, or as the nearest segment goes on.

    u is of shape (B, *...), weight of shape (*shape, points) where `shape` is (1,) or broadcasts against the
    trailing dimensions of u. The gradient by u is that of the segment, of the one above at the points between two, and
    0 at and beyond the ends of a line that is flat there. The output has the shape and the dtype of u; NaN stays NaN.
    """
    if needs_plain(u, weight):
        with unseen():
            return _plain(u, weight, line)
    if not torch.is_grad_enabled() or not (u.requires_grad or weight.requires_grad):
        return _output(u, weight, line, Layout.of(u, weight.shape[:-1]), inner_dtype(u, weight))
    result: Tensor = _Interpolation.apply(u, weight, line)
    return result


class _Interpolation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, line: Line) -> Tensor:
        ctx.line = line
        ctx.save_for_backward(u, weight)
        ctx.layout, ctx.dtype = Layout.of(u, weight.shape[:-1]), inner_dtype(u, weight)
        return _output(u, weight, line, ctx.layout, ctx.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain(grad):
            return *_plain_gradients(grad, u, weight, ctx.line), None
        layout, dtype, line = ctx.layout, ctx.dtype, ctx.line
        tables = _tables(layout.read_parameter(weight.to(dtype)))
        wanted = ctx.needs_input_grad[:2]
        by_u, *sums = one_pass(
            _gradient_pass(dtype, wanted, line.extended),
            (layout.read(grad), layout.read(u)),
            (*tables, *_scale(weight, line)),
            # Threads that add to one table would do so in any order.
            serial=wanted[1],
            own_loop=gradient_loop(line.extended, wanted),
        )
        by_weight = layout.restore_parameter(sums[0].to(dtype), weight).to(weight.dtype) if wanted[1] else None
        return None if by_u is None else layout.restore(by_u), by_weight, None


def _output(u: Tensor, weight: Tensor, line: Line, layout: Layout, dtype: torch.dtype) -> Tensor:
    tables = _tables(layout.read_parameter(weight.to(dtype)))
    y, *_ = one_pass(
        _value_pass(dtype, line.extended),
        (layout.read(u),),
        (*tables, *_scale(weight, line)),
        own_loop=value_loop(line.extended),
    )
    return layout.restore(y)


def _tables(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and, of all its places in a row, the rise to the next; between two sets it is no segment's."""
    return weight, weight.reshape(-1).diff()


def _scale(weight: Tensor, line: Line) -> tuple[float, float]:
    return line.left, (sizes_of(weight)[-1] - 1) / (line.right - line.left)


class _Segment(NamedTuple):
    """How far along its segment each input is, the segment's place in the flattened weight, and whether it is flat.

    A place is where a segment begins; None is flat where the line goes on beyond its ends.
    """

    part: Tensor
    place: Tensor
    flat: Tensor | None


def _segment(u: Tensor, weight: Tensor, left: float, scale: float, extended: bool) -> _Segment:
    """The segment of each input; the weight is of shape (*sets, points), where the sets broadcast against u."""
    *sets, points = sizes_of(weight)
    segments = points - 1
    at = (u - left) * scale
    if not extended:
        at = at.clamp(0, segments)
    # A comparison with NaN is false: it takes segment 0, and how far along it is stays NaN.
    place = torch.where(at > 0, at.detach().clamp(max=segments - 1), 0.0).to(torch.int64)
    part = at - place
    if sets:
        place = place + torch.arange(prod(sets), device=weight.device).mul(points).reshape(sets)
    return _Segment(part, place, None if extended else (at <= 0) | (at >= segments))


def _look_up(table: Tensor, place: Tensor) -> Tensor:
    # Not index_select: compiled, it would ask of every place whether it counts from the end.
    return table.reshape(-1).gather(0, place.reshape(-1)).reshape(place.shape)


def _value(part: Tensor, place: Tensor, weight: Tensor, rises: Tensor) -> Tensor:
    return _look_up(weight, place) + part * _look_up(rises, place)


def _gradient_by_u(grad: Tensor, rises: Tensor, segment: _Segment, scale: float) -> Tensor:
    by_u = grad * (_look_up(rises, segment.place) * scale)
    return by_u if segment.flat is None else torch.where(segment.flat, 0.0, by_u)


def _gradient_by_weight(grad: Tensor, segment: _Segment, weight: Tensor) -> Tensor:
    """The sums of grad * (1 - part) at each segment's beginning and of grad * part at its end, in float64."""
    none = torch.zeros(prod(sizes_of(weight)), dtype=torch.float64, device=weight.device)
    at = segment.place.reshape(-1)
    # Two tables, so that one loop fills both.
    of_grad = none.index_add(0, at, grad.double().reshape(-1))
    of_ends = none.index_add(0, at, (grad * segment.part).double().reshape(-1))
    # No segment begins at a set's last place, so the last end of a set does not roll over into the next.
    return (of_grad - of_ends + of_ends.roll(1)).reshape(weight.shape)


@cache
def _value_pass(dtype: torch.dtype, extended: bool) -> Pass:
    def value(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> tuple[Tensor]:
        part, place, _ = _segment(u.to(dtype), weight, left, scale, extended)
        return (_value(part, place, weight, rises).to(u.dtype),)

    return value


@cache
def _gradient_pass(dtype: torch.dtype, wanted: tuple[bool, bool], extended: bool) -> Pass:
    def gradient(
        grad: Tensor, u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float
    ) -> tuple[Tensor | None, ...]:
        segment = _segment(u.to(dtype), weight, left, scale, extended)
        inner = grad.to(dtype)
        by_u = _gradient_by_u(inner, rises, segment, scale).to(u.dtype) if wanted[0] else None
        return by_u, *([_gradient_by_weight(inner, segment, weight)] if wanted[1] else [])

    return gradient


def _plain(u: Tensor, weight: Tensor, line: Line) -> Tensor:
    dtype = inner_dtype(u, weight)
    table, rises = _tables(_plain_weight(weight.to(dtype)))
    part, place, flat = _segment(u.to(dtype), table, *_scale(weight, line), line.extended)
    if flat is not None:
        part = torch.where(flat, part.detach(), part)
    return _value(part, place, table, rises).to(u.dtype)


def _plain_gradients(grad: Tensor, u: Tensor, weight: Tensor, line: Line) -> tuple[Tensor, Tensor]:
    dtype = inner_dtype(u, weight)
    table, rises = _tables(_plain_weight(weight.to(dtype)))
    start, scale = _scale(weight, line)
    segment = _segment(u.to(dtype), table, start, scale, line.extended)
    inner = grad.to(dtype)
    by_u = _gradient_by_u(inner, rises, segment, scale).to(u.dtype)
    return by_u, _gradient_by_weight(inner, segment, table).reshape(weight.shape).to(weight.dtype)


def _plain_weight(weight: Tensor) -> Tensor:
    """A weight that broadcasts against inputs of every rank, scalars included."""
    return weight.reshape(-1) if sizes_of(weight)[:-1] == (1,) else weight
