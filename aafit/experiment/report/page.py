"""The report of a suite: tables, figures as SVG and PNG files, and one self-contained HTML page.

Read `write_report` first. The other public functions draw single figures for the commands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aafit.experiment.report.animation import animate
from aafit.experiment.report.curves import draw_group, draw_times, draw_trajectories, groups
from aafit.experiment.report.figures import draw_differences, draw_seeds
from aafit.experiment.report.runs import RunRecord, SuiteRuns, read_run, read_suite
from aafit.experiment.report.summary import (
    DIVERGED,
    ResultsTable,
    activations,
    csv_rows,
    duration,
    results_table,
    status,
    strips,
    verdict,
)  # fmt: skip
from aafit.experiment.runs.documents import ACTIVATIONS, StoredCurveError
from aafit.files import make_folder, write_atomically
from aafit.plots.html import rendered, svg_url
from aafit.plots.panels import draw_saved
from aafit.plots.style import save

MOST_SECTIONS = 100
"""So many runs of a suite have a section of the page with figures."""
Drawn = tuple[str, str, list[Path]]
"""A figure in files: the part of the page it belongs to, its description, and its paths (SVG, PNG).

The part is "run" for a figure of one run; otherwise `write_report` lists it, and suite.html has a section for it."""


@dataclass(frozen=True)
class Report:
    """The files of a report, and its table for the terminal: `rich.print(report.table.terminal())`."""

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    table: ResultsTable


def write_report(suite_folder: Path) -> Report:
    """Write `<suite_folder>/report/`: report.html, results.md, .csv and .tex, and figures/ as SVG and PNG.

    Args:
        suite_folder: The folder of a suite's runs, finished or not.
    """
    suite = read_suite(suite_folder)
    folder = make_folder(suite_folder / "report")
    table = results_table(suite)
    tables = {"results.md": table.markdown(), "results.csv": csv_rows(table.rows), "results.tex": table.latex()}
    for name, text in tables.items():
        write_atomically(folder / name, text)
    shared = _draw_suite(suite, folder / "figures")
    shown = _runs_with_section(suite)
    of_run = [_draw_run(run, folder / "figures") for run in shown]
    anchors = {run.name: _anchor(run) for run in reversed(shown)}
    html = rendered(
        "suite.html",
        short=_short,
        suite=suite,
        verdict=verdict(suite, table.rows),
        strips=strips(table.rows, anchors),
        table=table,
        facts=_provenance(suite),
        figures={
            kind: _embedded([drawn for drawn in shared if drawn[0] == kind])
            for kind in ("curves", "differences", "seeds")
        },
        runs=[_section(run, drawn) for run, drawn in zip(shown, of_run, strict=True)],
        anchors=anchors,
        not_shown=len(suite.runs) - len(shown),
    )
    write_atomically(folder / "report.html", html)
    figures = tuple(path for drawn in (shared, *of_run) for *_, paths in drawn for path in paths)
    return Report(folder / "report.html", tuple(folder / name for name in tables), figures, table)


def draw_activations(run_folder: Path, out: Path) -> list[Path]:
    """Draw the activations of one finished run before and after tuning, and return the paths of the files."""
    return _draw_activations(read_run(run_folder), out)[2]


def animate_activations(run_folder: Path, out: Path, video: bool = False) -> Path:
    """Write one run's activations over its epochs as a GIF, or as an MP4; see `animate` for the errors."""
    run = read_run(run_folder)
    return animate(run, out, f"activations-{_file_name(run)}", video)


def draw_time_axis(run_folders: Sequence[Path], out: Path) -> list[Path]:
    """Draw the test accuracy of several runs over the seconds of their tuning in one figure."""
    runs = [read_run(folder) for folder in run_folders]
    names = {f"{run.folder.parent.parent.name}: {run.name}, seed {run.seed}": run for run in runs}
    return save(draw_times(names), out, "times")


# Figures


def _draw_suite(suite: SuiteRuns, out: Path) -> list[Drawn]:
    """Draw the figures that several runs share."""
    drawn: list[Drawn] = []
    for group in groups(suite):
        if any(run.last_epoch is not None for runs in {**group.bases, **group.tuned}.values() for run in runs):
            files = save(draw_group(group), out, f"curves-{_safe(group.key)}")
            drawn.append(("curves", f"Test accuracy and training loss: {group.title}", files))
    for name, runs in suite.by_name().items():
        if (figure := draw_seeds(runs)) is not None:
            files = save(figure, out, f"seeds-{_safe(name)}")
            drawn.append(("seeds", f"Tuned activations of {name}, mean and standard deviation over the seeds", files))
    if (figure := draw_differences(suite)) is not None:
        files = save(figure, out, "differences")
        drawn.append(("differences", "Differences of each layer from the base network", files))
    return drawn


