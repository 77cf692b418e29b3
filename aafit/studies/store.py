"""The saved parts of a study: a folder for each network, data and arguments, and a file with a checksum for each part.

`encode` and `decode` turn frozen dataclasses into JSON and back, bit-identical.
"""

import base64
import hashlib
import json
import logging
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aafit.errors import UserError
from aafit.files import make_folder, write_atomically

log = logging.getLogger(__name__)
Value = TypeVar("Value")
TENSOR = "tensor"


class Store:
    """Saves and loads the parts of one study, in the folder `within`/<first 12 digits of its key>.

    Args:
        within: The folder of all studies; None: nothing is saved.
        key: The key of the study, see `aafit.studies.config.study_key`.

    Attributes:
        key: SHA-256 of everything that the study depends on.
        folder: The folder; None: nothing is saved.
        seconds: Time that each part took when it was computed, by name.
    """

    def __init__(self, within: Path | None, key: str) -> None:
        self.key = key
        self.folder = None if within is None else make_folder(within / key[:12])
        self.seconds: dict[str, float] = {}

    def value(self, name: str, kind: type[Value], compute: Callable[[], Value]) -> Value:
        """Return the part `name`: the saved one, or else the result of `compute`, which is then saved.

        Args:
            name: Name of the part, and of its file.
            kind: Type of the part, see `decode`.
            compute: Computes the part.

        Raises:
            UserError: The file of the part is damaged, or cannot be written.
        """
        saved = self.read(name, kind)
        if saved is not None:
            log.info("%s: loaded from %s", name, self.folder)
            return saved
        began = time.perf_counter()
        value = compute()
        self.seconds[name] = time.perf_counter() - began
        self.write(name, value)
        return value

    def read(self, name: str, kind: type[Value]) -> Value | None:
        """Return the saved part `name`; None if there is none.

        Raises:
            UserError: Its file is damaged, or from another version of the program.
        """
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is None or not path.exists():
            return None
        try:
            document = json.loads(path.read_text())
            if document["sha256"] != sha256_of_json(document["value"]):
                raise ValueError("The checksum does not match.")
            value: Value = decode(kind, document["value"])
            self.seconds[name] = float(document["seconds"])
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged, or from another version of the program: delete the folder {path.parent}, and the "
                "study starts again."
            ) from error
        return value

    def write(self, name: str, value: Any) -> None:
        """Save a part, if there is a folder.

        Raises:
            UserError: The file cannot be written.
        """
        if self.folder is not None:
            content = encode(value)
            document = {"sha256": sha256_of_json(content), "seconds": self.seconds.get(name, 0.0), "value": content}
            write_atomically(self.folder / f"{name}.json", json.dumps(document))


def sha256_of_json(content: Any) -> str:
    """Return the SHA-256 of content in JSON's types, in hexadecimal."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def encode(value: Any) -> Any:
    """Return `value` in the types of JSON; NaN and infinity stay floats.

    `decode` restores dataclasses, tuples, mappings with strings as keys, and tensors. It does not restore dataclasses
    or tuples in a list, nor keys that are not strings.

    Raises:
        TypeError: It contains something else than dataclasses, mappings, tuples, lists, tensors, numbers, strings and
            None.
    """
    if isinstance(value, Tensor):
        return {TENSOR: base64.b64encode(save({TENSOR: value.detach().cpu().contiguous()})).decode()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A {type(value).__name__} cannot be saved.")


def decode(kind: Any, value: Any) -> Any:
    """Return the value of the type `kind` that `encode` made `value` from.

    Raises:
        LookupError, TypeError or ValueError: It was made from another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return None if value is None else decode(next(one for one in inner if one is not type(None)), value)
    if kind is Tensor:
        return load(base64.b64decode(value[TENSOR], validate=True))[TENSOR]
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if set(value) != {field.name for field in fields(kind)}:
            raise KeyError(f"{kind} has other fields.")
        return kind(**{name: decode(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(decode(one, item) for one, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {key: decode(inner[1], item) for key, item in value.items()}
    return float(value) if kind is float else value
