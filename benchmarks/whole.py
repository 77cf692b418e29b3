"""How long the paper suite will take, from epochs measured side by side; and how true such a projection is.

./run_experiment.sh benchmarks/whole.py --data-dir DATA
./run_experiment.sh benchmarks/whole.py --check 0.1 --data-dir DATA

The first prints the plan of the paper suite as `--dry-run` does, with each kind's seconds an epoch timed as the program
runs: processes side by side. With --check the same is done for the cpu suite with its epochs multiplied by that number;
then that suite is run for real in a temporary folder, and the wall times are compared. A projection contains what each
run costs beside its epochs, as `aafit/experiment/scheduling/plan.py` has it.
"""

import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from aafit.errors import UserError
from aafit.experiment.data.datasets import SIZES
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.job import lockstep_groups
from aafit.experiment.runs.suite import Suite, load_suite
from aafit.experiment.scheduling.options import RunOptions
from aafit.experiment.scheduling.plan import Estimate, Planned, clock, epoch_seconds, estimate
from aafit.experiment.scheduling.schedule import run_suite
from benchmarks.harness import Command, Report, Row, device_option, json_option, report
from benchmarks.workload import Measured, measured_run


def seconds_an_epoch(measured: Measured, run: RunConfig) -> float:
    """Seconds of a process for one whole epoch of `run`: training, and all evaluation."""
    size = SIZES[run.dataset]
    images = run.train_images or size.train - run.holdout
    return measured.training_of(images) + measured.evaluation_of(size.test + run.holdout)


def timed(steps: int, data_dir: Path | None, jobs: int | None) -> Callable[[RunConfig, str, int], float]:
    """A function that times an epoch of a run among as many processes as will be side by side."""

    def measure(run: RunConfig, device: str, lockstep: int) -> float:
        known = math.ceil((run.train_images or SIZES[run.dataset].train - run.holdout) / run.batch_size)
        measured = measured_run(
            run, min(steps, known), data_dir=data_dir, device=device, processes=jobs, lockstep=lockstep
        )
        return seconds_an_epoch(measured, run)

    return measure


def projected(suite: Suite, steps: int, data_dir: Path | None, device: str, jobs: int | None = None) -> Estimate:
    """The plan of a suite of which nothing is done yet."""
    with tempfile.TemporaryDirectory() as empty:
        return estimate(suite, Path(empty), RunOptions(jobs=jobs, device=device), measure=timed(steps, data_dir, jobs))


def check(told: Report, plan: Estimate, suite: Suite, data_dir: Path | None, device: str, jobs: int | None) -> None:
    """Run the suite for real, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        summary = run_suite(
            suite,
            Path(folder),
            RunOptions(jobs=jobs, device=device, data_dir=data_dir),
            console=Console(file=io.StringIO()),
        )
        wall = time.monotonic() - began
        if not summary.ok:
            failed = next((outcome for outcome in summary.outcomes if outcome.message), summary.outcomes[0])
            raise UserError(f"The suite did not end well; {failed.job.config.name} {failed.status}: {failed.message}")
        rows: list[Row] = []
        starts, projected = [], []
        lockstep = lockstep_groups(
            {(outcome.job.config.name, outcome.job.seed): outcome.job for outcome in summary.outcomes}
        )
        for planned, outcome in zip(plan.runs, summary.outcomes, strict=True):
            epochs = epoch_seconds(outcome.job.folder)
            # Runs in lockstep are in one process: each has its share of it.
            seconds = outcome.seconds / len(lockstep[outcome.job.config.name, outcome.job.seed])
            starts.append(seconds - sum(epochs))
            projected.append(planned.seconds - planned.epochs_left * (planned.epoch_seconds or 0.0))
            rows.append(_row(planned, epochs, seconds))
    told.table("Each run, as projected and as it was", rows)
    told.say(
        f"Beside its epochs a run took {sum(starts) / len(starts):.1f} s in the mean; the projection has "
        f"{sum(projected) / len(projected):.1f} s."
    )
    told.table(
        "Wall time",
        [{"projected, s": plan.wall_seconds, "real, s": wall, "real / projected": wall / plan.wall_seconds}],
    )


def _row(planned: Planned, epochs: list[float], seconds: float) -> Row:
    return {
        "run": planned.job.config.name,
        "epochs": len(epochs),
        "s an epoch, projected": planned.epoch_seconds,
        "s an epoch, real": sum(epochs) / len(epochs) if epochs else None,
        "s, projected": planned.seconds,
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
@device_option
@json_option
def main(
    suite_name: str | None,
    scale: float | None,
    steps: int,
    precision: str | None,
    jobs: int | None,
    data_dir: Path | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Project the wall time of the paper suite, or check such a projection by the cpu suite."""
    suite = load_suite(suite_name or ("paper" if scale is None else "cpu"))
    suite = suite.with_precision(precision) if precision else suite
    suite = suite.scaled(scale) if scale is not None else suite
    with report(json_path) as told:
        plan = projected(suite, steps, data_dir, device, jobs)
        told.table(f"Projection of the suite {suite.name}", [_planned(planned) for planned in plan.runs])
        told.say(
            f"{suite.name}: {sum(planned.epochs_left for planned in plan.runs):,} epochs in {len(plan.runs)} runs on "
            f"{plan.slots} processes side by side: projected {clock(plan.wall_seconds)} ({plan.wall_seconds:.0f} s)."
        )
        if scale is not None:
            check(told, plan, suite, data_dir, device, jobs)


def _planned(planned: Planned) -> Row:
    return {
        "run": planned.job.config.name,
        "epochs": planned.epochs_left,
        "s an epoch": planned.epoch_seconds,
        "s": planned.seconds,
    }


if __name__ == "__main__":
    main()
