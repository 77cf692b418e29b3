"""Plot the learned activations of a study as a figure for a paper."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aafit.errors import UserError, check_name
from aafit.files import make_folder, write_atomically
from aafit.plots.panels import add_legend, draw_curves, panel_grid
from aafit.plots.style import look
from aafit.studies.result import Study

# Without the date, so that the same study gives the same file.
KINDS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
COLUMNS = 4
SIZE = 1.7, 1.25
"""Inches of a panel: four of them fit a page of two columns."""
WIDEST = 34
"""Characters of a path that fit over a panel."""


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
    figure, axes = panel_grid(len(study.shapes), min(COLUMNS, len(study.shapes)), SIZE, (0.42, 0.1, 0.3, 0.32))
    with look():
        for panel, shape in zip(axes, study.shapes, strict=False):
            draw_curves(panel, shape, inputs[shape.path])
            half = WIDEST // 2
            path = shape.path if len(shape.path) <= WIDEST else f"{shape.path[:half]}…{shape.path[-half:]}"
            path = f"layer {path}" if path.isdecimal() else path
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
    check_name("kind of figure", kind, KINDS)
    content = io.BytesIO()
    with look():
        plot_study(study).savefig(content, format=kind, dpi=200, metadata=KINDS[kind])
    if path.exists() and path.read_bytes() != content.getvalue():
        raise UserError(f"{path} exists and is not this figure: give another name, or move it away.")
    make_folder(path.parent)
    write_atomically(path, content.getvalue())
    return path
