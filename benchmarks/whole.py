"""Project the wall time of the paper suite from epochs measured side by side, and check such a projection.

./run_experiment.sh benchmarks/whole.py --data-dir DATA
./run_experiment.sh benchmarks/whole.py --check 0.1 --data-dir DATA

The first prints the plan of the paper suite as `--dry-run` does, with the seconds of an epoch of each kind timed as
the program runs: processes side by side. With --check the same is done for the cpu suite with its epochs multiplied
by that number; that suite is then run for real in a temporary folder, and the wall times are compared, in at least
five rounds. A projection includes the cost of each run in addition to its epochs, as in
`aafit/experiment/scheduling/plan.py`.
"""

import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
from rich.console import Console

from aafit.errors import UserError
from aafit.experiment.data.datasets import SIZES
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.job import lockstep_groups
from aafit.experiment.runs.suite import Suite, load_suite
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.plan import Estimate, Planned, clock, epoch_seconds, estimate
from aafit.experiment.scheduling.progress import RunState
from aafit.experiment.scheduling.schedule import run_suite
from benchmarks.harness import (
    Command,
    Ratio,
    Report,
    Row,
    device_option,
    json_option,
    report,
    rounds_option,
    take_turns,
)
from benchmarks.workload import Measured, measured_run


def seconds_an_epoch(measured: Measured, run: RunConfig) -> float:
    """Return the seconds of a process for one full epoch of `run`: training and evaluation."""
    size = SIZES[run.dataset]
    images = run.train_images or size.train - run.holdout
    return measured.training_of(images) + measured.evaluation_of(size.test + run.holdout)


def timed(steps: int, data_dir: Path | None, jobs: int | None) -> Callable[[RunConfig, str, int], float]:
    """Return a function that times an epoch of a run with all processes side by side."""

    def measure(run: RunConfig, device: str, lockstep: int) -> float:
        known = math.ceil((run.train_images or SIZES[run.dataset].train - run.holdout) / run.batch_size)
        measured = measured_run(
            run, min(steps, known), data_dir=data_dir, device=device, processes=jobs, lockstep=lockstep
        )
        return seconds_an_epoch(measured, run)

    return measure


def projected(suite: Suite, steps: int, data_dir: Path | None, device: str, jobs: int | None = None) -> Estimate:
    """Return the plan of a suite without finished runs."""
    with tempfile.TemporaryDirectory() as empty:
        return estimate(suite, Path(empty), device=device, jobs=jobs, measure=timed(steps, data_dir, jobs))


def real_run(
    suite: Suite, folder: Path, data_dir: Path | None, device: str, jobs: int | None
) -> tuple[float, list[RunState]]:
    """Run the suite and return its wall time in seconds and the state of each run.

    Raises:
        UserError: a run failed.
    """
    began = time.monotonic()
    console = Console(file=io.StringIO())
    summary = run_suite(suite, folder, LocalEngine(device, jobs), data_dir=data_dir, console=console)
    wall = time.monotonic() - began
    if not summary.ok:
        failed = next((outcome for outcome in summary.runs if outcome.message), summary.runs[0])
        raise UserError(f"The suite did not end well; {failed.job.config.name} {failed.status}: {failed.message}")
    return wall, list(summary.runs)


def check(
    out: Report, suite: Suite, steps: int, data_dir: Path | None, device: str, jobs: int | None, rounds: int
) -> None:
    """Project the wall time of a suite and run it for real, in turns, and compare."""
    plans: list[Estimate] = []

    def project() -> float:
        plans.append(projected(suite, steps, data_dir, device, jobs))
        return plans[-1].wall_seconds

    rows: list[Row] = []
    starts: list[float] = []
    projected_starts: list[float] = []

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            wall, outcomes = real_run(suite, Path(folder), data_dir, device, jobs)
            lockstep = lockstep_groups({(one.job.config.name, one.job.seed): one.job for one in outcomes})
            rows.clear()
            for planned, outcome in zip(plans[-1].runs, outcomes, strict=True):
                epochs = epoch_seconds(outcome.job.folder)
                # Runs in lockstep share one process.
                seconds = outcome.seconds / len(lockstep[outcome.job.config.name, outcome.job.seed])
                starts.append(seconds - sum(epochs))
                projected_starts.append(planned.seconds() - planned.epochs_left * (planned.epoch_seconds or 0.0))
                rows.append(_row(planned, epochs, seconds))
        return wall

    turns = take_turns({"projected": project, "real": run}, rounds)
    out.table("Each run of the last round, as projected and as it was", rows)
    out.note(
        f"In addition to its epochs a run took {sum(starts) / len(starts):.1f} s on average; the projection has "
        f"{sum(projected_starts) / len(projected_starts):.1f} s."
    )
    walls = {"projected, s": median(plan.wall_seconds for plan in plans), "real, s": turns.median("real")}
    ratio = Ratio(tuple(real / plan.wall_seconds for real, plan in zip(turns.seconds["real"], plans, strict=True)))
    others = {"cores busy with other processes": turns.other_load}
    out.table("Wall time", [walls | ratio.cells("real / projected") | others])


def _row(planned: Planned, epochs: list[float], seconds: float) -> Row:
    return {
        "run": planned.job.config.name,
        "epochs": len(epochs),
        "s an epoch, projected": planned.epoch_seconds,
        "s an epoch, real": sum(epochs) / len(epochs) if epochs else None,
        "s, projected": planned.seconds(),
        "s, real": seconds,
    }


@click.command(cls=Command)
@click.option("--suite", "suite_name", help="Another suite, by name or as a file [default: paper; cpu with --check].")
@click.option("--check", "scale", type=float, help="Run the suite for real too, with so many times its epochs.")
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Training steps an epoch.")
@click.option("--precision", type=click.Choice(["float32", "bf16"]), help="Arithmetic instead of the suite's.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes side by side (default: one a core, or one a GPU).")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AAFIT_DATA",
    help="Folder that holds the data set (environment: AAFIT_DATA); without it noise is timed, and --check downloads.",
)
@rounds_option
@device_option
@json_option
def main(
    suite_name: str | None,
    scale: float | None,
    steps: int,
    precision: str | None,
    jobs: int | None,
    data_dir: Path | None,
    rounds: int,
    device: str,
    json_path: Path | None,
) -> None:
    """Project the wall time of the paper suite, or check such a projection by the cpu suite."""
    suite = load_suite(suite_name or ("paper" if scale is None else "cpu"))
    suite = suite.with_precision(precision) if precision else suite
    suite = suite.scaled(scale) if scale is not None else suite
    with report(json_path) as out:
        plan = projected(suite, steps, data_dir, device, jobs)
        out.table(f"Projection of the suite {suite.name}", [_planned(planned) for planned in plan.runs])
        out.note(
            f"{suite.name}: {sum(planned.epochs_left for planned in plan.runs):,} epochs in {len(plan.runs)} runs on "
            f"{plan.slots} processes side by side: projected {clock(plan.wall_seconds)} ({plan.wall_seconds:.0f} s)."
        )
        if scale is not None:
            check(out, suite, steps, data_dir, device, jobs, rounds)


def _planned(planned: Planned) -> Row:
    return {
        "run": planned.job.config.name,
        "epochs": planned.epochs_left,
        "s an epoch": planned.epoch_seconds,
        "s": planned.seconds(),
    }


if __name__ == "__main__":
    main()
