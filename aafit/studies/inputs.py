"""Measure the distribution of each activation's inputs. Begin with `input_distributions`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn, tensor

from aafit.activations import Histogram
from aafit.errors import UserError
from aafit.networks.batches import Batch, without_padding
from aafit.networks.running import evaluation_mode, receiving
from aafit.training.predictor import Predictor

BINS = 200
"""The most bins of a histogram."""
TAIL = 5e-4
"""Share of the inputs outside the histogram, at each end."""


@dataclass(frozen=True)
class InputDistribution:
    """The distribution of one activation's inputs.

    Attributes:
        path: Path of the activation.
        edges: Edges of a histogram between the quantiles 0.0005 and 0.9995, (N + 1,) in float64.
        counts: Its counts, (N,) in float64.
        low: The smallest input.
        high: The largest input.
        mean: Mean of all inputs.
        std: Standard deviation of all inputs.
        elements: Number of inputs.
    """

    path: str
    edges: Tensor
    counts: Tensor
    low: float
    high: float
    mean: float
    std: float
    elements: int

    @property
    def histogram(self) -> Histogram:
        """The histogram of the inputs between the two quantiles."""
        return Histogram(self.edges, self.counts)

    @property
    def centres(self) -> Tensor:
        """Centres of the bins, (N,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def weights(self) -> Tensor:
        """Share of the inputs in each bin, (N,)."""
        return self.counts / self.counts.sum().clamp(min=1)


def input_distributions(
    net: nn.Module, paths: Sequence[str], batches: Iterable[Batch]
) -> tuple[InputDistribution, ...]:
    """Return the distribution of the inputs of each module at `paths`, in evaluation mode, without padding.

    They are in the order of the first calls. Modules that are not called are left out.

    Args:
        net: The network; its training mode is restored.
        paths: Paths of modules of `net`.
        batches: Inputs of `net`.

    Raises:
        UserError: Some inputs are not finite.
    """
    histograms: dict[str, Histogram] = {}
    moments: dict[str, list[tuple[int, float, float, float, float]]] = {}

    def add(path: str, u: Tensor) -> None:
        u = without_padding(u, batch).detach().double()
        if not u.numel():
            return
        if not u.isfinite().all():
            raise UserError(f"The inputs of {path!r} are not all finite (NaN or infinity): clean the data first.")
        histogram = Histogram.of(u)
        histograms[path] = histograms[path].merged(histogram) if path in histograms else histogram
        extremes = u.min().item(), u.max().item()
        moments.setdefault(path, []).append((u.numel(), u.sum().item(), u.square().sum().item(), *extremes))

    predictor = Predictor(net)
    with receiving(net, paths, add), evaluation_mode(net):
        for batch in batches:
            predictor.forward(batch)
    return tuple(_distribution(path, histogram, moments[path]) for path, histogram in histograms.items())


def _distribution(
    path: str, histogram: Histogram, moments: list[tuple[int, float, float, float, float]]
) -> InputDistribution:
    """Return the distribution, its histogram between the quantiles in at most `BINS` bins."""
    counts, sums, squares, lows, highs = zip(*moments, strict=True)
    count, low, high = sum(counts), min(lows), max(highs)
    mean = sum(sums) / count
    if low == high:
        histogram = Histogram(tensor([low - 0.5, low + 0.5]), tensor([float(count)]))
    below = histogram.counts.cumsum(0) / count
    first, last = int((below < TAIL).sum()), int((below < 1 - TAIL).sum()) + 1
    inner = Histogram(histogram.edges[first : last + 1], histogram.counts[first:last]).coarser(BINS)
    std = max(0.0, sum(squares) / count - mean**2) ** 0.5
    return InputDistribution(path, inner.edges, inner.counts, low, high, mean, std, count)
