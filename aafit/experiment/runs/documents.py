"""The files of a run folder: their names, their content, and how JSON documents are read and written.

A JSON document ends with a SHA-256 of all else in it, so that no flipped bit can pass for a result. Unknown fields are
ignored: a later version may have written them. Documents of format 2 are read as well, see `from_format_2`.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ValidationError

from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.files import is_file, read_file, sha256_of, write_atomically
from aafit.tables import fit_for_json

FORMAT = 3

CONFIG = "config.json"
"""The settings, their hash, and where the run was done."""
METRICS = "metrics.csv"
"""A row per epoch; the first row is the state before any training."""
STATE = "state.pt"
"""What a stopped run resumes from; removed when the run is finished."""
COMPARISON = "compare.json"
"""What the replacement of activations changed, before tuning."""
IDENTIFICATION = "identification.json"
"""The steps of an identification, the parameters and their standard errors."""
NETWORK = "network.safetensors"
"""All parameters and buffers after the last epoch."""
OPTIMIZER = "optimizer.pt"
"""The optimizer's state after the last epoch, for a run that continues from there."""
ACTIVATIONS = "activations.safetensors"
"""The adaptive parameters alone, with their initial values."""
LOG = "log.txt"
"""What the run printed."""
DONE = "done.json"
"""The results, and the SHA-256 of the files above that it vouches for; written last."""

VOUCHED = {CONFIG, METRICS, COMPARISON, IDENTIFICATION, NETWORK, OPTIMIZER, ACTIVATIONS}


class Document(BaseModel, frozen=True):
    """A JSON document of a run folder."""

    file: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the document in a run folder, None if there is none."""
        path = folder / cls.file
        if not is_file(path):
            return None
        try:
            # Through JSON again, so that strict settings still accept a list for a tuple and a text for a path.
            return cls.model_validate_json(json.dumps(load_json(path)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            raise _damaged(path, f"{where}: {first['msg']}") from error

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the document in a run folder, which has to be there."""
        found = cls.read(folder)
        if found is None:
            raise UserError(f"{folder} is not a run folder: it has no {cls.file}. Give <suite>/<run>/seed<k>.")
        return found

    def write(self, folder: Path) -> None:
        """Write the document into a run folder."""
        save_json(folder / self.file, self.model_dump(mode="json"))


class Data(BaseModel, frozen=True):
    """The data set of a run: SHA-256 of its images and labels, (C, H, W) of an image, number of classes."""

    sha256: str
    in_shape: tuple[int, int, int]
    classes: int


class Config(Document):
    """The settings of a run, their hash, and the machine on which the run began.

    Attributes:
        parent: folder of the parent run, relative to the run's own folder, so that both can be moved together.
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
        """Return the folder of the parent of the run in `folder`, None if it has none."""
        return None if self.parent is None else Path(os.path.normpath(folder / self.parent))


class StoredDifference(BaseModel, frozen=True):
    """Absolute difference of one layer's outputs from the base network's over the test set; None: not finite."""

    path: str
    max_abs: float | None
    mean_abs: float | None


class StoredCurveError(BaseModel, frozen=True):
    """Error of a new activation against the original one over an interval of inputs, in one data type."""

    path: str
    old: str
    new: str
    dtype: str
    max: float | None
    mean_squared: float | None
    interval: tuple[float, float]


class StoredComparison(Document):
    """What a replacement changed before tuning: on the test images, and in each activation as a function.

    Accuracies and agreement are fractions from 0 to 1; None stands for what is not finite, and for the accuracy of a
    network whose loss is not finite.
    """

    file = COMPARISON

    layers: tuple[StoredDifference, ...]
    logits: StoredDifference
    agreement: float | None
    base_accuracy: float | None
    base_loss: float | None
    replaced_accuracy: float | None
    replaced_loss: float | None
    samples: int
    base_not_finite: int = 0
    replaced_not_finite: int = 0
    curves: tuple[StoredCurveError, ...] = ()


class Result(BaseModel, frozen=True):
    """The results of a run. Accuracies are fractions (0 to 1) of the test set, after the epoch that the name says.

    `diverged` is the epoch after which the loss was not finite; a diverged run has no accuracy.
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
    """The result of a finished run, and the SHA-256 of the files that hold it; `seconds` is the training time."""

    file = DONE

    hash: str
    sha256: dict[str, str]
    finished: str
    seconds: float
    result: Result


