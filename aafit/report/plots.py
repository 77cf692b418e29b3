"""All figures of a suite or a run, as SVG and PNG files.

Which runs share a figure of curves: groups.py; the figures themselves: curves.py, differences.py, shapes.py,
trajectories.py.
"""

import re
from pathlib import Path

from aafit.report.curves import draw_group
from aafit.report.differences import draw_differences
from aafit.report.groups import groups
from aafit.report.runs import Run, SuiteRuns, read_run, read_suite
from aafit.report.shapes import draw_run
from aafit.report.style import save
from aafit.report.trajectories import draw_trajectories


def draw_all(suite_folder: Path, out: Path) -> list[Path]:
    """Every figure that the runs in a suite's folder give, finished or not.

    Raises:
        UserError: there are no runs, one of their files is damaged, or `out` cannot be written to.
    """
    suite = read_suite(suite_folder)
    per_run = [path for run in suite.runs for path in draw_run_figures(run, out)]
    return draw_suite_figures(suite, out) + per_run


def draw_activations(run_folder: Path, out: Path) -> list[Path]:
    """The shapes of one finished run's activations before and after tuning.

    Raises:
        UserError: the folder is no run, the run is not finished or has no adaptive activation, a file is damaged, or
            `out` cannot be written to.
    """
    run = read_run(run_folder)
    return save(draw_run(run), out, f"activations-{file_name(run)}")


def draw_suite_figures(suite: SuiteRuns, out: Path) -> list[Path]:
    """The figures that several runs share: training curves by group, and what the replacements changed."""
    files: list[Path] = []
    for group in groups(suite):
        if any(run.last_epoch is not None for runs in {**group.bases, **group.tuned}.values() for run in runs):
            files += save(draw_group(group), out, f"curves-{_safe(group.key)}")
    figure = draw_differences(suite)
    return files if figure is None else files + save(figure, out, "differences")


def draw_run_figures(run: Run, out: Path) -> list[Path]:
    """The figures of one run: its activations' shapes once it is finished, and the paths of their parameters."""
    files: list[Path] = []
    if (run.folder / "activations.safetensors").exists():
        files += save(draw_run(run), out, f"activations-{file_name(run)}")
    figure = draw_trajectories(run)
    return files if figure is None else files + save(figure, out, f"trajectories-{file_name(run)}")


def file_name(run: Run) -> str:
    """What a run's figures are called."""
    return f"{_safe(run.name)}-seed{run.seed}"


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
