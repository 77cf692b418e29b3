"""What a study is asked, and how it came about."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from aafit.networks.batches import Output
from aafit.networks.build import NewActivation
from aafit.networks.surgery import Sharing
from aafit.studies.samples import Samples
from aafit.training.losses import LossLike
from aafit.training.precision import device_name
from aafit.version import __version__

LossGiven = LossLike
"""A loss in one of the forms that `identify` takes."""


@dataclass(frozen=True)
class StudyConfig:
    """The arguments of `aafit.study` that the results depend on, as it describes them."""

    replacements: Mapping[Any, NewActivation]
    sharing: Sharing
    target: str
    loss: LossGiven | None
    output: Output | None
    steps: int
    images: int
    memory: int
    seed: int


def facts(net: nn.Module, samples: Samples, asked: StudyConfig, command: str) -> dict[str, str]:
    """How a study came about, by name, for its page."""
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    fitted, judged = (f"{sum(map(len, batches)):,} samples" for batches in (samples.fitted, samples.judged))
    held = samples.heldout_sha256
    return {
        "command": command,
        "network": f"{type(net).__name__}, {parameters:,} parameters",
        "data": f"{fitted}, SHA-256 {samples.fitted_sha256}",
        "judged on": "the same samples" if held is None else f"{judged}, SHA-256 {held}",
        "arguments": ", ".join(f"{name} = {_short(value)}" for name, value in vars(asked).items()),
        "aafit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": f"{device_name(device)}, {torch.get_num_threads()} threads",
        "begun": datetime.now(UTC).isoformat(timespec="seconds").replace("T", " ").replace("+00:00", " UTC"),
    }


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    name = getattr(value, "__name__", getattr(value, "name", None))
    return name if isinstance(name, str) else str(value)
