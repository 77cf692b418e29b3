"""The settings of a study, and the provenance of its results."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from aafit.networks.build import NewActivation
from aafit.networks.surgery import Sharings
from aafit.studies.samples import StudySamples
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
