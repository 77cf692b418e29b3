"""The path that each adaptive parameter took over the epochs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from aafit.experiment.report.runs import RunRecord
from aafit.plots.style import GREY, Line, label_ends, line, look, panels, set_epochs, text_width

MANY = 8
"""Up to so many curves have lines and markers of their own; of more, labels tell which is which."""
Array = NDArray[np.float64]


def draw_trajectories(run: RunRecord) -> Figure | None:
    """How far each parameter that a layer shares moved from its start, a panel a kind; None: the run has none."""
    kinds: dict[str, dict[str, Array]] = {}
    for name, values in run.parameters.items():
        path, _, parameter = name.rpartition(".")
        kind, _, index = parameter.partition("[")
        title, label = (f"{path}.{kind}", _knot(run, int(index.rstrip("]")))) if index else (kind, path)
        kinds.setdefault(title, {})[label] = values
    if not kinds or run.last_epoch is None:
        return None
    columns = min(2, len(kinds))
    many = any(len(layers) > MANY for layers in kinds.values())
    width, height = (5.2, 3.7) if many else (4.2, 2.0)
    right = 0.35 + max(text_width(label, 7.5) for layers in kinds.values() for label in layers)
    title = f"{run.name}, seed {run.seed}: change of each parameter since its start"
    with look():
        figure, axes = panels(-(-len(kinds) // columns), columns, (width, height), (0.65, right, 0.5, 0.35), title)
        for panel, (kind, layers) in zip(axes, kinds.items(), strict=False):
            _trajectory(panel, kind, layers, run.columns["epoch"], height)
        for panel in axes[len(kinds) :]:
            panel.set_axis_off()
    return figure


def _knot(run: RunRecord, index: int) -> str:
    """An F-Neuron's weight, with the input that it is the value at."""
    left, right = run.settings.interval
    return f"[{index}] at {left + index * (right - left) / (run.settings.pieces + 1):.2f}"


def _trajectory(axes: Axes, kind: str, layers: dict[str, Array], epochs: Array, height: float) -> None:
    ends = []
    for index, (name, values) in enumerate(layers.items()):
        style = line(index) if len(layers) <= MANY else Line("black", ("-", "--", ":")[index % 3], "")
        changed = values - values[0]
        thin = 1.4 if len(layers) <= MANY else 0.8
        axes.plot(epochs, changed, **style.kwargs(), linewidth=thin, markevery=max(1, len(epochs) // 6))
        ends.append((float(epochs[-1]), float(changed[-1]), name, style.color))
    starts = sorted({float(values[0]) for values in layers.values()})
    begins = f"starts at {' or '.join(f'{start:g}' for start in starts)}" if len(starts) < 4 else "starts differ"
    axes.set_title(f"{kind} ({begins})")
    axes.yaxis.set_major_formatter("{x:.3g}")
    if all(np.all(values == values[0]) for values in layers.values()):
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
        axes.text(0.5, 0.6, "did not move", transform=axes.transAxes, ha="center", color=GREY)
    set_epochs(axes, float(epochs[0]), float(epochs[-1]))
    axes.set_xlabel("epoch")
    label_ends(axes, ends, height, size=7.5)
