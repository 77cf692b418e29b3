"""Files from the internet: checked, retried, from the first mirror that answers, unpacked whole or not at all."""

import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from aafit.errors import UserError

CHUNK_BYTES = 1 << 16
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of the answer
RETRIES = 1  # at each mirror, after a pause of a second


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, the checksum that its publisher states ("md5:..."), and where to get it, in order."""

    name: str
    checksum: str
    mirrors: tuple[str, ...]


def fetch(remote: Iterable[RemoteFile], folder: Path, what: str) -> list[Path]:
    """The files in `folder`: those that are there with the right checksum, the others downloaded.

    Processes that ask for the same folder at once wait for the one that downloads.

    Args:
        what: the name of the whole, for messages ("CIFAR-10").

    Raises:
        UserError: no mirror gave one of the files with the right checksum, or `folder` cannot be written.
    """
    with _owned(folder, what):
        return [_fetch_one(one, folder, what) for one in remote]


def fetch_and_unpack(archive: RemoteFile, folder: Path, subfolder: str, what: str) -> Path:
    """`folder / subfolder` out of a tar archive, downloaded where it is not there yet.

    The subfolder appears whole or not at all, and the archive is not kept.

    Raises:
        UserError: as `fetch`.
    """
    target = folder / subfolder
    if target.is_dir():
        return target
    with _owned(folder, what):
        if not target.is_dir():
            downloaded = _fetch_one(archive, folder, what)
            with tempfile.TemporaryDirectory(dir=folder) as unpacked:
                with tarfile.open(downloaded) as tar:
                    tar.extractall(unpacked, filter="data")
                Path(unpacked, subfolder).rename(target)
            downloaded.unlink()
    return target


@contextmanager
def _owned(folder: Path, what: str) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone."""
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
        with _Progress(remote.name) if sys.stderr.isatty() else nullcontext(False) as progress:
            download = pooch.HTTPDownloader(progress, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S)
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


class _Progress:
    """What pooch asks of a progress display (`total`, `update`, `reset`, `close`), drawn by rich on stderr."""

    def __init__(self, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total(self) -> float | None:
        return self._bar.tasks[0].total

    @total.setter
    def total(self, size: float) -> None:
        self._bar.reset(self._task, total=size)
        self._bar.start()

    def update(self, size: float) -> None:
        self._bar.update(self._task, advance=size)

    def reset(self) -> None:
        self._bar.update(self._task, completed=0)

    def close(self) -> None:
        self._bar.stop()
