"""The histogram of the inputs of an activation, accumulated in bounded memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aafit.errors import UserError, check_count

BINS = 8192
CHUNK = 1 << 20
NARROWEST = 2.0**-20
"""Half the width of the bin of a single value, relative to it or to 1."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """The counts of the inputs of an activation between bin edges.

    `Histogram.of(batch)` counts the elements of a tensor, `merged` adds the counts of two batches. Both put the edges
    at multiples of a power of two, so that a bin of one histogram is a whole bin of another or a part of one: merging
    is exact in any order, and the number of bins stays bounded.

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
        width, first, number = _grid(low, high, bins)
        counts = torch.zeros(number, dtype=torch.float64)
        for part in u.split(CHUNK):
            at = (part.double() / width).floor().to(torch.int64) - first
            counts += torch.bincount(at.clamp_(0, number - 1), minlength=number).cpu()
        return cls(_edges(width, first, number), counts)

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
        width, first, number = _grid(low, high, max(BINS, len(self.counts), len(other.counts)), narrowest)
        edges = _edges(width, first, number)
        return Histogram(edges, _onto(self, edges) + _onto(other, edges))

    def coarser(self, bins: int) -> "Histogram":
        """Return the histogram with adjacent bins joined, so that there are at most `bins`."""
        step = -(-len(self.counts) // bins)
        ends = torch.arange(0, len(self.counts) + step, step).clamp(max=len(self.counts))
        total = torch.cat([torch.zeros(1, dtype=torch.float64), self.counts.cumsum(0)])
        return Histogram(self.edges[ends], total[ends].diff())

    def points(self) -> tuple[Tensor, Tensor]:
        """Return the centres of the bins that are not empty, and their shares of the inputs: (E,) each, in float64."""
        filled = self.counts > 0
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        return middles[filled], self.counts[filled] / self.counts.sum()


def _grid(low: float, high: float, bins: int, narrowest: float = 0.0) -> tuple[float, int, int]:
    """Return the width of the bins that hold [low, high], the index of the first (that of 0 is 0), and their number."""
    width = 2.0 ** math.ceil(math.log2(max((high - low) / bins, narrowest, 1e-300)))
    while True:
        first, last = math.floor(low / width), math.floor(high / width)
        if last - first < bins:
            return width, first, last - first + 1
        width *= 2


def _edges(width: float, first: int, number: int) -> Tensor:
    return torch.arange(first, first + number + 1, dtype=torch.float64) * width


def _onto(histogram: Histogram, edges: Tensor) -> Tensor:
    """Return the counts between other edges, which span those of the histogram."""
    own, counts = histogram.edges, histogram.counts
    total = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    at = (torch.searchsorted(own, edges, right=True) - 1).clamp(0, len(counts) - 1)
    part = ((edges - own[at]) / (own[at + 1] - own[at])).clamp(0, 1)
    return (total[at] + part * counts[at]).diff()
