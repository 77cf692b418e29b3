"""The style of figures: fonts, lines that differ without colour, labels that do not overlap, and their files."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aafit.files import make_folder, write_atomically

LOOK: dict[str, Any] = {
    "font.family": "sans-serif",
    # Verdana and its kin are as wide, for viewers of SVG files who do not have the first.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Makes the files reproducible.
    "svg.hashsalt": "aafit",
    # Text stays text, which can be searched and edited.
    "svg.fonttype": "none",
}
FIGURE_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
"""The kinds of figure files, each without its date: the same figure gives the same file."""
GREY = "#777777"
# The dashes of the initial curve are above the tuned one, so that both are visible where they coincide.
TUNED: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 1.8, "zorder": 3}
INITIAL: dict[str, Any] = {"color": "#D55E00", "linestyle": (0, (5, 2)), "linewidth": 1.2, "zorder": 4}
ORIGINAL: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 2}
BAND: dict[str, Any] = {"color": "#0072B2", "alpha": 0.25, "linewidth": 0}
"""The area of a standard error, of quantiles, or of a standard deviation."""
VEIL: dict[str, Any] = {"color": "white", "alpha": 0.65, "linewidth": 0, "zorder": 6}
"""Lies over the parts of curves that are faded."""


@dataclass(frozen=True)
class Line:
    """The style of one curve, in the colours of Okabe and Ito, which suit all kinds of colour vision."""

    color: str
    linestyle: Any
    marker: str

    def kwargs(self) -> dict[str, Any]:
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker, "markersize": 4.5}


BASE_LINE = Line("black", "-", "")
LINES = (
    Line("#0072B2", "-", "o"),
    Line("#D55E00", (0, (6, 2)), "s"),
    Line("#009E73", (0, (6, 2, 1, 2)), "^"),
    Line("#B5487F", (0, (2, 1.5)), "D"),
    Line("#8A6D00", (0, (1, 1.2)), "v"),
    Line("#3F94C9", (0, (8, 2, 1, 2, 1, 2)), "P"),
    Line("#444444", (0, (4, 4)), "X"),
    Line("#7A3E9D", (0, (3, 1, 3, 3)), "*"),
)


def line(index: int) -> Line:
    """Return the style of curve number `index`; the first 64 differ in colour or marker."""
    again, at = divmod(index, len(LINES))
    # A repeated colour has another dash and marker.
    other = LINES[(at + 3 * again) % len(LINES)]
    return Line(LINES[at].color, other.linestyle, other.marker)


def lines_by(kinds: Sequence[str]) -> list[Line]:
    """Return a style for each curve: one colour for each kind, and other dashes and markers within a kind."""
    colors = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return [line(colors[kind] % len(LINES) + len(LINES) * kinds[:at].count(kind)) for at, kind in enumerate(kinds)]


@contextmanager
def look() -> Iterator[None]:
    """Apply the settings of `LOOK` to matplotlib within a block."""
    with matplotlib.rc_context(LOOK):  # type: ignore[arg-type]
        yield


TITLE_INDENT, TITLE_SIZE = 0.12, 12  # inches, points


def panels(
    count: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    title: str = "",
    lead: float = 0.0,
    foot: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, not registered with pyplot, and its axes row by row.

    The last row is filled up with panels that are hidden.

    Args:
        count: Number of panels.
        columns: Columns of the grid.
        size: Width and height of each panel in inches, as all lengths, so that text always fits.
        margins: Left, right, bottom and top margin of each panel.
        title: Title of the figure.
        lead: Space at the left of the figure.
        foot: Space at the bottom.
    """
    (width, height), (left, right, bottom, top) = size, margins
    rows = -(-count // columns)
    head = 0.32 if title else 0.05
    wide = max(lead + columns * (left + width + right), TITLE_INDENT + 1.1 * text_width(title, TITLE_SIZE))
    whole = (wide, head + rows * (top + height + bottom) + foot)
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    axes = []
    for row in range(rows):
        for column in range(columns):
            x = lead + column * (left + width + right) + left
            y = foot + (rows - 1 - row) * (top + height + bottom) + bottom
            axes.append(figure.add_axes((x / whole[0], y / whole[1], width / whole[0], height / whole[1])))
    for panel in axes[count:]:
        panel.set_axis_off()
    figure.text(TITLE_INDENT / wide, 1 - 0.1 / whole[1], title, fontsize=TITLE_SIZE, fontweight="bold", va="top")
    return figure, axes


def text_width(text: str, size: float) -> float:
    """Return the width of a text of `size` points, in inches."""
    return 0.58 * size / 72 * len(text)


def figure_bytes(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """Return the content of a figure's file, of a kind in `FIGURE_METADATA`."""
    content = io.BytesIO()
    with look():
        figure.savefig(content, format=kind, dpi=dpi, metadata=FIGURE_METADATA[kind])
    return content.getvalue()


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.svg and `name`.png (160 dots per inch), and return their paths.

    Raises:
        UserError: The folder cannot be written to.
    """
    make_folder(folder)
    files = {kind: folder / f"{name}.{kind}" for kind in ("svg", "png")}
    for kind, file in files.items():
        write_atomically(file, figure_bytes(figure, kind))
    return list(files.values())


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float, size: float = 8) -> None:
    """Label curves at the right edge of the axes, with labels moved apart so that they do not overlap.

    Args:
        axes: The axes, with their final limits and scales.
        ends: x and y of each curve's end, its label and its colour. A hairline connects an end before the edge with
            its label; ends outside the limits are left out.
        height: Height of the axes in inches.
        size: Size of the text in points.
    """
    right = axes.get_xlim()[1]
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = [(float(to_axes.transform((x, y))[1]), x, y, text, color) for x, y, text, color in ends]
    placed = sorted(item for item in placed if -0.001 <= item[0] <= 1.001)
    heights = spread([item[0] for item in placed], 1.25 * size / 72 / height)
    leaders, beyond = [], []
    for (at, x, y, text, color), to in zip(placed, heights, strict=True):
        axes.text(1.05, to, text, transform=axes.transAxes, fontsize=size, color=color, va="center")
        leaders.append([(1.005, at), (1.015, at), (1.04, to)])
        beyond.append([(min(x, right), y), (right, y)])
    colors = [item[4] for item in placed]
    axes.add_collection(LineCollection(beyond, colors=colors, linewidths=0.7, linestyles=[(0, (1, 2))]), autolim=False)
    look_like: dict[str, Any] = {"colors": colors, "linewidths": 0.7, "clip_on": False, "transform": axes.transAxes}
    axes.add_collection(LineCollection(leaders, **look_like), autolim=False)


def set_epochs(axes: Axes, first: float, last: float) -> None:
    """Set up an x axis of integer epochs, with room for the markers at both ends."""
    last = max(last, first + 1)
    axes.set_xlim(first - 0.015 * (last - first), last + 0.015 * (last - first))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def spread(wanted: Sequence[float], distance: float) -> list[float]:
    """Return the positions nearest to the ascending ones that are wanted, in order and at least `distance` apart.

    They stay between 0 and 1 if there is room. This is isotonic regression by pooling adjacent violators.
    """
    if not wanted:
        return []
    offsets = np.arange(len(wanted)) * distance
    pools: list[list[float]] = []
    for value in np.asarray(wanted) - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    positions = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    room = 1 - offsets[-1]
    return list((np.clip(positions, 0, room) if room > 0 else np.full(len(wanted), room / 2)) + offsets)
