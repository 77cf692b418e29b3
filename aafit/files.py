"""Files that are written as a whole or not at all: first alongside, then renamed into place."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aafit.errors import UserError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a stop at any moment leaves the old file or the new one, never a part.

    Raises:
        UserError: `path` has no name, or the folder cannot be written to (missing, read-only, full, no permission);
            the old file is unharmed.
    """
    if not path.name:
        raise UserError(f"{path} is a folder: give the name of a file in it.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise cannot_write(path, error) from error


def as_path(value: str | Path) -> Path:
    """Return the path of a file or folder that a user gives.

    Raises:
        UserError: it is no text and no path, or has a character that no path can have.
    """
    if not isinstance(value, (str, Path)):
        raise UserError(f"The file is given as a {type(value).__name__}: give its path, a text or a pathlib.Path.")
    if "\0" in str(value):
        raise UserError(f"{str(value)!r} is no path: it has the character '\\x00'.")
    return Path(value)


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def make_folder(path: Path) -> Path:
    """Return `path`, created with its parents if it is missing.

    Raises:
        UserError: it cannot be created, or there is a file of that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that the operating system refuses to write."""
    to_do = "Free some space or choose another folder that can be written to"
    if isinstance(error, FileNotFoundError):
        to_do = f"Create the folder {path.parent} first, or choose another"
    return UserError(f"Cannot write {path}: {error.strerror}. {to_do}.")


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False for a name that the operating system does not accept.

    Raises:
        UserError: a folder on its path cannot be read.
    """
    return _is(Path.is_file, path)


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; False for a name that the operating system does not accept.

    Raises:
        UserError: a folder on its path cannot be read.
    """
    return _is(Path.is_dir, path)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except PermissionError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (OSError, ValueError):
        return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
