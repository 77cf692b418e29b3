"""The shapes of adaptive activations, before and after tuning."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from aafit.activations import FIXED, AdaptiveActivation, FNeuron
from aafit.activations.base import curve_values
from aafit.errors import UserError
from aafit.networks.adaptive import read_activations
from aafit.networks.batches import as_batch
from aafit.networks.kinds import KNOWN
from aafit.networks.running import evaluation_mode, receiving
from aafit.plots.style import GREY, REPLACED, START, TUNED, look, panels
from aafit.training.predictor import Predictor

WIDEST = 58  # letters of a heading that a panel has room for
LISTED = 24
"""The weights of an F-Neuron that a layer shares are printed if there are at most so many."""
Array = NDArray[np.float64]
REPLACED_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **KNOWN,
    **{name: make() for name, make in FIXED.items()},
}


@dataclass(frozen=True)
class Panel:
    """One activation to draw. `before` is the activation at its start, `replaced` a fixed function's name."""

    path: str
    after: AdaptiveActivation
    before: nn.Module | None = None
    replaced: str | None = None
    inputs: tuple[Array, Array] | None = None
    """A histogram of what the activation receives: its density, and the edges of its bins."""


def draw_saved(file: Path, title: str) -> Figure:
    """Every activation in a run's file of them: the function it replaced, its start, and as tuned.

    Raises:
        UserError: there is no such file: the run has no adaptive activation, or is not finished.
    """
    if not file.exists():
        raise UserError(f"{file.parent} has no {file.name}: the run is not finished, or has no adaptive activation.")
    layers = read_activations(file)
    shown = [Panel(layer.path, layer.tuned, layer.start, layer.replaced) for layer in layers]
    return _draw(shown, title)


def plot_activations(net: nn.Module, inputs: Iterable[Any] | Tensor | None = None, title: str = "") -> Figure:
    """The shape of every adaptive activation of a network, beside the functions that it replaced and started as.

    Args:
        net: any network; left as it was.
        inputs: batches of any form that `aafit.networks.batches.as_batch` takes, or a single tensor: with them a faint
            histogram shows which inputs each activation receives.
        title: printed above.

    Returns:
        A matplotlib figure of its own: `plot_activations(net).savefig("shapes.svg")`; notebooks show it.

    Raises:
        UserError: the network has no adaptive activation, or `inputs` holds no batch.
    """
    found = {path: module for path, module in net.named_modules() if isinstance(module, AdaptiveActivation)}
    if not found:
        raise UserError("The network has no adaptive activation to draw: put some in with aafit.replace_activations.")
    histograms = {} if inputs is None else _histograms(net, found, [inputs] if isinstance(inputs, Tensor) else inputs)
    shown = []
    for path, activation in found.items():
        fixed = FIXED[activation.start]() if activation.start in FIXED else None
        replaced = activation.replaced if activation.replaced in REPLACED_FUNCTIONS else None
        shown.append(Panel(path or type(net).__name__, activation, fixed, replaced, histograms.get(path)))
    return _draw(shown, title)


