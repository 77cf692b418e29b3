"""Training curves: accuracy and loss over the epochs, and the path that each adaptive parameter took."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from aafit.report.groups import Group
from aafit.report.runs import Run
from aafit.report.style import BASE_LINE, GREY, Line, label_ends, line, look, new_figure
from aafit.report.summary import activations

NEAR = 0.06
"""The close-up shows curves that end within this share of the best accuracy; others are named as below it."""
Array = NDArray[np.float64]


def draw_group(group: Group) -> Figure:
    """Test accuracy and training loss of a group: above over all epochs, below close up on those after the replacement.

    Each run is a mean over its seeds, with a band of one standard deviation. Runs that end far below the best leave the
    close-up, which says so, so that they do not squash the others.
    """
    names = {**group.bases, **group.tuned}
    lines = {name: line(index) for index, name in enumerate(group.tuned)}
    lines |= {name: BASE_LINE if group.tuned else line(index) for index, name in enumerate(group.bases)}
    with look():
        figure = new_figure(11, 7.6)
        axes = figure.subplots(2, 2)
        first = _first_epoch(group)
        for column, (name, label) in enumerate(
            (("test_accuracy", "test accuracy, %"), ("train_loss", "training loss"))
        ):
            scale = 100.0 if name == "test_accuracy" else 1.0
            curves = {run: _mean(runs, name, scale) for run, runs in names.items()}
            for close_up in (False, True):
                _panel(axes[int(close_up), column], curves, lines, group, first if close_up else None, column == 0)
                axes[int(close_up), column].set_ylabel(label)
        for column in (0, 1):
            axes[0, column].set_title("all epochs")
            axes[1, column].set_title(
                "close up: after the replacement" if group.tuned else "close up: the later epochs"
            )
            axes[1, column].set_xlabel("epoch, numbered through")
        settings = next(iter(names.values()))[0].settings
        title = f"{group.title}: {settings.network} on {settings.dataset}" if group.tuned else group.title
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        _key(figure, names, lines)
    return figure


def draw_trajectories(run: Run) -> Figure | None:
    """How far each parameter that a layer shares moved from its start, a panel a kind; None: the run has none."""
    kinds: dict[str, dict[str, Array]] = {}
    for name, values in run.parameters.items():
        path, _, parameter = name.rpartition(".")
        kind, _, index = parameter.partition("[")
        title = f"{path}.{kind}" if index else kind
        kinds.setdefault(title, {})[_knot(run, f"[{index}") if index else path] = values
    if not kinds or run.last_epoch is None:
        return None
    with look():
        columns = min(2, len(kinds))
        rows = -(-len(kinds) // columns)
        tall = 4.6 if any(len(layers) > 8 for layers in kinds.values()) else 2.7
        figure = new_figure(5.4 * columns if columns > 1 else 7, tall * rows + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, (kind, layers) in zip(axes, kinds.items(), strict=False):
            _trajectory(panel, kind, layers, run.columns["epoch"], tall - 0.8)
        for panel in axes[len(kinds) :]:
            panel.set_axis_off()
        seed = f"{run.name}, seed {run.seed}"
        figure.suptitle(
            f"{seed}: change of each parameter since its start", fontsize=11, fontweight="bold", x=0.01, ha="left"
        )
    return figure


def _panel(
    axes: Axes,
    curves: dict[str, tuple[Array, Array, Array]],
    lines: dict[str, Line],
    group: Group,
    first: int | None,
    linear: bool,
) -> None:
    """One panel with all curves; `first` is the epoch that a close-up begins with."""
    last = max((float(epochs[-1]) for epochs, _, _ in curves.values() if len(epochs)), default=1.0)
    for number, (name, (epochs, mean, std)) in enumerate(curves.items()):
        if not len(epochs):
            continue
        shown = len(epochs) if first is None else int((epochs >= first).sum())
        every = max(1, shown // 7)
        offset = (len(epochs) - 1 - number * max(1, every // max(1, len(curves)))) % every
        axes.plot(epochs, mean, **lines[name].kwargs(), markevery=(offset, every), zorder=3)
        if np.any(std > 0):
            axes.fill_between(epochs, mean - std, mean + std, color=lines[name].color, alpha=0.15, linewidth=0)
    if not linear and first is None:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    left = 0.0 if first is None else float(first)
    axes.set_xlim(left, max(last, left + 1))
    if first is not None:
        _close_up(axes, curves, lines, left, linear)
    elif linear:
        axes.set_ylim(0, 100)
    ends = [(float(e[-1]), float(m[-1]), name, lines[name].color) for name, (e, m, _) in curves.items() if len(e)]
    if first is not None:
        digits = 2 if linear else 3
        ends = [(x, y, f"{name}  {y:.{digits}f}", color) for x, y, name, color in ends]
    if first is None and group.tuned:
        axes.axvline(_first_epoch(group), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("replaced", (_first_epoch(group), 0.02 if linear else 0.98), (-3, 0),
                      xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7.5, color=GREY,
                      ha="right", va="bottom" if linear else "top")  # fmt: skip
    label_ends(axes, ends, height=2.5)


def _close_up(
    axes: Axes, curves: dict[str, tuple[Array, Array, Array]], lines: dict[str, Line], left: float, linear: bool
) -> None:
    """Limits that hold the runs near the best one; a note names those outside."""
    ends = {name: float(mean[-1]) for name, (_, mean, _) in curves.items() if len(mean)}
    if not ends:
        return
    best = max(ends.values()) if linear else min(ends.values())
    near = [name for name, end in ends.items() if (best - end <= 100 * NEAR if linear else end <= 2 * best)]
    inside = [_later(*curves[name][:2], left) for name in near]
    low, high = min(ends[name] for name in near), max(ends[name] for name in near)
    room = max(high - low, 0.5 if linear else 0.05 * best)
    # The curves' ends in the better half of the panel, their way there in the other.
    if linear:
        axes.set_ylim(max(0, low - room), min(100, max(high, *(part.max() for part in inside)) + 0.12 * room))
    else:
        axes.set_ylim(max(0, min(low, *(part.min() for part in inside)) - 0.12 * room), high + room)
    limits = axes.get_ylim()
    far = [(name, end) for name, end in ends.items() if not limits[0] <= end <= limits[1]]
    if far:
        where = "below" if linear else "above"
        arrow = "↓" if linear else "↑"
        text = "\n".join(f"{arrow} {name} ends {where}, at {end:.2f}" for name, end in far)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        at, side = (0.03, "bottom") if linear else (0.97, "top")
        axes.text(0.02, at, text, transform=axes.transAxes, fontsize=7.5, color="#333333", va=side, bbox=box, zorder=5)


def _later(epochs: Array, mean: Array, left: float) -> Array:
    """The part of a curve from `left` on, at least its end."""
    part: Array = mean[(epochs >= left) | (epochs == epochs[-1])]
    return part


def _first_epoch(group: Group) -> int:
    """The epoch of the first replacement; without one, a third of the way."""
    if group.tuned:
        return min(runs[0].settings.start_epoch for runs in group.tuned.values())
    return max(runs[0].settings.end_epoch for runs in group.bases.values()) // 3


def _mean(runs: Sequence[Run], column: str, scale: float) -> tuple[Array, Array, Array]:
    """Epochs, mean and sample standard deviation over the finished seeds, or over all where none is finished."""
    counted = [run for run in runs if run.done is not None] or list(runs)
    seeds = []
    for run in counted:
        if run.last_epoch is not None:
            values = scale * run.columns[column]
            seeds.append({int(epoch): value for epoch, value in zip(run.columns["epoch"], values, strict=True)})
    epochs = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    table = np.array([[seed[epoch] for epoch in epochs] for seed in seeds]).reshape(len(seeds), len(epochs))
    keep = np.isfinite(table).all(axis=0)
    table, kept = table[:, keep], np.array(epochs, dtype=float)[keep]
    std = table.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(kept))
    return kept, table.mean(axis=0) if len(seeds) else kept, std


def _key(figure: Figure, names: dict[str, list[Run]], lines: dict[str, Line]) -> None:
    """What each line is, below the panels."""
    handles = []
    for name, runs in names.items():
        settings = runs[0].settings
        stage = f" (stage {settings.stage})" if settings.stage.isdigit() else ""
        label = f"{name}{stage}: {'; '.join(activations(settings))}"
        handles.append(Line2D([], [], linewidth=1.5, label=label, **lines[name].kwargs()))
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handlelength=4.5)


def _knot(run: Run, index: str) -> str:
    """The index of an F-Neuron's weight with the input it stands for."""
    left, right = run.settings.interval
    return f"{index} at {left + int(index[1:-1]) * (right - left) / (run.settings.pieces + 1):.2f}"


