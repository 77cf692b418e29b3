"""How long an epoch of a run takes on this machine, from a few steps on images of noise."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aafit.batches import evaluation_batches, training_batches
from aafit.data import SIZES, Dataset, Split
from aafit.evaluate import evaluate
from aafit.execute import choose_trained
from aafit.gradient import make_optimizers, train_epoch
from aafit.job import Job
from aafit.precision import arithmetic, choose_device, data_type
from aafit.runconfig import RunConfig
from aafit.start import starting_network

STEPS = 6
EVALUATED = 1000


def seconds_an_epoch(run: RunConfig, device_name: str = "auto") -> float:
    """Seconds for one epoch of `run`, training and evaluation, in one process with one thread on a CPU.

    Beside other processes an epoch takes longer, by what they share of memory and caches.
    """
    device = choose_device(device_name)
    with arithmetic(run.precision, threads=1 if device.type == "cpu" else None):
        return _measured(run, device)


def _measured(run: RunConfig, device: torch.device) -> float:
    size = SIZES[run.dataset]
    noise = Dataset(
        run.dataset, _noise(STEPS * run.batch_size, size.in_shape), None, _noise(EVALUATED, size.in_shape), 10, ""
    )
    noise = noise.to(device)
    alone = run.model_copy(update={"parent": None, "init_from": None})
    net = starting_network(Job(run=alone, seed=0, folder=Path()), noise).to(device, run.precision).net
    trained = choose_trained(net, run.train)
    optimizers = make_optimizers(net, run.optimizer, run.lr, run.p24sl, run.dspu4) if trained else []
    dtype = data_type(run.precision)

    def train() -> None:
        batches = training_batches(noise.train, run.batch_size, 0, 0, run.augment, run.shuffle, dtype)
        train_epoch(net, batches, optimizers, run.precision)

    def test() -> None:
        evaluate(net, evaluation_batches(noise.test, dtype=dtype), run.precision)

    images = run.train_images or size.train - run.holdout
    steps = math.ceil(images / run.batch_size) if trained else 0
    return steps * _seconds(train) / STEPS * bool(trained) + (size.test + run.holdout) * _seconds(test) / EVALUATED


def _seconds(action: Callable[[], None]) -> float:
    """The time of one call, after one that warms caches and compilers."""
    action()
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _noise(count: int, in_shape: tuple[int, int, int]) -> Split:
    channels, height, width = in_shape
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8)
    return Split(images, torch.randint(0, 10, (count,)))
