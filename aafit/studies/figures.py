"""The figures of a study for a paper: its learned activations, and the comparison of families."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from aafit.errors import UserError, check_name
from aafit.files import make_folder, write_atomically
from aafit.plots.panels import add_legend, draw_curves, panel_grid
from aafit.plots.style import BASE_LINE, FIGURE_METADATA, figure_bytes, line, look
from aafit.studies.families import FamilyComparison
from aafit.studies.result import Study

SHAPE_SIZE, FAMILY_SIZE = (1.7, 1.25), (2.6, 1.9)
"""Inches of a panel; four shapes fit a page of two columns."""


def plot_study(study: Study) -> Figure:
    """Draw every layer's original, initial and tuned activation with its standard error, over its inputs.

    The size suits a paper of two columns.

    Returns:
        A matplotlib figure, not registered with pyplot.

    Raises:
        UserError: `study` is not a `Study`, or no replaced layer receives any input.

    Example:
        >>> study = aafit.study(net, batches)  # doctest: +SKIP
        >>> aafit.plot_study(study).savefig("shapes.pdf")  # doctest: +SKIP
    """
    if not isinstance(study, Study):
        raise UserError(f"This is a {type(study).__name__}: give what aafit.study returned.")
    if not study.shapes:
        raise UserError("There is nothing to draw: no layer that was replaced receives anything.")
    inputs = {row.path: row.histogram for row in study.inputs}
    figure, axes = panel_grid(len(study.shapes), min(4, len(study.shapes)), SHAPE_SIZE, (0.42, 0.1, 0.3, 0.32))
    with look():
        for panel, shape in zip(axes, study.shapes, strict=False):
            draw_curves(panel, shape, inputs[shape.path])
            path = f"layer {shape.path}" if shape.path.isdecimal() else _shortened(shape.path, 34)
            # With a fixed y, matplotlib does not move the title above the offset text of the axis.
            panel.set_title(f"{path}\n{shape.nearest_text(1)}", fontsize=6.5, fontweight="normal", y=1.0)
            panel.tick_params(labelsize=6)
    add_legend(figure, axes, len(study.shapes), size=6.5)
    return figure


def write_figure(study: Study, path: Path) -> Path:
    """Write the figure of `plot_study` as SVG, PDF or PNG, by the suffix of `path`, and return `path`.

    Raises:
        UserError: The suffix is another one, there is another file at `path`, or it cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    check_name("kind of figure", kind, FIGURE_METADATA)
    content = figure_bytes(plot_study(study), kind, dpi=200)
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{path} exists and is not this figure: give another name, or move it away.")
    make_folder(path.parent)
    write_atomically(path, content)
    return path


def plot_families(comparison: FamilyComparison) -> Figure:
    """Draw the gain of each family against its number of parameters, a panel for each place.

    The bars are two standard errors to each side; a filled marker is significant after the adjustment, and the line at
    0 is the base network.

    Args:
        comparison: what `compare_families` returned.

    Returns:
        A matplotlib figure, not registered with pyplot.

    Raises:
        UserError: `comparison` is not a `FamilyComparison`.

    Example:
        >>> found = aafit.compare_families(net, batches)  # doctest: +SKIP
        >>> aafit.plot_families(found).savefig("families.svg")  # doctest: +SKIP
    """
    if not isinstance(comparison, FamilyComparison):
        raise UserError(f"This is a {type(comparison).__name__}: give what aafit.compare_families returned.")
    places = list(dict.fromkeys(row.place for row in comparison.rows))
    families = list(dict.fromkeys(row.family for row in comparison.rows))
    figure, panels = panel_grid(len(places), min(3, len(places)), FAMILY_SIZE, (0.75, 0.1, 0.5, 0.35), foot=0.6)
    with look():
        for panel, place in zip(panels, places, strict=False):
            rows = [row for row in comparison.rows if row.place == place]
            panel.axhline(0, color=BASE_LINE.color, linewidth=0.8)
            for row in rows:
                style = line(families.index(row.family))
                panel.errorbar(
                    row.parameters,
                    row.gain,
                    2 * row.error,
                    color=style.color,
                    marker=style.marker,
                    markersize=5,
                    markerfacecolor=style.color if row.significant else "white",
                    linestyle="none",
                    capsize=2,
                    label=row.family,
                )
            panel.set_xscale("log")
            counts = sorted({row.parameters for row in rows})
            panel.set_xticks(counts)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xlim(counts[0] / 1.4, counts[-1] * 1.4)
            panel.set_title(_shortened(place, 40), fontsize=8, fontweight="normal")
            panel.tick_params(labelsize=7)
            panel.set_xlabel("parameters", fontsize=7)
        panels[0].set_ylabel("held-out gain in loss, ± 2 SE", fontsize=7)
    add_legend(figure, panels, len(places), families, size=7)
    return figure


def _shortened(path: str, most: int) -> str:
    """Return the path of a layer, cut in its middle to `most` characters so that it fits over a panel."""
    return path if len(path) <= most else f"{path[: most // 2]}…{path[-(most // 2) :]}"
