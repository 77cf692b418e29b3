"""The forms that came out with different seeds: their mean, and how far they lie apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from aafit.experiment.report.runs import RunRecord
from aafit.experiment.runs.documents import ACTIVATIONS
from aafit.networks.adaptive import read_activations
from aafit.plots.activations import curve_range, curve_values
from aafit.plots.style import START, TUNED, UNSURE, look, panels

MOST = 100
"""So many seeds tell the spread."""


def draw_seeds(runs: Sequence[RunRecord]) -> Figure | None:
    """Mean over the seeds of each layer's tuned form, and one sample standard deviation; None: fewer than two seeds.

    Where a layer has several curves (channels, neurons), their median counts. Of more than `MOST` seeds the first are
    shown.
    """
    counted = [run for run in runs if run.done is not None and (run.folder / ACTIVATIONS).exists()]
    whole, counted = len(counted), counted[:MOST]
    if len(counted) < 2:
        return None
    saved = [read_activations(run.folder / ACTIVATIONS) for run in counted]
    columns = min(3, len(saved[0]))
    of = f"{len(counted)} seeds" if whole == len(counted) else f"the first {len(counted)} of {whole:,} seeds"
    title = f"{counted[0].name}: forms of {of}, mean and standard deviation"
    with look():
        figure, axes = panels(
            -(-len(saved[0]) // columns), columns, (2.9, 2.0), (0.5, 0.15, 0.42, 0.3), title, foot=0.3
        )
        for where, layers in zip(axes, zip(*saved, strict=True), strict=False):
            u = np.linspace(*curve_range(layers[0].tuned), 241)
            tuned = np.stack([np.median(curve_values(layer.tuned, u), axis=1) for layer in layers])
            mean, std = tuned.mean(0), tuned.std(0, ddof=1)
            where.fill_between(u, mean - std, mean + std, label="one std", **UNSURE)
            if layers[0].start is not None:
                where.plot(u, np.median(curve_values(layers[0].start, u), axis=1), label="start", **START)
            where.plot(u, mean, label="mean of the seeds", **TUNED)
            where.set_title(f"{layers[0].path}: {layers[0].tuned.text}", fontsize=8)
            where.set_xlabel("input")
        for where in axes[len(saved[0]) :]:
            where.set_axis_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower left", ncols=3, borderaxespad=0.4)
    return figure