def _trajectory(axes: Axes, kind: str, layers: dict[str, Array], epochs: Array, height: float) -> None:
    many = len(layers) > 8
    for index, (name, values) in enumerate(layers.items()):
        style = Line("black", "-", "") if many else line(index)
        changed = values - values[0]
        axes.plot(epochs, changed, **style.kwargs(), markevery=max(1, len(epochs) // 6), label=name)
        if many:
            axes.lines[-1].set(linewidth=0.8, linestyle=("-", "--", ":")[index % 3])
    starts = sorted({float(values[0]) for values in layers.values()})
    begins = f"starts at {' or '.join(f'{start:g}' for start in starts)}" if len(starts) < 4 else "starts differ"
    axes.set_title(f"{kind}  ({begins})")
    if all(np.all(values == values[0]) for values in layers.values()):
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
        axes.annotate("did not move", (0.5, 0.6), xycoords="axes fraction", ha="center", color=GREY)
    axes.set_xlim(float(epochs[0]), max(float(epochs[-1]), float(epochs[0]) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.set_xlabel("epoch")
    color = "black" if many else None
    ends = [
        (float(epochs[-1]), float(values[-1] - values[0]), name, color or line(index).color)
        for index, (name, values) in enumerate(layers.items())
    ]
    label_ends(axes, ends, height, size=7.5)
