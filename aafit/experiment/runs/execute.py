"""One run from start to end: read this first.

Load the data, build the starting network, replace its activations, compare it with its base, train it with a
measurement after each epoch, and write the results into the run's folder. Tables and figures are made from that folder.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aafit.errors import UserError
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Dataset, Split, load_dataset
from aafit.experiment.devices import choose_device
from aafit.experiment.runs import metrics
from aafit.experiment.runs.documents import METRICS, StoredComparison
from aafit.experiment.runs.folder import OptimizerState, finish, load_run_state, parents_optimizer, write_config
from aafit.experiment.runs.job import Job, is_done, learning_rate, verdict
from aafit.experiment.runs.process import locked, printing_to_log
from aafit.experiment.runs.start import starting_network
from aafit.identification import State, audit
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters, train_only_activations
from aafit.networks.surgery import Replacement
from aafit.tables import fit_for_json
from aafit.training.compare import compare
from aafit.training.curve_errors import curve_errors
from aafit.training.evaluate import Evaluation, repeated_evaluation
from aafit.training.precision import arithmetic, data_type
from aafit.training.tune import SLOWED

log = logging.getLogger("aafit")

AUDITED = 256  # number of images that the parameters are audited on

COLUMNS = (
    "epoch",
    "train_loss",
    "train_loss_variance",
    "heldout_loss",
    "heldout_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "lr_slow",
    "seconds",
    "evaluation_seconds",
)
"""The columns of metrics.csv, besides the shared parameters of activations."""


@dataclass
class ActiveRun:
    """A run under way.

    Attributes:
        job: the run.
        device: where it is trained.
        net: the network that it trains.
        base: the network whose activations were replaced, None if none were.
        replacement: the report of the replacement.
        initial_values: the adaptive parameters before training, by name.
        parents_optimizer: the optimizer state to continue with, None to start anew.
        tuned: number of parameters that are trained.
        optimizers: of a method that takes gradient steps.
        identification: state that an identification resumes from.
        epoch: the last one that was measured, None before the first.
        seconds: training time; of an epoch in lockstep with other runs, an equal share.
        diverged: the epoch after which the loss was not finite, None if it is finite.
    """

    job: Job
    device: torch.device
    net: nn.Module
    base: nn.Module | None
    replacement: Replacement | None
    initial_values: dict[str, Tensor]
    parents_optimizer: OptimizerState | None
    tuned: int = 0
    optimizers: list[Optimizer] = field(default_factory=list)
    identification: State | None = None
    epoch: int | None = None
    seconds: float = 0.0
    diverged: int | None = None
    _metrics_digest: str | None = None
    _writers: Sequence[metrics.WriteRow] = ()
    _evaluators: dict[str, Callable[[], Evaluation]] = field(default_factory=dict)

    @property
    def has_epochs_left(self) -> bool:
        return self.diverged is None and (self.epoch is None or self.epoch < self.job.config.end_epoch)

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state that the run was stopped in, its tensors on `device`; None if it has not begun."""
        state = load_run_state(self.job, device)
        self._metrics_digest = None if state is None else state.get("metrics")
        return state

    @contextmanager
    def recording(self, test: Split, heldout: Split | None = None) -> Iterator[None]:
        """Open what the measurements go to, metrics.csv and what the job asks for besides; prepare the evaluations.

        Rows of metrics.csv after `epoch`, the last one that the saved state includes, are dropped.
        """
        job, epoch = self.job, self.epoch
        measured = range(0) if epoch is None else range(job.config.start_epoch, epoch + 1)
        columns = [*COLUMNS, *shared_values(self.net)]
        writers = [metrics.metrics_file(job.folder / METRICS, columns, measured, self._metrics_digest)]
        if job.tensorboard:
            writers.append(metrics.tensorboard(job.folder, epoch))
        if job.wandb:
            name = f"{job.config.name}-seed{job.seed}"
            writers.append(metrics.wandb(job.folder, name, job.config.model_dump(mode="json")))
        splits = {"test": test} if heldout is None else {"heldout": heldout, "test": test}
        with ExitStack() as stack:
            self._writers = [stack.enter_context(writer) for writer in writers]
            self._evaluators = {name: self._evaluator(split) for name, split in splits.items()}
            yield

    def _evaluator(self, split: Split) -> Callable[[], Evaluation]:
        precision = self.job.config.precision
        return repeated_evaluation(self.net, lambda: evaluation_batches(split, dtype=data_type(precision)), precision)

    def measure(
        self,
        epoch: int,
        *,
        loss: float | None = None,
        variance: float | None = None,
        seconds: float | None = None,
        heldout_loss: float | None = None,
    ) -> None:
        """Evaluate the network as it is after `epoch`, and record all measurements of that epoch.

        A network whose loss is not finite gets no accuracy: it predicts the first class for every image.

        Args:
            epoch: its number.
            loss: mean training loss of the epoch; None before any training.
            variance: variance of the training losses over the minibatches.
            seconds: training time of the epoch.
            heldout_loss: loss on held-out images, if training evaluated it.
        """
        began = time.perf_counter()
        evaluations = {name: evaluate() for name, evaluate in self._evaluators.items()}
        evaluation_seconds = time.perf_counter() - began
        test, heldout = evaluations["test"], evaluations.get("heldout")
        config, rate = self.job.config, learning_rate(self.job.config)
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "train_loss_variance": variance,
            "heldout_loss": heldout.loss if heldout else heldout_loss,
            "heldout_accuracy": heldout.accuracy if heldout and math.isfinite(heldout.loss) else None,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy if math.isfinite(test.loss) else None,
            "lr": rate,
            "lr_slow": rate / SLOWED[config.optimizer] if config.p24sl else None,
            "seconds": seconds,
            "evaluation_seconds": evaluation_seconds,
            **shared_values(self.net),
        }
        for write in self._writers:
            write(row)
        finite = math.isfinite(test.loss) and (loss is None or math.isfinite(loss))
        training = "" if loss is None else f"train loss {loss:.4f}, "
        tested = f"test {test}" if finite else "diverged: the loss is not finite"
        log.info("epoch %d: %s%s%s", epoch, training, tested, "" if seconds is None else f", {seconds:.1f} s")
        self.epoch, self.diverged = epoch, None if finite else epoch


