"""The results table: one row a run, for the terminal, Markdown, LaTeX, CSV and the page."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from aafit.experiment.report.runs import SuiteRuns
from aafit.experiment.report.summary import LEAST_DROP, Row, Spread, activations, summarise

Lines = tuple[str, ...]
DIVERGED = "diverged"
NONE = "–"  # noqa: RUF001  an en dash, as in printed tables


@dataclass(frozen=True)
class Column:
    """A heading and what a row shows beneath it, both as lines: joined by a space where cells have one line."""

    heading: Lines
    cell: Callable[[Row], Lines]
    numeric: bool = True


@dataclass(frozen=True)
class ResultsTable:
    """The table of a suite, ready for every kind of output."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: Lines

    def terminal(self) -> Table:
        """For rich; fits 120 columns where the runs' names are not long."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
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
        """A table in GitHub's Markdown under its title, the notes below it."""

        def cell(column: Column, lines: Lines) -> str:
            return (" " if column.numeric else ", ").join(lines).replace("|", "\\|")

        def line(cells: Sequence[Lines]) -> str:
            return f"| {' | '.join(map(cell, self.columns, cells))} |"

        rule = "| " + " | ".join("---:" if column.numeric else "---" for column in self.columns) + " |"
        body = [line([column.cell(row) for column in self.columns]) for row in self.rows]
        table = [line([column.heading for column in self.columns]), rule, *body]
        return "\n".join([f"**{self.title}**", "", *table, "", *(f"{note}  " for note in self.notes)]) + "\n"

    def latex(self) -> str:
        """A table of LaTeX with booktabs and no other package; a cell of several lines takes several rows."""

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
    """The table with a row for every run of a suite, unfinished ones too, with how far they are."""
    rows = tuple(summarise(suite))
    networks = sorted({_network(row) for row in rows})
    several_seeds = any(len(row.seeds) > 1 for row in rows)
    columns = [Column(("stage",), lambda row: (row.settings.stage or NONE,), numeric=False)]
    columns += [Column(("run",), _run, numeric=False)]
    if len(networks) > 1:
        network = Column(
            ("network,", "data set"), lambda row: (row.settings.network, row.settings.dataset), numeric=False
        )
        columns.append(network)
    columns.append(Column(("activations",), lambda row: activations(row.settings), numeric=False))
    if several_seeds:
        columns.append(Column(("n",), lambda row: (str(len(row.seeds)),)))
    columns.append(Column(("base",), lambda row: _accuracy(row.base)))
    columns.append(Column(("just", "replaced"), lambda row: _accuracy(row.replaced, diverged=row.replaced_diverged)))
    columns.append(Column(("last", "epoch"), lambda row: _accuracy(row.last, diverged=bool(row.diverged))))
    if any(row.heldout is not None for row in rows):
        chosen = Column(("chosen", "on", "held-out"), lambda row: _accuracy(row.heldout, row.heldout_epoch))
        columns.append(chosen)
    columns.append(Column(("best,", "selected", "on test"), lambda row: _accuracy(row.best, row.best_epoch)))
    columns.append(Column(("drop", "recovered"), lambda row: _share(row.recovered)))
    columns.append(Column(("tuned", "params"), _parameters))
    columns.append(Column(("time",), lambda row: (duration(row.seconds.mean) if row.seconds else NONE,)))
    title = f"{suite.name}: test accuracy in percent, " + ", ".join(networks)
    return ResultsTable(title, tuple(columns), rows, _notes(suite, rows, several_seeds))


def csv_rows(suite: SuiteRuns) -> str:
    """The table's numbers unrounded, a row a run: accuracies as shares, seconds, mean and sample standard deviation."""
    table: list[dict[str, Any]] = []
    for row in summarise(suite):
        run = row.settings
        table.append(
            {
                "stage": run.stage,
                "run": run.name,
                "network": run.network,
                "dataset": run.dataset,
                "parent": run.parent,
                "cnn": run.cnn,
                "fc": run.fc,
                "sharing": run.sharing,
                "train": run.train,
                "dspu4": run.dspu4,
                "status": row.status or "finished",
                "seeds": " ".join(map(str, row.seeds)),
                **_numbers("base_accuracy", row.base),
                **_numbers("replaced_accuracy", row.replaced),
                **_numbers("last_accuracy", row.last),
                **_numbers("heldout_selected_accuracy", row.heldout),
                **_numbers("heldout_epoch", row.heldout_epoch),
                **_numbers("best_test_accuracy_selected_on_test", row.best),
                **_numbers("best_test_epoch", row.best_epoch),
                **_numbers("share_of_drop_recovered", row.recovered),
                "tuned_parameters": row.tuned_parameters,
                **_numbers("seconds", row.seconds),
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _run(row: Row) -> Lines:
    origin = (f"from {row.settings.parent}",) if row.settings.parent else ()
    return (row.settings.name, *origin, *(row.status.replace(": ", ":\n").splitlines()))


def _network(row: Row) -> str:
    return f"{row.settings.network} on {row.settings.dataset}"


def _accuracy(spread: Spread | None, epoch: Spread | None = None, diverged: bool = False) -> Lines:
    if spread is None:
        return (DIVERGED if diverged else NONE,)
    second = f"±{100 * spread.std:.2f}" if spread.std is not None else f"@{epoch.mean:.0f}" if epoch is not None else ""
    return (f"{100 * spread.mean:.2f}", *([second] if second else []))


def _share(spread: Spread | None) -> Lines:
    if spread is None:
        return (NONE,)
    return (f"{100 * spread.mean:.1f} %", *([f"±{100 * spread.std:.1f}"] if spread.std is not None else []))


def _parameters(row: Row) -> Lines:
    number = row.tuned_parameters
    return (NONE if number is None else f"{number:,}" if number < 1e6 else f"{number / 1e6:.2f} M",)


def _notes(suite: SuiteRuns, rows: Sequence[Row], several_seeds: bool) -> Lines:
    notes = ["Base, just replaced: accuracy of the network before and right after its activations were replaced."]
    if any(row.heldout is not None for row in rows):
        notes.append(
            "Chosen on held-out: test accuracy of the epoch that was best on images held out of the training set."
        )
    notes.append(
        "Best, selected on test: the best epoch on the test images themselves, and so too good: for comparison only."
    )
    notes.append(
        "Drop recovered: (last epoch - just replaced) / (base - just replaced); "
        f"{NONE} where the drop is less than {100 * LEAST_DROP:g} points."
    )
    if several_seeds:
        notes.append("Mean ± sample standard deviation over n seeds.")
    elif any(row.best_epoch is not None for row in rows):
        notes.append("@: the epoch, numbered through from the base network's first.")
    if any(row.diverged or row.replaced_diverged for row in rows):
        notes.append("Diverged: the loss is not finite, so that there is no accuracy; such seeds are not counted.")
    if any(row.status for row in rows):
        notes.append("Unfinished: what is known so far; of several seeds only the finished ones are counted.")
    if suite.no_config:
        notes.append(f"Not begun: {', '.join(f'{path.parent.name} ({path.name})' for path in suite.no_config)}.")
    return tuple(notes)


def _numbers(name: str, spread: Spread | None) -> dict[str, float | None]:
    if spread is None:
        return {name: None, f"{name}_std": None}
    return {name: spread.mean, f"{name}_std": spread.std}


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",  # noqa: RUF001
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)
