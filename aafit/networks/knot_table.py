"""Tables of a function's values at knots that are denser where that reduces the error, in floating point.

Axes in names: S parameter set, U edge of a cell, E input, N knot.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, Histogram
from aafit.activations.base import curve_values

CELLS = 16
"""Cells of a table per knot: a knot is at the edge of a cell."""
KINKS = 16
"""The most kinks of an activation that get a knot of their own."""
SHARP = 50.0
"""A second difference above this multiple of their median marks a kink."""


class Table(nn.Module):
    """A fixed piecewise-linear function with knots at any multiples of a cell width, extrapolated linearly.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. There are no
    parameters, and the operations are plain ones that export. NaN gives NaN. Everything is in the state_dict: loading
    another table makes this one that table, or is refused if the sizes differ.

    Args:
        limits: The first and the last knot.
        knots: The cell at whose left edge each knot is, (N,) in ascending order from 0 to the number of cells.
        values: The values at the knots, (*shape, N), where `shape` is (1,) or broadcasts against the trailing
            dimensions of the input.
        slopes: The slopes below the first and above the last knot, (2, *shape).
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["shape"]
    limits: Tensor
    knots: Tensor
    segments: Tensor
    values: Tensor
    slopes: Tensor

    def __init__(self, limits: tuple[float, float], knots: Tensor, values: Tensor, slopes: Tensor) -> None:
        super().__init__()
        self.register_buffer("limits", torch.tensor(limits, dtype=torch.float32, device=values.device))
        self.register_buffer("knots", knots.to(torch.int64))
        # The segment of each cell.
        self.register_buffer("segments", torch.repeat_interleave(knots.diff()).to(torch.int32))
        self.register_buffer("values", values.clone())
        self.register_buffer("slopes", slopes.clone())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the sets of values; (1,) if the layer shares one function."""
        return tuple(self.values.shape[:-1])

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function elementwise."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        values, slopes, cells = self.values.to(dtype), self.slopes.to(dtype), len(self.segments)
        left, right = self.limits.to(dtype).unbind()
        # So that the straight tails stay finite in float32.
        u = input.to(dtype).clamp(-3e35, 3e35)
        at = ((u - left) * (cells / (right - left))).clamp(0, cells)
        # A comparison with NaN is false: it takes cell 0, and its position stays NaN.
        cell = torch.where(at > 0, at, 0.0).floor().clamp(max=cells - 1).to(torch.int64)
        segment = self.segments[cell].to(torch.int64)
        begin, end = self.knots[segment], self.knots[segment + 1]
        size = self.values.shape[-1]
        sets = torch.arange(values.numel() // size, device=values.device).mul(size).reshape(values.shape[:-1])
        first, last = values.reshape(-1)[segment + sets], values.reshape(-1)[segment + 1 + sets]
        inside = first + (at - begin) / (end - begin) * (last - first)
        below = (u - left).clamp(max=0) * slopes[0]
        above = (u - right).clamp(min=0) * slopes[1]
        return (inside + below + above).to(input.dtype)

    def extra_repr(self) -> str:
        left, right = self.limits.tolist()
        return f"[{left:g}, {right:g}], knots={len(self.knots)}, shape={self.shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Table":
        limits = self.limits
        super()._apply(fn, recurse)
        # In bfloat16 the cells would move.
        self.limits = limits.to(self.limits.device)
        return self


def knot_table(activation: AdaptiveActivation, histogram: Histogram, span: tuple[float, float], size: int) -> Table:
    """Return a table of an activation: an F-Neuron's own knots, or those that `_chosen_knots` finds.

    Args:
        activation: In float64; it is left unchanged.
        histogram: Its inputs.
        span: The first and the last knot, about.
        size: The number of knots, about.
    """
    if isinstance(activation, FNeuron) and activation.intervals is None:
        ends, cells = activation.interval, activation.knots - 1
        knots = torch.arange(activation.knots)
        values = activation.weight.detach()
    else:
        ends, cells = _aligned(span, CELLS * (size - 1))
        edges_U = torch.linspace(*ends, cells + 1, dtype=torch.float64)
        values_SU = curve_values(activation, edges_U).T
        knots = _chosen_knots(edges_U, values_SU, histogram, size)
        values = values_SU[:, knots].reshape(*activation.shape, -1)
    # The slopes of the straight tails: over the inputs beyond the limits, or over the next unit.
    u_E, _ = histogram.points()
    tails = []
    for end, beyond_E, step in ((ends[0], u_E[u_E < ends[0]], -1.0), (ends[1], u_E[u_E > ends[1]], 1.0)):
        beyond_E = beyond_E if len(beyond_E) else torch.tensor([end + step], dtype=torch.float64)
        rise_SE = (curve_values(activation, beyond_E) - curve_values(activation, torch.tensor([end]))).T
        distance_E = beyond_E - end
        slope_S = (rise_SE * distance_E).sum(1) / distance_E.square().sum()
        tails.append(slope_S.reshape(activation.shape).to(values.device))
    made = Table(ends, knots.to(values.device), values, torch.stack(tails))
    return made.to(torch.get_default_dtype())


def _aligned(span: tuple[float, float], cells: int) -> tuple[tuple[float, float], int]:
    """Return limits around a span that are exact in float32, with the edge of a cell at 0 if 0 is within them."""
    left, right = span
    if left == right:
        left, right = left - 1, right + 1
    if left < 0 < right:
        width = (right - left) / (cells - 2)
        # A power of two times a short number: multiples of it are exact in float32.
        width = math.ceil(width * 2.0 ** (10 - math.frexp(width)[1])) * 2.0 ** (math.frexp(width)[1] - 10)
        below, above = math.ceil(-left / width), math.ceil(right / width)
        return (-below * width, above * width), below + above
    left, right = torch.tensor([left, right]).tolist()
    return (left, right), cells


def _chosen_knots(edges_U: Tensor, values_SU: Tensor, histogram: Histogram, size: int) -> Tensor:
    """Return the cells at whose edges the knots are, about `size` of them.

    A third of the knots are evenly spaced, a third follow the quantiles of the inputs, and a third the square root of
    the curvature. A kink, where the curvature is much larger than elsewhere, gets a knot of its own.
    """
    cells = len(edges_U) - 1
    bend_U = torch.zeros(cells + 1, dtype=torch.float64)
    bend_U[1:-1] = values_SU.diff(n=2, dim=-1).abs().amax(0)
    u_E, weight_E = histogram.points()
    at_E = torch.bucketize(u_E, edges_U).clamp(0, cells)
    inputs_U = torch.zeros(cells + 1, dtype=torch.float64).index_add(0, at_E, weight_E)
    density_U = torch.full((cells + 1,), 1 / (cells + 1), dtype=torch.float64) + inputs_U / inputs_U.sum()
    root_U = bend_U.sqrt()
    if root_U.sum() > 0:
        density_U = density_U + root_U / root_U.sum()
    total_U = density_U.cumsum(0)
    wanted = torch.linspace(0, total_U[-1].item(), size, dtype=torch.float64)
    chosen = torch.searchsorted(total_U, wanted).clamp(0, cells)
    sharp = ((bend_U > SHARP * bend_U.median()) & (bend_U > 1e-9 * values_SU.abs().max())).nonzero().flatten()
    kinks = sharp[bend_U[sharp].argsort(descending=True)[:KINKS]]
    zero = (edges_U == 0).nonzero().flatten()
    knots: Tensor = torch.cat([chosen, kinks, zero, torch.tensor([0, cells])]).unique()
    return knots
