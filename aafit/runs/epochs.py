"""The epochs of a run: trained or identified, measured after each, and saved so that a stopped run goes on."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aafit.data.batches import derived_seed, evaluation_batches, training_batches
from aafit.data.datasets import Dataset, Split
from aafit.identification import State, identify
from aafit.runs.checkpoint import save_json
from aafit.runs.folder import load_identification, loggers, save_identification, save_progress, shared_values
from aafit.runs.job import Job
from aafit.runs.metrics import Logger
from aafit.runs.start import Start
from aafit.training.evaluate import Batches, Evaluation, repeated_evaluation
from aafit.training.lockstep import Lockstep
from aafit.training.precision import data_type
from aafit.training.tune import SLOWED, train_epoch

log = logging.getLogger("aafit")

AUGMENTED = 5000  # train images to identify on where none are held out

OwnLog = Callable[[Job], AbstractContextManager[object]]


@dataclass
class ActiveRun:
    """A run under way: its job, what it starts from and trains, and how far it is.

    Attributes:
        starting_values: the adaptive parameters before training, by name.
        tuned: number of parameters trained.
        epoch: the last that is measured, None before the first.
        seconds: spent training; of an epoch in lockstep with other runs, an equal share.
        diverged: the epoch after which the loss was not finite, None where it is.
    """

    job: Job
    start: Start
    starting_values: dict[str, Tensor]
    tuned: int
    optimizers: list[Optimizer] = field(default_factory=list)
    epoch: int | None = None
    seconds: float = 0.0
    diverged: int | None = None

    @property
    def net(self) -> nn.Module:
        return self.start.net


@dataclass(frozen=True)
class HeldOut:
    """The loss on the part of the held-out images that an identification has not fitted."""

    loss: float
    accuracy: None = None


@dataclass(frozen=True)
class Evaluations:
    """How a run's network is evaluated, as it is when they are called."""

    test: Callable[[], Evaluation]
    heldout: Callable[[], Evaluation | HeldOut] | None


def train_runs(runs: Sequence[ActiveRun], data: Dataset, own_log: OwnLog) -> None:
    """Train by gradient steps, epoch after epoch, from where each run is; those at the same epoch go in lockstep."""
    with ExitStack() as opened:
        noted = {}
        split: dict[tuple[Path, ...], Lockstep | None] = {}
        for run in runs:
            outputs = opened.enter_context(loggers(run.job, run.net, run.epoch))
            noted[run.job.folder] = repeated_evaluations(data, run.net, run.job.config.precision), outputs
            if run.epoch is None:
                run.epoch = run.job.config.start_epoch
                with own_log(run.job):
                    finite = measure(run.job, run.epoch, run.net, *noted[run.job.folder])
                run.diverged = None if finite else run.epoch
        while left := [
            (run.epoch, run)
            for run in runs
            if run.epoch is not None and run.epoch < run.job.config.end_epoch and run.diverged is None
        ]:
            behind = min(epoch for epoch, _ in left)
            lockstep = [run for epoch, run in left if epoch == behind]
            began = time.perf_counter()
            losses = _train_epoch(lockstep, behind, data, split)
            spent = (time.perf_counter() - began) / len(lockstep)
            for run, (loss, variance) in zip(lockstep, losses, strict=True):
                run.epoch, run.seconds = behind + 1, run.seconds + spent
                with own_log(run.job):
                    finite = measure(run.job, run.epoch, run.net, *noted[run.job.folder], loss, variance, spent)
                if finite:
                    save_progress(run.job, run.epoch, run.seconds, run.net, run.optimizers)
                else:
                    run.diverged = run.epoch


def _train_epoch(
    runs: Sequence[ActiveRun], epoch: int, data: Dataset, split: dict[tuple[Path, ...], Lockstep | None]
) -> list[tuple[float, float]]:
    """The epoch after `epoch` of runs that have seed and batches in common: mean and variance of each one's losses.

    `split` keeps the parts of those that go in lockstep, by their folders: a network is taken apart once.
    """
    seed, run = runs[0].job.seed, runs[0].job.config
    dtype = data_type(run.precision)

    def batches() -> Batches:
        # Order, augmentation and dropout depend on seed and epoch alone, so that a resumed run sees the same.
        torch.manual_seed(derived_seed("dropout", seed, epoch))
        return training_batches(data.train, run.batch_size, seed, epoch, run.augment, run.shuffle, dtype)

    together = tuple(one.job.folder for one in runs)
    if together not in split:
        few_images, _ = next(evaluation_batches(data.test, batch_size=2, dtype=dtype))
        split[together] = Lockstep.of([one.net for one in runs], few_images) if len(runs) > 1 else None
    lockstep = split[together]
    if lockstep is None:
        return [train_epoch(one.net, batches(), one.optimizers, run.precision) for one in runs]
    return lockstep.train_epoch(batches(), [one.optimizers for one in runs], run.precision)


