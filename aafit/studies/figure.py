"""The forms of a study in one figure for a paper."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aafit.pages.style import GREY, look, panels
from aafit.studies.forms import Form
from aafit.studies.result import Study

COLUMNS = 4
SIZE = 1.7, 1.25
"""Inches of a panel: four of them fit a page of two columns."""
TUNED: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 1.6, "zorder": 4}
START: dict[str, Any] = {"color": "#D55E00", "linestyle": (0, (5, 2)), "linewidth": 1.1, "zorder": 3}
REPLACED: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.1, "zorder": 2}


def plot_study(study: Study) -> Figure:
    """The form of every layer before and after tuning, with its band over the histogram of its inputs.

    For a paper of two columns: `aafit.plot_study(study).savefig("forms.pdf")`.
    """
    seen = {row.path: row for row in study.inputs}
    columns = min(COLUMNS, len(study.forms))
    with look():
        margins = (0.42, 0.1, 0.3, 0.32)
        figure, axes = panels(
            -(-len(study.forms) // columns), columns, SIZE, margins, foot=0.12 + 0.15 * -(-5 // columns)
        )
        for where, form in zip(axes, study.forms, strict=False):
            behind = where.twinx()
            row = seen[form.path]
            behind.stairs((row.counts / row.edges.diff()).numpy(), row.edges.numpy(), fill=True, color=GREY, alpha=0.25)
            behind.set_ylim(0, 2.5 * (row.counts / row.edges.diff()).max().item())
            behind.set_axis_off()
            where.set_zorder(behind.get_zorder() + 1)
            where.patch.set_visible(False)
            _panel(where, form)
        for where in axes[len(study.forms) :]:
            where.set_axis_off()
        by_label = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
        figure.legend(by_label.values(), by_label, loc="lower left", ncols=columns, borderaxespad=0.3, fontsize=6.5)
    return figure


def _panel(axes: Axes, form: Form) -> None:
    u = form.u_U.numpy()
    axes.fill_between([], [], [], color=GREY, alpha=0.25, label="inputs")
    axes.plot(u, form.replaced_U.numpy(), label="replaced function", **REPLACED)
    axes.plot(u, form.start_U.numpy(), label="start", **START)
    axes.plot(u, form.tuned_U.numpy(), label="tuned", **TUNED)
    low, high = axes.get_ylim()
    if form.error_U is not None:
        error = 2 * form.error_U.numpy()
        tuned = form.tuned_U.numpy()
        axes.fill_between(u, tuned - error, tuned + error, color="#0072B2", alpha=0.25, linewidth=0, label="± 2 errors")
    if form.low_U is not None and form.high_U is not None:
        axes.fill_between(u, form.low_U, form.high_U, color="#0072B2", alpha=0.25, linewidth=0, label="90% of curves")
    axes.set_ylim(low, high)
    axes.set_xlim(u[0], u[-1])
    near = form.nearest[0]
    axes.set_title(f"{form.path}\n{near.name}, {near.distance:.1%}", fontsize=6.5, fontweight="normal")
    axes.tick_params(labelsize=6)
