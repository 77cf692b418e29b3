"""The curves of one activation, as every picture draws them: original, initial and tuned, with error and inputs.

`Curves` is what a picture needs; panels.py draws it with matplotlib, svg.py as SVG. Both use the labels below.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, Histogram, IntervalActivation
from aafit.activations.base import curve_values

LABELS = {
    "tuned": "tuned",
    "initial": "initial",
    "original": "original",
    "error": "± 2 SE",
    "quantiles": "90% of the curves",
    "inputs": "inputs",
}
"""The legend of every picture, in its order."""
RARE = 0.005
"""Share of the inputs at either end on which the curves do not count for the range of the vertical axis."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of one layer's activation; for several parameter sets (channels, neurons) their median.

    Attributes:
        u_U: The inputs of the curves.
        original_U: The activation that was replaced; None if not known.
        initial_U: The adaptive activation before tuning; None if not known.
        tuned_U: The adaptive activation after tuning.
        error_U: Standard error of `tuned_U`, NaN where it is undetermined; None if not known.
        low_U: The 5% quantile over the parameter sets; None for a single set.
        high_U: The 95% quantile over the parameter sets.
    """

    u_U: Tensor
    original_U: Tensor | None
    initial_U: Tensor | None
    tuned_U: Tensor
    error_U: Tensor | None
    low_U: Tensor | None
    high_U: Tensor | None

    def legend(self) -> tuple[tuple[str, str], ...]:
        """Return the keys and texts of `LABELS` for what is drawn over the inputs."""
        missing = {
            "initial": self.initial_U is None,
            "original": self.original_U is None,
            "error": self.error_U is None,
            "quantiles": self.low_U is None,
        }
        return tuple((key, label) for key, label in LABELS.items() if not missing.get(key, False))


def curves_of(
    tuned: nn.Module, initial: nn.Module | None, original: nn.Module | None, u_U: Tensor | None = None
) -> Curves:
    """Return the curves of an activation before and after tuning, and of the one that it replaced.

    Args:
        tuned: The activation after tuning.
        initial: The activation before tuning.
        original: The activation that was replaced.
        u_U: The inputs; by default `drawn_range`, with fewer points for many parameter sets.
    """
    if u_U is None:
        points = 961 if not isinstance(tuned, AdaptiveActivation) or tuned.shape == (1,) else 241
        u_U = torch.linspace(*drawn_range(tuned), points, dtype=torch.float64)
    tuned_UC = curve_values(tuned, u_U)
    low_U, high_U = quantiles(tuned_UC, (0.05, 0.95)) if tuned_UC.shape[1] > 1 else (None, None)
    original_U, initial_U = (None if one is None else median(curve_values(one, u_U)) for one in (original, initial))
    return Curves(u_U, original_U, initial_U, median(tuned_UC), None, low_U, high_U)


def drawn_range(activation: nn.Module) -> tuple[float, float]:
    """Return the inputs over which an activation is drawn: its interval and a little more, else [-6, 6]."""
    if not isinstance(activation, (FNeuron, IntervalActivation)):
        return -6.0, 6.0
    left, right = activation.interval
    beyond = 0.12 * (right - left)
    return left - beyond, right + beyond


def median(curves_UC: Tensor) -> Tensor:
    """Return the median over the parameter sets, (U,)."""
    return quantiles(curves_UC, (0.5,))[0]


def quantiles(curves_UC: Tensor, shares: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Return quantiles over the parameter sets, (U,) each."""
    # Row by row, because `quantile` takes at most 2^24 elements.
    at = torch.tensor(shares, dtype=curves_UC.dtype)
    return torch.stack([row.quantile(at) for row in curves_UC], 1).unbind()


def vertical_range(curves: Curves, inputs: Histogram | None) -> tuple[float, float]:
    """Return the range of the vertical axis: that of the curves on all but the rarest inputs, and 0, with a margin."""
    first, last = curves.u_U[0], curves.u_U[-1]
    if inputs is not None:
        u_E, weight_E = inputs.points()
        below_E = weight_E.cumsum(0)
        first, last = (u_E[int((below_E < share).sum().clamp(max=len(u_E) - 1))] for share in (RARE, 1 - RARE))
    inner = (curves.u_U >= first) & (curves.u_U <= last)
    drawn = (curves.original_U, curves.initial_U, curves.tuned_U, curves.low_U, curves.high_U)
    values = [value for curve in drawn if curve is not None for value in curve[inner].tolist() if math.isfinite(value)]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def faded(curves: Curves, inputs: Histogram | None) -> Tensor:
    """Return where curves are drawn faded, (U,): where no input is, or where the samples do not determine them."""
    faded_U = torch.zeros_like(curves.u_U, dtype=torch.bool)
    if inputs is not None:
        faded_U |= (curves.u_U < inputs.edges[0]) | (curves.u_U > inputs.edges[-1])
    return faded_U if curves.error_U is None else faded_U | curves.error_U.isnan()


def drawn_bars(inputs: Histogram, most: int) -> tuple[Tensor, Tensor]:
    """Return the edges (N + 1,) and the densities (N,) of at most `most` bars."""
    bars = inputs.coarser(most)
    return bars.edges, bars.counts / bars.edges.diff() / bars.counts.sum()