def shared_values(net: nn.Module) -> dict[str, float]:
    """Return the parameters of activations that are shared by a layer: `act1.gamma`, `act7.weight[0]`, ..."""
    values: dict[str, float] = {}
    for name, parameter in adaptive_parameters(net).items():
        if parameter.shape[0] == 1:
            flat = parameter.detach().flatten().tolist()
            names = [name] if len(flat) == 1 else [f"{name}[{index}]" for index in range(len(flat))]
            values.update(zip(names, flat, strict=True))
    return values


def execute(*jobs: Job, data: Dataset | None = None, patience: float = 0.0) -> None:
    """Do one run, or the rest of one that was stopped; or several runs of one `lockstep_group` in lockstep.

    Finished runs are left unchanged. Of several runs, each prints to the log.txt of its folder.

    Args:
        jobs: the runs.
        data: the images, if they are loaded already; otherwise the first job's data set is loaded.
        patience: how long to wait for a folder that another process works in, in seconds.
    """
    first = jobs[0]
    log_of = printing_to_log if len(jobs) > 1 else nullcontext
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.folder, patience))
        stack.enter_context(arithmetic(first.config.precision, first.threads))
        left = [job for job in jobs if not is_done(job) and verdict(job) is None]
        if not left:
            _raise_verdicts(jobs)
            log.info("already done: %s", first.folder)
            return
        device = choose_device(first.device)
        if data is None:
            data = load_dataset(first.config.dataset, first.data_dir, first.config.holdout, first.config.train_images)
        data = data.to(device)
        runs = []
        for job in left:
            with log_of(job):
                runs.append(begin(job, data, device))
        first.config.training.implementation.train(runs, data, log_of)
        for run in runs:
            with log_of(run.job):
                finish(run)
    _raise_verdicts(jobs)


def _raise_verdicts(jobs: Sequence[Job]) -> None:
    """Raise a UserError if runs diverged, so that their children are not started."""
    verdicts = [sentence for sentence in map(verdict, jobs) if sentence is not None]
    if verdicts:
        raise UserError(" ".join(verdicts))


def begin(job: Job, data: Dataset, device: torch.device) -> ActiveRun:
    """Build the network that a run trains, compare it with its base, and restore the state it was stopped in."""
    # Before anything is written: an unusable parent or checkpoint must not leave a folder that refuses a better one.
    optimizer_state = parents_optimizer(job)
    net, base, replacement = starting_network(job, data, device)
    if optimizer_state is not None and replacement is not None:
        raise UserError(
            f"resume_optimizer = true, but the activations of the run in {job.parent} are replaced, and so the "
            "optimizer starts anew: drop resume_optimizer."
        )
    write_config(job, device, data)
    initial_values = {name: tensor.detach().cpu().clone() for name, tensor in adaptive_parameters(net).items()}
    run = ActiveRun(job, device, net, base, replacement, initial_values, optimizer_state)
    compare_with_base(run, data)
    run.tuned = sum(parameter.numel() for parameter in choose_trained(net, job.config.train))
    audit_parameters(run, data)
    job.config.training.implementation.prepare(run)
    return run


def choose_trained(net: nn.Module, train: str) -> list[nn.Parameter]:
    """Freeze what is not to be trained ("all", "activations", "none") and return the other parameters."""
    if train == "activations":
        return train_only_activations(net)
    net.requires_grad_(train == "all")
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare_with_base(run: ActiveRun, data: Dataset) -> None:
    """Write what the replacement changed: on the test images, and of each activation as a function."""
    folder, precision = run.job.folder, run.job.config.precision
    if run.base is None or run.replacement is None or StoredComparison.read(folder) is not None:
        return
    log.info("%s", run.replacement)
    comparison = compare(run.base, run.net, evaluation_batches(data.test, dtype=data_type(precision)), precision)
    log.info("%s", comparison)
    curves = [
        {"path": row.path, "old": row.old, "new": row.new, **vars(error)}
        for row in run.replacement.rows
        for error in curve_errors(run.net.get_submodule(row.path), run.base.get_submodule(row.path))
    ]
    values = {**comparison.as_dict(), "curves": curves}
    for which in ("base", "replaced"):
        # A network whose loss is not finite predicts the first class, which is no accuracy of 10%.
        if values[f"{which}_loss"] is None or not math.isfinite(values[f"{which}_loss"]):
            values[f"{which}_accuracy"] = None
    StoredComparison.model_validate(fit_for_json(values)).write(folder)


def audit_parameters(run: ActiveRun, data: Dataset) -> None:
    """Log, before the first epoch, which adaptive parameters the optimizer can move."""
    config, dtype = run.job.config, data_type(run.job.config.precision)
    begun = (run.job.folder / METRICS).exists()
    if begun or config.train == "none" or not config.epochs or not adaptive_activations(run.net):
        return
    batches = evaluation_batches(data.heldout or data.train, dtype=dtype)
    report = audit(run.net, batches, optimizer=config.optimizer, lr=config.lr, p24sl=config.p24sl, samples=AUDITED)
    log.info("%s", report)
