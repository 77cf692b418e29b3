"""What the benchmarks measure: images, the kinds of run of the paper suite, their epochs, and networks to identify."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_name
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Dataset, Split, load_dataset, noise_like
from aafit.experiment.devices import slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import METRICS, Config, check_finished
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import read_columns
from aafit.experiment.runs.start import starting_network
from aafit.experiment.runs.suite import load_suite
from aafit.identification import Identification, identify
from aafit.training.evaluate import Evaluation, evaluate
from aafit.training.precision import data_type
from benchmarks.harness import measuring, peak_bytes, side_by_side

EVALUATED = 1000

FIRST_OF_KIND = {
    "base ReLU": "base-relu",
    "base SiLU": "base-silu",
    "AHAF tuning": "silu-ahaf-silu",
    "LEAF tuning": "silu-leaf-silu",
    "F-Neuron tuning": "relu-fneuron-tanh",
}

HELD_OUT = 0.2  # the share that `aafit.identify` holds out, by default

images_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AAFIT_DATA",
    help="Folder that holds the images (environment: AAFIT_DATA) [default: a download, kept in the user's cache].",
)
base_option = click.option(
    "--base",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Run folder of the base network, <suite>/<run>/seed<k>.",
)
images_option = click.option(
    "--images", type=click.IntRange(min=10), help="So many of the held-out images only [default: all]."
)


def chosen_kinds(names: Iterable[str] | None = None, precision: str = "float32") -> dict[str, RunConfig]:
    """Return a run of each kind, or of the named ones.

    Raises:
        UserError: there is no such kind.
    """
    suite = load_suite("paper").with_precision(precision)
    chosen = [check_name("kind of run", name, FIRST_OF_KIND) for name in names or FIRST_OF_KIND]
    return {kind: suite.run(FIRST_OF_KIND[kind]) for kind in chosen}


@dataclass(frozen=True)
class Sample:
    """A subset of a data set; images of noise if `data_dir` is None."""

    dataset: str
    train_images: int
    test_images: int
    data_dir: Path | None = None

    def load(self) -> Dataset:
        """Load the images, the same ones at each call.

        Raises:
            UserError: the data set is not in `data_dir`.
        """
        if self.data_dir is None:
            return noise_like(self.dataset, self.train_images, self.test_images)
        # Not by `train_images`: more images than exist may be needed.
        data = load_dataset(self.dataset, self.data_dir)
        test = data.test.at(torch.arange(min(self.test_images, len(data.test))))
        train = data.train.at(torch.arange(self.train_images) % len(data.train))
        return Dataset(self.dataset, train, None, test, data.classes, data.fingerprint)


@dataclass(frozen=True)
class Measured:
    """Seconds of a process for an epoch of the sample: medians over epochs and processes side by side.

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
        """Return the seconds of a process to train on a number of images."""
        ours = math.ceil(self.sample.train_images / self.batch_size)
        return self.training * math.ceil(images / self.batch_size) / ours

    def evaluation_of(self, images: int) -> float:
        """Return the seconds of a process to evaluate a number of images."""
        return self.evaluation * images / self.sample.test_images

    @property
    def images_a_second(self) -> float:
        """Images a second, all processes together."""
        return self.processes * self.sample.train_images / self.training


@contextmanager
def measured_in_turns(
    run: RunConfig,
    steps: int,
    data_dir: Path | None = None,
    device: str = "auto",
    processes: int | None = None,
    lockstep: int = 1,
    evaluated: int | None = None,
) -> Iterator[Callable[[], Measured]]:
    """Provide a callable that times one more epoch of `steps` steps in processes that stay alive.

    Caches and compilers are warm when the block begins.

    Raises:
        UserError: the device is not here, or the images are not in `data_dir`.
    """
    places, sample = slots(device, processes), sample_for(run, steps, data_dir, evaluated)
    shorter = shortened(run, sample, 1).model_dump(mode="json")
    with ExitStack() as stack, ThreadPoolExecutor(len(places)) as pool:
        following = [
            stack.enter_context(
                measuring(
                    "benchmarks.workload:epochs_in_turns",
                    place.environment,
                    run=shorter,
                    seed=seed,
                    sample=sample,
                    device=place.device,
                    threads=place.threads,
                    lockstep=lockstep,
                )
            )
            for seed, place in enumerate(places)
        ]

        def one_epoch() -> Measured:
            began = time.monotonic()
            results = list(pool.map(lambda follow: follow(), following))
            training, evaluation = (median(result[part] for result in results) for part in ("training", "evaluation"))
            peaks = [result["peak"] for result in results if result["peak"] is not None]
            wall, count = time.monotonic() - began, len(places) * lockstep
            return Measured(
                sample, run.batch_size, training, evaluation, wall, count, len(places), max(peaks, default=None)
            )

        one_epoch()
        yield one_epoch


def epochs_in_turns(
    run: dict[str, Any], seed: int, sample: Sample, device: str, threads: int | None, lockstep: int
) -> Iterator[dict[str, Any]]:
    """Yield the seconds of one epoch of runs in lockstep, repeatedly; the first warms up."""
    settings, data = RunConfig.checked(run), sample.load()
    while True:
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder) / f"run{number}" for number in range(lockstep)]
            for own in folders:
                own.mkdir()
            jobs = [Job(config=settings, seed=seed, folder=own, device=device, threads=threads) for own in folders]
            execute(*jobs, data=data)
            # The first row is before any training.
            measured = [read_columns(own / METRICS) for own in folders]
        seconds = {
            part: sum(float(columns[name][1]) for columns in measured) / lockstep
            for part, name in (("training", "seconds"), ("evaluation", "evaluation_seconds"))
        }
        yield {**seconds, "peak": peak_bytes()}


