"""The histogram of the inputs of an activation, accumulated in bounded memory."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aafit.errors import UserError, check_count

BINS = 8192
CHUNK = 1 << 20
DEVIATIONS = 10.0
"""Robust standard deviations from the median within which an input belongs to the bulk."""
LEAST_BITS = 8
"""The least binary logarithm of the number of equally wide bins to each side of 0."""
SAMPLED = 1 << 16
"""Elements from which the bulk of a tensor is estimated."""
NARROWEST = 2.0**-20
"""Half the width of the bin of a single value, relative to it or to 1."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """The counts of the inputs of an activation between bin edges.

    `Histogram.of(batch)` counts the elements of a tensor, `merged` adds the counts of two batches. Both put the edges
    at multiples of a power of two, so that a bin of one histogram is a whole bin of another or a part of one: merging
    is exact in any order. The bins are equally wide over the bulk of the inputs, see `bulk`; far outside it their
    width grows with the distance from 0, so that an outlier does not make them coarse.

    Attributes:
        edges: The bin edges in ascending order, (bins + 1,) in float64 on the CPU.
        counts: The number, or weight, of the inputs in each bin, (bins,) in float64 on the CPU.

    Raises:
        UserError: The edges are not ascending or not finite, a count is negative or not finite, all counts are 0, or
            the sizes do not match.

    Example:
        >>> batches = [torch.randn(100), 3 * torch.randn(50)]
        >>> histogram = aafit.Histogram.of(batches[0]).merged(aafit.Histogram.of(batches[1]))
        >>> histogram.counts.sum().item()
        150.0
        >>> fitted = aafit.LEAF.fit(F.gelu, histogram)
    """

    edges: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        for name in ("edges", "counts"):
            values = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            if values.ndim != 1 or not values.isfinite().all():
                raise UserError(f"The {name} of a histogram must be a vector of finite numbers; got {values!r}.")
            object.__setattr__(self, name, values)
        if len(self.counts) < 1 or len(self.edges) != len(self.counts) + 1:
            raise UserError(
                f"A histogram needs at least one count, and one edge more than counts; got {len(self.edges)} edges and "
                f"{len(self.counts)} counts."
            )
        if not (self.edges.diff() > 0).all():
            raise UserError("The edges of a histogram must be in ascending order.")
        if (self.counts < 0).any() or not self.counts.sum() > 0:
            raise UserError("The counts of a histogram must be 0 or more, and not all of them 0.")

    @classmethod
    def of(cls, u: Tensor, bins: int = BINS) -> "Histogram":
        """Return the histogram of the elements of a tensor, in at most `bins` bins.

        If all elements have one value, the histogram has a single narrow bin around it.

        Raises:
            UserError: The tensor is empty, not floating-point, or holds NaN or infinity; `bins` is not an integer of
                at least 2.
        """
        check_count("number of bins of a histogram", bins, 2)
        if not isinstance(u, Tensor) or not u.is_floating_point():
            what = u.dtype if isinstance(u, Tensor) else type(u).__name__
            raise UserError(f"A histogram needs a floating-point tensor; got {what}.")
        if u.numel() == 0:
            raise UserError("The tensor of inputs is empty: give a batch that is not.")
        u = u.detach().flatten()
        low, high = (x.item() for x in u.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("The inputs hold values that are not finite (NaN or infinity).")
        if low == high:
            half = max(abs(low), 1.0) * NARROWEST
            return cls(torch.tensor([low - half, low + half], dtype=torch.float64), torch.tensor([float(u.numel())]))
        some = u[:: max(1, u.numel() // SAMPLED)]
        inner = bulk_of(*(x.cpu() for x in some.double().sort().values.unique(return_counts=True)))
        grid = _grid(low, high, inner, bins)
        edges = grid.edges(low, high)
        first, number = grid.bin_of(torch.tensor([low], dtype=torch.float64)).item(), len(edges) - 1
        counts = torch.zeros(number, dtype=torch.float64)
        for part in u.split(CHUNK):
            at = grid.bin_of(part.double()) - first
            counts += torch.bincount(at.clamp_(0, number - 1), minlength=number).cpu()
        return cls(edges, counts)

    def merged(self, other: "Histogram") -> "Histogram":
        """Return the sum of two histograms, in at most 8192 bins or as many as the larger of the two has.

        Edges that are not multiples of a power of two are replaced by such: the counts of a bin are distributed evenly
        over it.
        """
        if torch.equal(self.edges, other.edges):
            return Histogram(self.edges, self.counts + other.counts)
        low = min(self.edges[0].item(), other.edges[0].item())
        high = max(self.edges[-1].item(), other.edges[-1].item())
        narrowest = min(self.edges.diff().min().item(), other.edges.diff().min().item())
        values, order = torch.cat([self.points()[0], other.points()[0]]).sort()
        counts = torch.cat([self.counts[self.counts > 0], other.counts[other.counts > 0]])[order]
        bins = max(BINS, len(self.counts), len(other.counts))
        edges = _grid(low, high, bulk_of(values, counts), bins, narrowest).edges(low, high)
        return Histogram(edges, _onto(self, edges) + _onto(other, edges))

    def coarser(self, bins: int) -> "Histogram":
        """Return the histogram with adjacent bins joined, so that there are at most `bins`."""
        step = -(-len(self.counts) // bins)
        ends = torch.arange(0, len(self.counts) + step, step).clamp(max=len(self.counts))
        total = torch.cat([torch.zeros(1, dtype=torch.float64), self.counts.cumsum(0)])
        return Histogram(self.edges[ends], total[ends].diff())

    def between(self, left: float, right: float) -> "Histogram":
        """Return the bins whose centres are in [left, right].

        Raises:
            UserError: There is no input in it.
        """
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        kept = ((centres >= left) & (centres <= right)).nonzero().flatten()
        if not len(kept):
            raise UserError(f"No input is in [{left:g}, {right:g}].")
        return Histogram(self.edges[kept[0] : kept[-1] + 2], self.counts[kept[0] : kept[-1] + 1])

    def bulk(self) -> tuple[float, float]:
        """Return the interval of the bulk of the inputs, without outliers.

        It holds what is within 10 robust standard deviations of the median, where the robust standard deviation is that
        of a normal distribution with the same 2.5% and 97.5% quantiles. Without outliers it is the range of the inputs.
        """
        values, weights = self.points()
        left, right = bulk_of(values, weights)
        inside = (values >= left) & (values <= right)
        filled = self.counts > 0
        return self.edges[:-1][filled][inside][0].item(), self.edges[1:][filled][inside][-1].item()

    def points(self) -> tuple[Tensor, Tensor]:
        """Return the centres of the bins that are not empty, and their shares of the inputs: (E,) each, in float64."""
        filled = self.counts > 0
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        return middles[filled], self.counts[filled] / self.counts.sum()


class _Grid(NamedTuple):
    """Bins of a constant width below |u| = 2^bits * width; beyond, each octave has 2^(bits - 1) bins of equal width."""

    width: float
    bits: int

    def bin_of(self, u: Tensor) -> Tensor:
        """Return the number of the bin of each value; the bin from 0 on has number 0."""
        size, half = u.abs() / self.width, 2 ** (self.bits - 1)
        octave = (size.frexp().exponent - self.bits).clamp(min=0).to(torch.int64)
        # The position in bins of the octave, which begins at its bin number `half`.
        at = size / 2.0**octave
        before = octave * half
        return torch.where(u < 0, -(at.ceil().to(torch.int64) + before), at.floor().to(torch.int64) + before)

    def edges(self, low: float, high: float) -> Tensor:
        """Return the edges of the bins that hold [low, high]."""
        first, last = self.bin_of(torch.tensor([low, high], dtype=torch.float64)).tolist()
        number = torch.arange(first, last + 2)
        half = 2 ** (self.bits - 1)
        octave = (number.abs() // half - 1).clamp(min=0)
        edges: Tensor = number.sign() * (number.abs() - octave * half) * 2.0**octave * self.width
        return edges


def _grid(low: float, high: float, bulk: tuple[float, float], bins: int, narrowest: float = 0.0) -> _Grid:
    """Return the grid with at most `bins` bins of equal width over the bulk of inputs in [low, high]."""
    left, right = max(low, bulk[0]), min(high, bulk[1])
    width = 2.0 ** math.ceil(math.log2(max((right - left) / bins, narrowest, 1e-300)))
    while math.floor(right / width) - math.floor(left / width) >= bins:
        width *= 2
    reach = max(abs(left), abs(right)) / width
    return _Grid(width, max(LEAST_BITS, math.ceil(math.log2(max(reach, 1.0)))))


def bulk_of(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return the interval of the bulk of ascending values with these weights, see `Histogram.bulk`."""
    below = weights.double().cumsum(0) / weights.sum()

    def quantile(share: float) -> float:
        return values[int((below < share).sum().clamp(max=len(values) - 1))].item()

    for tail in (0.025, 0.001):
        # Of inputs that are mostly one value, such as 0, the bulk is wider.
        if (width := quantile(1 - tail) - quantile(tail)) > 0:
            reach = DEVIATIONS * width / 3.92
            return quantile(0.5) - reach, quantile(0.5) + reach
    return values[0].item(), values[-1].item()


def _onto(histogram: Histogram, edges: Tensor) -> Tensor:
    """Return the counts between other edges, which span those of the histogram."""
    own, counts = histogram.edges, histogram.counts
    total = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    at = (torch.searchsorted(own, edges, right=True) - 1).clamp(0, len(counts) - 1)
    part = ((edges - own[at]) / (own[at + 1] - own[at])).clamp(0, 1)
    return (total[at] + part * counts[at]).diff()
