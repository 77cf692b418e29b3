"""Where the time of one of the program's epochs goes: training steps, batches, evaluation, logging."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aafit.data.batches import training_batches
from aafit.data.datasets import SIZES
from aafit.devices import choose_device, slots
from aafit.runs import epochs, execute
from aafit.runs.config import RunConfig
from aafit.runs.job import Job
from aafit.runs.metrics import read_rows
from aafit.training.precision import arithmetic, data_type
from benchmarks.common import stopwatch
from benchmarks.images import Sample
from benchmarks.measured import sample_for, shortened
from benchmarks.processes import side_by_side

PARTS = ("training steps", "augmentation and batching", "evaluation", "logging")


def shares_of_an_epoch(run: RunConfig, steps: int, data_dir: Path | None, device: str) -> dict[str, float]:
    """The share of each part in an epoch of all images of the data set, with as many processes as the program has."""
    places, sample = slots(device), sample_for(run, steps, data_dir)
    told = {"run": shortened(run, sample, 3).model_dump(mode="json"), "sample": sample}
    results = side_by_side("benchmarks.parts:seconds_of_parts", places, [told] * len(places))
    size = SIZES[run.dataset]
    growth = {
        "training steps": (size.train - run.holdout) / sample.train_images,
        "augmentation and batching": (size.train - run.holdout) / sample.train_images,
        "evaluation": (size.test + run.holdout) / sample.test_images,
        # Once an epoch, however many images it has.
        "logging": 1.0,
    }
    seconds = {part: growth[part] * sum(result[part] for result in results) for part in PARTS}
    return {part: seconds[part] / sum(seconds.values()) for part in PARTS}


def seconds_of_parts(run: dict[str, Any], sample: Sample, device: str, threads: int | None) -> dict[str, float]:
    """Seconds of each part in the last epoch of a run on the sample; what is written to its folder is logging."""
    data, settings, at = sample.load(), RunConfig.checked(run), choose_device(device)
    after_steps: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            with stopwatch(after_steps, at):
                return function(*arguments)

        return called

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(execute, "load_dataset", lambda *_: data),
        patch.object(epochs, "measure", timed(epochs.measure)),
        patch.object(epochs, "save_progress", timed(epochs.save_progress)),
    ):
        job = Job(config=settings, seed=0, folder=Path(folder) / "run", device=device, threads=threads)
        job.folder.mkdir()
        execute.execute(job)
        row = read_rows(job.folder / "metrics.csv")[-1]
    batching: list[float] = []
    train = data.train.to(at)
    with arithmetic(settings.precision, threads):
        for epoch in range(2):
            with stopwatch(batching, at):
                for _ in training_batches(
                    train, settings.batch_size, 0, epoch, settings.augment, dtype=data_type(settings.precision)
                ):
                    pass
    evaluation = float(row["evaluation_seconds"])
    return {
        "training steps": float(row["seconds"]) - batching[-1],
        "augmentation and batching": batching[-1],
        "evaluation": evaluation,
        "logging": sum(after_steps[-2:]) - evaluation,
    }
