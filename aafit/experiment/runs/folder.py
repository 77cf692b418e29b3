"""What a run writes into its folder, see documents.py: its settings, progress and results."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.experiment.data.datasets import Dataset
from aafit.experiment.runs.checkpoint import load_state, save_network, save_state
from aafit.experiment.runs.documents import (
    ACTIVATIONS,
    COMPARISON,
    CONFIG,
    IDENTIFICATION,
    METRICS,
    NETWORK,
    OPTIMIZER,
    STATE,
    Comparison,
    Config,
    Data,
    Done,
    Result,
)
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import Logger, MetricsFile, TensorBoardLogger, WandbLogger, read_columns
from aafit.experiment.runs.optimizer import save_optimizers
from aafit.files import sha256_of
from aafit.networks.adaptive import adaptive_parameters, save_activations
from aafit.training.precision import device_name
from aafit.version import __version__

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


def write_config(job: Job, device: torch.device, data: Dataset) -> None:
    """Note the settings before the first epoch; in a folder begun earlier, check that the images are the same.

    Raises:
        UserError: the run was begun on another copy of the data set.
    """
    known = Config.read(job.folder)
    if known is not None:
        if known.data.sha256 != data.fingerprint:
            raise UserError(
                f"{job.folder} was begun on another copy of {job.config.dataset} (SHA-256 {known.data.sha256[:12]}, "
                f"this one has {data.fingerprint[:12]}); give that copy as --data-dir, or --fresh to start again."
            )
        return
    Config(
        hash=job.settings_hash,
        run=job.config,
        seed=job.seed,
        parent=Path(os.path.relpath(job.parent, job.folder)) if job.parent else None,
        parent_hash=job.parent_hash,
        data=Data(sha256=data.fingerprint, in_shape=data.in_shape, classes=data.classes),
        environment=_environment(device),
    ).write(job.folder)


def _environment(device: torch.device) -> dict[str, str | int]:
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "aafit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "started": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_progress(
    job: Job, epoch: int, seconds: float, net: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write `state.pt`, from which a run stopped later goes on after `epoch`."""
    state = {
        "hash": job.settings_hash,
        "epoch": epoch,
        "seconds": seconds,
        "net": net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    save_state(job.folder / STATE, state)


def load_progress(
    job: Job, net: nn.Module, optimizers: list[torch.optim.Optimizer], device: torch.device
) -> tuple[int, float] | None:
    """Put `net` and `optimizers` where the stopped run was; its last epoch and training seconds, None if it had none.

    Raises:
        UserError: the state was truncated or altered, or belongs to other settings.
    """
    state = _load_state(job, device)
    if state is None:
        return None
    net.load_state_dict(state["net"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["epoch"], state["seconds"]


def save_identification(job: Job, values: dict[str, Any]) -> None:
    """Write `state.pt` for a run that identifies: where `aafit.identify` is."""
    save_state(job.folder / STATE, {"hash": job.settings_hash, "identification": values})


def load_identification(job: Job) -> dict[str, Any] | None:
    """What `save_identification` wrote, None if nothing.

    Raises:
        UserError: the state was truncated or altered, or belongs to other settings.
    """
    state = _load_state(job, torch.device("cpu"))
    return None if state is None else state["identification"]


def _load_state(job: Job, device: torch.device) -> dict[str, Any] | None:
    path = job.folder / STATE
    if not path.exists():
        return None
    state = load_state(path, device)
    if state["hash"] != job.settings_hash:
        raise UserError(f"{path} belongs to a run with other settings; give --fresh to set its folder aside.")
    return state


@contextmanager
def loggers(job: Job, net: nn.Module, last_epoch: int | None) -> Iterator[list[Logger]]:
    """Where the numbers of an epoch go: `metrics.csv`, kept up to `last_epoch`, and what else the job asks for.

    Raises:
        UserError: metrics.csv lacks an epoch up to `last_epoch`, the last that the saved state knows of.
    """
    measured = range(0) if last_epoch is None else range(job.config.start_epoch, last_epoch + 1)
    opened: list[Logger] = [MetricsFile(job.folder / METRICS, [*COLUMNS, *shared_values(net)], measured)]
    try:
        if job.tensorboard:
            opened.append(TensorBoardLogger(job.folder, last_epoch))
        if job.wandb:
            opened.append(
                WandbLogger(job.folder, f"{job.config.name}-seed{job.seed}", job.config.model_dump(mode="json"))
            )
        yield opened
    finally:
        for logger in opened:
            logger.close()


def shared_values(net: nn.Module) -> dict[str, float]:
    """Every value of the activations that a whole layer shares: `act1.gamma`, `act7.weight[0]`, ..."""
    values: dict[str, float] = {}
    for name, parameter in adaptive_parameters(net).items():
        if parameter.shape[0] == 1:
            flat = parameter.detach().flatten().tolist()
            names = [name] if len(flat) == 1 else [f"{name}[{index}]" for index in range(len(flat))]
            values.update(zip(names, flat, strict=True))
    return values


def finish(
    job: Job,
    net: nn.Module,
    start: dict[str, Tensor],
    replaced: dict[str, str],
    seconds: float,
    tuned: int,
    diverged: int | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Save what came out and, last, `done.json`, which makes the run finished.

    Args:
        start: the adaptive parameters before training, by name.
        replaced: the fixed function that stood at each replaced path.
        seconds: spent training.
        tuned: number of parameters trained.
        diverged: the epoch after which the loss was not finite: then there is a verdict, and no network to go on with.
        optimizers: of the training, none where nothing was trained by gradient steps.
    """
    folder = job.folder
    files = [CONFIG, METRICS]
    if diverged is None:
        save_network(folder / NETWORK, net)
        files.append(NETWORK)
    if optimizers and diverged is None:
        save_optimizers(folder, net, optimizers)
        files.append(OPTIMIZER)
    if start and diverged is None:
        save_activations(net, folder / ACTIVATIONS, start=start, replaced=replaced)
        files.append(ACTIVATIONS)
    files += [name for name in (COMPARISON, IDENTIFICATION) if (folder / name).exists()]
    Done(
        hash=job.settings_hash,
        sha256={name: sha256_of(folder / name) for name in files},
        finished=_now(),
        seconds=seconds,
        result=_result(folder, tuned, diverged),
    ).write(folder)
    (folder / STATE).unlink(missing_ok=True)


def _result(folder: Path, tuned: int, diverged: int | None) -> Result:
    """The figures that a table needs, out of `metrics.csv` and `compare.json`; accuracies are on the whole test set.

    Of a run that diverged there are none of what it was trained to.
    """
    columns, compared = read_columns(folder / METRICS), Comparison.read(folder)
    result = Result(tuned_parameters=tuned, epochs=len(columns["epoch"]) - 1, diverged=diverged)
    if compared is not None:
        both = compared.model_dump(include={"base_accuracy", "base_loss", "replaced_accuracy", "replaced_loss"})
        result = result.model_copy(update=both)
    counted = np.isfinite(columns["test_accuracy"])
    if diverged is not None or not counted.any():
        return result
    epoch, loss, accuracy, heldout = (
        columns[name][counted] for name in ("epoch", "test_loss", "test_accuracy", "heldout_accuracy")
    )
    best = int(accuracy.argmax())
    found: dict[str, Any] = {"last_accuracy": float(accuracy[-1]), "last_loss": float(loss[-1])}
    found |= {"best_test_epoch": int(epoch[best]), "best_test_accuracy": float(accuracy[best])}
    if np.isfinite(heldout).any():
        chosen = int(np.nanargmax(heldout))
        found |= {"heldout_epoch": int(epoch[chosen]), "heldout_selected_accuracy": float(accuracy[chosen])}
    return result.model_copy(update=found)