def _draw(shown: Sequence[Panel], title: str) -> Figure:
    texts = [_text(panel) for panel in shown]
    columns = min(3, len(shown))
    beside = len(shown) % columns > 0
    size = (3.2, 2.2) if columns > 1 else (4.4, 2.9)
    margins = (0.55, 0.15, 0.42, 0.1 + 0.15 * max(len(lines) for lines in texts))
    with look():
        figure, axes = panels(-(-len(shown) // columns), columns, size, margins, title, foot=0.0 if beside else 0.5)
        by_label: dict[str, Any] = {}
        for panel, lines, where in zip(shown, texts, axes, strict=False):
            _draw_panel(where, panel)
            where.set_title("\n".join(lines), fontsize=7.5, fontweight="normal", linespacing=1.3)
            by_label |= {label: handle for handle, label in zip(*where.get_legend_handles_labels(), strict=True)}
        for where in axes[len(shown) :]:
            where.set_axis_off()
        if beside:
            axes[len(shown)].legend(by_label.values(), by_label, loc="upper left", handlelength=3.5, fontsize=9)
        else:
            figure.legend(by_label.values(), by_label, loc="lower left", ncols=2, handlelength=3.5, borderaxespad=0.6)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    left, right = curve_range(panel.after)
    # Fewer points where a layer may have tens of thousands of neurons, each with a curve.
    x = np.linspace(left, right, 961 if panel.after.shape == (1,) else 241)
    axes.axhline(0, color="#999999", linewidth=0.6)
    axes.axvline(0, color="#999999", linewidth=0.6)
    if panel.replaced is not None and panel.replaced in REPLACED_FUNCTIONS:
        replaced = REPLACED_FUNCTIONS[panel.replaced]
        axes.plot(x, curve_values(replaced, torch.from_numpy(x))[:, 0], label="replaced function", **REPLACED)
    tuned = isinstance(panel.before, AdaptiveActivation)
    if panel.before is not None:
        _curve(axes, panel.before, x, START, "start, before tuning" if tuned else "the function it started as", "//")
    _curve(axes, panel.after, x, TUNED, "after tuning" if tuned else "now", "")
    if isinstance(panel.after, FNeuron) and panel.after.shape == (1,):
        centres = np.linspace(*panel.after.interval, panel.after.knots)
        knots = panel.after.weight.detach().double().cpu().numpy().reshape(-1)
        axes.plot(centres, knots, "o", color="black", markersize=3.5, label="knots (weights)", zorder=5)
    axes.set_xlim(left, right)
    if panel.inputs is not None:
        _inputs(axes, *panel.inputs)
    axes.set_xlabel("input", fontsize=8, labelpad=1)
    axes.set_ylabel("output", fontsize=8, labelpad=1)


def _text(panel: Panel) -> list[str]:
    """What stands above a panel: the layer, what was replaced by what, and the parameters."""
    text = f"{panel.replaced} → {panel.after.text}" if panel.replaced else panel.after.text
    before = panel.before if isinstance(panel.before, AdaptiveActivation) else None
    heading = f"{panel.path}: {text}"
    # A long path would run into the next panel.
    lines = [heading] if len(heading) <= WIDEST else [panel.path, text]
    return [*lines, *_annotation(panel.after, before)]


def _curve(axes: Axes, function: nn.Module, x: Array, style: dict[str, Any], label: str, hatch: str) -> None:
    """A curve; for parameters of each channel or neuron the median of their curves, and where 90 % of them lie."""
    values = curve_values(function, torch.from_numpy(x)).numpy()
    if np.all(values == values[:, :1]):
        axes.plot(x, values[:, 0], label=label, **style)
        return
    low, median, high = np.percentile(values, (5, 50, 95), axis=1)
    axes.plot(x, median, label=f"{label}: median", **style)
    band: dict[str, Any] = {"facecolor": style["color"], "alpha": 0.22, "linewidth": 0, "hatch": hatch}
    axes.fill_between(x, low, high, label=f"{label}: 5 to 95 % of all curves", **band)


def curve_range(activation: AdaptiveActivation) -> tuple[float, float]:
    """The inputs over which an activation is drawn."""
    if isinstance(activation, FNeuron):
        left, right = activation.interval
        beyond = 0.12 * (right - left)
        return left - beyond, right + beyond
    return -6.0, 6.0


def _annotation(after: AdaptiveActivation, before: AdaptiveActivation | None) -> list[str]:
    """The parameters' values with those at the start, or how far they moved where there are too many to list."""
    now, then = _parameters(after), {} if before is None else _parameters(before)
    parts, lines = [], []
    for name, values in now.items():
        if len(values) == 1:
            start = f" (from {number(then[name].item())})" if name in then else ""
            start = " (unchanged)" if name in then and bool(then[name] == values) else start
            parts.append(f"{name} = {number(values.item())}{start}")
            continue
        moved = f", moved {_size(values - then[name])}" if name in then else ""
        lines.append(f"{name}: {len(values):,} values{moved}")
        if after.shape == (1,) and len(values) <= LISTED:
            rows = [values[index : index + 6] for index in range(0, len(values), 6)]
            lines += ["   ".join(number(value.item()) for value in row) for row in rows]
    return ["   ".join(parts[index : index + 2]) for index in range(0, len(parts), 2)] + lines


def _parameters(activation: AdaptiveActivation) -> dict[str, Tensor]:
    return {name: value.detach().double().cpu().flatten() for name, value in activation.named_parameters()}


def _size(change: Tensor) -> str:
    return f"{number(change.abs().mean().item())} on average, {number(change.abs().max().item())} at most"


def number(value: float) -> str:
    """Four significant digits, more for large numbers (2^16, and how little it moves)."""
    if abs(value) >= 1e6 or (abs(value) < 1e4 and value != round(value)):
        return f"{value:.4g}"
    return f"{value:.2f}".removesuffix(".00")


def _inputs(axes: Axes, density: Array, edges: Array) -> None:
    """A faint histogram behind the curves, a third of the panel high."""
    behind = axes.twinx()
    behind.stairs(density, edges, fill=True, color=GREY, alpha=0.25)
    behind.set_ylim(0, 3 * max(float(density.max()), 1e-12))
    behind.set_axis_off()
    axes.fill_between([], [], [], color=GREY, alpha=0.25, label="inputs of the activation (density)")
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _histograms(
    net: nn.Module, found: dict[str, AdaptiveActivation], batches: Iterable[Any]
) -> dict[str, tuple[Array, Array]]:
    edges = {path: np.linspace(*curve_range(activation), 121) for path, activation in found.items()}
    counts = {path: np.zeros(120) for path in found}
    totals = dict.fromkeys(found, 0)

    def note(path: str, received: Tensor) -> None:
        values = received.detach().float().flatten().cpu().numpy()
        counts[path] += np.histogram(values, edges[path])[0]
        totals[path] += values.size

    predictor, seen = Predictor(net), 0
    with receiving(net, found, note), evaluation_mode(net):
        for batch in map(as_batch, batches):
            predictor.forward(batch)
            seen += 1
    if not seen:
        raise UserError("inputs holds no batch: give at least one, or leave inputs out.")
    widths = {path: edges[path][1] - edges[path][0] for path in found}
    return {path: (counts[path] / max(totals[path], 1) / widths[path], edges[path]) for path in found}
