"""The report: tables, figures as SVG and PNG files, and one HTML page that holds them all and needs nothing else."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aafit.experiment.report.animation import animate
from aafit.experiment.report.curves import draw_group
from aafit.experiment.report.differences import draw_differences
from aafit.experiment.report.groups import groups
from aafit.experiment.report.overview import strips
from aafit.experiment.report.runs import RunRecord, SuiteRuns, read_run, read_suite
from aafit.experiment.report.seeds import draw_seeds
from aafit.experiment.report.summary import activations, status
from aafit.experiment.report.tables import DIVERGED, ResultsTable, csv_rows, duration, results_table
from aafit.experiment.report.time_axis import draw_times
from aafit.experiment.report.trajectories import draw_trajectories
from aafit.experiment.runs.documents import ACTIVATIONS, CurveError
from aafit.files import make_folder, write_atomically
from aafit.plots.activations import draw_saved
from aafit.plots.html import rendered
from aafit.plots.style import save

SHOWN = 100
"""So many runs of a suite have a part of the page each, with pictures: more would be no page to read."""


@dataclass(frozen=True)
class Report:
    """What was written, and the table for the terminal: `rich.print(report.table.terminal())`."""

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    table: ResultsTable


def write_report(suite_folder: Path) -> Report:
    """Make `<suite_folder>/report/`: report.html, results.md, .csv and .tex, and figures/ as SVG and PNG.

    Args:
        suite_folder: where the runs of a suite are, finished or not.

    Raises:
        UserError: there are no runs, one of their files is damaged, or the folder cannot be written to.
    """
    suite = read_suite(suite_folder)
    folder = make_folder(suite_folder / "report")
    table = results_table(suite)
    tables = {"results.md": table.markdown(), "results.csv": csv_rows(suite), "results.tex": table.latex()}
    for name, text in tables.items():
        write_atomically(folder / name, text)
    shared = draw_suite_figures(suite, folder / "figures")
    shown = shown_runs(suite)
    of_run = {run.folder: draw_run_figures(run, folder / "figures") for run in shown}
    anchors = {run.name: _anchor(run) for run in reversed(shown)}
    html = rendered(
        "suite.html",
        short=_short,
        suite=suite,
        verdict=_verdict(suite, table),
        strips=strips(table.rows, anchors),
        table=table,
        facts=_facts(suite),
        curves=_embedded([path for path in shared if path.name.startswith("curves")]),
        differences=_embedded([path for path in shared if path.name.startswith("differences")]),
        seeds=_embedded([path for path in shared if path.name.startswith("seeds")]),
        runs=[_section(run, of_run[run.folder]) for run in shown],
        anchors=anchors,
        not_shown=len(suite.runs) - len(shown),
    )
    write_atomically(folder / "report.html", html)
    figures = (*shared, *(path for paths in of_run.values() for path in paths))
    return Report(folder / "report.html", tuple(folder / name for name in tables), figures, table)


def shown_runs(suite: SuiteRuns) -> list[RunRecord]:
    """The runs that the page shows one by one: all, or of a suite of more than `SHOWN` the first seed of each."""
    names = suite.by_name().values()
    runs = [run for seeds in names for run in seeds]
    return runs if len(runs) <= SHOWN else [seeds[0] for seeds in names][:SHOWN]


def _verdict(suite: SuiteRuns, table: ResultsTable) -> list[str]:
    """At most three sentences: how far the suite is, what replacing cost and tuning gave, and the best of it."""
    done = sum(run.done is not None for run in suite.runs)
    whole = len(suite.runs) + len(suite.no_config)
    said = [f"{done} of {whole} runs finished: activations of trained networks replaced by adaptive ones, then tuned."]
    changes = [
        (row.last.mean - row.base.mean, row.replaced.mean - row.base.mean, row)
        for row in table.rows
        if row.base is not None and row.replaced is not None and row.last is not None
    ]
    if not changes:
        return said
    changes.sort(key=lambda change: -change[0])
    costs = sorted(100 * cost for _, cost, _ in changes)
    above = sum(gain > 0 for gain, _, _ in changes)
    least, most = (f"{cost:+.2f}" for cost in (costs[0], costs[-1]))
    by = f"by {least} points" if least == most else f"by {least} to {most} points"
    changed = (
        f"changed the test accuracy {by}" if {least, most} - {"+0.00", "-0.00"} else "left the test accuracy as it was"
    )
    said.append(
        f"The replacement alone {changed}; after tuning {above} of {len(changes)} are above their base network."
    )
    gain, _, best = changes[0]
    seeds = f" (mean of {len(best.seeds)} seeds)" if len(best.seeds) > 1 else ""
    mean = 0.0 if best.last is None else best.last.mean
    said.append(
        f"The best against its base is {best.settings.name}: {mean:.2%} after its last epoch, {100 * gain:+.2f} "
        f"points{seeds}."
    )
    return said


def _facts(suite: SuiteRuns) -> list[tuple[str, str]]:
    """How the results came about, from what the runs noted of their environment."""
    done = [run.done for run in suite.runs if run.done is not None]
    facts = []
    seen: dict[str, dict[str, None]] = {}
    for run in suite.runs:
        for key, value in run.environment.items():
            seen.setdefault(key, {})[str(value)] = None
    started = sorted(seen.pop("started", {}))
    facts += [("First run began", _moment(started[0]))] if started else []
    if done:
        facts.append(("Last run finished", _moment(max(one.finished for one in done))))
        facts.append(("Training, all runs", f"{duration(sum(one.seconds for one in done))} (without evaluation)"))
    facts.append(("Runs", f"{len(done)} of {len(suite.runs) + len(suite.no_config)} finished"))
    facts.append(("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in suite.runs}))))
    return facts + [(key.capitalize(), "; ".join(values)) for key, values in seen.items()]


def _moment(text: str) -> str:
    """An ISO time as people write it; the offset stays, as it tells the zone."""
    return text.replace("T", " ").replace("+00:00", " UTC")


def _section(run: RunRecord, figures: Sequence[Path]) -> dict[str, Any]:
    """What the page tells of one run."""
    result = run.done.result if run.done is not None else None
    compared = run.comparison
    facts = []
    if compared is not None:
        facts.append(("Base", _percent(compared.base_accuracy)))
        facts.append(("Just replaced", _percent(compared.replaced_accuracy)))
        facts.append(("Equal predictions, base and replaced", _percent(compared.agreement)))
        logits = compared.logits
        facts.append(("Logits, difference", f"{_short(logits.mean_abs)} mean, {_short(logits.max_abs)} largest"))
    if result is not None:
        facts.append((f"Last epoch ({run.last_epoch})", _percent(result.last_accuracy)))
        if result.heldout_selected_accuracy is not None:
            facts.append(
                (f"Chosen on held-out (epoch {result.heldout_epoch})", _percent(result.heldout_selected_accuracy))
            )
        if result.best_test_accuracy is not None:
            best = f"Best, selected on test (epoch {result.best_test_epoch})"
            facts.append((best, _percent(result.best_test_accuracy)))
    return {
        "title": run.name if run.name else run.folder.name,
        "seed": run.seed,
        "anchor": _anchor(run),
        "stage": run.settings.stage,
        "parent": run.settings.parent,
        "activations": "; ".join(activations(run.settings)),
        "status": status(run),
        "facts": facts,
        "layers": [] if compared is None else compared.layers,
        "errors": _errors(run),
        "figures": _embedded(figures),
    }


def _anchor(run: RunRecord) -> str:
    return f"{run.name}-seed{run.seed}"


def _percent(share: float | None) -> str:
    return DIVERGED if share is None else f"{share:.2%}"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _errors(run: RunRecord) -> list[tuple[str, CurveError]]:
    """The errors of the new activations as functions, told once for layers that share them: (layers, error)."""
    layers: dict[CurveError, list[str]] = {}
    for curve in run.comparison.curves if run.comparison is not None else ():
        layers.setdefault(curve.model_copy(update={"path": ""}), []).append(curve.path)
    return [(", ".join(paths), curve) for curve, paths in layers.items()]


def _embedded(files: Sequence[Path]) -> list[tuple[str, str]]:
    """SVG files as (name, data URL): an image each, so that the ids within them cannot clash."""
    return [
        (path.stem, "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode())
        for path in files
        if path.suffix == ".svg"
    ]


def draw_activations(run_folder: Path, out: Path) -> list[Path]:
    """The shapes of one finished run's activations before and after tuning.

    Raises:
        UserError: the folder is no run, the run is not finished or has no adaptive activation, a file is damaged, or
            `out` cannot be written to.
    """
    return _draw_shapes(read_run(run_folder), out)


def animate_activations(run_folder: Path, out: Path, video: bool = False) -> Path:
    """How the forms of one run's activations came about, as a GIF or an MP4; see `animate` for what it raises."""
    run = read_run(run_folder)
    return animate(run, out, f"activations-{file_name(run)}", video)


