"""The settings of one run: typed values that refuse an unknown key, and say in one sentence what is wrong."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aafit.activations import check_text, is_adaptive
from aafit.errors import UserError, check_name, nearest
from aafit.experiment.data.datasets import DATASETS
from aafit.experiment.models import NETWORKS


def folder_name(value: str) -> str:
    """`value`, if it can be part of a path everywhere.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", value):
        raise UserError(
            f"The name {value!r} cannot be a folder's name: use up to 100 letters, digits and . _ + -, "
            "and begin with a letter or a digit."
        )
    return value


def _network(value: str) -> str:
    return check_name("network", value, NETWORKS)


def _dataset(value: str) -> str:
    return check_name("data set", value, DATASETS)


def _activation(value: str) -> str:
    check_text(value)
    return value


def _interval(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise UserError(f"interval = [{value[0]:g}, {value[1]:g}] is empty: the left end must be below the right one.")
    return value


MOST = 10**9
"""More epochs, images or pieces than anybody has: what is larger is a slip of the keyboard."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Activation = Annotated[str, AfterValidator(_activation)]


class RunConfig(BaseModel):
    """All that decides the result of one run, except its seed and its parent's result.

    A run begins from nothing (a base network), from `parent` (another run of the suite, whose activations are replaced)
    or from `init_from` (a checkpoint written by the authors' program, which has the activations `cnn` and `fc`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(folder_name)]
    stage: str = ""
    """The step of the paper's experiment, "1" to "7", or any label."""
    network: Annotated[str, AfterValidator(_network)] = "KerasNet"
    dataset: Annotated[str, AfterValidator(_dataset)] = "CIFAR-10"
    parent: str | None = None
    init_from: Path | None = None

    cnn: Activation = "ReLU"
    """Activation of the convolutional layers, as a text: "ReLU", "LEAF as Tanh", "F-Neuron random", ..."""
    fc: Activation = "ReLU"
    """Activation of the fully connected layers."""
    sharing: Literal["layer", "channel", "neuron"] = "layer"
    interval: Annotated[tuple[Finite, Finite], AfterValidator(_interval)] = (-4.0, 4.0)
    """F-Neuron: where its inner membership functions lie."""
    pieces: Positive = 16
    """F-Neuron: the number of inner membership functions; two more lie at the ends."""

    train: Literal["all", "activations", "none"] = "all"
    method: Literal["gradient", "gauss-newton"] = "gradient"
    """How the parameters are found: by epochs of gradient steps on the train images, or by `aafit.identify` on the
    held-out ones, where an epoch is one of its steps."""
    target: Literal["labels", "logits", "activations"] = "labels"
    """Gauss-Newton: what is matched, the labels or the base network."""
    heldout: float = Field(0.2, gt=0, lt=1)
    """Gauss-Newton: the share of its images that no step is fitted to."""
    curvature: Literal["exact", "sampled"] = "sampled"
    """Gauss-Newton: see `aafit.identify`, as for the next two."""
    ridge: float = Field(0.0, ge=0, allow_inf_nan=False)
    budget: float = Field(0.005, ge=0, allow_inf_nan=False)
    start_epoch: Count = 0
    epochs: Count
    optimizer: Literal["adam", "rmsprop"] = "adam"
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    """None: 1e-3 for Adam, 1e-4 for RMSprop."""
    batch_size: Positive = 128
    p24sl: bool = False
    """LEAF's p2 and p4 learn slowly: lr/1000 with Adam, lr/10 with RMSprop."""
    dspu4: bool = False
    """2SPU-4: each minibatch steps the activations' parameters first, then, after a new forward, all others."""
    precision: Literal["float32", "tf32", "bf16", "float64"] = "float32"
    resume_optimizer: bool = False
    """Go on with what the parent's optimizer knew of its parameters; else the optimizer starts afresh."""

    augment: bool = True
    shuffle: bool = True
    holdout: Count = 0
    """Train images kept aside, to choose the epoch on."""
    train_images: Positive | None = None
    """Train on so many images only, for short checks; None: on all."""

    @property
    def end_epoch(self) -> int:
        return self.start_epoch + self.epochs

    @property
    def adaptive(self) -> bool:
        return is_adaptive(self.cnn) or is_adaptive(self.fc)

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.parent is not None and self.init_from is not None:
            raise UserError(
                f"parent = {self.parent!r} and init_from = '{self.init_from}' exclude each other: give only one."
            )
        fixed = f"but cnn = {self.cnn!r} and fc = {self.fc!r} are both fixed: make one of them adaptive"
        if self.train == "activations" and not self.adaptive:
            raise UserError(f"train = 'activations' trains adaptive activations only, {fixed}, or set train.")
        if self.dspu4 and not self.adaptive:
            raise UserError(f"dspu4 = true steps adaptive activations apart from the rest, {fixed}, or drop dspu4.")
        if self.dspu4 and self.train != "all":
            raise UserError(f"dspu4 = true needs train = 'all', but train is {self.train!r}.")
        if self.method == "gauss-newton" and self.train != "activations":
            raise UserError(
                f"method = 'gauss-newton' identifies adaptive activations alone, but train is {self.train!r}: set "
                "train = 'activations'."
            )
        for key in ("target", "heldout", "curvature", "ridge", "budget"):
            if self.method != "gauss-newton" and getattr(self, key) != type(self).model_fields[key].default:
                raise UserError(
                    f"{key} = {getattr(self, key)!r} needs method = 'gauss-newton', but method is {self.method!r}."
                )
        if self.method == "gauss-newton" and not self.epochs:
            raise UserError("method = 'gauss-newton' needs a step at least, but epochs = 0: set epochs to 1 or more.")
        if self.resume_optimizer and (self.method != "gradient" or self.train == "none"):
            raise UserError(
                "resume_optimizer = true goes on with gradient steps, but "
                + (f"method = {self.method!r}" if self.method != "gradient" else "train = 'none'")
                + " takes none: drop it."
            )
        if self.train == "none" and self.epochs:
            raise UserError(f"train = 'none' trains nothing, but epochs = {self.epochs}: set epochs = 0.")
        return self

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str = "") -> "RunConfig":
        """The run of these settings, as TOML or JSON spells them; `where` begins an error's sentence.

        Raises:
            UserError: a key is unknown or missing, or a value not valid; the message names both.
        """
        try:
            # Through JSON, so that strict checking still takes a list for a tuple and a text for a path.
            return cls.model_validate_json(json.dumps(dict(values), default=str))
        except ValidationError as error:
            raise UserError(_sentence(error, where)) from None


def choices(key: str) -> tuple[str, ...]:
    """The values of a setting that has only a few: "sharing", "target", "precision", ..."""
    return get_args(RunConfig.model_fields[key].annotation)


def _sentence(error: ValidationError, where: str) -> str:
    """One of pydantic's complaints as a sentence: an unknown key first, as it often explains the others."""
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")[0]
    key = str(details["loc"][0]) if details["loc"] else ""
    given = details["input"]
    if details["type"] == "extra_forbidden":
        text = f"unknown key {key!r}. {nearest(key, RunConfig.model_fields)}"
    elif details["type"] == "missing":
        text = f"the key {key!r} is missing."
    elif details["type"] == "literal_error":
        text = f"{key} = {given!r} is not valid. {nearest(str(given), choices(key))}"
    elif details["type"] == "value_error":
        text = f"{key}: {details['ctx']['error']}" if key else str(details["ctx"]["error"])
    else:
        text = f"{key} = {given!r} is not valid: {details['msg'][0].lower()}{details['msg'][1:]}."
    return f"{where}: {text}" if where else text
