"""Method "gradient": epochs of gradient steps on the train images, as in the paper.

Runs that tune the activations of one frozen network may be trained in lockstep: their common frozen prefix is computed
once for each minibatch, and each network takes its own step with the random numbers that it would draw alone, so that
the result is bit-identical to that of single runs.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from aafit.experiment.data.batches import derived_seed, evaluation_batches, training_batches
from aafit.experiment.data.datasets import Dataset
from aafit.experiment.runs import folder
from aafit.experiment.runs.documents import OPTIMIZER, STATE
from aafit.experiment.runs.method import LogOf
from aafit.networks.adaptive import training_mode
from aafit.networks.batches import Batch, as_batch
from aafit.networks.frozen_prefix import split_network
from aafit.networks.running import evaluation_mode
from aafit.training.evaluate import Batches
from aafit.training.precision import autocast, data_type
from aafit.training.predictor import Predictor
from aafit.training.tune import make_optimizers, mean_and_variance, train_epoch, train_step, trained_by

if TYPE_CHECKING:
    from aafit.experiment.runs.execute import ActiveRun

log = logging.getLogger("aafit")


def prepare(run: "ActiveRun") -> None:
    """Make the optimizers of a run and restore the state that it was stopped in."""
    settings = run.job.config
    if run.tuned:
        run.optimizers = make_optimizers(run.net, settings.optimizer, settings.lr, settings.p24sl, settings.dspu4)
    log.info("%d parameters to train for %d epochs on %s", run.tuned, settings.epochs, run.device)
    saved = run.load_state(run.device)
    if saved is None:
        if run.parents_optimizer is not None and run.job.parent is not None:
            with folder.readable_state(run.job.parent / OPTIMIZER):
                folder.resume_optimizers(run.net, run.optimizers, run.parents_optimizer)
        return
    with folder.readable_state(run.job.folder / STATE):
        run.net.load_state_dict(saved["net"])
        for optimizer, state in zip(run.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        run.epoch, run.seconds = int(saved["epoch"]), float(saved["seconds"])


def train(runs: Sequence["ActiveRun"], data: Dataset, log_of: LogOf) -> None:
    """Train epoch after epoch from where each run is; runs that are at the same epoch go in lockstep."""
    with ExitStack() as recordings:
        for run in runs:
            recordings.enter_context(run.recording(data.test, data.heldout))
            if run.epoch is None:
                with log_of(run.job):
                    run.measure(run.job.config.start_epoch)
        lockstep = None
        if len(runs) > 1:
            dtype = data_type(runs[0].job.config.precision)
            few_images, _ = next(evaluation_batches(data.test, batch_size=2, dtype=dtype))
            lockstep = Lockstep.of([run.net for run in runs], few_images)
        while left := [run for run in runs if run.has_epochs_left]:
            epoch = min(run.epoch or 0 for run in left)
            together = [run for run in left if run.epoch == epoch]
            began = time.perf_counter()
            losses = _train_epoch(together, lockstep, epoch, data)
            seconds = (time.perf_counter() - began) / len(together)
            for run, (loss, variance) in zip(together, losses, strict=True):
                run.seconds += seconds
                with log_of(run.job):
                    run.measure(epoch + 1, loss=loss, variance=variance, seconds=seconds)
                if run.diverged is None:
                    state = {"epoch": epoch + 1, "seconds": run.seconds, "net": run.net.state_dict()}
                    state["optimizers"] = [optimizer.state_dict() for optimizer in run.optimizers]
                    folder.save_run_state(run.job, state)


def _train_epoch(
    runs: Sequence["ActiveRun"], lockstep: "Lockstep | None", epoch: int, data: Dataset
) -> list[tuple[float, float]]:
    """Train one epoch of the runs, and return mean and variance of each one's losses."""
    # Runs in lockstep have seed and batches in common.
    seed, config = runs[0].job.seed, runs[0].job.config

    def batches() -> Batches:
        # Order, augmentation and dropout depend on seed and epoch alone, so that a resumed run sees the same.
        torch.manual_seed(derived_seed("dropout", seed, epoch))
        dtype = data_type(config.precision)
        return training_batches(data.train, config.batch_size, seed, epoch, config.augment, config.shuffle, dtype)

    if lockstep is None or len(runs) == 1:
        return [train_epoch(run.net, batches(), run.optimizers, config.precision) for run in runs]
    nets, optimizers = zip(*((run.net, run.optimizers) for run in runs), strict=True)
    return lockstep.train_epoch(nets, batches(), optimizers, config.precision)


@dataclass(frozen=True)
class Lockstep:
    """Networks that differ above a common frozen prefix only.

    Attributes:
        prefix: their common frozen prefix.
        rests: by network, what is left of it above the prefix; it shares the network's modules.
    """

    prefix: nn.Module
    rests: dict[nn.Module, nn.Module]

    @classmethod
    def of(cls, nets: Sequence[nn.Module], x_B: Tensor) -> "Lockstep | None":
        """Split the networks, tried on a few images; None if their prefixes differ or are empty."""
        prefixes: list[nn.Module] = []
        rests: dict[nn.Module, nn.Module] = {}
        for net in nets:
            with evaluation_mode(net):
                prefix, rests[net] = split_network(net, (x_B,))
                if prefix is None or len(prefix(x_B)) != 1:
                    return None
                prefixes.append(prefix)
        weights = [prefix.state_dict() for prefix in prefixes]
        same = {str(prefix) for prefix in prefixes} == {str(prefixes[0])} and all(
            torch.equal(tensor, other[name]) for name, tensor in weights[0].items() for other in weights[1:]
        )
        return cls(prefixes[0], rests) if same else None

    def train_epoch(
        self,
        nets: Sequence[nn.Module],
        batches: Batches,
        optimizers: Sequence[Sequence[Optimizer]],
        precision: str = "float32",
    ) -> list[tuple[float, float]]:
        """Train each network on these batches, bit-identical to `train_epoch`; mean and variance of its losses."""
        trained: list[list[list[Parameter]]] = [trained_by(of_net) for of_net in optimizers]
        losses: list[list[Tensor]] = [[] for _ in nets]
        for net in nets:
            training_mode(net)
        predictors = [Predictor(self.rests[net], precision=precision) for net in nets]
        last = len(nets) - 1
        for batch in map(as_batch, batches):
            with torch.no_grad(), autocast(precision, batch.device):
                (between_B,) = self.prefix(*batch.args)
            between = Batch((between_B,), {}, batch.target)
            devices = [batch.device] if batch.first.is_cuda else []
            for at, predictor in enumerate(predictors):
                # Each network draws its dropout from where the prefix left the generator; the last one advances it.
                with torch.random.fork_rng(devices, enabled=at < last):
                    losses[at].append(train_step(predictor, between, optimizers[at], trained[at]))
        return [mean_and_variance(of_net) for of_net in losses]
