"""What the replacements changed, before any tuning: layer by layer, at the logits and in the predictions."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aafit.experiment.report.runs import RunRecord, SuiteRuns
from aafit.experiment.runs.documents import Difference
from aafit.plots.style import GREY, look, panels, text_width

MEAN: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 5, "linestyle": ""}
LARGEST: dict[str, Any] = {
    "color": "#D55E00",
    "marker": "D",
    "markersize": 5.5,
    "linestyle": "",
    "markerfacecolor": "w",
}


MARKED = 20
"""So many seeds of a run have marks: more would hide each other."""


def draw_differences(suite: SuiteRuns) -> Figure | None:
    """Mean and largest absolute difference from the base network for every run (rows) and layer (panels), log scale.

    Every seed has its own marks; of more than `MARKED` seeds only some do, from the first on. None where no run
    replaced anything.
    """
    names = {name: [run for run in runs if run.comparison] for name, runs in suite.by_name().items()}
    names = {name: runs[:MARKED] for name, runs in names.items() if runs}
    if not names:
        return None
    # The run with the most layers knows their order.
    paths = sorted((list(_differences(run)) for runs in names.values() for run in runs), key=len, reverse=True)
    layers = sorted(dict.fromkeys(path for one in paths for path in one), key="logits".__eq__)
    values = [
        value
        for runs in names.values()
        for run in runs
        for one in _differences(run).values()
        for value in (one.max_abs, one.mean_abs)
        if value
    ]
    floor, top = (min(values) / 30, max(values) * 3) if values else (0.1, 10.0)
    title = "What the replacement changed, before tuning: absolute differences from the base network"
    lead = text_width(max(names, key=len), 8) - 0.1
    with look():
        size = (1.5, 0.15 + 0.25 * len(names))
        figure, axes = panels(1, len(layers) + 1, size, (0.25, 0.1, 0.35, 0.3), title, lead, foot=0.3)
        for panel, layer in zip(axes, layers, strict=False):
            _layer(panel, layer, names.values(), floor, top)
        _agreement(axes[-1], names.values())
        for panel in axes:
            panel.set_yticks(range(len(names)), list(names) if panel is axes[0] else [])
            panel.tick_params(axis="y", length=0)
            panel.set_ylim(len(names) - 0.4, -0.6)
        handles = [*axes[0].plot([], [], label="mean over units and test images", **MEAN)]
        handles += axes[0].plot([], [], label="largest", **LARGEST)
        figure.legend(handles=handles, loc="lower left", ncols=2, borderaxespad=0.6)
    return figure


def _differences(run: RunRecord) -> dict[str, Difference]:
    if run.comparison is None:
        return {}
    return {**{layer.path: layer for layer in run.comparison.layers}, "logits": run.comparison.logits}


def _layer(axes: Axes, layer: str, rows: Iterable[list[RunRecord]], floor: float, top: float) -> None:
    for row, runs in enumerate(rows):
        for run in runs:
            one = _differences(run).get(layer)
            if one is None:
                continue
            if one.max_abs is None or one.mean_abs is None:
                axes.text(floor * 1.3, row, "not finite", fontsize=7.5, color=LARGEST["color"], va="center")
                continue
            if one.max_abs == 0:
                axes.text(floor * 1.3, row, "equal", fontsize=7.5, color=GREY, va="center")
                continue
            low = max(one.mean_abs, floor)
            axes.plot([low, one.max_abs], [row, row], color="#999999", linewidth=0.8)
            axes.plot([low], [row], **MEAN)
            axes.plot([one.max_abs], [row], **LARGEST)
    axes.set_xscale("log")
    axes.set_xlim(floor, top)
    axes.set_title(layer)


def _agreement(axes: Axes, rows: Iterable[list[RunRecord]]) -> None:
    for row, runs in enumerate(rows):
        compared = [run.comparison.agreement for run in runs if run.comparison is not None]
        shares = [100 * agreement for agreement in compared if agreement is not None]
        if not shares:
            continue
        mean = sum(shares) / len(shares)
        axes.plot([0, mean], [row, row], color="#999999", linewidth=0.8)
        axes.plot(shares, [row] * len(shares), **MEAN)
        at, side = (mean - 3, "right") if mean > 50 else (mean + 3, "left")
        axes.text(at, row - 0.05, f"{mean:.2f}", ha=side, va="bottom", fontsize=7, color="#333333")
    axes.set_xlim(0, 103)
    axes.set_title("agreement, %")
