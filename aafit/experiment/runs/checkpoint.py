"""Checkpoints: saved whole or not at all, and refused when a single byte differs."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from aafit.errors import UserError
from aafit.files import write_atomically

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
