"""Files that are whole or not there: written beside, then renamed into place."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from aafit.errors import UserError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a stop at any moment leaves the old file or the new one, never a part.

    Raises:
        UserError: the folder cannot be written to (read-only, full, no permission); what was there is unharmed.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise cannot_write(path, error) from error


def make_folder(path: Path) -> Path:
    """`path`, made with its parents where it is not there.

    Raises:
        UserError: it cannot be made, or there is a file of that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a file or folder that the system does not let us write."""
    return UserError(
        f"Cannot write {path}: {error.strerror}. Free some space or choose another folder that can be written to."
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
