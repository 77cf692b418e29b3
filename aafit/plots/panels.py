"""A matplotlib panel of one activation: original, initial and tuned curve, their band, and the inputs behind them."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aafit.activations import Histogram
from aafit.plots.curves import LABELS, Curves, drawn_bars
from aafit.plots.style import BAND, GREY, INITIAL, ORIGINAL, TUNED, look, panels

BARS = 120


def draw_curves(axes: Axes, curves: Curves, inputs: Histogram | None = None) -> None:
    """Draw the curves of an activation, labelled as in `LABELS`, over the density of its inputs."""
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
        limits, error = axes.get_ylim(), 2 * curves.error_U.numpy()
        axes.fill_between(u, tuned - error, tuned + error, label=LABELS["error"], **BAND)
        # A large error would flatten the curves.
        axes.set_ylim(limits)
    axes.set_xlim(u[0], u[-1])


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
    """Return a figure with `count` panels and room for `add_legend`; the arguments are those of `panels`."""
    rows = -(-count // columns)
    with look():
        return panels(rows, columns, size, margins, title, foot=0.0 if rows * columns > count else foot)


def add_legend(figure: Figure, axes: Sequence[Axes], count: int, order: Iterable[str] = LABELS.values()) -> None:
    """Add one legend for the first `count` panels: in a free panel if there is one, otherwise below them."""
    handles: dict[str, Any] = {}
    for panel in axes[:count]:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    ranks = {label: rank for rank, label in enumerate(order)}
    labels = sorted(handles, key=lambda label: ranks.get(label, len(ranks)))
    for panel in axes[count:]:
        panel.set_axis_off()
    with look():
        if len(axes) > count:
            axes[count].legend([handles[label] for label in labels], labels, loc="upper left", handlelength=3.2)
        else:
            options: dict[str, Any] = {"loc": "lower left", "ncols": 3, "borderaxespad": 0.4, "handlelength": 3.2}
            figure.legend([handles[label] for label in labels], labels, **options)
