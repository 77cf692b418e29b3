"""What each activation receives: a histogram of its inputs over some samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.batches import Batch, without_padding
from aafit.networks.running import evaluation_mode, receiving
from aafit.training.predictor import Predictor

BINS = 200
FINE = 20
"""Fine bins in each of the BINS that are kept: the ends are quantiles, which need them."""
TAIL = 5e-4


@dataclass(frozen=True)
class InputsSeen:
    """What one activation received.

    Attributes:
        edges, counts: A histogram between the quantiles 0.0005 and 0.9995, (N + 1,) and (N,) in float64.
        low, high: The smallest and the largest of all.
        mean, deviation: Of all.
        elements: How many.
    """

    path: str
    edges: Tensor
    counts: Tensor
    low: float
    high: float
    mean: float
    deviation: float
    elements: int

    @property
    def centres(self) -> Tensor:
        """The middles of the bins, (N,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def weights(self) -> Tensor:
        """The share of the inputs in each bin, (N,)."""
        return self.counts / self.counts.sum().clamp(min=1)


class _Sums:
    def __init__(self) -> None:
        self.low, self.high, self.elements, self.sum, self.squares = float("inf"), float("-inf"), 0, 0.0, 0.0

    def add(self, u: Tensor) -> None:
        if not u.numel():
            return
        values = u.detach().double()
        self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())
        self.elements += values.numel()
        self.sum += values.sum().item()
        self.squares += values.square().sum().item()


def inputs_seen(net: nn.Module, paths: Sequence[str], batches: Iterable[Batch]) -> tuple[InputsSeen, ...]:
    """What the modules at `paths` receive, in evaluation mode; padding is left out.

    There is nothing of modules that are not called. Goes through `batches` twice.

    Raises:
        UserError: some inputs are not finite.
    """
    batches = list(batches)
    sums = {path: _Sums() for path in paths}
    _watch(net, paths, batches, lambda path, u: sums[path].add(u))
    called = [path for path in paths if sums[path].elements]
    for path in called:
        if not (torch.tensor([sums[path].low, sums[path].high]).isfinite().all()):
            raise UserError(f"The inputs of {path!r} are not all finite (NaN or infinity): clean the data first.")
    ends = {path: _ends(sums[path]) for path in called}
    counts = {path: torch.zeros(BINS * FINE, dtype=torch.float64) for path in called}

    def count(path: str, u: Tensor) -> None:
        counts[path] += torch.histc(u.detach().double().cpu(), BINS * FINE, *ends[path])

    _watch(net, called, batches, count)
    return tuple(_seen(path, sums[path], ends[path], counts[path]) for path in called)


def _ends(sums: _Sums) -> tuple[float, float]:
    # All inputs may be one number.
    return (sums.low, sums.high) if sums.low < sums.high else (sums.low - 0.5, sums.high + 0.5)


def _seen(path: str, sums: _Sums, ends: tuple[float, float], counts: Tensor) -> InputsSeen:
    """The histogram between its quantiles, in at most BINS bins."""
    edges = torch.linspace(*ends, BINS * FINE + 1, dtype=torch.float64)
    below = counts.cumsum(0) / counts.sum()
    first, last = int((below < TAIL).sum()), int((below < 1 - TAIL).sum()) + 1
    width = max(1, -(-(last - first) // BINS))
    first = max(0, min(first, BINS * FINE - width))
    number = max(1, min((last - first) // width, (BINS * FINE - first) // width))
    chosen = slice(first, first + number * width)
    mean = sums.sum / sums.elements
    return InputsSeen(
        path,
        edges[first : first + number * width + 1 : width].clone(),
        counts[chosen].reshape(number, width).sum(1),
        sums.low,
        sums.high,
        mean,
        max(0.0, sums.squares / sums.elements - mean**2) ** 0.5,
        sums.elements,
    )


def _watch(net: nn.Module, paths: Sequence[str], batches: Iterable[Batch], see: Callable[[str, Tensor], None]) -> None:
    predictor = Predictor(net)
    with receiving(net, paths, lambda path, u: see(path, without_padding(u, batch))), evaluation_mode(net):
        for batch in batches:
            predictor.forward(batch)