def identify_run(under_way: ActiveRun, data: Dataset) -> None:
    """Identify by Gauss-Newton, step after step, from where the run was.

    On the images that the base network was not trained on; where none are held out, on train images, augmented.
    """
    job, net, run = under_way.job, under_way.net, under_way.job.config
    dtype = data_type(run.precision)
    saved = load_identification(job)
    state = None if saved is None else State.from_dict(saved)
    test = evaluated_on(data.test, net, run.precision)
    with loggers(job, net, None if state is None else run.start_epoch + state.steps[-1].number) as outputs:
        # What was spent on steps that were not kept counts for the next that is.
        noted = state.steps[-1].seconds if state else 0.0
        finite = True

        def after_step(now: State) -> None:
            nonlocal state, noted, finite
            if state is None or len(now.steps) > len(state.steps):
                last = now.steps[-1]
                spent, noted = last.seconds - noted, last.seconds
                evaluations = Evaluations(test, lambda: HeldOut(last.heldout_loss))
                finite = measure(job, run.start_epoch + last.number, net, evaluations, outputs, last.loss, None, spent)
            state = now
            save_identification(job, now.as_dict())

        if data.heldout is not None:
            batches = evaluation_batches(data.heldout, dtype=dtype)
        else:
            augmented = training_batches(data.train, run.batch_size, job.seed, 0, run.augment, run.shuffle, dtype)
            batches = islice(augmented, math.ceil(AUGMENTED / run.batch_size))
        result = identify(
            net,
            batches,
            base=under_way.start.base,
            target=run.target,
            steps=run.epochs,
            batch_size=run.batch_size,
            precision=run.precision,
            seed=job.seed,
            state=state,
            after_step=after_step,
        )
    save_json(job.folder / "identification.json", result.as_dict())
    log.info("%s", result)
    under_way.seconds = result.seconds
    # A start without a finite loss can still be brought near: only the end tells.
    under_way.diverged = None if finite else run.start_epoch + result.steps[-1].number


def repeated_evaluations(data: Dataset, net: nn.Module, precision: str) -> Evaluations:
    """On the test images and, where some are held out, on those."""
    heldout = None if data.heldout is None else evaluated_on(data.heldout, net, precision)
    return Evaluations(evaluated_on(data.test, net, precision), heldout)


def evaluated_on(split: Split, net: nn.Module, precision: str) -> Callable[[], Evaluation]:
    return repeated_evaluation(net, lambda: evaluation_batches(split, dtype=data_type(precision)), precision)


def measure(
    job: Job,
    epoch: int,
    net: nn.Module,
    evaluations: Evaluations,
    outputs: Sequence[Logger],
    train_loss: float | None = None,
    train_loss_variance: float | None = None,
    seconds: float | None = None,
) -> bool:
    """Evaluate the network as it is after `epoch`, and note all numbers of that epoch; whether its losses are finite.

    A network whose loss is not finite has no accuracy: it predicts the first class whatever it is shown.
    """
    began = time.perf_counter()
    heldout = evaluations.heldout() if evaluations.heldout else None
    test = evaluations.test()
    row = {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_loss_variance": train_loss_variance,
        "heldout_loss": heldout.loss if heldout else None,
        "heldout_accuracy": heldout.accuracy if heldout and math.isfinite(heldout.loss) else None,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy if math.isfinite(test.loss) else None,
        "lr": job.config.learning_rate,
        "lr_slow": job.config.learning_rate / SLOWED[job.config.optimizer] if job.config.p24sl else None,
        "seconds": seconds,
        "evaluation_seconds": time.perf_counter() - began,
        **shared_values(net),
    }
    for output in outputs:
        output.write(row)
    training = "" if train_loss is None else f"train loss {train_loss:.4f}, "
    finite = math.isfinite(test.loss) and (train_loss is None or math.isfinite(train_loss))
    found = f"test {test}" if finite else "diverged: the loss is not finite"
    log.info("epoch %d: %s%s%s", epoch, training, found, "" if seconds is None else f", {seconds:.1f} s")
    return finite
