"""Linear interpolation between values at evenly spaced knots, which F-Neuron computes, and its least-squares fits.

`Line` computes it. Time and memory do not depend on the number of knots: each input reads the two values next to it,
and the gradient by the values is accumulated as two sums for each segment. The fits are in float64, for many parameter
sets at once; axes in names: S parameter set, E input, N knot. An interval of each set is `ends_2S`, its two ends.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from aafit.activations.compiled import Layout, Pass, one_pass
from aafit.activations.elementwise import ElementwiseFunction, compute_dtype, static_shape
from aafit.activations.look_up import gradient_loop, value_loop

PRIOR = 1e-6
"""Weight of all of the function's own values at the knots together, relative to the inputs."""
TAILS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Shares of the inputs that `fit_intervals` tries to leave out at either end."""
SHRINKS = 12
NARROWEST = 1e-3
"""The least width of an interval, relative to the range of the inputs."""


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


# --- fits ------------------------------------------------------------------------------------------------------------


def knots_between(ends_2S: Tensor, size: int) -> Tensor:
    """Return evenly spaced knots from the left to the right end of each set, (S, N)."""
    left_S, right_S = ends_2S
    part_N = torch.linspace(0, 1, size, dtype=torch.float64)
    knots_SN: Tensor = left_S[:, None] + (right_S - left_S)[:, None] * part_N
    return knots_SN


def fit_linear_spline(
    u_SE: Tensor, y_SE: Tensor, weight_SE: Tensor, ends_2S: Tensor, extrapolates: bool, own_SN: Tensor
) -> Tensor:
    """Return the values at the knots (S, N) with the least weighted squared error.

    Args:
        u_SE: Inputs.
        y_SE: The function's values there.
        weight_SE: The shares of the inputs.
        ends_2S: The first and the last knot.
        extrapolates: Whether the first and the last segment continue beyond them.
        own_SN: The function's values at the knots, which a knot without inputs keeps (a weak prior).
    """
    sets, size = own_SN.shape
    place_SE, part_SE = _positions(u_SE, ends_2S, size, extrapolates)
    ends_2SE = torch.stack([1 - part_SE, part_SE])
    rows_2SE = torch.stack([place_SE, place_SE + 1])
    # The matrix is tridiagonal, but too small for that to matter.
    matrix = torch.zeros(sets, size * size, dtype=torch.float64)
    for one in range(2):
        for other in range(2):
            at_SE = rows_2SE[one] * size + rows_2SE[other]
            matrix.scatter_add_(1, at_SE, weight_SE * ends_2SE[one] * ends_2SE[other])
    right_SN = torch.zeros(sets, size, dtype=torch.float64)
    error_SE = weight_SE * (y_SE - _interpolated(own_SN, place_SE, part_SE))
    for one in range(2):
        right_SN.scatter_add_(1, rows_2SE[one], ends_2SE[one] * error_SE)
    prior = PRIOR / size * torch.eye(size, dtype=torch.float64)
    change_SN: Tensor = torch.linalg.solve(matrix.reshape(sets, size, size) + prior, right_SN)
    return own_SN + change_SN


def spline_values(u_SE: Tensor, values_SN: Tensor, ends_2S: Tensor, extrapolates: bool) -> Tensor:
    """Return the values of the splines with these values at the knots, (S, E)."""
    return _interpolated(values_SN, *_positions(u_SE, ends_2S, values_SN.shape[1], extrapolates))


def fit_intervals(u_SE: Tensor, y_SE: Tensor, weight_SE: Tensor, size: int, extrapolates: bool) -> Tensor:
    """Return the interval of each set, within its inputs, on which `size` knots leave the least squared error, (2, S).

    Intervals without some share of the inputs at either end are tried first; then the ends move in shrinking steps.

    Args:
        u_SE: Inputs in ascending order, with at least two different ones in each set.
        y_SE: The function's values there.
        weight_SE: The shares of the inputs; they sum to 1.
        size: The number of knots.
        extrapolates: Whether the first and the last segment continue beyond the interval.
    """
    below_SE, above_SE = weight_SE.cumsum(1), weight_SE.flip(1).cumsum(1)
    last = u_SE.shape[1] - 1
    width_S = u_SE[:, -1] - u_SE[:, 0]

    def end(at_S: Tensor) -> Tensor:
        return u_SE.gather(1, at_S.clamp(0, last)[:, None])[:, 0]

    def errors(ends_2S: Tensor) -> Tensor:
        usable_S = ends_2S[1] - ends_2S[0] >= NARROWEST * width_S
        ends_2S = torch.where(usable_S, ends_2S, torch.stack([u_SE[:, 0], u_SE[:, -1]]))
        own_SN = _known_values(u_SE, y_SE, knots_between(ends_2S, size))
        values_SN = fit_linear_spline(u_SE, y_SE, weight_SE, ends_2S, extrapolates, own_SN)
        error_SE = spline_values(u_SE, values_SN, ends_2S, extrapolates) - y_SE
        return torch.where(usable_S, (weight_SE * error_SE.square()).sum(1), torch.inf)

    best_2S = torch.stack([u_SE[:, 0], u_SE[:, -1]])
    least_S = torch.full_like(width_S, torch.inf)

    def consider(ends_2S: Tensor) -> None:
        nonlocal best_2S, least_S
        error_S = errors(ends_2S)
        best_2S = torch.where(error_S < least_S, ends_2S, best_2S)
        least_S = torch.minimum(error_S, least_S)

    lefts = torch.stack([end((below_SE <= share).sum(1)) for share in TAILS]).unique(dim=0)
    rights = torch.stack([end(last - (above_SE <= share).sum(1)) for share in TAILS]).unique(dim=0)
    for left_S in lefts:
        for right_S in rights:
            consider(torch.stack([left_S, right_S]))
    step_S = (best_2S[1] - best_2S[0]) / size
    for _ in range(SHRINKS):
        # One end, both outwards or inwards, or both in one direction.
        for move in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)):
            for sign in (1, -1):
                consider(best_2S + sign * step_S * torch.tensor(move, dtype=torch.float64)[:, None])
        step_S = step_S / 2
    # Most functions with a kink have it at 0: try a knot there.
    left_S, right_S = best_2S
    radius_S = (right_S - left_S) / (size - 1)
    offset_S = -(-left_S / radius_S).round() * radius_S - left_S
    consider(torch.where((left_S < 0) & (right_S > 0), best_2S + offset_S, best_2S))
    return best_2S


def _interpolated(values_SN: Tensor, place_SE: Tensor, part_SE: Tensor) -> Tensor:
    """Return the values at positions `part_SE` of the segments `place_SE`."""
    return values_SN.gather(1, place_SE) * (1 - part_SE) + values_SN.gather(1, place_SE + 1) * part_SE


def _positions(u_SE: Tensor, ends_2S: Tensor, size: int, extrapolates: bool) -> tuple[Tensor, Tensor]:
    """Return the segment of each input, and the position in it from 0 to 1 (beyond, if the line extrapolates)."""
    left_S, right_S = ends_2S
    at_SE = (u_SE - left_S[:, None]) * ((size - 1) / (right_S - left_S))[:, None]
    if not extrapolates:
        at_SE = at_SE.clamp(0, size - 1)
    place_SE = at_SE.floor().clamp(0, size - 2).to(torch.int64)
    return place_SE, at_SE - place_SE


def _known_values(u_SE: Tensor, y_SE: Tensor, at_SN: Tensor) -> Tensor:
    """Return the functions' values at `at_SN`, interpolated linearly between the inputs."""
    above_SN = torch.searchsorted(u_SE, at_SN).clamp(1, u_SE.shape[1] - 1)
    low_SN, high_SN = u_SE.gather(1, above_SN - 1), u_SE.gather(1, above_SN)
    # Equal inputs are 0 / 0 apart.
    part_SN = ((at_SN - low_SN) / (high_SN - low_SN)).nan_to_num(0.0).clamp(0, 1)
    y_low_SN = y_SE.gather(1, above_SN - 1)
    return y_low_SN + part_SN * (y_SE.gather(1, above_SN) - y_low_SN)
