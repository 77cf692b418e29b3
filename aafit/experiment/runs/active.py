"""A run under way: what it trains, how far it is, and how each of its epochs is measured and recorded."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Split
from aafit.experiment.runs import folder
from aafit.experiment.runs.folder import OptimizerState
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import WriteRow
from aafit.identification import State
from aafit.networks.surgery import Replacement
from aafit.training.evaluate import Evaluation, repeated_evaluation
from aafit.training.precision import data_type
from aafit.training.tune import SLOWED

log = logging.getLogger("aafit")


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
    _writers: Sequence[WriteRow] = ()
    _evaluators: dict[str, Callable[[], Evaluation]] = field(default_factory=dict)

    @property
    def has_epochs_left(self) -> bool:
        return self.diverged is None and (self.epoch is None or self.epoch < self.job.config.end_epoch)

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state that the run was stopped in, its tensors on `device`; None if it has not begun."""
        state = folder.load_run_state(self.job, device)
        self._metrics_digest = None if state is None else state.get("metrics")
        return state

    @contextmanager
    def recording(self, test: Split, heldout: Split | None = None) -> Iterator[None]:
        """Open the files that the measurements go to, and prepare to evaluate the network on these images."""
        splits = {"test": test} if heldout is None else {"heldout": heldout, "test": test}
        with folder.row_writers(self.job, self.net, self.epoch, self._metrics_digest) as self._writers:
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
        test, heldout, job = evaluations["test"], evaluations.get("heldout"), self.job
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "train_loss_variance": variance,
            "heldout_loss": heldout.loss if heldout else heldout_loss,
            "heldout_accuracy": heldout.accuracy if heldout and math.isfinite(heldout.loss) else None,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy if math.isfinite(test.loss) else None,
            "lr": job.learning_rate,
            "lr_slow": job.learning_rate / SLOWED[job.config.optimizer] if job.config.p24sl else None,
            "seconds": seconds,
            "evaluation_seconds": evaluation_seconds,
            **folder.shared_values(self.net),
        }
        for write in self._writers:
            write(row)
        finite = math.isfinite(test.loss) and (loss is None or math.isfinite(loss))
        training = "" if loss is None else f"train loss {loss:.4f}, "
        tested = f"test {test}" if finite else "diverged: the loss is not finite"
        log.info("epoch %d: %s%s%s", epoch, training, tested, "" if seconds is None else f", {seconds:.1f} s")
        self.epoch, self.diverged = epoch, None if finite else epoch
