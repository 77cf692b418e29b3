"""Measure how the time of an epoch is divided: training steps, batches, evaluation, logging.

./run_experiment.sh benchmarks/parts.py --data-dir DATA

A run of a few epochs is executed as the program does it. Its metrics.csv has the seconds of training and evaluation.
The rest of the time between the ends of two epochs is logging: a row and the state are saved.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import click

from aafit.experiment.data.batches import training_batches
from aafit.experiment.data.datasets import SIZES
from aafit.experiment.devices import choose_device, slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import METRICS
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import read_columns
from aafit.training.precision import arithmetic, data_type
from benchmarks.harness import (
    Command,
    Report,
    Row,
    data_dir_option,
    device_option,
    json_option,
    report,
    side_by_side,
    stopwatch,
)
from benchmarks.workload import FIRST_OF_KIND, Sample, chosen_kinds, sample_for, shortened

PARTS = ("training steps", "augmentation and batching", "evaluation", "logging")
SHARE_TO_REACH = 0.05


class EpochEnds(logging.Handler):
    """Records when each epoch of a run ended, from its log lines."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch "):
            self.seconds.append(record.created)


def shares_of_an_epoch(
    run: RunConfig, steps: int, data_dir: Path | None, device: str, evaluated: int | None = None
) -> dict[str, float]:
    """Return the share of each part in an epoch of the full data set, with as many processes as the program uses."""
    places, sample = slots(device), sample_for(run, steps, data_dir, evaluated)
    out = {"run": shortened(run, sample, 3).model_dump(mode="json"), "sample": sample}
    results = side_by_side("benchmarks.parts:seconds_of_parts", places, [out] * len(places))
    size = SIZES[run.dataset]
    growth = {
        "training steps": (size.train - run.holdout) / sample.train_images,
        "augmentation and batching": (size.train - run.holdout) / sample.train_images,
        "evaluation": (size.test + run.holdout) / sample.test_images,
        # Once an epoch, independent of the number of images.
        "logging": 1.0,
    }
    seconds = {part: growth[part] * sum(result[part] for result in results) for part in PARTS}
    return {part: seconds[part] / sum(seconds.values()) for part in PARTS}


def seconds_of_parts(run: dict[str, Any], sample: Sample, device: str, threads: int | None) -> dict[str, float]:
    """Return the seconds of each part in the last epoch of a run on the sample."""
    data, settings, at, ends = sample.load(), RunConfig.checked(run), choose_device(device), EpochEnds()
    log = logging.getLogger("aafit")
    level = log.level
    log.addHandler(ends)
    log.setLevel(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(config=settings, seed=0, folder=Path(folder) / "run", device=device, threads=threads)
            execute(job, data=data)
            columns = read_columns(job.folder / METRICS)
    finally:
        log.setLevel(level)
        log.removeHandler(ends)
    batching: list[float] = []
    train = data.train.to(at)
    with arithmetic(settings.precision, threads):
        for epoch in range(2):
            with stopwatch(batching, at):
                for _ in training_batches(
                    train, settings.batch_size, 0, epoch, settings.augment, dtype=data_type(settings.precision)
                ):
                    pass
    training, evaluation = (float(columns[name][-1]) for name in ("seconds", "evaluation_seconds"))
    return {
        "training steps": training - batching[-1],
        "augmentation and batching": batching[-1],
        "evaluation": evaluation,
        "logging": max(0.0, ends.seconds[-1] - ends.seconds[-2] - training - evaluation),
    }


def table_of_parts(
    out: Report,
    runs: dict[str, RunConfig],
    steps: int,
    data_dir: Path | None,
    device: str,
    evaluated: int | None = None,
) -> None:
    """Report the shares of an epoch of each kind of run."""
    rows: list[Row] = []
    for kind, run in runs.items():
        shares = shares_of_an_epoch(run, steps, data_dir, device, evaluated)
        rest = [share for part, share in shares.items() if part != PARTS[0]]
        rows.append({"kind": kind, **shares, "each but the steps below 5%": max(rest) < SHARE_TO_REACH})
    out.table("Shares of an epoch of the program, evaluation included", rows)


@click.command(cls=Command)
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Training steps an epoch.")
@click.option("--kind", "kinds", multiple=True, help=f"Only this: {', '.join(FIRST_OF_KIND)}. May be repeated.")
@data_dir_option
@device_option
@json_option
def main(steps: int, kinds: tuple[str, ...], data_dir: Path | None, device: str, json_path: Path | None) -> None:
    """Measure how the time of an epoch is divided, for each kind of run."""
    with report(json_path) as out:
        table_of_parts(out, chosen_kinds(kinds), steps, data_dir, device)


if __name__ == "__main__":
    main()
