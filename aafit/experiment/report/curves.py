"""Training curves: test accuracy and training loss over the epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from aafit.experiment.report.groups import Group
from aafit.experiment.report.runs import RunRecord
from aafit.experiment.report.summary import activations, status
from aafit.plots.style import BASE_LINE, GREY, Line, label_ends, line, look, panels, set_epochs, text_width

NEAR_ACCURACY, NEAR_LOSS = 6.0, 2.0
"""The close-up holds curves that end within so many points of the best accuracy, or so many times the lowest loss."""
WIDTH, HEIGHT = 3.7, 2.5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A run's values at its epochs: mean over the seeds, and their sample standard deviation."""

    epochs: Array
    mean: Array
    std: Array
    line: Line


def draw_group(group: Group) -> Figure:
    """Test accuracy and training loss of a group: above over all epochs, below close up on those after the replacement.

    Each run is a mean over its seeds, with a band of one standard deviation. Runs that end far below the best leave the
    close-up, which says so, so that they do not squash the others.
    """
    names = {**group.bases, **group.tuned}
    lines = {name: line(index) for index, name in enumerate(group.tuned)}
    lines |= {name: BASE_LINE if group.tuned else line(index) for index, name in enumerate(group.bases)}
    settings = next(iter(names.values()))[0].settings
    title = f"{group.title}: {settings.network} on {settings.dataset}" if group.tuned else group.title
    first = _first_epoch(group)
    with look():
        right = 0.3 + max(text_width(f"{name}  00.00", 8) for name in names)
        foot = 0.2 + 0.19 * -(-len(names) // 2)
        figure, axes = panels(2, 2, (WIDTH, HEIGHT), (0.65, right, 0.5, 0.3), title, foot=foot)
        for column, linear in enumerate((True, False)):
            curves = {name: _curve(runs, linear, lines[name]) for name, runs in names.items()}
            curves = {name: curve for name, curve in curves.items() if len(curve.epochs)}
            _whole(axes[column], curves, first if group.tuned else None, linear)
            _close_up(axes[2 + column], curves, first, linear)
            axes[2 + column].set_title(f"close up: {'after the replacement' if group.tuned else 'the later epochs'}")
            axes[2 + column].set_xlabel("epoch, numbered through")
            for panel in (axes[column], axes[2 + column]):
                panel.set_ylabel("test accuracy, %" if linear else "training loss")
        figure.legend(handles=_key(names, lines), loc="lower left", ncols=2, handlelength=4.5, borderaxespad=0.6)
    return figure


def _curve(runs: Sequence[RunRecord], linear: bool, style: Line) -> Curve:
    """The finished seeds' curve, or that of all seeds where none is finished."""
    counted = [run for run in runs if run.done is not None] or list(runs)
    seeds = []
    for run in counted:
        if run.last_epoch is not None:
            values = 100 * run.columns["test_accuracy"] if linear else run.columns["train_loss"]
            # A loss of zero has no place on a logarithmic axis.
            values = np.where(linear | (values > 0), values, np.nan)
            seeds.append({int(epoch): value for epoch, value in zip(run.columns["epoch"], values, strict=True)})
    if all(run.settings.method == "gauss-newton" and run.done is not None for run in counted):
        # An identification that has ended stays where it is, while those of other seeds take more steps.
        last = max(map(max, seeds), default=0)
        seeds = [seed | dict.fromkeys(range(max(seed) + 1, last + 1), seed[max(seed)]) for seed in seeds]
    epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
    table = np.array([[seed[epoch] for epoch in epochs] for seed in seeds]).reshape(max(len(seeds), 1), len(epochs))
    keep = np.isfinite(table).all(axis=0)
    table = table[:, keep]
    std = table.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(table.shape[1])
    return Curve(np.array(epochs, dtype=float)[keep], table.mean(axis=0), std, style)


def _whole(axes: Axes, curves: dict[str, Curve], replaced: int | None, linear: bool) -> None:
    """All epochs, and where activations were replaced."""
    axes.set_title("all epochs")
    _plot(axes, curves, 0)
    if linear:
        axes.set_ylim(0, 100)
    else:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    if replaced is not None:
        height, side = (0.02, "bottom") if linear else (0.98, "top")
        axes.axvline(replaced, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        text: dict[str, Any] = {"fontsize": 7.5, "color": GREY, "ha": "right", "va": side}
        axes.text(replaced, height, "replaced ", transform=axes.get_xaxis_transform(), **text)
    ends = [(curve.epochs[-1], curve.mean[-1], name, curve.line.color) for name, curve in curves.items()]
    label_ends(axes, ends, HEIGHT)


def _close_up(axes: Axes, curves: dict[str, Curve], first: int, linear: bool) -> None:
    """The epochs from `first` on, within limits that hold the runs near the best; a note names those outside."""
    _plot(axes, curves, first)
    ends = {name: float(curve.mean[-1]) for name, curve in curves.items()}
    if not ends:
        return
    best = max(ends.values()) if linear else min(ends.values())
    near = [name for name, end in ends.items() if (best - end <= NEAR_ACCURACY if linear else end <= NEAR_LOSS * best)]
    low, high = min(ends[name] for name in near), max(ends[name] for name in near)
    shown = np.concatenate([curves[name].mean[curves[name].epochs >= first] for name in near] + [[low, high]])
    room = max(high - low, 0.5 if linear else 0.05 * best)
    # The curves' ends in the better half of the panel, their way there in the other.
    if linear:
        axes.set_ylim(max(0.0, low - room), min(100.0, float(shown.max()) + 0.12 * room))
    else:
        axes.set_ylim(max(0.0, float(shown.min()) - 0.12 * room), high + room)
    bottom, top = axes.get_ylim()
    far = [(name, end) for name, end in ends.items() if not bottom <= end <= top]
    text = "\n".join(f"{'↓' if end < bottom else '↑'} {name} ends at {end:.2f}" for name, end in far)
    height, side = (0.03, "bottom") if linear else (0.97, "top")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85 if far else 0.0, "pad": 1.5}
    axes.text(0.02, height, text, transform=axes.transAxes, fontsize=7.5, color="#333333", va=side, bbox=box, zorder=5)
    labels = {name: f"{name}  {end:.{2 if linear else 3}f}" for name, end in ends.items()}
    named = [(curve.epochs[-1], curve.mean[-1], labels[name], curve.line.color) for name, curve in curves.items()]
    label_ends(axes, named, HEIGHT)


def _plot(axes: Axes, curves: dict[str, Curve], first: int) -> None:
    last = max((float(curve.epochs[-1]) for curve in curves.values()), default=1.0)
    for number, curve in enumerate(curves.values()):
        shown = int((curve.epochs >= first).sum())
        # Markers at other epochs for each curve, so that they show where curves coincide.
        every = max(1, shown // 7)
        begin = (len(curve.epochs) - 1 - number * max(1, every // len(curves))) % every
        width = 1.5 if shown < 150 else 1.0
        axes.plot(curve.epochs, curve.mean, **curve.line.kwargs(), linewidth=width, markevery=(begin, every), zorder=3)
        if np.any(curve.std > 0):
            low, high = curve.mean - curve.std, curve.mean + curve.std
            axes.fill_between(curve.epochs, low, high, color=curve.line.color, alpha=0.15, linewidth=0)
    set_epochs(axes, first, last)


def _first_epoch(group: Group) -> int:
    """The epoch of the first replacement; without one, a third of the way."""
    if group.tuned:
        return min(runs[0].settings.start_epoch for runs in group.tuned.values())
    return max(runs[0].settings.end_epoch for runs in group.bases.values()) // 3


def _key(names: dict[str, list[RunRecord]], lines: dict[str, Line]) -> list[Line2D]:
    """What each line is."""
    handles = []
    for name, runs in names.items():
        settings = runs[0].settings
        stage = f" (stage {settings.stage})" if settings.stage.isdigit() else ""
        so_far = "" if any(run.done for run in runs) else f" ({status(runs[0])})"
        label = f"{name}{stage}: {'; '.join(activations(settings))}{so_far}"
        handles.append(Line2D([], [], linewidth=1.5, label=label, **lines[name].kwargs()))
    return handles
