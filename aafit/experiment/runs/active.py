"""A run under way: what it trains, how far it is, and how each of its epochs is measured and noted."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer

from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Split
from aafit.experiment.runs.folder import loggers, shared_values
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import Logger
from aafit.experiment.runs.start import Start
from aafit.training.evaluate import Evaluation, repeated_evaluation
from aafit.training.precision import data_type
from aafit.training.tune import SLOWED

log = logging.getLogger("aafit")

Evaluator = Callable[[], Evaluation]


@dataclass(frozen=True)
class Trained:
    """What an epoch of training gave: the mean and the variance of its losses, and the seconds that it took.

    `heldout_loss` is given where training itself has evaluated images held out. Before any training all are None.
    """

    loss: float | None = None
    variance: float | None = None
    seconds: float | None = None
    heldout_loss: float | None = None


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
    _loggers: Sequence[Logger] = ()
    _evaluators: dict[str, Evaluator] = field(default_factory=dict)

    @property
    def net(self) -> nn.Module:
        return self.start.net

    @property
    def goes_on(self) -> bool:
        """Whether there are epochs left to train."""
        return self.diverged is None and (self.epoch is None or self.epoch < self.job.config.end_epoch)

    @contextmanager
    def noting(self, test: Split, heldout: Split | None = None) -> Iterator[None]:
        """Open the files that its numbers go to, and prepare to evaluate it on these images."""
        splits = {"test": test} if heldout is None else {"heldout": heldout, "test": test}
        with loggers(self.job, self.net, self.epoch) as self._loggers:
            self._evaluators = {name: self._evaluator(split) for name, split in splits.items()}
            yield

    def _evaluator(self, split: Split) -> Evaluator:
        precision = self.job.config.precision
        return repeated_evaluation(self.net, lambda: evaluation_batches(split, dtype=data_type(precision)), precision)

    def measure(self, epoch: int, trained: Trained = Trained()) -> None:
        """Evaluate the network as it is after `epoch`, and note all numbers of that epoch.

        A network whose loss is not finite has no accuracy: it predicts the first class whatever it is shown.
        """
        began = time.perf_counter()
        found = {name: evaluate() for name, evaluate in self._evaluators.items()}
        evaluation_seconds = time.perf_counter() - began
        test, heldout, job = found["test"], found.get("heldout"), self.job
        row = {
            "epoch": epoch,
            "train_loss": trained.loss,
            "train_loss_variance": trained.variance,
            "heldout_loss": heldout.loss if heldout else trained.heldout_loss,
            "heldout_accuracy": heldout.accuracy if heldout and math.isfinite(heldout.loss) else None,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy if math.isfinite(test.loss) else None,
            "lr": job.learning_rate,
            "lr_slow": job.learning_rate / SLOWED[job.config.optimizer] if job.config.p24sl else None,
            "seconds": trained.seconds,
            "evaluation_seconds": evaluation_seconds,
            **shared_values(self.net),
        }
        for output in self._loggers:
            output.write(row)
        finite = math.isfinite(test.loss) and (trained.loss is None or math.isfinite(trained.loss))
        training = "" if trained.loss is None else f"train loss {trained.loss:.4f}, "
        tested = f"test {test}" if finite else "diverged: the loss is not finite"
        log.info(
            "epoch %d: %s%s%s", epoch, training, tested, "" if trained.seconds is None else f", {trained.seconds:.1f} s"
        )
        self.epoch, self.diverged = epoch, None if finite else epoch
