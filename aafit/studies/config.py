"""The settings of a study, its key, and the provenance of its results."""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from types import CodeType
from typing import Any

import torch
from torch import nn

from aafit.networks.build import NewActivation
from aafit.networks.saving import fingerprint
from aafit.networks.surgery import Sharings
from aafit.studies.samples import StudySamples
from aafit.studies.store import sha256_of_json
from aafit.training.losses import LossLike
from aafit.training.precision import device_name
from aafit.training.predictor import Output
from aafit.version import __version__


@dataclass(frozen=True)
class StudyConfig:
    """The arguments of `aafit.study` that the results depend on, as documented there."""

    replacements: Mapping[Any, NewActivation]
    sharing: Sharings
    target: str
    loss: LossLike | None
    output: Output | None
    steps: int
    samples: int
    memory: int
    seed: int
    families: tuple[Any, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments by name; the families only if some are compared."""
        return {name: value for name, value in vars(self).items() if name != "families" or value is not None}


def provenance(net: nn.Module, data: StudySamples, config: StudyConfig, command: str) -> dict[str, str]:
    """Return network, data, arguments, versions and machine by name, for the page."""
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    fitted, heldout = (f"{sum(map(len, batches)):,} samples" for batches in (data.fitted, data.heldout))
    return {
        "command": command,
        "network": f"{type(net).__name__}, {parameters:,} parameters",
        "data": f"{fitted}, SHA-256 {data.sha256[0]}",
        "held-out set": f"{heldout}, SHA-256 {data.sha256[1]}" if data.heldout else "none",
        "arguments": ", ".join(f"{name} = {_short(value)}" for name, value in config.arguments().items()),
        "aafit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": f"{device_name(device)}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
        "started": datetime.now(UTC).isoformat(timespec="seconds").replace("T", " ").replace("+00:00", " UTC"),
    }


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return ", ".join(map(_short, value))
    name = getattr(value, "__name__", getattr(value, "name", None))
    return name if isinstance(name, str) else str(value)


def study_key(net: nn.Module, samples: StudySamples, config: StudyConfig) -> str:
    """Return the SHA-256 of everything that a study depends on: network, samples, arguments and version.

    A module among the arguments is identified by its parameters and buffers, a function by its name and code. Variables
    that a function captures are not included.
    """
    content = {
        "version": __version__,
        "network": [str(net), fingerprint(net, ())],
        "data": samples.sha256,
        "arguments": {name: _identity(value) for name, value in config.arguments().items()},
    }
    return sha256_of_json(content)


def _identity(value: Any) -> Any:
    """Return what identifies an argument, of JSON's types and the same in every process."""
    if isinstance(value, Mapping):
        return [[_identity(key), _identity(item)] for key, item in value.items()]
    if isinstance(value, tuple):
        return list(map(_identity, value))
    if isinstance(value, nn.Module):
        return [str(value), fingerprint(value, ())]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return [_identity(getattr(value, field.name)) for field in fields(value)]
    code = getattr(value, "__code__", None)
    if code is not None:
        return [value.__module__, value.__qualname__, *_program(code)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _program(code: CodeType) -> list[Any]:
    """Return the code of a function with its names and constants, but not where it is in memory."""
    constants = [_program(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), *code.co_names, *constants]
