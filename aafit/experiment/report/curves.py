"""Figures of values over the epochs or over time: accuracy and loss of a group of runs, parameters of one run.

`groups` says which runs share a figure, `draw_group` draws it; `draw_times` has seconds on its axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from aafit.activations import FNeuron, is_adaptive, parse_text
from aafit.experiment.report.runs import RunRecord, SuiteRuns
from aafit.experiment.report.summary import activations, status
from aafit.experiment.runs.config import RunConfig
from aafit.plots.style import BASE_LINE, GREY, Line, label_ends, line, lines_by, look, panels, set_epochs, text_width

PAPER = (
    ("relu-to-tanh-relu", "ReLU → Tanh + ReLU", "ReLU", "4", "2"),
    ("silu-to-tanh-silu", "SiLU → Tanh + SiLU", "SiLU", "5", "3"),
    ("silu-to-relu", "SiLU → ReLU", "SiLU", "6", "3"),
    ("relu-to-silu", "ReLU → SiLU", "ReLU", "7", "2"),
)
"""The paper's groups: file name, title, the base's activation, stage, stage of the runs that start as the base's own
activation."""
NEAR_ACCURACY, NEAR_LOSS = 6.0, 2.0
"""The close-up holds curves that end within so many points of the best accuracy, or so many times the lowest loss."""
MOST_STYLES = 8
"""Up to so many parameters have a line style each; more are told apart by their labels."""
WIDTH, HEIGHT = 3.7, 2.5
Array = NDArray[np.float64]


# Which runs share a figure


@dataclass(frozen=True)
class Group:
    """The runs of one figure by name, each with its seeds: base networks, and runs that were tuned from them."""

    key: str
    title: str
    bases: dict[str, list[RunRecord]]
    tuned: dict[str, list[RunRecord]]


def groups(suite: SuiteRuns) -> list[Group]:
    """Return the groups of a suite's runs.

    The paper's groups come first, if the suite has their stages. Other tuned runs are grouped by their base network;
    base networks without a group are grouped by network and data set.
    """
    names = suite.by_name()
    roots = {name: (suite.ancestors(runs[0]) or runs[:1])[-1].name for name, runs in names.items()}
    children = {name: runs for name, runs in names.items() if runs[0].settings.parent is not None}
    suite_groups: list[Group] = []
    placed: set[str] = set()
    for key, title, function, stage, matching_stage in PAPER:
        bases = [
            base
            for base in dict.fromkeys(roots.values())
            if names[base][0].settings.cnn == names[base][0].settings.fc == function
        ]
        for base in bases:
            tuned = {name: runs for name, runs in children.items() if roots[name] == base}
            group = {name: runs for name, runs in tuned.items() if runs[0].settings.stage == stage}
            if group:
                matching = {name: runs for name, runs in tuned.items() if runs[0].settings.stage == matching_stage}
                # Several bases with one activation are told apart by name.
                suffix, place = ("", "") if len(bases) == 1 else (f"-{base}", f" ({base})")
                suite_groups.append(Group(key + suffix, title + place, {base: names[base]}, {**group, **matching}))
                placed |= {base, *group, *matching}
    for base in dict.fromkeys(roots.values()):
        rest = {name: runs for name, runs in children.items() if roots[name] == base and name not in placed}
        if rest:
            bases_of_rest = {} if base in rest else {base: names[base]}
            suite_groups.append(Group(f"from-{base}", f"Tuned from {base}", bases_of_rest, rest))
            placed |= {base, *rest}
    kinds: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for name, runs in names.items():
        if name not in children:
            kinds.setdefault((runs[0].settings.network, runs[0].settings.dataset), {})[name] = runs
    scratch = [
        Group(f"from-scratch-{network}-{dataset}", f"{network} on {dataset}, trained from scratch", bases_of_kind, {})
        for (network, dataset), bases_of_kind in kinds.items()
        if not placed.issuperset(bases_of_kind)
    ]
    return suite_groups + scratch


# Accuracy and loss over the epochs


class Curve(NamedTuple):
    """A run's values at its epochs: mean over the seeds, their sample standard deviation, and the line to draw."""

    epochs: Array
    mean: Array
    std: Array
    line: Line


