"""What an optimizer knows of its parameters, kept with a finished run, so that another run goes on from there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from aafit.errors import UserError
from aafit.experiment.runs.checkpoint import load_state, save_state
from aafit.experiment.runs.documents import OPTIMIZER, Config, check_finished
from aafit.experiment.runs.job import Job

Kept = Mapping[str, Mapping[str, Any]]
"""By the parameter's name: Adam's moments and steps, RMSprop's mean square."""


def save_optimizers(folder: Path, net: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Write `optimizer.pt`: the state of each parameter of `net` by its name, whichever optimizer has it."""
    kept: dict[str, dict[str, Any]] = {}
    for optimizer in optimizers:
        state = optimizer.state_dict()["state"]
        kept |= {name: state[index] for index, name in _names(net, optimizer).items() if index in state}
    save_state(folder / OPTIMIZER, {"parameters": kept})


def keeps_optimizer(folder: Path) -> bool:
    """Whether the finished run in `folder` kept one: not so where nothing was trained by gradient steps."""
    return OPTIMIZER in check_finished(folder).sha256


def parents_optimizer(job: Job) -> Kept | None:
    """What the job's parent kept; None where the job starts its optimizer afresh.

    Raises:
        UserError: it is to go on with one that is not there, or is of another kind.
    """
    if not job.config.resume_optimizer:
        return None
    if job.parent is None:
        raise UserError("resume_optimizer = true goes on with the parent's optimizer, but there is no parent: drop it.")
    if not keeps_optimizer(job.parent):
        raise UserError(
            f"resume_optimizer = true, but the run in {job.parent} kept no optimizer (it took no gradient steps, or is "
            "of an older version): drop resume_optimizer, or run it again with --fresh."
        )
    kind = Config.of(job.parent).run.optimizer
    if kind != job.config.optimizer:
        raise UserError(
            f"resume_optimizer = true, but the run in {job.parent} was trained by {kind}, not by "
            f"{job.config.optimizer}: give the same optimizer, or drop resume_optimizer."
        )
    kept: Kept = load_state(job.parent / OPTIMIZER, torch.device("cpu"))["parameters"]
    return kept


def resume_optimizers(net: nn.Module, optimizers: Sequence[Optimizer], kept: Kept) -> None:
    """Put the optimizers where `kept` was; a parameter that it does not know starts afresh."""
    for optimizer in optimizers:
        names = _names(net, optimizer)
        state = {index: kept[name] for index, name in names.items() if name in kept}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _names(net: nn.Module, optimizer: Optimizer) -> dict[int, str]:
    """The names of an optimizer's parameters, numbered as in its `state_dict`."""
    of = {parameter: name for name, parameter in net.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: of[parameter] for index, parameter in enumerate(parameters)}
