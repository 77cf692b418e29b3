"""Figures of the adaptive activations of a network, or of a file of saved ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from aafit.activations import FIXED, AdaptiveActivation, FNeuron, Histogram
from aafit.errors import UserError
from aafit.networks.adaptive import read_activations
from aafit.networks.batches import as_batch
from aafit.networks.kinds import KNOWN
from aafit.networks.running import evaluation_mode, receiving
from aafit.plots.curves import LABELS, curves_of
from aafit.plots.panels import add_legend, draw_curves, panel_grid
from aafit.plots.style import look

WIDEST = 58
"""Characters of a heading that fit over a panel."""
LISTED = 24
"""The most weights of an F-Neuron that are listed over its panel."""
KNOTS = "knots"


@dataclass(frozen=True)
class Drawn:
    """One activation to draw.

    Attributes:
        path: Its path in the network.
        tuned: The activation.
        initial: The activation before tuning, or the fixed function that it started as; None if not known.
        original: Name of the activation that it replaced; None if not known.
        inputs: The histogram of its inputs; None if not known.
    """

    path: str
    tuned: AdaptiveActivation
    initial: nn.Module | None = None
    original: str | None = None
    inputs: Histogram | None = None


def draw_saved(file: Path, title: str) -> Figure:
    """Draw every activation in a run's file of activations: original, initial and tuned.

    Raises:
        UserError: There is no such file: the run has no adaptive activation, or is not finished.
    """
    if not file.exists():
        raise UserError(f"{file.parent} has no {file.name}: the run is not finished, or has no adaptive activation.")
    layers = read_activations(file)
    return _draw([Drawn(layer.path, layer.tuned, layer.start, layer.replaced) for layer in layers], title)


def plot_activations(net: nn.Module, inputs: Iterable[Any] | Tensor | None = None, title: str = "") -> Figure:
    """Draw every adaptive activation of a network: original, initial and tuned.

    For several parameter sets (channels, neurons) the median is drawn, and the range of 90% of the curves. The
    parameters are listed over each panel.

    Args:
        net: Any network; it is left unchanged.
        inputs: Batches of any form that `evaluate` takes, or a single tensor; the density of each activation's inputs
            is drawn behind its curves.
        title: Title of the figure.

    Returns:
        A matplotlib figure, not registered with pyplot; notebooks show it.

    Raises:
        UserError: The network has no adaptive activation, or `inputs` holds no batch.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), aafit.LEAF.like("Tanh"))
        >>> figure = aafit.plot_activations(net, inputs=torch.randn(100, 3))
        >>> figure.savefig("activations.svg")  # doctest: +SKIP
    """
    found = {path: module for path, module in net.named_modules() if isinstance(module, AdaptiveActivation)}
    if not found:
        raise UserError("The network has no adaptive activation to draw: put some in with aafit.replace_activations.")
    histograms = {} if inputs is None else _histograms(net, found, [inputs] if isinstance(inputs, Tensor) else inputs)
    drawn = []
    for path, activation in found.items():
        initial = FIXED[activation.start]() if activation.start in FIXED else None
        drawn.append(Drawn(path or type(net).__name__, activation, initial, activation.replaced, histograms.get(path)))
    return _draw(drawn, title)


def _draw(drawn: Sequence[Drawn], title: str) -> Figure:
    headings = [_heading(one) for one in drawn]
    columns = min(3, len(drawn))
    size = (3.2, 2.2) if columns > 1 else (4.4, 2.9)
    margins = (0.55, 0.15, 0.42, 0.1 + 0.15 * max(len(lines) for lines in headings))
    figure, axes = panel_grid(len(drawn), columns, size, margins, title)
    with look():
        for one, lines, panel in zip(drawn, headings, axes, strict=False):
            panel.axhline(0, color="#999999", linewidth=0.6)
            panel.axvline(0, color="#999999", linewidth=0.6)
            original = KNOWN.get(one.original or "") or (FIXED[one.original]() if one.original in FIXED else None)
            draw_curves(panel, curves_of(one.tuned, one.initial, original), one.inputs)
            if isinstance(one.tuned, FNeuron) and one.tuned.shape == (1,):
                weights = one.tuned.weight.detach().double().cpu().flatten()
                points: dict[str, Any] = {"color": "black", "markersize": 3.5, "zorder": 5, "label": KNOTS}
                panel.plot(one.tuned.knot_positions.numpy(), weights.numpy(), "o", **points)
            panel.set_title("\n".join(lines), fontsize=7.5, fontweight="normal", linespacing=1.3)
            panel.set_xlabel("input", fontsize=8, labelpad=1)
            panel.set_ylabel("output", fontsize=8, labelpad=1)
    add_legend(figure, axes, len(drawn), [*LABELS.values(), KNOTS])
    return figure


def _heading(one: Drawn) -> list[str]:
    """Return the lines over a panel: the layer, the original and the new activation, and the parameters."""
    text = f"{one.original} → {one.tuned.text}" if one.original else one.tuned.text
    heading = f"{one.path}: {text}"
    # A long path would run into the next panel.
    lines = [heading] if len(heading) <= WIDEST else [one.path, text]
    return [*lines, *_parameter_lines(one.tuned, one.initial if isinstance(one.initial, AdaptiveActivation) else None)]


def _parameter_lines(tuned: AdaptiveActivation, initial: AdaptiveActivation | None) -> list[str]:
    """Return the parameters with their initial values, or how far they moved if there are too many to list."""
    after, before = _parameters(tuned), {} if initial is None else _parameters(initial)
    parts, lines = [], []
    for name, values in after.items():
        if len(values) == 1:
            start = f" (from {number(before[name].item())})" if name in before else ""
            start = " (unchanged)" if name in before and bool(before[name] == values) else start
            parts.append(f"{name} = {number(values.item())}{start}")
            continue
        moved = f", changed by {_size(values - before[name])}" if name in before else ""
        lines.append(f"{name}: {len(values):,} values{moved}")
        if tuned.shape == (1,) and len(values) <= LISTED:
            rows = [values[index : index + 6] for index in range(0, len(values), 6)]
            lines += ["   ".join(number(value.item()) for value in row) for row in rows]
    return ["   ".join(parts[index : index + 2]) for index in range(0, len(parts), 2)] + lines


def _parameters(activation: AdaptiveActivation) -> dict[str, Tensor]:
    return {name: value.detach().double().cpu().flatten() for name, value in activation.named_parameters()}


def _size(change: Tensor) -> str:
    return f"{number(change.abs().mean().item())} on average, {number(change.abs().max().item())} at most"


def number(value: float) -> str:
    """Return a number with four significant digits, large ones with two decimals (2^16 hardly moves)."""
    if abs(value) >= 1e6 or (abs(value) < 1e4 and value != round(value)):
        return f"{value:.4g}"
    return f"{value:.2f}".removesuffix(".00")


def _histograms(
    net: nn.Module, found: Mapping[str, AdaptiveActivation], batches: Iterable[Any]
) -> dict[str, Histogram]:
    # Imported here, because reports draw saved activations and never run networks.
    from aafit.training.predictor import Predictor

    histograms: dict[str, Histogram] = {}

    def see(path: str, u: Tensor) -> None:
        histogram = Histogram.of(u)
        histograms[path] = histograms[path].merged(histogram) if path in histograms else histogram

    predictor, seen = Predictor(net), 0
    with receiving(net, found, see), evaluation_mode(net):
        for batch in map(as_batch, batches):
            predictor.forward(batch)
            seen += 1
    if not seen:
        raise UserError("inputs holds no batch: give at least one, or leave inputs out.")
    return histograms