def _draw_run(run: RunRecord, out: Path) -> list[Drawn]:
    """Draw the activations of a finished run, and its parameters over the epochs."""
    drawn = [_draw_activations(run, out)] if (run.folder / ACTIVATIONS).exists() else []
    if (figure := draw_trajectories(run)) is not None:
        files = save(figure, out, f"trajectories-{_file_name(run)}")
        drawn.append(("run", f"Parameters of {run.name}, seed {run.seed}, over the epochs", files))
    return drawn


def _draw_activations(run: RunRecord, out: Path) -> Drawn:
    title = f"{run.name}, seed {run.seed}"
    files = save(draw_saved(run.folder / ACTIVATIONS, title), out, f"activations-{_file_name(run)}")
    return "run", f"Activations of {title}: original, initial and tuned", files


def _embedded(figures: Sequence[Drawn]) -> list[tuple[str, str]]:
    """Return (description, data URL) of each SVG."""
    return [(text, svg_url(path.read_bytes())) for _, text, paths in figures for path in paths if path.suffix == ".svg"]


def _file_name(run: RunRecord) -> str:
    return f"{_safe(run.name)}-seed{run.seed}"


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


# Parts of the page


def _runs_with_section(suite: SuiteRuns) -> list[RunRecord]:
    """Return all runs, or the first seed of each if there are more than `MOST_SECTIONS`."""
    names = suite.by_name().values()
    runs = [run for seeds in names for run in seeds]
    return runs if len(runs) <= MOST_SECTIONS else [seeds[0] for seeds in names][:MOST_SECTIONS]


def _provenance(suite: SuiteRuns) -> list[tuple[str, str]]:
    """Return when and where the runs were done, as (name, value)."""
    done = [run.done for run in suite.runs if run.done is not None]
    facts = []
    seen: dict[str, dict[str, None]] = {}
    for run in suite.runs:
        for key, value in run.environment.items():
            seen.setdefault(key, {})[str(value)] = None
    started = sorted(seen.pop("started", {}))
    facts += [("First run started", _moment(started[0]))] if started else []
    if done:
        facts.append(("Last run finished", _moment(max(one.finished for one in done))))
        total = duration(sum(one.seconds for one in done))
        facts.append(("Training time of all runs", f"{total} (h:mm:ss), without evaluation"))
    facts.append(("Runs", f"{len(done)} of {len(suite.runs) + len(suite.no_config)} finished"))
    facts.append(("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in suite.runs}))))
    return facts + [(key.capitalize(), "; ".join(values)) for key, values in seen.items()]


def _moment(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _section(run: RunRecord, figures: Sequence[Drawn]) -> dict[str, Any]:
    """Return what the page shows of one run."""
    result = run.done.result if run.done is not None else None
    compared = run.comparison
    facts = []
    if compared is not None:
        logits = compared.logits
        facts.append(("Base network", _percent(compared.base_accuracy)))
        facts.append(("Before tuning", _percent(compared.replaced_accuracy)))
        facts.append(("Prediction agreement before tuning", _percent(compared.agreement)))
        facts.append(("Difference of the logits", f"{_short(logits.mean_abs)} mean, {_short(logits.max_abs)} largest"))
    if result is not None:
        facts.append((f"Last epoch ({run.last_epoch})", _percent(result.last_accuracy)))
        if (chosen := result.heldout_selected_accuracy) is not None:
            facts.append((f"Chosen on held-out (epoch {result.heldout_epoch})", _percent(chosen)))
        if (best := result.best_test_accuracy) is not None:
            facts.append((f"Best, selected on test (epoch {result.best_test_epoch})", _percent(best)))
    # Layers with equal errors share a row.
    errors: dict[StoredCurveError, list[str]] = {}
    for curve in compared.curves if compared is not None else ():
        errors.setdefault(curve.model_copy(update={"path": ""}), []).append(curve.path)
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
        "errors": [(", ".join(paths), curve) for curve, paths in errors.items()],
        "figures": _embedded(figures),
    }


def _anchor(run: RunRecord) -> str:
    return f"{run.name}-seed{run.seed}"


def _percent(share: float | None) -> str:
    return DIVERGED if share is None else f"{share:.2%}"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
