"""One run from start to end: the map of the program.

data -> starting network, its activations replaced -> comparison with the base -> training, measured each epoch ->
results. All that is found out goes into the run's folder (see `runfolder`); tables and pictures are made from that.

`python -m aafit.execute` reads a job as one line of JSON on its standard input and does it. It ends when that input is
closed, so that it does not outlive the program that started it.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from types import FrameType

import torch
from pydantic import ValidationError
from torch import nn

from aafit.batches import derived_seed, evaluation_batches, training_batches
from aafit.checkpoint import save_json
from aafit.compare import compare, curve_errors
from aafit.data import Dataset, load_dataset
from aafit.errors import UserError
from aafit.evaluate import Evaluation
from aafit.gradient import SLOWED, make_optimizers, train_epoch
from aafit.identification import State, audit, identify
from aafit.job import Job, is_done
from aafit.metrics import Logger
from aafit.precision import arithmetic, choose_device, data_type
from aafit.repeated import repeated_evaluation
from aafit.runfolder import (
    finish,
    load_identification,
    load_progress,
    locked,
    loggers,
    save_identification,
    save_progress,
    shared_values,
    write_config,
)
from aafit.start import Start, starting_network
from aafit.trainable import adaptive_activations, train_only_activations

log = logging.getLogger("aafit")

AUDITED = 256  # images to look at the parameters on
AUGMENTED = 5000  # train images to identify on where none are held out


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


def execute(job: Job) -> None:
    """Do one run, or what is left of it. A finished one is left as it is.

    Raises:
        UserError: another process works in the folder; it holds a run with other settings; the data, the parent's
            network or the state to go on from cannot be used.
    """
    with locked(job.folder), arithmetic(job.run.precision, job.threads):
        if is_done(job):
            log.info("already done: %s", job.folder)
            return
        run = job.run
        device = choose_device(job.device)
        data = load_dataset(run.dataset, job.data_dir, run.holdout, run.train_images).to(device)
        write_config(job, device, data)

        start = starting_network(job, data).to(device, run.precision)
        starting_values = start.values()
        compare_with_base(job, start, data)

        net = start.net
        trained = choose_trained(net, run.train)
        tuned = sum(parameter.numel() for parameter in trained)
        look_at_parameters(job, start, data)
        if run.method == "gauss-newton":
            seconds = identify_run(job, start, data)
        else:
            seconds = train_run(job, net, trained, data, device)
        replaced = {row.path: row.old for row in start.swap.rows} if start.swap else {}
        finish(job, net, starting_values, replaced, seconds, tuned)


def train_run(job: Job, net: nn.Module, trained: list[nn.Parameter], data: Dataset, device: torch.device) -> float:
    """Train by gradient steps, epoch after epoch, from where the run was; the seconds it took."""
    run = job.run
    optimizers = make_optimizers(net, run.optimizer, run.lr, run.p24sl, run.dspu4) if trained else []
    log.info("%d parameters to train for %d epochs on %s", sum(p.numel() for p in trained), run.epochs, device)
    progress = load_progress(job, net, optimizers, device)
    last_epoch, seconds = progress or (None, 0.0)
    evaluations = repeated_evaluations(data, net, run.precision)
    with loggers(job, net, last_epoch) as outputs:
        if last_epoch is None:
            measure(job, run.start_epoch, net, evaluations, outputs)
            last_epoch = run.start_epoch
        for epoch in range(last_epoch, run.end_epoch):
            # Order, augmentation and dropout depend on seed and epoch alone, so that a resumed run sees the same.
            torch.manual_seed(derived_seed("dropout", job.seed, epoch))
            batches = training_batches(
                data.train, run.batch_size, job.seed, epoch, run.augment, run.shuffle, data_type(run.precision)
            )
            began = time.perf_counter()
            loss, variance = train_epoch(net, batches, optimizers, run.precision)
            spent = time.perf_counter() - began
            seconds += spent
            measure(job, epoch + 1, net, evaluations, outputs, loss, variance, spent)
            save_progress(job, epoch + 1, seconds, net, optimizers)
    return seconds


def identify_run(job: Job, start: Start, data: Dataset) -> float:
    """Identify by Gauss-Newton, step after step, from where the run was; the seconds it took.

    On the images that the base network was not trained on; where none are held out, on train images, augmented.
    """
    run, net = job.run, start.net
    dtype = data_type(run.precision)
    saved = load_identification(job)
    state = None if saved is None else State.from_dict(saved)
    test = repeated_evaluation(net, data.test, run.precision)
    with loggers(job, net, None if state is None else run.start_epoch + state.steps[-1].number) as outputs:
        # What was spent on steps that were not kept counts for the next that is.
        noted = state.steps[-1].seconds if state else 0.0

        def after_step(now: State) -> None:
            nonlocal state, noted
            if state is None or len(now.steps) > len(state.steps):
                last = now.steps[-1]
                spent, noted = last.seconds - noted, last.seconds
                evaluations = Evaluations(test, lambda: HeldOut(last.heldout_loss))
                measure(job, run.start_epoch + last.number, net, evaluations, outputs, last.loss, None, spent)
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
            base=start.base,
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
    return result.seconds


def repeated_evaluations(data: Dataset, net: nn.Module, precision: str) -> Evaluations:
    """On the test images and, where some are held out, on those."""
    heldout = None if data.heldout is None else repeated_evaluation(net, data.heldout, precision)
    return Evaluations(repeated_evaluation(net, data.test, precision), heldout)


def choose_trained(net: nn.Module, train: str) -> list[nn.Parameter]:
    """Freeze what is not to be trained ("all", "activations", "none") and return the rest."""
    if train == "activations":
        return train_only_activations(net)
    net.requires_grad_(train == "all")
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare_with_base(job: Job, start: Start, data: Dataset) -> None:
    """Write what the replacement changed: on the test images, and of each activation as a function."""
    path = job.folder / "compare.json"
    if start.base is None or start.swap is None or path.exists():
        return
    log.info("%s", start.swap)
    batches = evaluation_batches(data.test, dtype=data_type(job.run.precision))
    comparison = compare(start.base, start.net, batches, job.run.precision)
    log.info("%s", comparison)
    curves = [
        {"path": row.path, "old": row.old, "new": row.new, **vars(error)}
        for row in start.swap.rows
        for error in curve_errors(start.net.get_submodule(row.path), start.base.get_submodule(row.path))
    ]
    save_json(path, {**comparison.as_dict(), "curves": curves})


def look_at_parameters(job: Job, start: Start, data: Dataset) -> None:
    """Say of each adaptive parameter, before the first epoch, whether the optimizer can move it."""
    run, dtype = job.run, data_type(job.run.precision)
    begun = (job.folder / "metrics.csv").exists()
    if begun or run.train == "none" or not run.epochs or not adaptive_activations(start.net):
        return
    batches = evaluation_batches(data.heldout or data.train, dtype=dtype)
    log.info("%s", audit(start.net, batches, optimizer=run.optimizer, lr=run.lr, p24sl=run.p24sl, images=AUDITED))


def measure(
    job: Job,
    epoch: int,
    net: nn.Module,
    evaluations: Evaluations,
    outputs: Sequence[Logger],
    train_loss: float | None = None,
    train_loss_variance: float | None = None,
    seconds: float | None = None,
) -> None:
    """Evaluate the network as it is after `epoch`, and note all numbers of that epoch."""
    began = time.perf_counter()
    heldout = evaluations.heldout() if evaluations.heldout else None
    test = evaluations.test()
    row = {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_loss_variance": train_loss_variance,
        "heldout_loss": heldout.loss if heldout else None,
        "heldout_accuracy": heldout.accuracy if heldout else None,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "lr": job.run.learning_rate,
        "lr_slow": job.run.learning_rate / SLOWED[job.run.optimizer] if job.run.p24sl else None,
        "seconds": seconds,
        "evaluation_seconds": time.perf_counter() - began,
        **shared_values(net),
    }
    for output in outputs:
        output.write(row)
    training = "" if train_loss is None else f"train loss {train_loss:.4f}, "
    log.info("epoch %d: %stest %s%s", epoch, training, test, "" if seconds is None else f", {seconds:.1f} s")


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_input() -> None:
    """End this process at once when its standard input is closed: a run may be stopped at any moment."""
    sys.stdin.read()
    os._exit(128 + signal.SIGTERM)


def _read_job(line: str) -> Job:
    try:
        return Job.model_validate_json(line)
    except ValidationError as error:
        raise UserError(
            f"This is not a job: {error.errors()[0]['msg']}. `aafit run` and `aafit train` make jobs."
        ) from error


def main() -> int:
    """Do the job on standard input; 0 when done, 2 for what the user can mend, 128 + n when stopped by signal n."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        job = _read_job(sys.stdin.readline())
        threading.Thread(target=_end_with_input, daemon=True).start()
        execute(job)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
