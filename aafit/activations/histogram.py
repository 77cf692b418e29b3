"""How often an activation receives which input, in bounded memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aafit.errors import UserError

BINS = 8192
CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Histogram:
    """The counts of inputs between edges.

    `Histogram.of(batch)` counts the elements of a tensor, and `merged` joins the counts of several batches. Both lay
    the edges at multiples of a power of two, so that the bins of one batch are whole bins of another, or parts of them:
    joining them moves no count, in whatever order, and the number of bins stays bounded.

    Attributes:
        edges: The edges of the bins, rising, (bins + 1,) in float64 on the CPU.
        counts: How many inputs lie between two edges, (bins,) in float64 on the CPU; weights need not be whole.

    Raises:
        UserError: the edges do not rise or are not finite, a count is negative or not finite, all are 0, or the numbers
            of the two do not fit.
    """

    edges: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        for name in ("edges", "counts"):
            values = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            if values.ndim != 1 or not values.isfinite().all():
                raise UserError(f"The {name} of a histogram must be a row of finite numbers; got {values!r}.")
            object.__setattr__(self, name, values)
        if len(self.counts) < 1 or len(self.edges) != len(self.counts) + 1:
            raise UserError(
                f"A histogram has one edge more than counts, and at least one count; got {len(self.edges)} edges and "
                f"{len(self.counts)} counts."
            )
        if not (self.edges.diff() > 0).all():
            raise UserError("The edges of a histogram must rise.")
        if (self.counts < 0).any() or not self.counts.sum() > 0:
            raise UserError("The counts of a histogram must be 0 or more, and not all of them 0.")

    @classmethod
    def of(cls, u: Tensor, bins: int = BINS) -> "Histogram":
        """The histogram of the elements of a tensor, in at most `bins` bins.

        Raises:
            UserError: the tensor is empty, not floating-point, holds NaN or infinity, or one value only; `bins` is not
                a whole number of at least 2.
        """
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise UserError(f"A histogram needs at least 2 bins, a whole number; got {bins!r}.")
        if not isinstance(u, Tensor) or not u.is_floating_point():
            what = u.dtype if isinstance(u, Tensor) else type(u).__name__
            raise UserError(f"A histogram is of a tensor of floating-point numbers, not of {what}.")
        if u.numel() == 0:
            raise UserError("A histogram of no inputs says nothing: give a batch that is not empty.")
        u = u.detach().flatten()
        low, high = (x.item() for x in u.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("The inputs hold values that are not finite (NaN or infinity).")
        if low == high:
            raise UserError(f"All inputs are {low:g}: a histogram needs at least two different ones.")
        width, first, number = _grid(low, high, bins)
        counts = torch.zeros(number, dtype=torch.float64)
        for part in u.split(CHUNK):
            at = (part.double() / width).floor().to(torch.int64) - first
            counts += torch.bincount(at.clamp_(0, number - 1), minlength=number).cpu()
        return cls(_edges(width, first, number), counts)

    def merged(self, other: "Histogram") -> "Histogram":
        """Both together, in at most as many bins as the larger of the two has, or 8192.

        Edges that are not multiples of a power of two lose that here: counts spread evenly within their bins.
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
        """The same counts in at most `bins` bins, each of several that lie side by side."""
        step = -(-len(self.counts) // bins)
        ends = torch.arange(0, len(self.counts) + step, step).clamp(max=len(self.counts))
        total = torch.cat([torch.zeros(1, dtype=torch.float64), self.counts.cumsum(0)])
        return Histogram(self.edges[ends], total[ends].diff())

    def points(self) -> tuple[Tensor, Tensor]:
        """The middles of the bins that are not empty, and their shares of all inputs; (E,) each, in float64."""
        filled = self.counts > 0
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        return middles[filled], self.counts[filled] / self.counts.sum()


def _grid(low: float, high: float, bins: int, narrowest: float = 0.0) -> tuple[float, int, int]:
    """Width of the bins, the first one's number counted from 0, and how many there are, to hold [low, high]."""
    width = 2.0 ** math.ceil(math.log2(max((high - low) / bins, narrowest, 1e-300)))
    while True:
        first, last = math.floor(low / width), math.floor(high / width)
        if last - first < bins:
            return width, first, last - first + 1
        width *= 2


def _edges(width: float, first: int, number: int) -> Tensor:
    return torch.arange(first, first + number + 1, dtype=torch.float64) * width


def _onto(histogram: Histogram, edges: Tensor) -> Tensor:
    """The counts between other edges, which lie around those of the histogram."""
    own, counts = histogram.edges, histogram.counts
    total = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    at = (torch.searchsorted(own, edges, right=True) - 1).clamp(0, len(counts) - 1)
    part = ((edges - own[at]) / (own[at + 1] - own[at])).clamp(0, 1)
    return (total[at] + part * counts[at]).diff()
