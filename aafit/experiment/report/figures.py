"""Figures that compare runs: what the replacements changed, and the learned activations of several seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aafit.experiment.report.runs import RunRecord, SuiteRuns
from aafit.experiment.runs.documents import ACTIVATIONS, StoredDifference
from aafit.networks.saving import read_activations
from aafit.plots.curves import LABELS, curves_of, drawn_range
from aafit.plots.style import BAND, GREY, INITIAL, TUNED, look, panels, text_width

MEAN: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 5, "linestyle": ""}
LARGEST: dict[str, Any] = {**MEAN, "color": "#D55E00", "marker": "D", "markerfacecolor": "white"}
MOST_MARKS, MOST_SEEDS = 20, 100
"""So many seeds of a run have marks of their own, and so many enter a mean curve; more would only take time."""


def draw_differences(suite: SuiteRuns) -> Figure | None:
    """Draw mean and largest absolute difference from the base network before tuning, for every run and layer.

    Runs are rows, layers are panels with a logarithmic axis. Each of the first `MOST_MARKS` seeds has marks of its own.
    Returns None if no run has replaced activations.
    """
    compared = {name: [run for run in runs if run.comparison] for name, runs in suite.by_name().items()}
    names = {name: runs[:MOST_MARKS] for name, runs in compared.items() if runs}
    if not names:
        return None
    # The run with the most layers gives their order.
    paths = sorted((list(_differences(run)) for runs in names.values() for run in runs), key=len, reverse=True)
    layers = sorted(dict.fromkeys(path for one in paths for path in one), key="logits".__eq__)
    differences = [one for runs in names.values() for run in runs for one in _differences(run).values()]
    values = [value for one in differences for value in (one.max_abs, one.mean_abs) if value]
    limits = (min(values) / 30, max(values) * 3) if values else (0.1, 10.0)
    title = "Absolute differences from the base network after the replacement, before tuning"
    lead = text_width(max(names, key=len), 8) - 0.1
    with look():
        size = (1.5, 0.15 + 0.25 * len(names))
        figure, axes = panels(len(layers) + 1, len(layers) + 1, size, (0.25, 0.1, 0.35, 0.3), title, lead, foot=0.3)
        for panel, layer in zip(axes, layers, strict=False):
            _layer(panel, layer, names.values(), limits)
        _agreement(axes[-1], names.values())
        for panel in axes:
            panel.set_yticks(range(len(names)), list(names) if panel is axes[0] else [])
            panel.tick_params(axis="y", length=0)
            panel.set_ylim(len(names) - 0.4, -0.6)
        handles = [*axes[0].plot([], [], label="mean over units and test images", **MEAN)]
        handles += axes[0].plot([], [], label="largest", **LARGEST)
        figure.legend(handles=handles, loc="lower left", ncols=2, borderaxespad=0.6)
    return figure


def _differences(run: RunRecord) -> dict[str, StoredDifference]:
    if run.comparison is None:
        return {}
    return {**{layer.path: layer for layer in run.comparison.layers}, "logits": run.comparison.logits}


def _layer(axes: Axes, layer: str, rows: Iterable[list[RunRecord]], limits: tuple[float, float]) -> None:
    labelled = set[tuple[int, str]]()
    for row, run in [(row, run) for row, runs in enumerate(rows) for run in runs]:
        difference = _differences(run).get(layer)
        if difference is None:
            continue
        if difference.max_abs is None or difference.mean_abs is None or difference.max_abs == 0:
            text, color = ("zero", GREY) if difference.max_abs == 0 else ("not finite", LARGEST["color"])
            if (row, text) not in labelled:  # once for all seeds
                axes.text(limits[0] * 1.3, row, text, fontsize=7.5, color=color, va="center")
            labelled.add((row, text))
            continue
        low = max(difference.mean_abs, limits[0])
        axes.plot([low, difference.max_abs], [row, row], color="#999999", linewidth=0.8)
        axes.plot([low], [row], **MEAN)
        axes.plot([difference.max_abs], [row], **LARGEST)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
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


def draw_seeds(runs: Sequence[RunRecord]) -> Figure | None:
    """Draw the mean over the seeds of each layer's tuned activation, and one sample standard deviation to each side.

    The median stands for a layer with several curves (channels, neurons). Only the first `MOST_SEEDS` seeds are drawn.
    Returns None for fewer than two finished seeds.
    """
    finished = [run for run in runs if run.done is not None and (run.folder / ACTIVATIONS).exists()]
    counted = finished[:MOST_SEEDS]
    if len(counted) < 2:
        return None
    saved = [read_activations(run.folder / ACTIVATIONS) for run in counted]
    count, columns = len(saved[0]), min(3, len(saved[0]))
    first = "" if len(counted) == len(finished) else "the first "
    of = f"{first}{len(counted)}{f' of {len(finished):,}' if first else ''} seeds"
    title = f"{counted[0].name}: tuned activations of {of}, mean and standard deviation"
    with look():
        figure, axes = panels(count, columns, (2.9, 2.0), (0.5, 0.15, 0.42, 0.3), title, foot=0.3)
        for panel, layers in zip(axes, zip(*saved, strict=True), strict=False):
            u = torch.linspace(*drawn_range(layers[0].tuned), 241, dtype=torch.float64)
            curves = [curves_of(layer.tuned, layer.start, None, u) for layer in layers]
            tuned = torch.stack([one.tuned_U for one in curves])
            mean, std = tuned.mean(0), tuned.std(0)
            panel.fill_between(u, mean - std, mean + std, label="± one standard deviation", **BAND)
            if curves[0].initial_U is not None:
                panel.plot(u, curves[0].initial_U, label=LABELS["initial"], **INITIAL)
            panel.plot(u, mean, label=f"{LABELS['tuned']}, mean over the seeds", **TUNED)
            panel.set_title(f"{layers[0].path}: {layers[0].tuned.text}", fontsize=8)
            panel.set_xlabel("input")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower left", ncols=3, borderaxespad=0.4)
    return figure
