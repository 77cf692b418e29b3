"""The settings of one run: typed values; an unknown key or an invalid value is refused in one sentence."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from aafit.activations import check_text, is_adaptive, parse_text
from aafit.errors import UserError, check_line, check_name, nearest
from aafit.experiment.data.datasets import DATASETS
from aafit.experiment.models import NETWORKS
from aafit.experiment.runs.method import METHODS, Method


def folder_name(value: str) -> str:
    """Return `value` if it can be the name of a folder on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", value):
        raise UserError(
            f"The name {_short(value)} cannot be a folder's name: use up to 100 letters, digits and . _ + -, "
            "and begin with a letter or a digit."
        )
    return value


def _one_of(what: str, valid: Iterable[str]) -> AfterValidator:
    return AfterValidator(lambda value: check_name(what, value, valid))


def _interval(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise UserError(f"interval = [{value[0]:g}, {value[1]:g}] is empty: the left end must be below the right one.")
    return value


def _activation(value: str) -> str:
    family, options, start = parse_text(check_text(value))
    for name in options.keys() & RunConfig.model_fields.keys():
        raise UserError(
            f"{value!r}: {name} is a setting of its own; write {f'{family} {start}'!r} and {name} = {options[name]}."
        )
    return value


def _prior(value: float | str) -> float | str:
    if value not in ("auto", "none") and (isinstance(value, str) or not 0 < value < float("inf")):
        raise UserError(f"prior = {_short(value)} is not valid: give a number above 0, 'auto' or 'none'.")
    return value


def _short(value: object) -> str:
    """Return `repr(value)`, cut to a length that fits into a sentence."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"


MOST = 10**9
"""More epochs or images than any run has: a larger number is a typing error."""

End = Annotated[float, Field(ge=-1e6, le=1e6)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Activation = Annotated[str, AfterValidator(_activation)]
Line = Annotated[str, AfterValidator(check_line)]
Name = Annotated[str, AfterValidator(folder_name)]


class Settings(BaseModel):
    """Settings that are frozen, typed strictly, and refuse an unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Return the settings with these values, as TOML or JSON spells them.

        Args:
            values: the settings by name.
            where: begins the sentence of an error.
        """
        try:
            # Through JSON, so that strict checking still accepts a list for a tuple and a text for a path.
            return cls.model_validate_json(to_json(dict(values)))
        except ValidationError as error:
            raise UserError(": ".join(filter(None, [where, _sentence(error, cls)]))) from None


class RunConfig(Settings):
    """Everything that decides the result of one run, except its seed and its parent's result.

    A run begins with a new network, with that of `parent` (another run of the suite, whose activations may be
    replaced), or with `init_from` (a checkpoint of the authors' program, which has the activations `cnn` and `fc`).
    """

    name: Name
    stage: Line = ""
    """The step of the paper's experiment, "1" to "7", or any label."""
    network: Annotated[str, _one_of("network", NETWORKS)] = "KerasNet"
    dataset: Annotated[str, _one_of("data set", DATASETS)] = "CIFAR-10"
    parent: Line | None = None
    init_from: Path | None = None

    cnn: Activation = "ReLU"
    """Activation of the convolutional layers, as a text: "ReLU", "LEAF as Tanh", "Polynomial(degree=4) as ReLU", ..."""
    fc: Activation = "ReLU"
    """Activation of the fully connected layers."""
    sharing: Literal["layer", "channel", "neuron"] = "layer"
    interval: Annotated[tuple[End, End], AfterValidator(_interval)] = (-4.0, 4.0)
    """The interval of an F-Neuron's knots, of a polynomial, a rational or a piecewise linear function."""
    knots: Annotated[int, Field(ge=3, le=100_000)] = 18
    """F-Neuron: the number of its knots, which are its values; one less is its number of segments."""

    train: Literal["all", "activations", "none"] = "all"
    method: Annotated[str, _one_of("method", METHODS)] = "gradient"
    """How the parameters are found: "gradient", by epochs of gradient steps on the train images, or "gauss-newton", by
    `aafit.identify` on the held-out images, where an epoch is one of its steps."""
    target: Literal["labels", "logits", "activations"] = "labels"
    """Gauss-Newton: what is fitted, the labels or the base network."""
    heldout: float = Field(0.2, gt=0, lt=1)
    """Gauss-Newton: the fraction of its images that the result is judged on."""
    curvature: Literal["exact", "sampled"] = "sampled"
    """Gauss-Newton: see `aafit.identify`, as for the next two."""
    prior: Annotated[float | str, AfterValidator(_prior)] = "auto"
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
    """2SPU-4: each minibatch steps the activations' parameters first, then, after a new forward pass, all others."""
    precision: Literal["float32", "tf32", "bf16", "float64"] = "float32"
    resume_optimizer: bool = False
    """Continue with the parent's optimizer state; otherwise the optimizer starts anew."""

    augment: bool = True
    shuffle: bool = True
    holdout: Count = 0
    """Number of train images that are held out, to choose the epoch on."""
    train_images: Positive | None = None
    """Train on this number of images only, for short checks; None: on all."""

    @property
    def end_epoch(self) -> int:
        return self.start_epoch + self.epochs

    @property
    def adaptive(self) -> bool:
        return is_adaptive(self.cnn) or is_adaptive(self.fc)

    @property
    def training(self) -> Method:
        """The training method."""
        return METHODS[self.method]

    @property
    def takes_gradient_steps(self) -> bool:
        """Whether an optimizer trains this run."""
        return self.training.takes_gradient_steps and self.train != "none"

    def unused(self) -> set[str]:
        """Return the settings that belong to other training methods."""
        return {key for method in METHODS.values() if method.name != self.method for key in method.settings}

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.parent is not None and self.init_from is not None:
            raise UserError(
                f"parent = {self.parent!r} and init_from = {str(self.init_from)!r} exclude each other: give only one."
            )
        left, right = self.interval
        if (right - left) / self.knots < 1e-6 * max(abs(left), abs(right)):
            raise UserError(
                f"interval = [{left:g}, {right:g}] is too narrow for knots = {self.knots}: in float32 adjacent knots "
                "are equal."
            )
        fixed = f"but cnn = {self.cnn!r} and fc = {self.fc!r} are both fixed: make one of them adaptive"
        if self.train == "activations" and not self.adaptive:
            raise UserError(f"train = 'activations' trains adaptive activations only, {fixed}, or set train.")
        if self.dspu4 and not self.adaptive:
            raise UserError(f"dspu4 = true steps adaptive activations apart from the rest, {fixed}, or drop dspu4.")
        if self.dspu4 and self.train != "all":
            raise UserError(f"dspu4 = true needs train = 'all', but train is {self.train!r}.")
        self.training.check(self)
        for key in sorted(self.unused()):
            if getattr(self, key) != type(self).model_fields[key].default:
                (owner,) = (method.name for method in METHODS.values() if key in method.settings)
                raise UserError(
                    f"{key} = {getattr(self, key)!r} needs method = {owner!r}, but method is {self.method!r}."
                )
        if self.resume_optimizer and not self.takes_gradient_steps:
            what = "train = 'none'" if self.train == "none" else f"method = {self.method!r}"
            raise UserError(f"resume_optimizer = true continues gradient steps, but {what} takes none: drop it.")
        if self.train == "none" and self.epochs:
            raise UserError(f"train = 'none' trains nothing, but epochs = {self.epochs}: set epochs = 0.")
        return self


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one of pydantic's complaints as a sentence: an unknown key first, as it often explains the others."""
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")[0]
    key = str(details["loc"][0]) if details["loc"] else ""
    value = _short(details["input"])
    if key == "pieces" and type(details["input"]) is int:
        knots = details["input"] + 2
        return (
            f"pieces = {value} is now knots = {knots}: an F-Neuron's values, with the two at the ends of its interval."
        )
    if details["type"] == "extra_forbidden":
        return f"unknown key {_short(key)}. {nearest(key, model.model_fields)}"
    if details["type"] == "missing":
        return f"the key {key!r} is missing."
    if details["type"] == "literal_error":
        valid = re.findall(r"'(.+?)'", details["ctx"]["expected"])
        return f"{key} = {value} is not valid. {nearest(str(details['input']), valid)}"
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}" if key else str(details["ctx"]["error"])
    return f"{key} = {value} is not valid: {details['msg'][0].lower()}{details['msg'][1:]}."