def merged(rounds: Sequence[Measured]) -> Measured:
    """Return the medians over several measurements of the same run."""
    peaks = [one.peak for one in rounds if one.peak is not None]
    return replace(
        rounds[0],
        training=median(one.training for one in rounds),
        evaluation=median(one.evaluation for one in rounds),
        wall=sum(one.wall for one in rounds),
        epochs=sum(one.epochs for one in rounds),
        peak=max(peaks, default=None),
    )


def sample_for(run: RunConfig, steps: int, data_dir: Path | None, evaluated: int | None = None) -> Sample:
    """Return the images for a number of steps of a run, and some to evaluate."""
    return Sample(run.dataset, steps * run.batch_size, evaluated or EVALUATED, data_dir)


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
    """Time `epochs` epochs of `steps` steps, after a warm-up epoch.

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
        "benchmarks.workload:epochs_of",
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
    """Return the run for a number of epochs of the sample, without its parent: its cost does not depend on weights."""
    alone = {"parent": None, "init_from": None, "start_epoch": 0, "epochs": epochs}
    return run.model_copy(update=alone | {"holdout": 0, "train_images": sample.train_images})


def epochs_of(
    run: dict[str, Any], seed: int, sample: Sample, device: str, threads: int | None, lockstep: int = 1
) -> dict[str, Any]:
    """Run in lockstep on the sample; return the seconds of all epochs but the first, and the peak memory."""
    settings = RunConfig.checked(run)
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / f"run{number}" for number in range(lockstep)]
        for own in folders:
            own.mkdir()
        jobs = [Job(config=settings, seed=seed, folder=own, device=device, threads=threads) for own in folders]
        execute(*jobs, data=sample.load())
        # The first row is before any training, the second the epoch that warms up.
        measured = [read_columns(own / METRICS) for own in folders]
    return {
        "training": [float(seconds) for columns in measured for seconds in columns["seconds"][2:]],
        "evaluation": [float(seconds) for columns in measured for seconds in columns["evaluation_seconds"][2:]],
        "peak": peak_bytes(),
    }


@dataclass(frozen=True)
class Halves:
    """The held-out images of a run, divided as an identification divides them: fitted and held out."""

    fitted: Split
    rest: Split
    precision: str

    @classmethod
    def of(cls, heldout: Split, rest: int, seed: int, precision: str) -> "Halves":
        """Divide in the order that `aafit.identify` draws from the seed; the first `rest` images are not fitted."""
        order_N = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(seed))
        return cls(heldout.at(order_N[rest:]), heldout.at(order_N[:rest]), precision)

    def batches(self, part: Split) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(part, dtype=data_type(self.precision))

    def on_fitted(self, net: nn.Module) -> Evaluation:
        return evaluate(net, self.batches(self.fitted), self.precision)

    def on_rest(self, net: nn.Module) -> Evaluation:
        return evaluate(net, self.batches(self.rest), self.precision)


@cache
def images_of(name: str, folder: Path | None, holdout: int) -> Dataset:
    return load_dataset(name, folder, holdout)


def heldout_of(run: RunConfig, fingerprint: str, folder: Path | None) -> Split:
    """Return the images held out of a run's training.

    Raises:
        UserError: it held none out, or the folder has another copy of the data set.
    """
    if not run.holdout:
        raise UserError(f"The run {run.name!r} held no images out (holdout = 0), so that there are none to compare on.")
    data = images_of(run.dataset, folder, run.holdout)
    if data.fingerprint != fingerprint:
        raise UserError(f"The run {run.name!r} was done on another copy of {run.dataset}: give that as --data-dir.")
    assert data.heldout is not None
    return data.heldout


@dataclass(frozen=True)
class Setting:
    """A base network with replaced activations, and held-out images to identify them on."""

    run: RunConfig
    seed: int
    net: nn.Module
    base: nn.Module
    heldout: Split
    halves: Halves

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all images, in the order in which a run passes them to `aafit.identify`."""
        return self.halves.batches(self.heldout)

    def identify(self, net: nn.Module, base: nn.Module | None) -> Identification:
        """Identify `net`, in place, as a run of a suite would."""
        run = self.run
        return identify(
            net,
            self.batches(),
            base=base,
            steps=run.epochs,
            batch_size=run.batch_size,
            precision=run.precision,
            seed=self.seed,
        )


def setting_of(
    folder: Path, cnn: str | None, fc: str | None, data_dir: Path | None, images: int | None = None
) -> Setting:
    """Return the base network of a run folder with other activations, initialized as in a suite's run.

    Raises:
        UserError: the run is not finished, held no images out, or is given no adaptive activation.
    """
    check_finished(folder)
    config = Config.of(folder)
    base, seed = config.run, config.seed
    changes = {"cnn": cnn or base.cnn, "fc": fc or base.fc, "parent": base.name, "start_epoch": base.end_epoch}
    changes |= {"name": "replaced", "init_from": None, "train": "activations", "method": "gauss-newton", "epochs": 30}
    run = RunConfig.checked(base.model_dump(mode="json") | changes, "The replacement")
    heldout = heldout_of(base, config.data.sha256, data_dir)
    job = Job(config=run, seed=seed, folder=folder, parent=folder)
    net, base_net, _ = starting_network(job, images_of(run.dataset, data_dir, run.holdout), torch.device("cpu"))
    assert base_net is not None
    if images is not None:
        heldout = heldout.at(torch.arange(min(images, len(heldout))))
    halves = Halves.of(heldout, round(HELD_OUT * len(heldout)), seed, run.precision)
    return Setting(run, seed, net, base_net, heldout, halves)
