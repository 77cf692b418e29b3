"""How a run writes its folder and resumes from it: settings, saved state, network, optimizer, results.

documents.py names the files. A file is written as a whole or not at all, and refused if a byte of it was altered.
"""

import hashlib
import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.optim import Optimizer

from aafit.errors import UserError
from aafit.experiment.data.datasets import Dataset
from aafit.experiment.runs import metrics
from aafit.experiment.runs.documents import (
    ACTIVATIONS,
    COMPARISON,
    CONFIG,
    FORMAT,
    IDENTIFICATION,
    METRICS,
    NETWORK,
    OPTIMIZER,
    STATE,
    Config,
    Data,
    Done,
    Result,
    StoredComparison,
    check_finished,
)
from aafit.experiment.runs.job import Job
from aafit.files import read_file, sha256_of, write_atomically
from aafit.networks.saving import save_activations
from aafit.training.precision import device_name
from aafit.version import __version__

if TYPE_CHECKING:
    from aafit.experiment.runs.execute import ActiveRun

DIGEST_BYTES = hashlib.sha256().digest_size

OptimizerState = Mapping[str, Mapping[str, Any]]
"""By the parameter's name: Adam's moments and step, RMSprop's mean square."""


def write_config(job: Job, device: torch.device, data: Dataset) -> None:
    """Write the settings before the first epoch; in a folder that has them, check that the images are the same."""
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
        environment={
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "aafit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "started": _now(),
        },
    ).write(job.folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save the state of a run: the bytes of `torch.save`, followed by their SHA-256."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest())


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Return the state that `save_state` saved."""
    content = read_file(path)
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(f"{path} is truncated or was altered; remove it to start this run again from its beginning.")
    try:
        state = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    # The file is a program for torch's unpickler: crafted bytes can end in any error.
    except Exception as error:
        raise _not_a_state(path) from error
    if not isinstance(state, dict):
        raise _not_a_state(path)
    return state


def _not_a_state(path: Path) -> UserError:
    return UserError(
        f"{path} does not hold what a run with these settings saves; remove it or give --fresh to start that run again "
        "from its beginning."
    )


@contextmanager
def readable_state(path: Path) -> Iterator[None]:
    """Turn an error in this block, which reads the saved state in `path`, into a sentence."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _not_a_state(path) from error


def save_run_state(job: Job, values: Mapping[str, Any]) -> None:
    """Write `state.pt`: what a stopped run resumes from, and the SHA-256 of the rows that were measured so far."""
    vouched = {"format": FORMAT, "hash": job.settings_hash, "metrics": sha256_of(job.folder / METRICS)}
    save_state(job.folder / STATE, {**vouched, **values})


def load_run_state(job: Job, device: torch.device) -> dict[str, Any] | None:
    """Return what `save_run_state` wrote, None if nothing."""
    path = job.folder / STATE
    if not path.exists():
        return None
    state = load_state(path, device)
    if state.get("hash") != job.settings_hash:
        raise UserError(f"{path} belongs to a run with other settings; give --fresh to set its folder aside.")
    return state


def save_network(path: Path, net: nn.Module) -> None:
    """Save all parameters and buffers of `net` as safetensors."""
    # The configuration of the run has what F-Neurons keep as extra state.
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in net.state_dict().items()
        if not name.endswith("_extra_state")
    }
    write_atomically(path, tensors_to_bytes(tensors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name."""
    content = read_file(path)
    try:
        return tensors_from_bytes(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}).") from error


def has_optimizer(folder: Path) -> bool:
    """Return whether the finished run in `folder` saved an optimizer: not so if it took no gradient steps."""
    return OPTIMIZER in check_finished(folder).sha256


def parents_optimizer(job: Job) -> OptimizerState | None:
    """Return the optimizer state that the job continues with, None if its optimizer starts anew."""
    if not job.config.resume_optimizer:
        return None
    if job.parent is None:
        raise UserError("resume_optimizer = true continues the parent's optimizer, but there is no parent: drop it.")
    if not has_optimizer(job.parent):
        raise UserError(
            f"resume_optimizer = true, but the run in {job.parent} saved no optimizer, since it took no gradient "
            "steps: drop resume_optimizer."
        )
    kind = Config.of(job.parent).run.optimizer
    if kind != job.config.optimizer:
        raise UserError(
            f"resume_optimizer = true, but the run in {job.parent} was trained by {kind}, not by "
            f"{job.config.optimizer}: give the same optimizer, or drop resume_optimizer."
        )
    with readable_state(job.parent / OPTIMIZER):
        states: OptimizerState = load_state(job.parent / OPTIMIZER, torch.device("cpu"))["parameters"]
    return states


def resume_optimizers(net: nn.Module, optimizers: Sequence[Optimizer], states: OptimizerState) -> None:
    """Put the optimizers into these states; a parameter without one starts anew."""
    for optimizer in optimizers:
        names = _names(net, optimizer)
        state = {index: states[name] for index, name in names.items() if name in states}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _names(net: nn.Module, optimizer: Optimizer) -> dict[int, str]:
    """Return the names of an optimizer's parameters, numbered as in its `state_dict`."""
    of = {parameter: name for name, parameter in net.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: of[parameter] for index, parameter in enumerate(parameters)}


def finish(run: "ActiveRun") -> None:
    """Save the results of a run and, last, `done.json`, which makes it finished.

    A run that diverged has a result that says so, and no network.
    """
    job, folder, net = run.job, run.job.folder, run.net
    files = [CONFIG, METRICS]
    if run.diverged is None:
        save_network(folder / NETWORK, net)
        files.append(NETWORK)
        if run.optimizers:
            states: dict[str, dict[str, Any]] = {}
            for optimizer in run.optimizers:
                state = optimizer.state_dict()["state"]
                states |= {name: state[index] for index, name in _names(net, optimizer).items() if index in state}
            save_state(folder / OPTIMIZER, {"parameters": states})
            files.append(OPTIMIZER)
        if run.initial_values:
            replaced = {row.path: row.old for row in run.replacement.rows} if run.replacement else {}
            save_activations(net, folder / ACTIVATIONS, start=run.initial_values, replaced=replaced)
            files.append(ACTIVATIONS)
    files += [name for name in (COMPARISON, IDENTIFICATION) if (folder / name).exists()]
    Done(
        hash=job.settings_hash,
        sha256={name: sha256_of(folder / name) for name in files},
        finished=_now(),
        seconds=run.seconds,
        result=_result(folder, run.tuned, run.diverged),
    ).write(folder)
    (folder / STATE).unlink(missing_ok=True)


def _result(folder: Path, tuned: int, diverged: int | None) -> Result:
    """Return the figures that a table needs, from `metrics.csv` and `compare.json`; none of training if diverged."""
    columns, compared = metrics.read_columns(folder / METRICS), StoredComparison.read(folder)
    figures: dict[str, Any] = {"tuned_parameters": tuned, "epochs": len(columns["epoch"]) - 1, "diverged": diverged}
    if compared is not None:
        figures |= compared.model_dump(include={"base_accuracy", "base_loss", "replaced_accuracy", "replaced_loss"})
    measured = np.isfinite(columns["test_accuracy"])
    if diverged is not None or not measured.any():
        return Result(**figures)
    epoch, loss, accuracy, heldout = (
        columns[name][measured] for name in ("epoch", "test_loss", "test_accuracy", "heldout_accuracy")
    )
    best = int(accuracy.argmax())
    figures |= {"last_accuracy": float(accuracy[-1]), "last_loss": float(loss[-1])}
    figures |= {"best_test_epoch": int(epoch[best]), "best_test_accuracy": float(accuracy[best])}
    if np.isfinite(heldout).any():
        chosen = int(np.nanargmax(heldout))
        figures |= {"heldout_epoch": int(epoch[chosen]), "heldout_selected_accuracy": float(accuracy[chosen])}
    return Result(**figures)
