"""The results of a suite as a table: a row a run, with mean and standard deviation over the seeds.

`summarise` makes the rows; `results_table` shows them on a terminal and in Markdown and LaTeX, `csv_rows` gives the
unrounded values, `verdict` and `strips` are what the page begins with.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from aafit.experiment.report.runs import RunRecord, SuiteRuns
from aafit.experiment.runs.config import RunConfig
from aafit.plots.svg import ticks

LEAST_DROP = 0.005
"""The share of a drop in accuracy that tuning recovered is reported for drops of at least half a point."""
MOST_STRIPS = 60
DIVERGED = "diverged"
NONE = "–"  # noqa: RUF001  an en dash, as in printed tables
Lines = tuple[str, ...]
ACCURACIES = {"base": "base_accuracy", "replaced": "replaced_accuracy", "tuned": "last_accuracy"}
"""The accuracies that the page begins with."""
COMPARED = ("base_accuracy", "replaced_accuracy")
SELECTED = ("heldout_selected_accuracy", "heldout_epoch", "best_test_accuracy", "best_test_epoch")
CSV_NAMES = {
    "best_test_accuracy": "best_test_accuracy_selected_on_test",
    "recovered": "share_of_drop_recovered",
}


# The rows


@dataclass(frozen=True)
class SeedMean:
    """A mean over `n` seeds and their sample standard deviation, which is None for a single seed."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "SeedMean | None":
        """Return the mean of the values; None if there are none or one of them is missing."""
        numbers = [value for value in values if value is not None]
        if not numbers or len(numbers) < len(values):
            return None
        return cls(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


@dataclass(frozen=True)
class RunSummary:
    """One run over its finished seeds; if no seed is finished, the values so far.

    Attributes:
        settings: The configuration of the run.
        status: Empty if every seed is finished, else the progress of the others.
        seeds: The seeds that the means are over.
        means: Test accuracies (0 to 1) and epochs as in `Result`; "recovered", the recovered share of the drop,
            (last - replaced) / (base - replaced), for drops of at least `LEAST_DROP`; "seconds", the training time.
        tuned_parameters: The number of trained parameters.
        diverged: The seeds whose final loss was not finite; they are not counted in the means.
        replaced_diverged: Whether the loss before tuning was not finite.
    """

    settings: RunConfig
    status: str
    seeds: tuple[int, ...]
    means: Mapping[str, SeedMean | None]
    tuned_parameters: int | None
    diverged: tuple[int, ...]
    replaced_diverged: bool


def summarise(suite: SuiteRuns) -> list[RunSummary]:
    """Return the rows of the results table, ordered by stage, each parent before its children."""
    return [_summary(runs) for runs in suite.by_name().values()]


def activations(settings: RunConfig) -> tuple[str, ...]:
    """Describe a run's activations: one line, or one each for the CNN and the FC layers if they differ."""
    extra = [f"per {settings.sharing}"] if settings.sharing != "layer" else []
    extra += ["2SPU-4"] if settings.dspu4 else []
    both = (settings.cnn,) if settings.cnn == settings.fc else (f"CNN {settings.cnn}", f"FC {settings.fc}")
    return (*both, ", ".join(extra)) if extra else both


def status(run: RunRecord) -> str:
    """Return the progress of an unfinished or diverged run; an empty text for a finished one."""
    if run.diverged is not None:
        return f"diverged after epoch {run.diverged}"
    if run.done is not None:
        return ""
    if run.last_epoch is None:
        return "nothing measured yet"
    return f"unfinished: epoch {run.last_epoch} of {run.settings.end_epoch}"


def _summary(runs: Sequence[RunRecord]) -> RunSummary:
    finished = [run for run in runs if run.done is not None and run.diverged is None]
    counted = finished or list(runs)
    done = [run.done for run in finished if run.done is not None]
    values: dict[str, list[float | None]] = {name: [_measured(run, name) for run in counted] for name in COMPARED}
    values["last_accuracy"] = [_last(run) for run in counted]
    values |= {name: [getattr(one.result, name) for one in done] for name in SELECTED}
    by_seed = zip(*(values[name] for name in ACCURACIES.values()), strict=True)
    values["recovered"] = [_recovered(*accuracies) for accuracies in by_seed] if finished else []
    values["seconds"] = [one.seconds for one in done]
    unfinished = [f"seed {run.seed} {status(run)}" for run in runs if status(run)]
    return RunSummary(
        settings=runs[0].settings,
        status=status(runs[0]) if len(runs) == 1 else "; ".join(unfinished),
        seeds=tuple(run.seed for run in counted),
        means={name: SeedMean.of(of_seeds) for name, of_seeds in values.items()},
        tuned_parameters=done[0].result.tuned_parameters if done else None,
        diverged=tuple(run.seed for run in runs if run.diverged is not None),
        replaced_diverged=any(run.comparison is not None and run.comparison.replaced_accuracy is None for run in runs),
    )


def _measured(run: RunRecord, name: str) -> float | None:
    """Return an accuracy from done.json, or from compare.json if the run is not finished."""
    value: float | None = getattr(run.done.result if run.done is not None else run.comparison, name, None)
    return value


def _last(run: RunRecord) -> float | None:
    if run.done is not None:
        return run.done.result.last_accuracy
    accuracy = float(run.columns["test_accuracy"][-1]) if run.last_epoch is not None else math.nan
    return accuracy if math.isfinite(accuracy) else None


def _recovered(base: float | None, replaced: float | None, last: float | None) -> float | None:
    if base is None or replaced is None or last is None or base - replaced < LEAST_DROP:
        return None
    return (last - replaced) / (base - replaced)


# The table


@dataclass(frozen=True)
class Column:
    """A heading and the cells under it, both as lines, which are joined where a cell has one line."""

    heading: Lines
    cell: Callable[[RunSummary], Lines]
    numeric: bool = True


@dataclass(frozen=True)
class ResultsTable:
    """The results table of a suite, for every output format."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[RunSummary, ...]
    notes: Lines

    def terminal(self) -> Table:
        """Return a table for rich that fits 120 columns if the names of the runs are not long."""
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.pad_edge, table.padding = False, (0, 1, 0, 0)
        table.caption, table.caption_justify = "\n".join(self.notes), "left"
        for column in self.columns:
            heading = Text("\n".join(column.heading))
            table.add_column(heading, justify="right" if column.numeric else "left", overflow="fold")
        for row, following in zip(self.rows, (*self.rows[1:], None), strict=True):
            cells = [Text("\n".join(column.cell(row))) for column in self.columns]
            last_of_stage = following is None or following.settings.stage != row.settings.stage
            table.add_row(*cells, style="italic" if row.status else "", end_section=last_of_stage)
        return table

    def markdown(self) -> str:
        """Return a table in GitHub's Markdown with the title above it and the notes below it."""

        def cell(column: Column, lines: Lines) -> str:
            # A colon, as in "unfinished:", is followed by what it announces.
            return (" " if column.numeric else ", ").join(lines).replace(":, ", ": ").replace("|", "\\|")

        def line(cells: Sequence[Lines]) -> str:
            return f"| {' | '.join(map(cell, self.columns, cells))} |"

        rule = "| " + " | ".join("---:" if column.numeric else "---" for column in self.columns) + " |"
        body = [line([column.cell(row) for column in self.columns]) for row in self.rows]
        table = [line([column.heading for column in self.columns]), rule, *body]
        return "\n".join([f"**{self.title}**", "", *table, "", *(f"{note}  " for note in self.notes)]) + "\n"

    def latex(self) -> str:
        """Return a LaTeX table that needs booktabs; a cell of several lines takes several rows."""

        def lines(cells: Sequence[Lines]) -> list[str]:
            height = max(map(len, cells))
            filled = [[*map(_tex, cell), *[""] * (height - len(cell))] for cell in cells]
            return ["  " + " & ".join(line) + r" \\" for line in zip(*filled, strict=True)]

        layout = "".join("r" if column.numeric else "l" for column in self.columns)
        body: list[str] = []
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if before is not None and before.settings.stage != row.settings.stage:
                body.append(r"  \addlinespace")
            body += lines([column.cell(row) for column in self.columns])
        head = [r"\begin{table*}", r"  \centering", r"  \scriptsize", r"  \setlength{\tabcolsep}{3pt}"]
        head += [rf"  \caption{{{_tex(self.title)}. {' '.join(map(_tex, self.notes))}}}"]
        head += [rf"  \begin{{tabular}}{{@{{}}{layout}@{{}}}}", r"  \toprule"]
        head += [*lines([column.heading for column in self.columns]), r"  \midrule"]
        return "\n".join([*head, *body, r"  \bottomrule", r"  \end{tabular}", r"\end{table*}"]) + "\n"


def results_table(suite: SuiteRuns) -> ResultsTable:
    """Return the table with a row for every run of a suite, unfinished ones included."""
    rows = tuple(summarise(suite))
    networks = sorted({f"{row.settings.network} on {row.settings.dataset}" for row in rows})
    several_seeds = any(len(row.seeds) > 1 for row in rows)
    heldout = any(row.means["heldout_selected_accuracy"] is not None for row in rows)
    columns = [
        Column(("stage",), lambda row: (row.settings.stage or NONE,), numeric=False),
        Column(("run",), _run, numeric=False),
        Column(("network,", "data set"), lambda row: (row.settings.network, row.settings.dataset), numeric=False),
        Column(("activations",), lambda row: activations(row.settings), numeric=False),
        Column(("n",), lambda row: (str(len(row.seeds)),)),
        Column(("base",), lambda row: _percent(row, "base_accuracy")),
        Column(("before", "tuning"), lambda row: _percent(row, "replaced_accuracy", diverged=row.replaced_diverged)),
        Column(("last", "epoch"), lambda row: _percent(row, "last_accuracy", diverged=bool(row.diverged))),
        Column(("chosen", "on", "held-out"), lambda row: _percent(row, "heldout_selected_accuracy", "heldout_epoch")),
        Column(("best,", "selected", "on test"), lambda row: _percent(row, "best_test_accuracy", "best_test_epoch")),
        Column(("drop", "recovered"), lambda row: _percent(row, "recovered", digits=1)),
        Column(("trained", "params"), _parameters),
        Column(("time,", "h:mm:ss"), _time),
    ]
    left_out = {"network,": len(networks) == 1, "n": not several_seeds, "chosen": not heldout}
    columns = [column for column in columns if not left_out.get(column.heading[0], False)]
    title = f"{suite.name}: {', '.join(networks)}; test accuracy and recovered drop in %"
    return ResultsTable(title, tuple(columns), rows, _notes(suite, rows, several_seeds))


def csv_rows(rows: Sequence[RunSummary]) -> str:
    """Return the unrounded table as CSV: accuracies as fractions, times in seconds, means and standard deviations."""
    table: list[dict[str, Any]] = []
    for row in rows:
        run = row.settings
        names = ("stage", "name", "network", "dataset", "parent", "cnn", "fc", "sharing", "train", "dspu4")
        cells = {"run" if name == "name" else name: _no_formula(getattr(run, name)) for name in names}
        cells |= {"status": row.status or "finished", "seeds": " ".join(map(str, row.seeds))}
        for name, value in row.means.items():
            if name == "seconds":
                cells["tuned_parameters"] = row.tuned_parameters
            named = CSV_NAMES.get(name, name)
            cells |= {named: value and value.mean, f"{named}_std": value and value.std}
        table.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _run(row: RunSummary) -> Lines:
    origin = (f"from {row.settings.parent}",) if row.settings.parent else ()
    return (row.settings.name, *origin, *(row.status.replace(": ", ":\n").splitlines()))


def _percent(row: RunSummary, name: str, epoch_name: str = "", diverged: bool = False, digits: int = 2) -> Lines:
    """Return a fraction in percent, with its standard deviation over the seeds or the epoch it was measured in."""
    value, epoch = row.means[name], row.means.get(epoch_name)
    if value is None:
        return (DIVERGED if diverged else NONE,)
    mean = f"{100 * value.mean:.{digits}f}"
    if value.std is not None:
        return (mean, f"±{100 * value.std:.{digits}f}")
    return (mean, f"@{epoch.mean:.0f}") if epoch is not None else (mean,)


def _time(row: RunSummary) -> Lines:
    seconds = row.means["seconds"]
    return (NONE if seconds is None else duration(seconds.mean),)


def _parameters(row: RunSummary) -> Lines:
    number = row.tuned_parameters
    return (NONE if number is None else f"{number:,}" if number < 1e6 else f"{number / 1e6:.2f} M",)


def _notes(suite: SuiteRuns, rows: Sequence[RunSummary], several_seeds: bool) -> Lines:
    notes = ["Base, before tuning: test accuracy before and right after the activations were replaced."]
    if any(row.means["heldout_selected_accuracy"] for row in rows):
        notes.append("Chosen on held-out: test accuracy of the epoch with the best accuracy on the held-out images.")
    notes.append(
        "Best, selected on test: the best epoch on the test images themselves; biased upwards, for comparison only."
    )
    notes.append(
        "Drop recovered: (last epoch - before tuning) / (base - before tuning); "
        f"{NONE} for drops of less than {100 * LEAST_DROP:g} points."
    )
    if several_seeds:
        notes.append("Mean ± sample standard deviation over n seeds.")
    elif any(row.means["best_test_epoch"] for row in rows):
        notes.append("@: the epoch, counted from the start of the base network's training.")
    notes.append("Time: training without evaluation.")
    if any(row.diverged or row.replaced_diverged for row in rows):
        notes.append("Diverged: the loss is not finite, so there is no accuracy; such seeds are not counted.")
    if any(row.status for row in rows):
        notes.append("Unfinished: the values so far; with several seeds, means are over the finished ones.")
    if suite.no_config:
        notes.append(f"Not started: {', '.join(f'{path.parent.name} ({path.name})' for path in suite.no_config)}.")
    return tuple(notes)


def _no_formula(value: Any) -> Any:
    """Return a cell that a spreadsheet shows as text instead of evaluating it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",  # noqa: RUF001
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)


# What the page begins with


def verdict(suite: SuiteRuns, rows: Sequence[RunSummary]) -> list[str]:
    """Return the sentences at the top of the page: the cost of replacing, what tuning recovered, and the other runs."""
    sentences = []
    tuned = [row for row in rows if all(row.means[name] for name in ACCURACIES.values())]
    lost = [row for row in tuned if row.means["recovered"] and not row.status]
    frozen = all(row.settings.train == "activations" for row in lost)
    if lost:
        drops = sorted(100 * _drop(row) for row in lost)
        largest = max(lost, key=_drop)
        sentences.append(
            f"In {_count(len(lost), len(tuned))} the replacement alone lowered the test accuracy by "
            f"{_range(drops, '.2f')} points, and tuning "
            f"{'only the activation parameters' if frozen else 'the network'} recovered "
            f"{_median([100 * _mean(row, 'recovered') for row in lost])} of this drop."
        )
        sentences.append(
            f"The largest drop is that of {largest.settings.name}: base network {_mean(largest, 'base_accuracy'):.2%}, "
            f"before tuning {_mean(largest, 'replaced_accuracy'):.2%}, after tuning "
            f"{_mean(largest, 'last_accuracy'):.2%}{_seeds(largest)}."
        )
    near = [row for row in tuned if not row.status and _drop(row) < LEAST_DROP]
    if near:
        gains = sorted(100 * (_mean(row, "last_accuracy") - _mean(row, "base_accuracy")) for row in near)
        sentences.append(
            f"In {_count(len(near), len(tuned))} the replacement alone cost less than {100 * LEAST_DROP:g} points; "
            f"after tuning the test accuracy differs from the base network's by {_range(gains, '+.2f')} points."
        )
    done = sum(run.done is not None for run in suite.runs)
    sentences.append(f"{done} of {len(suite.runs) + len(suite.no_config)} runs are finished.")
    return sentences


def _mean(row: RunSummary, name: str) -> float:
    value = row.means[name]
    return math.nan if value is None else value.mean


def _drop(row: RunSummary) -> float:
    return _mean(row, "base_accuracy") - _mean(row, "replaced_accuracy")


def _count(some: int, of: int) -> str:
    return f"{some} of the {of} runs with replaced activations" if of > 1 else "the run with replaced activations"


def _range(ascending: Sequence[float], form: str) -> str:
    low, high = f"{ascending[0]:{form}}", f"{ascending[-1]:{form}}"
    return low if low == high else f"{low} to {high}"


def _median(values: Sequence[float]) -> str:
    return f"{median(values):.0f}%" + (" (median)" if len(values) > 1 else "")


def _seeds(row: RunSummary) -> str:
    return f" (means over {len(row.seeds)} seeds)" if len(row.seeds) > 1 else ""


def strips(rows: Sequence[RunSummary], anchors: Mapping[str, str]) -> dict[str, Any]:
    """Return the accuracies of the first runs as marks on one axis, for the picture at the top of the page.

    Args:
        rows: The rows of the table.
        anchors: The fragment of each run that has a section in the page, by its name.

    Returns:
        `rows`: for each run its name, fragment, activations, text, marks (kind, position), and the span (left, width)
        of the line from its accuracy before tuning to that after it, or None. `scale`: labels and positions of the
        axis. `more`: the number of runs that are not shown. Positions are in percent of the width.
    """
    measured = [(row, values) for row in rows if (values := _accuracies(row))]
    shown = measured[:MOST_STRIPS]
    everything = [value for _, values in shown for value in values.values()]
    if not everything:
        return {"rows": [], "scale": [], "more": 0}
    low, high = min(everything), max(everything)
    room = max(0.04 * (high - low), 0.5)
    low, high = max(0.0, low - room), min(100.0, high + room)

    def position(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    lines = []
    for row, values in shown:
        marks = [(kind, position(value)) for kind, value in values.items()]
        span = None
        if "replaced" in values and "tuned" in values:
            left, right = sorted(position(values[kind]) for kind in ("replaced", "tuned"))
            span = left, round(right - left, 2)
        words = {"base": "base", "replaced": "before tuning", "tuned": "tuned" if "replaced" in values else "trained"}
        lines.append(
            {
                "name": row.settings.name,
                "fragment": anchors.get(row.settings.name, ""),
                "activations": ", ".join(activations(row.settings)),
                "marks": marks,
                "span": span,
                "text": ", ".join(f"{words[kind]} {value:.2f}%" for kind, value in values.items()),
            }
        )
    scale = [(f"{value:g}%", position(value)) for value in ticks(low, high, 5)]
    return {"rows": lines, "scale": scale, "more": len(measured) - len(shown)}


def _accuracies(row: RunSummary) -> dict[str, float]:
    accuracies = {kind: 100 * _mean(row, name) for kind, name in ACCURACIES.items()}
    return {kind: accuracy for kind, accuracy in accuracies.items() if math.isfinite(accuracy)}
