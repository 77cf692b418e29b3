"""The documents of a run folder: what they are called, what is in them, and how they are read and written.

config.json               the settings, their hash, and where the run was done
metrics.csv               a row an epoch; the first row is the state before any training
state.pt                  what a stopped run goes on from; gone once the run is done
compare.json              what the replacement changed
identification.json       what an identification went through: its steps, the parameters and their standard errors
network.safetensors       all parameters after the last epoch
optimizer.pt              what the optimizer knew at the end, for a run that goes on from there
activations.safetensors   the adaptive parameters alone, and what they started from
log.txt                   what the run printed
done.json                 the results, and the SHA-256 of the files they vouch for; written last

Writers and readers of these documents (runs, schedule, report) all go through this file. A field that is not named here
is ignored: another version of the program may have written it. The JSON documents end with a SHA-256 of all else in
them, so that a bit that a disk flips is told from a result; those of a version before that have none, and no `format`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.files import sha256_of, write_atomically
from aafit.tables import fit_for_json

FORMAT = 2
"""Of the JSON documents: since 2 they carry a checksum."""

CONFIG, COMPARISON, DONE = "config.json", "compare.json", "done.json"
METRICS, STATE, LOG = "metrics.csv", "state.pt", "log.txt"
IDENTIFICATION = "identification.json"
NETWORK, ACTIVATIONS, OPTIMIZER = "network.safetensors", "activations.safetensors", "optimizer.pt"


class Part(BaseModel):
    """Part of a document."""

    model_config = ConfigDict(frozen=True)


class Document(Part):
    """A JSON document of a run folder."""

    file: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The document of this kind in a run folder, None where there is none.

        Raises:
            UserError: it is damaged; the message says where.
        """
        path = folder / cls.file
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        _checked(path, content)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            raise _damaged(path, f"{where}: {first['msg']}") from error

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The same, where there has to be one.

        Raises:
            UserError: there is none, or it is damaged.
        """
        found = cls.read(folder)
        if found is None:
            raise UserError(f"{folder} is not a run folder: it has no {cls.file}. Give <suite>/<run>/seed<k>.")
        return found

    def write(self, folder: Path) -> None:
        """Write the document into a run folder."""
        save_json(folder / self.file, self.model_dump(mode="json"))


class Data(Part):
    """The data set that a run was done on."""

    sha256: str
    in_shape: tuple[int, int, int]
    classes: int


class Config(Document):
    """All that decides the result of a run, the hash of it, and where the run was done.

    Attributes:
        parent: the folder of the run that it comes from, from its own folder: both can be moved together.
    """

    file = CONFIG

    hash: str
    run: RunConfig
    seed: int
    parent: Path | None = None
    parent_hash: str | None = None
    data: Data
    environment: dict[str, str | int] = {}

    def parent_of(self, folder: Path) -> Path | None:
        """Where the parent of the run in `folder` is, None where it has none."""
        return None if self.parent is None else Path(os.path.normpath(folder / self.parent))


class Difference(Part):
    """How far one layer's outputs are from the base network's, over the test set; None: not finite."""

    path: str
    max_abs: float | None
    mean_abs: float | None


class CurveError(Part):
    """How far a new activation is from the function it replaced, over an interval of inputs, in one arithmetic."""

    path: str
    old: str
    new: str
    dtype: str
    max: float | None
    mean_squared: float | None
    interval: tuple[float, float]


class Comparison(Document):
    """What a replacement changed, before any tuning: on the test images, and of each activation as a function.

    Accuracies and agreement are shares, 0 to 1. None is for what is not finite: such a network has no accuracy.
    """

    file = COMPARISON

    layers: tuple[Difference, ...]
    logits: Difference
    agreement: float | None
    base_accuracy: float | None
    base_loss: float | None
    replaced_accuracy: float | None
    replaced_loss: float | None
    images: int
    base_not_finite: int = 0
    replaced_not_finite: int = 0
    curves: tuple[CurveError, ...] = ()


class Result(Part):
    """What came out of a run. Accuracies are shares (0 to 1) of the full test set, of the epoch that the name says.

    `diverged` is the epoch after which the loss was not finite; such a run has no accuracy.
    """

    base_accuracy: float | None = None
    base_loss: float | None = None
    replaced_accuracy: float | None = None
    replaced_loss: float | None = None
    diverged: int | None = None
    last_accuracy: float | None = None
    last_loss: float | None = None
    heldout_epoch: int | None = None
    heldout_selected_accuracy: float | None = None
    best_test_epoch: int | None = None
    best_test_accuracy: float | None = None
    tuned_parameters: int
    epochs: int


class Done(Document):
    """That a run is finished, its result, and the SHA-256 of the files that hold it; `seconds` were spent training."""

    file = DONE

    hash: str
    sha256: dict[str, str]
    finished: str
    seconds: float
    result: Result


def check_finished(folder: Path) -> Done:
    """The `done.json` of a run folder, after checking that the files it vouches for are the ones it saw.

    Raises:
        UserError: the run is not finished, it diverged, or one of its files was altered since.
    """
    done = Done.read(folder)
    if done is None:
        raise UserError(f"The run in {folder} is not finished; run it first.")
    if done.result.diverged is not None:
        raise UserError(diverged(folder, done.result.diverged))
    for name, digest in done.sha256.items():
        if not (folder / name).exists() or sha256_of(folder / name) != digest:
            raise UserError(
                f"{folder / name} is missing, truncated or was altered since its run ended; run it again with --fresh."
            )
    return done


def diverged(folder: Path, epoch: int) -> str:
    """The verdict on a run in one sentence."""
    return (
        f"The run in {folder} diverged: its loss is not finite after epoch {epoch}. Give it a smaller lr or another "
        "start of its activations, and --fresh to start again."
    )


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, whatever is in it.

    Raises:
        UserError: there is no such file, it does not hold a JSON object, or was altered since it was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return _checked(path, content)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people and programs; a number that is not finite becomes null."""
    whole = {"format": FORMAT, **fit_for_json(dict(content)), "checksum": ""}
    text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    before, _, after = text.rpartition('"checksum": ""')
    write_atomically(path, f'{before}"checksum": "{digest}"{after}')


def _checked(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object that `save_json` was given, or an earlier version wrote.

    Raises:
        UserError: it is not JSON, no object, or not what was written.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise _damaged(path, "it does not hold a JSON object")
    # Two fields tell that there is a checksum, so that no flipped bit can hide it.
    known, digest = found.pop("format", None), found.pop("checksum", None)
    if known is None and digest is None:
        return found
    before, _, after = content.rpartition(f'"checksum": "{digest}"'.encode())
    if hashlib.sha256(before + b'"checksum": ""' + after).hexdigest() != digest:
        raise _damaged(path, "it is not what was written")
    return found


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Run it again with --fresh.")
