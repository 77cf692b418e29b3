"""The epochs of runs: trained or identified, measured after each, and saved so that a stopped run goes on."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch

from aafit.experiment.data.batches import derived_seed, evaluation_batches, training_batches
from aafit.experiment.data.datasets import Dataset
from aafit.experiment.runs.active import ActiveRun, Trained
from aafit.experiment.runs.documents import IDENTIFICATION, save_json
from aafit.experiment.runs.folder import load_identification, save_identification, save_progress
from aafit.experiment.runs.fresh import fresh_batches
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.lockstep import Lockstep
from aafit.identification import State, identify
from aafit.training.evaluate import Batches
from aafit.training.precision import data_type
from aafit.training.tune import train_epoch

log = logging.getLogger("aafit")

OwnLog = Callable[[Job], AbstractContextManager[object]]


def train_runs(runs: Sequence[ActiveRun], data: Dataset, own_log: OwnLog) -> None:
    """Train by gradient steps, epoch after epoch, from where each run is; those at the same epoch go in lockstep."""
    with ExitStack() as opened:
        for run in runs:
            opened.enter_context(run.noting(data.test, data.heldout))
            if run.epoch is None:
                with own_log(run.job):
                    run.measure(run.job.config.start_epoch)
        lockstep = _lockstep(runs, data)
        while left := [at for at, run in enumerate(runs) if run.goes_on]:
            epoch = min(runs[at].epoch or 0 for at in left)
            together = [at for at in left if runs[at].epoch == epoch]
            began = time.perf_counter()
            losses = _train_epoch(runs, together, lockstep, epoch, data)
            seconds = (time.perf_counter() - began) / len(together)
            for at, (loss, variance) in zip(together, losses, strict=True):
                run = runs[at]
                run.seconds += seconds
                with own_log(run.job):
                    run.measure(epoch + 1, Trained(loss, variance, seconds))
                if run.diverged is None:
                    save_progress(run.job, epoch + 1, run.seconds, run.net, run.optimizers)


def _lockstep(runs: Sequence[ActiveRun], data: Dataset) -> Lockstep | None:
    """What the runs have in common, found once; None for a single run."""
    if len(runs) == 1:
        return None
    few_images, _ = next(evaluation_batches(data.test, batch_size=2, dtype=data_type(runs[0].job.config.precision)))
    return Lockstep.of([run.net for run in runs], few_images)


def _train_epoch(
    runs: Sequence[ActiveRun], together: Sequence[int], lockstep: Lockstep | None, epoch: int, data: Dataset
) -> list[tuple[float, float]]:
    """The epoch after `epoch` of those `together`, by their places: mean and variance of each one's losses."""
    trained = [runs[at] for at in together]
    # Runs that go together have seed and batches in common.
    seed, run = trained[0].job.seed, trained[0].job.config

    def batches() -> Batches:
        # Order, augmentation and dropout depend on seed and epoch alone, so that a resumed run sees the same.
        torch.manual_seed(derived_seed("dropout", seed, epoch))
        dtype = data_type(run.precision)
        return training_batches(data.train, run.batch_size, seed, epoch, run.augment, run.shuffle, dtype)

    if lockstep is None or len(together) == 1:
        return [train_epoch(one.net, batches(), one.optimizers, run.precision) for one in trained]
    return lockstep.part(together).train_epoch(batches(), [one.optimizers for one in trained], run.precision)


def identify_run(run: ActiveRun, data: Dataset) -> None:
    """Identify by Gauss-Newton, step after step, from where the run was.

    On the images that the base network was not trained on; where none are held out, on train images, augmented.
    """
    job, config = run.job, run.job.config
    saved = load_identification(job)
    state = None if saved is None else State.from_dict(saved)
    if state is not None:
        run.epoch, run.seconds = config.start_epoch + state.steps[-1].number, state.steps[-1].seconds

    def after_step(now: State) -> None:
        last = now.steps[-1]
        epoch = config.start_epoch + last.number
        if run.epoch is None or epoch > run.epoch:
            # What was spent on steps that were not kept counts for the next that is.
            run.measure(epoch, Trained(last.loss, None, last.seconds - run.seconds, last.heldout_loss))
            run.seconds = last.seconds
        save_identification(job, now.as_dict())

    with run.noting(data.test):
        result = identify(
            run.net,
            fresh_batches(data, config, job.seed),
            base=run.start.base,
            target=config.target,
            steps=config.epochs,
            heldout=config.heldout,
            curvature=config.curvature,
            ridge=config.ridge,
            budget=config.budget,
            batch_size=config.batch_size,
            precision=config.precision,
            seed=job.seed,
            state=state,
            after_step=after_step,
        )
    save_json(job.folder / IDENTIFICATION, result.as_dict())
    log.info("%s", result)
    # A start without a finite loss can still be brought near: only the last step tells whether the run diverged.
    run.seconds = result.seconds
