"""What each second of tuning brought: identification beside gradient steps, on one axis of time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from aafit.experiment.report.runs import RunRecord
from aafit.plots.style import label_ends, line, look, panels, text_width

WIDTH, HEIGHT = 4.6, 2.9


def draw_times(runs: Mapping[str, RunRecord]) -> Figure:
    """Test accuracy over the seconds of tuning, without evaluation, on a logarithmic axis; a line a run.

    Args:
        runs: by the name that each has in the figure, such as "cpu: silu-leaf-relu".
    """
    kept = {name: _curve(run) for name, run in runs.items() if run.last_epoch is not None}
    with look():
        right = 0.3 + max(text_width(name, 8) for name in kept)
        title = "Test accuracy over the time of tuning"
        figure, (axes,) = panels(1, 1, (WIDTH, HEIGHT), (0.6, right, 0.5, 0.1), title)
        ends = []
        for index, (name, (seconds, accuracy)) in enumerate(kept.items()):
            style = line(index)
            axes.plot(seconds, accuracy, **style.kwargs(), markevery=max(1, len(seconds) // 6))
            ends.append((seconds[-1], accuracy[-1], name, style.color))
        axes.set_xscale("log")
        axes.set_xlabel("seconds of tuning")
        axes.set_ylabel("test accuracy, %")
        label_ends(axes, ends, HEIGHT)
    return figure


def _curve(run: RunRecord) -> tuple[Sequence[float], Sequence[float]]:
    """Seconds since the start, and accuracy. The start itself has no place on a logarithmic axis, and is left out."""
    seconds = np.nan_to_num(run.columns["seconds"]).cumsum()
    accuracy = 100 * run.columns["test_accuracy"]
    there = (seconds > 0) & np.isfinite(accuracy)
    return seconds[there].tolist(), accuracy[there].tolist()
