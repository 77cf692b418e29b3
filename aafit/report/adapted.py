"""The adaptive activations that a finished run left: as they began, and tuned."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aafit.activations import AdaptiveActivation, from_settings
from aafit.errors import UserError


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer's activation: what it replaced (None: unknown, it began with the network), at its start, and tuned."""

    path: str
    replaced: str | None
    start: AdaptiveActivation | None
    tuned: AdaptiveActivation


def read_activations(folder: Path) -> list[AdaptedLayer]:
    """The adaptive activations of a finished run, with the values they started from.

    Raises:
        UserError: the run has none (yet), or the file is damaged.
    """
    file = folder / "activations.safetensors"
    if not file.exists():
        raise UserError(
            f"{folder} has no activations.safetensors: the run is not finished, or has no adaptive activation."
        )
    try:
        with safe_open(file, "pt") as opened:
            metadata, tensors = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        settings = json.loads(metadata["activations"])
        replaced = json.loads(metadata.get("replaced", "{}"))
        return [
            AdaptedLayer(path, replaced.get(path), _load(path, one, tensors, "start."), _tuned(path, one, tensors))
            for path, one in settings.items()
        ]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read ({error}); finish the run again to write it anew.") from error


def _tuned(path: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> AdaptiveActivation:
    activation = _load(path, settings, tensors, "")
    if activation is None:
        raise KeyError(f"no values of {path}")
    return activation


def _load(
    path: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor], prefix: str
) -> AdaptiveActivation | None:
    activation = from_settings(settings)
    names = {name: f"{prefix}{path}.{name}" for name, _ in activation.named_parameters()}
    if not all(name in tensors for name in names.values()):
        return None
    activation.load_state_dict({name: tensors[stored] for name, stored in names.items()}, strict=False)
    return activation
