"""Downloads: checked by checksum, retried, from the first mirror that answers, unpacked as a whole or not at all."""

import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock

from aafit.errors import UserError

CHUNK_BYTES = 1 << 16
TIMEOUT_S = (10, 60)
"""Seconds to connect, and between two chunks of the response."""
RETRIES = 1
"""At each mirror, after a pause of a second."""
LARGEST_UNPACKED = 1 << 30
"""Bytes that an archive may unpack to; CIFAR-10 has 184 million."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: of the file.
        checksum: that the publisher states, as "md5:...".
        mirrors: addresses, tried in this order.
    """

    name: str
    checksum: str
    mirrors: tuple[str, ...]


def fetch(remote: Iterable[RemoteFile], folder: Path, what: str) -> list[Path]:
    """Return the files in `folder`, after downloading those that are missing or have another checksum.

    Processes that need the same folder at the same time wait for the one that downloads.

    Args:
        remote: the files.
        folder: where they are put.
        what: name of the data set, for messages ("CIFAR-10").
    """
    with _locked(folder, what):
        return [_fetch_one(one, folder, what) for one in remote]


def fetch_and_unpack(archive: RemoteFile, folder: Path, subfolder: str, what: str) -> Path:
    """Return `folder / subfolder`, unpacked from a tar archive that is downloaded if the subfolder is missing.

    The subfolder appears as a whole or not at all, and the archive is removed.
    """
    target = folder / subfolder
    if target.is_dir():
        return target
    with _locked(folder, what):
        if not target.is_dir():
            downloaded = _fetch_one(archive, folder, what)
            with tempfile.TemporaryDirectory(dir=folder) as unpacked:
                _unpack(downloaded, Path(unpacked), subfolder)
                Path(unpacked, subfolder).rename(target)
            downloaded.unlink()
    return target


def _unpack(archive: Path, folder: Path, subfolder: str) -> None:
    """Unpack the regular files of `subfolder`; every other member of the archive is left out."""
    try:
        with tarfile.open(archive) as tar:
            members = []
            size = 0
            for member in tar:
                if member.isfile() and Path(member.name).parts[:1] == (subfolder,):
                    members.append(member)
                    size += member.size
                    if size > LARGEST_UNPACKED:
                        raise UserError(f"{archive} unpacks to more than {LARGEST_UNPACKED:,} bytes: it is refused.")
            tar.extractall(folder, members=members, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged: {error}. Remove it to download it again.") from error
    if not members:
        raise UserError(f"{archive} has no files in {subfolder}/: remove it to download it again.")


@contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    """Lock the folder, which is created if it is missing, for this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be downloaded to {folder}: {error}. Make room in that folder or make it writable, "
            f"or give a folder that holds {what} (--data-dir or $AAFIT_DATA)."
        ) from error


def _fetch_one(remote: RemoteFile, folder: Path, what: str) -> Path:
    failures = []
    for url in remote.mirrors:
        source = pooch.create(
            folder,
            base_url="",
            registry={remote.name: remote.checksum},
            urls={remote.name: url},
            retry_if_failed=RETRIES,
        )
        download = pooch.HTTPDownloader(sys.stderr.isatty(), chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S)
        try:
            return Path(source.fetch(remote.name, downloader=download))
        except (requests.RequestException, ValueError) as error:  # pooch's ValueError: the checksum is wrong
            failures.append(f"{urlsplit(url).netloc}: {_reason(error)}")
    raise UserError(
        f"{what} cannot be downloaded: no mirror gave {remote.name} ({'; '.join(failures)}). Connect this machine to "
        f"the internet, or fetch {remote.mirrors[0]} on another one and give the folder that holds it, unpacked "
        f"(--data-dir or $AAFIT_DATA)."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):
        return "no connection"
    return "wrong checksum"
