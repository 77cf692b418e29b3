"""Where a study keeps what it has found: a folder for each network, data and arguments, a file for each part."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.files import make_folder, write_atomically
from aafit.networks.adaptive import fingerprint
from aafit.studies.asked import StudyConfig
from aafit.studies.samples import Samples
from aafit.studies.values import decoded, encoded
from aafit.version import __version__

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Store:
    """The parts of one study in the folder `within`/<first 12 digits of its key>; without a folder nothing is kept.

    Attributes:
        key: Of all that the study depends on.
        folder: None where nothing is kept.
        seconds: What each part took, by its name, when it was done.
    """

    def __init__(self, within: Path | None, key: str) -> None:
        self.key = key
        self.folder = None if within is None else make_folder(within / key[:12])
        self.seconds: dict[str, float] = {}

    def value(self, name: str, kind: type[Value], find: Callable[[], Value]) -> Value:
        """The part `name`: what an earlier call kept of it, or else what `find` gives, which is kept.

        Raises:
            UserError: a file of the folder is damaged, or it cannot be written to.
        """
        if self.folder is None or not (self.folder / f"{name}.json").exists():
            began = time.perf_counter()
            found = find()
            self.seconds[name] = time.perf_counter() - began
            self._keep(name, found)
            return found
        document = read_json(self.folder / f"{name}.json")
        try:
            tensors = load_file(self.folder / f"{name}.safetensors") if document["tensors"] else {}
            value: Value = decoded(kind, document["value"], tensors)
            self.seconds[name] = float(document["seconds"])
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise _damaged(self.folder / f"{name}.json") from error
        log.info("%s: found in %s", name, self.folder)
        return value

    def document(self, name: str) -> Any:
        """The JSON document `name`, None where there is none."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        return read_json(path) if path is not None and path.exists() else None

    def write_document(self, name: str, content: Any) -> None:
        """Keep a JSON document."""
        if self.folder is not None:
            write_atomically(self.folder / f"{name}.json", json.dumps(content))

    def _keep(self, name: str, value: Any) -> None:
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        content = {"value": encoded(value, tensors), "seconds": self.seconds[name], "tensors": bool(tensors)}
        if tensors:
            write_atomically(self.folder / f"{name}.safetensors", save(tensors))
        # Last: it vouches for the other.
        write_atomically(self.folder / f"{name}.json", json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    """The document in a file.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: delete the folder {path.parent}, and the study begins anew.")


def study_key(net: nn.Module, samples: Samples, asked: StudyConfig) -> str:
    """SHA-256 of all that a study depends on: the network, the samples, what is asked, the version.

    A module among the arguments counts with its values, a function with its name and its code, but not with what it has
    captured from around it.
    """
    content = {
        "version": __version__,
        "network": [str(net), fingerprint(net, ())],
        "data": [samples.fitted_sha256, samples.heldout_sha256],
        "asked": {name: _told(value) for name, value in vars(asked).items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _program(code: CodeType) -> list[Any]:
    """What a function does, without where it is in memory: its code, the names and the constants in it."""
    constants = [_program(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), *code.co_names, *constants]


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [[_told(key), _told(item)] for key, item in value.items()]
    if isinstance(value, nn.Module):
        return [str(value), fingerprint(value, ())]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return [_told(getattr(value, field.name)) for field in fields(value)]
    code = getattr(value, "__code__", None)
    if code is not None:
        return [value.__module__, value.__qualname__, *_program(code)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