def draw_time_axis(run_folders: Sequence[Path], out: Path) -> list[Path]:
    """The test accuracy of several runs over the seconds of their tuning, in one figure."""
    runs = [read_run(folder) for folder in run_folders]
    names = {f"{run.folder.parent.parent.name}: {run.name}, seed {run.seed}": run for run in runs}
    return save(draw_times(names), out, "times")


def draw_suite_figures(suite: SuiteRuns, out: Path) -> list[Path]:
    """The figures that several runs share: training curves by group, and what the replacements changed."""
    files: list[Path] = []
    for group in groups(suite):
        if any(run.last_epoch is not None for runs in {**group.bases, **group.tuned}.values() for run in runs):
            files += save(draw_group(group), out, f"curves-{_safe(group.key)}")
    for name, runs in suite.by_name().items():
        if (over_seeds := draw_seeds(runs)) is not None:
            files += save(over_seeds, out, f"seeds-{_safe(name)}")
    figure = draw_differences(suite)
    return files if figure is None else files + save(figure, out, "differences")


def draw_run_figures(run: RunRecord, out: Path) -> list[Path]:
    """The figures of one run: its activations' shapes once it is finished, and the paths of their parameters."""
    files = _draw_shapes(run, out) if (run.folder / ACTIVATIONS).exists() else []
    figure = draw_trajectories(run)
    return files if figure is None else files + save(figure, out, f"trajectories-{file_name(run)}")


def _draw_shapes(run: RunRecord, out: Path) -> list[Path]:
    figure = draw_saved(run.folder / ACTIVATIONS, f"{run.name}, seed {run.seed}")
    return save(figure, out, f"activations-{file_name(run)}")


def file_name(run: RunRecord) -> str:
    """What a run's figures are called."""
    return f"{_safe(run.name)}-seed{run.seed}"


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
