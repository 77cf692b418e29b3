"""The forms of a study in one figure for a paper."""

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aafit.errors import UserError, check_name
from aafit.files import make_folder, write_atomically
from aafit.plots.style import GREY, REPLACED, START, TUNED, UNSURE, look, panels
from aafit.studies.result import Study
from aafit.studies.shapes import LearnedShape

# Without the time, so that the same study gives the same file.
KINDS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
COLUMNS = 4
SIZE = 1.7, 1.25
"""Inches of a panel: four of them fit a page of two columns."""
FOOT = 0.42
"""Inches for the key, where no panel is free for it."""
WIDEST = 34
"""Letters of a path that a panel has room for."""


def plot_study(study: Study) -> Figure:
    """The form of every layer before and after tuning, with its band over the histogram of its inputs.

    For a paper of two columns: `aafit.plot_study(study).savefig("forms.pdf")`.

    Raises:
        UserError: none of the layers receives anything.
    """
    if not study.shapes:
        raise UserError("There is nothing to draw: no layer that was replaced receives anything.")
    seen = {row.path: row for row in study.inputs}
    columns = min(COLUMNS, len(study.shapes))
    rows = -(-len(study.shapes) // columns)
    free = rows * columns > len(study.shapes)
    with look():
        figure, axes = panels(rows, columns, SIZE, (0.42, 0.1, 0.3, 0.32), foot=0.0 if free else FOOT)
        for where, form in zip(axes, study.shapes, strict=False):
            behind = where.twinx()
            row = seen[form.path]
            behind.stairs((row.counts / row.edges.diff()).numpy(), row.edges.numpy(), fill=True, color=GREY, alpha=0.25)
            behind.set_ylim(0, 2.5 * (row.counts / row.edges.diff()).max().item())
            behind.set_axis_off()
            where.set_zorder(behind.get_zorder() + 1)
            where.patch.set_visible(False)
            _panel(where, form)
        for where in axes[len(study.shapes) :]:
            where.set_axis_off()
        by_label = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
        if free:
            axes[len(study.shapes)].legend(by_label.values(), by_label, loc="upper left", handlelength=3)
        else:
            figure.legend(by_label.values(), by_label, loc="lower left", ncols=columns, borderaxespad=0.3, fontsize=6.5)
    return figure


def write_figure(study: Study, path: Path) -> Path:
    """Write the figure of `plot_study` as SVG, PDF or PNG, by the ending of `path`.

    Raises:
        UserError: another ending, another file at `path`, or it cannot be written to.
    """
    kind = path.suffix.removeprefix(".").lower()
    check_name("kind of figure", kind, KINDS)
    content = io.BytesIO()
    with look():
        plot_study(study).savefig(content, format=kind, dpi=200, metadata=KINDS[kind])
    if path.exists() and path.read_bytes() != content.getvalue():
        raise UserError(f"{path} is there already, and is not this figure: give another name, or move it away.")
    make_folder(path.parent)
    write_atomically(path, content.getvalue())
    return path


def _panel(axes: Axes, form: LearnedShape) -> None:
    u = form.u_U.numpy()
    axes.fill_between([], [], [], color=GREY, alpha=0.25, label="inputs")
    axes.plot(u, form.original_U.numpy(), label="replaced function", **REPLACED)
    axes.plot(u, form.initial_U.numpy(), label="start", **START)
    axes.plot(u, form.tuned_U.numpy(), label="tuned", **TUNED)
    low, high = axes.get_ylim()
    if form.error_U is not None:
        error = 2 * form.error_U.numpy()
        tuned = form.tuned_U.numpy()
        axes.fill_between(u, tuned - error, tuned + error, label="± 2 errors", **UNSURE)
    if form.low_U is not None and form.high_U is not None:
        axes.fill_between(u, form.low_U, form.high_U, label="90% of curves", **UNSURE)
    axes.set_ylim(low, high)
    axes.set_xlim(u[0], u[-1])
    half = WIDEST // 2
    path = form.path if len(form.path) <= WIDEST else f"{form.path[:half]}…{form.path[-half:]}"
    # Where it is said, the title does not give way to the numbers of the axis.
    axes.set_title(f"{path}\n{form.nearest_text(1)}", fontsize=6.5, fontweight="normal", y=1.0)
    axes.tick_params(labelsize=6)
