"""Linear interpolation between trainable values at evenly spaced knots, which F-Neuron computes.

Time and memory do not depend on the number of knots: each input reads the two values next to it, and the gradient by
the values is accumulated as two sums for each segment.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from aafit.activations.compiled import Layout, Pass, one_pass
from aafit.activations.elementwise import ElementwiseFunction, compute_dtype, static_shape
from aafit.activations.look_up import gradient_loop, value_loop


@dataclass(frozen=True)
class Line(ElementwiseFunction):
    """Linear interpolation between values at evenly spaced knots.

    A call `line(u, weight)` takes weights of the shape (*shape, knots), where `shape` is (1,) or broadcasts against the
    trailing dimensions of u. The gradient by u is the slope of the segment, at a knot that of the segment to its right;
    it is 0 at and beyond the ends unless the line extrapolates. NaN gives NaN.

    Attributes:
        left, right: The first and the last knot.
        extrapolates: Whether the first and the last segment continue beyond them; otherwise the line is constant there.
    """

    left: float
    right: float
    extrapolates: bool = False
    own_dims = 1

    def scale(self, weight: Tensor) -> float:
        """Return the segments per unit of the input."""
        return (static_shape(weight)[-1] - 1) / (self.right - self.left)

    def output(self, layout: Layout, u: Tensor, *parameters: Tensor) -> Tensor:
        (weight,) = parameters
        dtype = compute_dtype(u, weight)
        y, *_ = one_pass(
            _value_pass(dtype, self.extrapolates),
            (layout.read(u),),
            (*_tables(layout.read_parameter(weight.to(dtype))), self.left, self.scale(weight)),
            own_loop=value_loop(self.extrapolates),
        )
        return layout.restore(y)

    def gradients(
        self, layout: Layout, wanted: tuple[bool, ...], grad: Tensor, u: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        (weight,) = parameters
        dtype = compute_dtype(u, weight)
        by_u, *sums = one_pass(
            _gradient_pass(dtype, wanted, self.extrapolates),
            (layout.read(grad), layout.read(u)),
            (*_tables(layout.read_parameter(weight.to(dtype))), self.left, self.scale(weight)),
            # Several threads would add to one table in any order.
            serial=wanted[1],
            own_loop=gradient_loop(self.extrapolates, wanted),
        )
        by_weight = layout.restore_parameter(sums[0].to(dtype), weight).to(weight.dtype) if wanted[1] else None
        return None if by_u is None else layout.restore(by_u), by_weight

    def plain(self, u: Tensor, *parameters: Tensor) -> Tensor:
        (weight,) = parameters
        dtype = compute_dtype(u, weight)
        table, rises = _tables(_broadcasting(weight.to(dtype)))
        part, place, flat = _segment(u.to(dtype), table, self.left, self.scale(weight), self.extrapolates)
        if flat is not None:
            part = torch.where(flat, part.detach(), part)
        return _value(part, place, table, rises).to(u.dtype)

    def plain_gradients(self, grad: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        (weight,) = parameters
        dtype, scale = compute_dtype(u, weight), self.scale(weight)
        table, rises = _tables(_broadcasting(weight.to(dtype)))
        part, place, flat = _segment(u.to(dtype), table, self.left, scale, self.extrapolates)
        inner = grad.to(dtype)
        by_u = _gradient_by_u(inner, rises, place, flat, scale).to(u.dtype)
        return by_u, _gradient_by_weight(inner, part, place, table).reshape(weight.shape).to(weight.dtype)


def _tables(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight, and the rise from each value to the next; the one between two sets is never read."""
    return weight, weight.reshape(-1).diff()


def _segment(
    u: Tensor, weight: Tensor, left: float, scale: float, extrapolates: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return each input's position in its segment, the segment's index in the flat weight, and where the line is flat.

    The weight is of shape (*sets, knots), where `sets` broadcasts against u. The third is None if it extrapolates.
    """
    *sets, knots = static_shape(weight)
    segments = knots - 1
    at = (u - left) * scale
    if not extrapolates:
        at = at.clamp(0, segments)
    # A comparison with NaN is false: it takes segment 0, and its position stays NaN.
    place = torch.where(at > 0, at.detach().clamp(max=segments - 1), 0.0).to(torch.int64)
    part = at - place
    if sets:
        place = place + torch.arange(prod(sets), device=weight.device).mul(knots).reshape(sets)
    return part, place, None if extrapolates else (at <= 0) | (at >= segments)


def _look_up(table: Tensor, place: Tensor) -> Tensor:
    # Not index_select: compiled, it would test every index for being negative.
    return table.reshape(-1).gather(0, place.reshape(-1)).reshape(place.shape)


def _value(part: Tensor, place: Tensor, weight: Tensor, rises: Tensor) -> Tensor:
    return _look_up(weight, place) + part * _look_up(rises, place)


def _gradient_by_u(grad: Tensor, rises: Tensor, place: Tensor, flat: Tensor | None, scale: float) -> Tensor:
    by_u = grad * (_look_up(rises, place) * scale)
    return by_u if flat is None else torch.where(flat, 0.0, by_u)


def _gradient_by_weight(grad: Tensor, part: Tensor, place: Tensor, weight: Tensor) -> Tensor:
    """Return the float64 sums of grad * (1 - part) at the left and of grad * part at the right end of each segment."""
    none = torch.zeros(prod(static_shape(weight)), dtype=torch.float64, device=weight.device)
    at = place.reshape(-1)
    # Two tables, so that one loop fills both.
    of_grad = none.index_add(0, at, grad.double().reshape(-1))
    of_ends = none.index_add(0, at, (grad * part).double().reshape(-1))
    # No segment begins at the last knot of a set, so nothing rolls over into the next set.
    return (of_grad - of_ends + of_ends.roll(1)).reshape(weight.shape)


@cache
def _value_pass(dtype: torch.dtype, extrapolates: bool) -> Pass:
    def value(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> tuple[Tensor]:
        part, place, _ = _segment(u.to(dtype), weight, left, scale, extrapolates)
        return (_value(part, place, weight, rises).to(u.dtype),)

    return value


@cache
def _gradient_pass(dtype: torch.dtype, wanted: tuple[bool, ...], extrapolates: bool) -> Pass:
    def gradient(
        grad: Tensor, u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float
    ) -> tuple[Tensor | None, ...]:
        part, place, flat = _segment(u.to(dtype), weight, left, scale, extrapolates)
        inner = grad.to(dtype)
        by_u = _gradient_by_u(inner, rises, place, flat, scale).to(u.dtype) if wanted[0] else None
        return by_u, *([_gradient_by_weight(inner, part, place, weight)] if wanted[1] else [])

    return gradient


def _broadcasting(weight: Tensor) -> Tensor:
    """Return a weight that broadcasts against inputs of every rank, including scalars."""
    return weight.reshape(-1) if static_shape(weight)[:-1] == (1,) else weight
