"""The time that an epoch of a run takes on this machine, measured on a few steps with images of noise."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aafit.experiment.data.batches import evaluation_batches, training_batches
from aafit.experiment.data.datasets import SIZES, noise_like
from aafit.experiment.devices import choose_device
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.execute import choose_trained
from aafit.experiment.runs.gradient import Lockstep
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.start import starting_network
from aafit.training.evaluate import evaluate
from aafit.training.precision import arithmetic, data_type
from aafit.training.tune import make_optimizers, train_epoch

STEPS = 6
EVALUATED = 1000


def seconds_an_epoch(run: RunConfig, device_name: str = "auto", lockstep: int = 1) -> float:
    """Measure one epoch of `run`, training and evaluation, in one process with one thread on a CPU.

    Alongside other processes an epoch takes longer, since they share memory and caches.

    Args:
        run: its settings.
        device_name: as `choose_device` takes it.
        lockstep: number of runs that are trained in lockstep; the result is the share of one.

    Returns:
        Seconds.
    """
    device = choose_device(device_name)
    with arithmetic(run.precision, threads=1 if device.type == "cpu" else None):
        return _measured(run, device, lockstep)


def _measured(run: RunConfig, device: torch.device, count: int) -> float:
    size = SIZES[run.dataset]
    noise = noise_like(run.dataset, STEPS * run.batch_size, EVALUATED).to(device)
    alone = run.model_copy(update={"parent": None, "init_from": None})
    job = Job(config=alone, seed=0, folder=Path())
    nets = [starting_network(job, noise, device)[0] for _ in range(count)]
    trained = [parameter for net in nets for parameter in choose_trained(net, run.train)]
    optimizers = [make_optimizers(net, run.optimizer, run.lr, run.p24sl, run.dspu4) if trained else [] for net in nets]
    dtype = data_type(run.precision)
    few_images, _ = next(evaluation_batches(noise.test, batch_size=2, dtype=dtype))
    lockstep = Lockstep.of(nets, few_images) if count > 1 else None
    sharing = 1 if lockstep is None else count

    def train() -> None:
        batches = training_batches(noise.train, run.batch_size, 0, 0, run.augment, run.shuffle, dtype)
        if lockstep is None:
            train_epoch(nets[0], batches, optimizers[0], run.precision)
        else:
            lockstep.train_epoch(nets, batches, optimizers, run.precision)

    def test() -> None:
        evaluate(nets[0], evaluation_batches(noise.test, dtype=dtype), run.precision)

    images = run.train_images or size.train - run.holdout
    steps = math.ceil(images / run.batch_size) if trained else 0
    training = steps * _seconds(train) / STEPS / sharing if trained else 0.0
    return training + (size.test + run.holdout) * _seconds(test) / EVALUATED


def _seconds(action: Callable[[], None]) -> float:
    """Return the seconds of one call, after another one that warms caches and compilers."""
    action()
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
