"""Figures of activations with one panel each: original, initial and tuned curve, their band, and their inputs.

`draw_curves` is the panel; `draw_saved` draws the activations of a run from its file, without any network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from aafit.activations import FIXED, AdaptiveActivation, FNeuron, Histogram
from aafit.errors import UserError
from aafit.networks.kinds import KNOWN
from aafit.networks.saving import read_activations
from aafit.plots.curves import LABELS, Curves, curves_of, drawn_bars, faded, vertical_range
from aafit.plots.style import BAND, GREY, INITIAL, ORIGINAL, TUNED, VEIL, look, panels

BARS = 60
WIDEST = 58
"""Characters of a heading that fit over a panel."""
LONGEST = 63
"""Characters of a line about a parameter that fit over a panel."""
KNOTS = "knots"


def draw_curves(axes: Axes, curves: Curves, inputs: Histogram | None = None) -> None:
    """Draw the curves of an activation, labelled as in `LABELS`, over the density of its inputs.

    They are faded where no input is, and where the samples do not determine the tuned one.
    """
    u = curves.u_U.numpy()
    if inputs is not None:
        _draw_inputs(axes, inputs)
    if curves.original_U is not None:
        axes.plot(u, curves.original_U.numpy(), label=LABELS["original"], **ORIGINAL)
    if curves.initial_U is not None:
        axes.plot(u, curves.initial_U.numpy(), label=LABELS["initial"], **INITIAL)
    tuned = curves.tuned_U.numpy()
    axes.plot(u, tuned, label=LABELS["tuned"], **TUNED)
    if curves.low_U is not None and curves.high_U is not None:
        axes.fill_between(u, curves.low_U.numpy(), curves.high_U.numpy(), label=LABELS["quantiles"], **BAND)
    if curves.error_U is not None:
        error = 2 * curves.error_U.numpy()
        axes.fill_between(u, tuned - error, tuned + error, label=LABELS["error"], **BAND)
    faded_U = faded(curves, inputs).numpy()
    axes.fill_between(u, 0, 1, where=faded_U, transform=axes.get_xaxis_transform(), **VEIL)
    axes.set_xlim(u[0], u[-1])
    # Neither a large error nor a curve far outside the inputs may flatten the others.
    axes.set_ylim(vertical_range(curves, inputs))


def _draw_inputs(axes: Axes, inputs: Histogram) -> None:
    edges, densities = drawn_bars(inputs, BARS)
    behind = axes.twinx()
    behind.stairs(densities.numpy(), edges.numpy(), fill=True, color=GREY, alpha=0.25)
    behind.set_ylim(0, 2.5 * densities.max().item())
    behind.set_axis_off()
    axes.fill_between([], [], [], color=GREY, alpha=0.25, label=LABELS["inputs"])
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def panel_grid(
    count: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    title: str = "",
    foot: float = 0.4,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels and room for `add_legend`; the arguments are those of `panels`."""
    with look():
        return panels(count, columns, size, margins, title, foot=0.0 if count % columns else foot)


def add_legend(
    figure: Figure, axes: Sequence[Axes], count: int, order: Iterable[str] = LABELS.values(), size: float = 8
) -> None:
    """Add one legend for the first `count` panels, in a free panel if there is one and otherwise below them.

    Args:
        figure: The figure.
        axes: All its panels.
        count: Panels that are in use.
        order: The order of the labels.
        size: Size of the text in points.
    """
    handles: dict[str, Any] = {}
    for panel in axes[:count]:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    ranks = {label: rank for rank, label in enumerate(order)}
    labels = sorted(handles, key=lambda label: ranks.get(label, len(ranks)))
    with look():
        if len(axes) > count:
            where: Any = axes[count]
            options: dict[str, Any] = {"loc": "upper left"}
        else:
            where, options = figure, {"loc": "lower left", "ncols": 3, "borderaxespad": 0.4}
        where.legend([handles[label] for label in labels], labels, handlelength=3.2, fontsize=size, **options)


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
    return draw_activations([Drawn(layer.path, layer.tuned, layer.start, layer.replaced) for layer in layers], title)


def draw_activations(drawn: Sequence[Drawn], title: str) -> Figure:
    """Draw activations in panels, each with its parameters over it."""
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
    """Return the parameters with their initial values, or how far they moved if a parameter has several values."""
    after, before = _parameters(tuned), {} if initial is None else _parameters(initial)
    parts, lines = [], []
    for name, values in after.items():
        if len(values) == 1:
            start = f" (from {number(before[name].item())})" if name in before else ""
            start = " (unchanged)" if name in before and bool(before[name] == values) else start
            parts.append(f"{name} = {number(values.item())}{start}")
            continue
        counted = [f"{name}: {len(values):,} values"]
        counted += [f"changed by {_size(values - before[name])}"] if name in before else []
        # A long line would be cut at the edge of the figure.
        lines += counted if len(", ".join(counted)) > LONGEST else [", ".join(counted)]
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
