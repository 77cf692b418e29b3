"""Method "gauss-newton": the activations are identified on images that the network was not trained on.

An epoch is a step of `aafit.identify`.
"""

import logging
import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from aafit.experiment.data.batches import evaluation_batches, training_batches
from aafit.experiment.data.datasets import Dataset
from aafit.experiment.runs import folder
from aafit.experiment.runs.documents import IDENTIFICATION, STATE, save_json
from aafit.experiment.runs.method import LogOf
from aafit.identification import State, identify
from aafit.training.evaluate import Batches
from aafit.training.precision import data_type

if TYPE_CHECKING:
    from aafit.experiment.runs.config import RunConfig
    from aafit.experiment.runs.execute import ActiveRun

log = logging.getLogger("aafit")

AUGMENTED = 5000
"""Number of augmented train images to identify on if none are held out."""


def unseen_batches(data: Dataset, run: "RunConfig", seed: int) -> Batches:
    """Return batches of the held-out images; augmented train images if none are held out."""
    dtype = data_type(run.precision)
    if data.heldout is not None:
        return evaluation_batches(data.heldout, dtype=dtype)
    augmented = training_batches(data.train, run.batch_size, seed, 0, run.augment, run.shuffle, dtype)
    return islice(augmented, math.ceil(AUGMENTED / run.batch_size))


def prepare(run: "ActiveRun") -> None:
    """Restore the state that a run was stopped in."""
    saved = run.load_state(torch.device("cpu"))
    if saved is not None:
        with folder.readable_state(run.job.folder / STATE):
            run.identification = State.from_dict(saved["identification"])
            last = run.identification.steps[-1]
            run.epoch, run.seconds = run.job.config.start_epoch + last.number, last.seconds


def train(runs: Sequence["ActiveRun"], data: Dataset, log_of: LogOf) -> None:
    """Identify the activations of the run, an epoch for each step."""
    (run,) = runs
    config = run.job.config

    def after_step(state: State) -> None:
        last = state.steps[-1]
        epoch = config.start_epoch + last.number
        if run.epoch is None or epoch > run.epoch:
            # The time of rejected steps counts for the next accepted one.
            run.measure(epoch, loss=last.loss, seconds=last.seconds - run.seconds, heldout_loss=last.heldout_loss)
            run.seconds = last.seconds
        folder.save_run_state(run.job, {"identification": state.as_dict()})

    with run.recording(data.test):
        result = identify(
            run.net,
            unseen_batches(data, config, run.job.seed),
            base=run.base,
            target=config.target,
            steps=config.epochs,
            heldout=config.heldout,
            curvature=config.curvature,
            prior=None if config.prior == "none" else config.prior,
            budget=config.budget,
            batch_size=config.batch_size,
            precision=config.precision,
            seed=run.job.seed,
            state=run.identification,
            after_step=after_step,
            verbose=False,
        )
    save_json(run.job.folder / IDENTIFICATION, result.as_dict())
    log.info("%s", result)
    run.seconds = result.seconds