def draw_group(group: Group) -> Figure:
    """Draw test accuracy and training loss of a group, over all epochs and close up on those after the replacement.

    Each run is a mean over its seeds with a band of one standard deviation. Runs that end far below the best are left
    out of the close-up, which names them.
    """
    names = {**group.bases, **group.tuned}
    lines = _styles({name: runs[0] for name, runs in group.tuned.items()})
    lines |= {name: BASE_LINE if group.tuned else line(index) for index, name in enumerate(group.bases)}
    settings = next(iter(names.values()))[0].settings
    title = f"{group.title}: {settings.network} on {settings.dataset}" if group.tuned else group.title
    if group.tuned:
        first = min(runs[0].settings.start_epoch for runs in group.tuned.values())
    else:
        first = max(runs[0].settings.end_epoch for runs in group.bases.values()) // 3
    with look():
        right = 0.3 + max(text_width(f"{name}  00.00", 8) for name in names)
        foot = 0.2 + 0.19 * -(-len(names) // 2)
        figure, axes = panels(4, 2, (WIDTH, HEIGHT), (0.65, right, 0.5, 0.3), title, foot=foot)
        for column, accuracy in enumerate((True, False)):
            curves = {name: _curve(runs, accuracy, lines[name]) for name, runs in names.items()}
            curves = {name: curve for name, curve in curves.items() if len(curve.epochs)}
            _all_epochs(axes[column], curves, first if group.tuned else None, accuracy)
            _close_up(axes[2 + column], curves, first, accuracy)
            axes[2 + column].set_title(f"close-up: {'after the replacement' if group.tuned else 'the later epochs'}")
            axes[2 + column].set_xlabel("epoch, counted from the start of the base network's training")
            for panel in (axes[column], axes[2 + column]):
                panel.set_ylabel("test accuracy, %" if accuracy else "training loss")
        figure.legend(handles=_legend(names, lines), loc="lower left", ncols=2, handlelength=4.5, borderaxespad=0.6)
    return figure


def _styles(runs: Mapping[str, RunRecord]) -> dict[str, Line]:
    """Return the style of each run's curve, coloured by its method, or by its activation if all have one method."""
    methods = [run.settings.method for run in runs.values()]
    kinds = methods if len(set(methods)) > 1 else [_family(run.settings) for run in runs.values()]
    return dict(zip(runs, lines_by(kinds), strict=True))


def _family(settings: RunConfig) -> str:
    """Return the family of a run's adaptive activations; of fixed ones the function."""
    return next((parse_text(text).family for text in (settings.fc, settings.cnn) if is_adaptive(text)), settings.fc)


def _curve(runs: Sequence[RunRecord], accuracy: bool, style: Line) -> Curve:
    """Return the curve of the finished seeds, or of all seeds if none is finished."""
    counted = [run for run in runs if run.done is not None] or list(runs)
    seeds = []
    for run in counted:
        if run.last_epoch is not None:
            values = 100 * run.columns["test_accuracy"] if accuracy else run.columns["train_loss"]
            # A loss of zero has no place on a logarithmic axis.
            values = np.where(accuracy | (values > 0), values, np.nan)
            seeds.append({int(epoch): value for epoch, value in zip(run.columns["epoch"], values, strict=True)})
    if all(run.settings.training.ends_early and run.done is not None for run in counted):
        # An identification keeps its last value while those of other seeds take more steps.
        last = max(map(max, seeds), default=0)
        seeds = [seed | dict.fromkeys(range(max(seed) + 1, last + 1), seed[max(seed)]) for seed in seeds]
    epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
    table = np.array([[seed[epoch] for epoch in epochs] for seed in seeds]).reshape(max(len(seeds), 1), len(epochs))
    finite = np.isfinite(table).all(axis=0)
    table = table[:, finite]
    std = table.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(table.shape[1])
    return Curve(np.array(epochs, dtype=float)[finite], table.mean(axis=0), std, style)


def _all_epochs(axes: Axes, curves: dict[str, Curve], replaced: int | None, accuracy: bool) -> None:
    axes.set_title("all epochs")
    _plot(axes, curves, 0)
    if accuracy:
        axes.set_ylim(0, 100)
    else:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    if replaced is not None:
        height, side = (0.02, "bottom") if accuracy else (0.98, "top")
        axes.axvline(replaced, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        text: dict[str, Any] = {"fontsize": 7.5, "color": GREY, "ha": "right", "va": side}
        axes.text(replaced, height, "replacement ", transform=axes.get_xaxis_transform(), **text)
    ends = [(curve.epochs[-1], curve.mean[-1], name, curve.line.color) for name, curve in curves.items()]
    label_ends(axes, ends, HEIGHT)


def _close_up(axes: Axes, curves: dict[str, Curve], first: int, accuracy: bool) -> None:
    """Draw the epochs from `first` on, within limits that hold the runs near the best; a note names the others."""
    _plot(axes, curves, first)
    ends = {name: float(curve.mean[-1]) for name, curve in curves.items()}
    if not ends:
        return
    best = max(ends.values()) if accuracy else min(ends.values())
    near = [n for n, end in ends.items() if (best - end <= NEAR_ACCURACY if accuracy else end <= NEAR_LOSS * best)]
    low, high = min(ends[name] for name in near), max(ends[name] for name in near)
    shown = np.concatenate([curves[name].mean[curves[name].epochs >= first] for name in near] + [[low, high]])
    room = max(high - low, 0.5 if accuracy else 0.05 * best)
    # The ends of the curves take the better half of the panel.
    if accuracy:
        axes.set_ylim(max(0.0, low - room), min(100.0, float(shown.max()) + 0.12 * room))
    else:
        axes.set_ylim(max(0.0, float(shown.min()) - 0.12 * room), high + room)
    bottom, top = axes.get_ylim()
    outside = [(name, end) for name, end in ends.items() if not bottom <= end <= top]
    text = "\n".join(f"{'↓' if end < bottom else '↑'} {name} ends at {end:.2f}" for name, end in outside)
    height, side = (0.03, "bottom") if accuracy else (0.97, "top")
    frame = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85 if outside else 0.0, "pad": 1.5}
    axes.text(
        0.02, height, text, transform=axes.transAxes, fontsize=7.5, color="#333333", va=side, bbox=frame, zorder=5
    )
    labels = {name: f"{name}  {end:.{2 if accuracy else 3}f}" for name, end in ends.items()}
    named = [(curve.epochs[-1], curve.mean[-1], labels[name], curve.line.color) for name, curve in curves.items()]
    label_ends(axes, named, HEIGHT)


def _plot(axes: Axes, curves: dict[str, Curve], first: int) -> None:
    last = max((float(curve.epochs[-1]) for curve in curves.values()), default=1.0)
    for number, curve in enumerate(curves.values()):
        shown = int((curve.epochs >= first).sum())
        # Markers at different epochs for each curve, so that coinciding curves can be seen.
        every = max(1, shown // 7)
        begin = (len(curve.epochs) - 1 - number * max(1, every // len(curves))) % every
        width = 1.5 if shown < 150 else 1.0
        axes.plot(curve.epochs, curve.mean, **curve.line.kwargs(), linewidth=width, markevery=(begin, every), zorder=3)
        if np.any(curve.std > 0):
            low, high = curve.mean - curve.std, curve.mean + curve.std
            axes.fill_between(curve.epochs, low, high, color=curve.line.color, alpha=0.15, linewidth=0)
    set_epochs(axes, first, last)


def _legend(names: dict[str, list[RunRecord]], lines: dict[str, Line]) -> list[Line2D]:
    handles = []
    for name, runs in names.items():
        settings = runs[0].settings
        stage = f" (stage {settings.stage})" if settings.stage.isdigit() else ""
        progress = "" if any(run.done for run in runs) else f" ({status(runs[0])})"
        label = f"{name}{stage}: {'; '.join(activations(settings))}{progress}"
        handles.append(Line2D([], [], linewidth=1.5, label=label, **lines[name].kwargs()))
    return handles


def draw_times(runs: Mapping[str, RunRecord]) -> Figure:
    """Draw test accuracy over the seconds of tuning, without evaluation, on a logarithmic axis.

    Args:
        runs: The runs by their labels in the figure, such as "cpu: silu-leaf-relu".
    """
    measured = {name: run for name, run in runs.items() if run.last_epoch is not None}
    with look():
        right = 0.3 + max(text_width(name, 8) for name in measured)
        title = "Test accuracy over the time of tuning"
        figure, (axes,) = panels(1, 1, (4.6, 2.9), (0.6, right, 0.5, 0.1), title)
        ends, styles = [], _styles(measured)
        for name, run in measured.items():
            seconds = np.nan_to_num(run.columns["seconds"]).cumsum()
            accuracy = 100 * run.columns["test_accuracy"]
            # The network before tuning, at 0 s, has no place on a logarithmic axis.
            shown = (seconds > 0) & np.isfinite(accuracy)
            if not shown.any():
                continue
            seconds, accuracy, style = seconds[shown], accuracy[shown], styles[name]
            axes.plot(seconds, accuracy, **style.kwargs(), markevery=max(1, len(seconds) // 6))
            ends.append((float(seconds[-1]), float(accuracy[-1]), name, style.color))
        axes.set_xscale("log")
        axes.set_xlabel("seconds of tuning")
        axes.set_ylabel("test accuracy, %")
        label_ends(axes, ends, 2.9)
    return figure


# Parameters over the epochs


def draw_trajectories(run: RunRecord) -> Figure | None:
    """Draw the change of each parameter that a layer shares, a panel for each kind; None if the run has none."""
    kinds: dict[str, dict[str, Array]] = {}
    for name, values in run.parameters.items():
        path, _, parameter = name.rpartition(".")
        kind, _, index = parameter.partition("[")
        title, label = (f"{path}.{kind}", _element(run, kind, int(index.rstrip("]")))) if index else (kind, path)
        if np.isfinite(values[:1]).all():
            kinds.setdefault(title, {})[label] = values
    if not kinds or run.last_epoch is None:
        return None
    columns = min(2, len(kinds))
    many = any(len(layers) > MOST_STYLES for layers in kinds.values())
    width, height = (5.2, 3.7) if many else (4.2, 2.0)
    right = 0.35 + max(text_width(label, 7.5) for layers in kinds.values() for label in layers)
    title = f"{run.name}, seed {run.seed}: change of each parameter from its initial value"
    with look():
        figure, axes = panels(len(kinds), columns, (width, height), (0.65, right, 0.5, 0.35), title)
        for panel, (kind, layers) in zip(axes, kinds.items(), strict=False):
            _trajectories(panel, kind, layers, run.columns["epoch"], height)
    return figure


def _element(run: RunRecord, kind: str, index: int) -> str:
    """Name an element of a parameter by its index; an F-Neuron's also by the input that it is the value at."""
    if kind not in FNeuron.parameter_names():
        return f"[{index}]"
    left, right = run.settings.interval
    return f"[{index}] at {left + index * (right - left) / (run.settings.knots - 1):.2f}"


def _trajectories(axes: Axes, kind: str, layers: dict[str, Array], epochs: Array, height: float) -> None:
    ends = []
    for index, (name, values) in enumerate(layers.items()):
        few = len(layers) <= MOST_STYLES
        style = line(index) if few else Line("black", ("-", "--", ":")[index % 3], "")
        change = values - values[0]
        axes.plot(epochs, change, **style.kwargs(), linewidth=1.4 if few else 0.8, markevery=max(1, len(epochs) // 6))
        ends.append((float(epochs[-1]), float(change[-1]), name, style.color))
    initial = sorted({float(values[0]) for values in layers.values()})
    axes.set_title(f"{kind} (initially {' or '.join(f'{value:g}' for value in initial)})" if len(initial) < 4 else kind)
    axes.yaxis.set_major_formatter("{x:.3g}")
    if all(np.all(values == values[0]) for values in layers.values()):
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
        axes.text(0.5, 0.6, "no change", transform=axes.transAxes, ha="center", color=GREY)
    set_epochs(axes, float(epochs[0]), float(epochs[-1]))
    axes.set_xlabel("epoch")
    label_ends(axes, ends, height, size=7.5)