def read_done(folder: Path) -> Done:
    """Return the `done.json` of a run folder; a run that is not finished or diverged is refused."""
    done = Done.read(folder)
    if done is None:
        raise UserError(f"The run in {folder} is not finished; run it first.")
    if done.result.diverged is not None:
        raise UserError(diverged(folder, done.result.diverged))
    return done


def check_finished(folder: Path) -> Done:
    """Return the `done.json` of a run folder after checking every file that it vouches for."""
    done = read_done(folder)
    check_files(folder, done)
    return done


def check_files(folder: Path, done: Done, may_lack: Collection[str] = ()) -> None:
    """Raise a UserError if a file that `done` vouches for was altered, or is missing and not in `may_lack`."""
    if done.sha256.keys() - VOUCHED:
        raise _damaged(folder / DONE, f"it vouches for {min(done.sha256.keys() - VOUCHED)!r}, which no run writes")
    for name, digest in done.sha256.items():
        try:
            intact = sha256_of(folder / name) == digest
        except FileNotFoundError:
            intact = name in may_lack
        except OSError as error:
            raise UserError(f"Cannot read {folder / name}: {error.strerror}.") from error
        if not intact:
            raise UserError(
                f"{folder / name} is missing, truncated or was altered since its run ended; run it again with --fresh."
            )


def check_place(folder: Path, config: Config) -> None:
    """Raise a UserError if `folder`, named `<run>/seed<k>`, holds another run or another seed."""
    folder = folder.absolute()
    if re.fullmatch(r"seed-?\d+", folder.name) and folder.parts[-2:] != (config.run.name, f"seed{config.seed}"):
        raise UserError(
            f"{folder} holds the run {config.run.name!r} with seed {config.seed}, not the one that its name says: "
            f"rename it to {config.run.name}/seed{config.seed}, or remove it."
        )


def diverged(folder: Path, epoch: int) -> str:
    """Return the sentence about a run that diverged."""
    return (
        f"The run in {folder} diverged: its loss is not finite after epoch {epoch}. Give it a smaller lr or another "
        "initialization of its activations, and --fresh to start again."
    )


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that `save_json` wrote into a file, with the names of format 3."""
    content = read_file(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _damaged(path, "it does not hold a JSON object")
    version, digest = document.pop("format", None), document.pop("checksum", None)
    before, _, after = content.rpartition(f'"checksum": "{digest}"'.encode())
    if hashlib.sha256(before + b'"checksum": ""' + after).hexdigest() != digest:
        raise _damaged(path, "its checksum is not that of its content")
    if version not in (2, FORMAT):
        raise _damaged(path, f"it is of format {version}, and this version reads formats 2 and {FORMAT}")
    # Format 3 has none of the names that are replaced.
    current: dict[str, Any] = from_format_2(document)
    return current


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its format and checksum; a number that is not finite becomes null."""
    document = {"format": FORMAT, **fit_for_json(dict(content)), "checksum": ""}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    before, _, after = text.rpartition('"checksum": ""')
    write_atomically(path, f'{before}"checksum": "{digest}"{after}')


def from_format_2(content: Any) -> Any:
    """Return the content of a file of format 2, which docs/results/full/runs.tar.xz holds, with the names of format 3.

    There `samples` were `images`, and an F-Neuron with 18 `knots` had 16 `pieces`, its inner knots.
    """
    names = {"images": "samples", "heldout_images": "heldout_samples"}
    if isinstance(content, list):
        return [from_format_2(item) for item in content]
    if not isinstance(content, dict):
        return content
    renamed = {names.get(key, key): from_format_2(value) for key, value in content.items()}
    # There was no prior, and no run there had a ridge.
    if renamed.get("ridge") == 0:
        del renamed["ridge"]
        renamed |= {"prior": "none"} if renamed.get("method") == "gauss-newton" else {}
    if isinstance(renamed.get("pieces"), int):
        renamed["knots"] = renamed.pop("pieces") + 2
    return renamed


def _damaged(path: Path, fault: str) -> UserError:
    return UserError(f"{path} is damaged: {fault}. Run it again with --fresh.")
