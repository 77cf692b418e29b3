"""Checkpoints: saved whole or not at all, and refused when a single byte differs."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from aafit.errors import UserError
from aafit.files import sha256_of, write_atomically
from aafit.tables import fit_for_json

DIGEST_BYTES = hashlib.sha256().digest_size


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save what a stopped run needs to go on: `torch.save`'s bytes followed by their SHA-256."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest())


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """What `save_state` saved.

    Raises:
        UserError: there is no such file, or it was cut or altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(f"{path} is truncated or was altered; remove it to start this run again from its beginning.")
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    return state


def save_network(path: Path, net: torch.nn.Module) -> None:
    """Save all parameters and buffers of `net` as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_atomically(path, tensors_to_bytes(tensors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        UserError: there is no such file, or it was cut or is of another kind.
    """
    try:
        return tensors_from_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}).") from error


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: there is no such file, or it does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return content


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people and programs; a number that is not finite becomes null."""
    write_atomically(path, json.dumps(fit_for_json(dict(content)), indent=2, allow_nan=False) + "\n")


def check_finished(folder: Path) -> dict[str, Any]:
    """The `done.json` of a run folder, after checking that the files it vouches for are the ones it saw.

    Raises:
        UserError: the run is not finished, it diverged, or one of its files was altered since.
    """
    if not (folder / "done.json").exists():
        raise UserError(f"The run in {folder} is not finished; run it first.")
    done = load_json(folder / "done.json")
    if not isinstance(done.get("sha256"), dict):
        raise UserError(f"{folder / 'done.json'} is damaged: it does not say which files it vouches for.")
    if (epoch := diverged_at(done)) is not None:
        raise UserError(diverged(folder, epoch))
    for name, digest in done["sha256"].items():
        if not (folder / name).exists() or sha256_of(folder / name) != digest:
            raise UserError(
                f"{folder / name} is missing, truncated or was altered since its run ended; run it again with --fresh."
            )
    return done


def diverged_at(done: Mapping[str, Any]) -> int | None:
    """The epoch after which a run's loss was not finite, as its `done.json` says; None for one that has a result."""
    result = done.get("result")
    return result.get("diverged") if isinstance(result, Mapping) else None


def diverged(folder: Path, epoch: int) -> str:
    """The verdict on a run in one sentence."""
    return (
        f"The run in {folder} diverged: its loss is not finite after epoch {epoch}. Give it a smaller lr or another "
        "start of its activations, and --fresh to start again."
    )
