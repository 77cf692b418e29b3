"""Epochs of a run, timed as the program runs it: processes side by side, each with its slot's threads."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from aafit.data.datasets import SIZES
from aafit.devices import slots
from aafit.runs import execute
from aafit.runs.config import RunConfig
from aafit.runs.job import Job
from aafit.runs.metrics import read_rows
from benchmarks.images import Sample
from benchmarks.processes import call, peak_bytes, side_by_side

EVALUATED = 1000
WARM_STEPS = 10


@dataclass(frozen=True)
class Measured:
    """Seconds of a process for each epoch of the sample: medians over its epochs and the processes side by side.

    Attributes:
        wall: seconds from the start of the first process to the end of the last.
        epochs: of all processes together, the first of each too.
        peak: bytes that the largest of the processes held.
    """

    sample: Sample
    batch_size: int
    training: float
    evaluation: float
    wall: float
    epochs: int
    processes: int
    peak: int | None

    def training_of(self, images: int) -> float:
        """Seconds of a process to train on so many images."""
        ours = math.ceil(self.sample.train_images / self.batch_size)
        return self.training * math.ceil(images / self.batch_size) / ours

    def evaluation_of(self, images: int) -> float:
        """Seconds of a process to evaluate so many images."""
        return self.evaluation * images / self.sample.test_images

    @property
    def images_a_second(self) -> float:
        """Images trained on by all processes together."""
        return self.processes * self.sample.train_images / self.training


def sample_for(run: RunConfig, steps: int, data_dir: Path | None) -> Sample:
    """The images for so many steps of a run, and some to evaluate."""
    return Sample(run.dataset, steps * run.batch_size, EVALUATED, data_dir)


def measured_run(
    run: RunConfig,
    steps: int,
    epochs: int = 2,
    data_dir: Path | None = None,
    device: str = "auto",
    processes: int | None = None,
    seeds: int | None = None,
    lockstep: int = 1,
) -> Measured:
    """Time `epochs` epochs of `steps` steps, after one that warms up caches and compilers.

    Args:
        processes: side by side; by default one for each core, or for each GPU.
        seeds: how many runs, of one seed each, share these processes; by default one a process.
        lockstep: how many runs of a seed go in lockstep; the seconds of each are its share of theirs.

    Raises:
        UserError: the device is not here, or the images are not in `data_dir`.
    """
    places, sample = slots(device, processes), sample_for(run, steps, data_dir)
    seeds = seeds or len(places)
    shorter = shortened(run, sample, epochs + 1)
    began = time.monotonic()
    results = side_by_side(
        "benchmarks.measured:epochs_of",
        places,
        [
            {"run": shorter.model_dump(mode="json"), "seed": seed, "sample": sample, "lockstep": lockstep}
            for seed in range(seeds)
        ],
    )
    wall = time.monotonic() - began
    training, evaluation = (
        median(seconds for result in results for seconds in result[part]) for part in ("training", "evaluation")
    )
    peaks = [result["peak"] for result in results if result["peak"] is not None]
    count = seeds * lockstep * shorter.epochs
    return Measured(
        sample, run.batch_size, training, evaluation, wall, count, min(seeds, len(places)), max(peaks, default=None)
    )


def shortened(run: RunConfig, sample: Sample, epochs: int) -> RunConfig:
    """The run for so many epochs of the sample, on its own: what it costs does not depend on its weights."""
    alone = {"parent": None, "init_from": None, "start_epoch": 0, "epochs": epochs}
    return run.model_copy(update=alone | {"holdout": 0, "train_images": sample.train_images})


def epochs_of(
    run: dict[str, Any], seed: int, sample: Sample, device: str, threads: int | None, lockstep: int = 1
) -> dict[str, Any]:
    """Do runs in lockstep on the sample: seconds of all their epochs but the first, and the most memory held."""
    data = sample.load()
    with tempfile.TemporaryDirectory() as folder, patch.object(execute, "load_dataset", lambda *_: data):
        settings = RunConfig.checked(run)
        folders = [Path(folder) / f"run{number}" for number in range(lockstep)]
        for own in folders:
            own.mkdir()
        execute.execute(
            *(Job(config=settings, seed=seed, folder=own, device=device, threads=threads) for own in folders)
        )
        measured = [[row for row in read_rows(own / "metrics.csv") if row["seconds"]] for own in folders]
        rows = [row for own in measured for row in own[1:]]
    return {
        "training": [float(row["seconds"]) for row in rows],
        "evaluation": [float(row["evaluation_seconds"]) for row in rows],
        "peak": peak_bytes(),
    }


def seconds_an_epoch(measured: Measured, run: RunConfig) -> float:
    """Seconds of a process for one whole epoch of `run`: training, and all evaluation."""
    size = SIZES[run.dataset]
    images = run.train_images or size.train - run.holdout
    return measured.training_of(images) + measured.evaluation_of(size.test + run.holdout)


def straightforward_step(run: RunConfig, steps: int, data_dir: Path | None, device: str) -> float:
    """Seconds a step of the straightforward training loop: one process with torch's own number of threads."""
    place = slots(device, 1)[0]
    result: float = call(
        "benchmarks.straightforward:seconds_a_step",
        {name: value for name, value in place.environment.items() if place.device != "cpu"},
        cnn=run.cnn,
        fc=run.fc,
        train=run.train,
        batch_size=run.batch_size,
        sample=sample_for(run, steps + WARM_STEPS, data_dir),
        steps=steps,
        warm=WARM_STEPS,
        device=place.device,
        p24sl=run.p24sl,
    )
    return result
