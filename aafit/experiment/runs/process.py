"""What a process has for a run: the lock of its folder, its log.txt, and the environment variables that it obeys."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from aafit.errors import UserError
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.files import cannot_write, make_folder

log = logging.getLogger("aafit")

LEASE = "lease"
"""Name of the lock's file, which its holder touches every few seconds.

The locks of the operating system do not work on every network file system. A holder that died is noticed at once on its
own machine, by its process number and start time; on another machine after a time without a touch, by the clock of the
waiting process: the clocks of two machines are never compared.
"""

UNTOUCHED_SECONDS = 30.0
"""After this time without a touch the holder counts as dead."""


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Lock a run folder for this process until the block or the process ends.

    A process that lost the folder to another one, since it was stopped or disconnected for too long, exits at once.

    Args:
        folder: the run folder; it is created if it is missing.
        patience: how long to wait for a process that has the folder, in seconds; if that process is on another machine,
            at least until it is known whether it is alive.
    """
    lock = SoftFileLease(
        make_folder(folder) / LEASE,
        lease_duration=UNTOUCHED_SECONDS,
        on_compromise=lambda _: _exit(folder),
        thread_local=False,
    )
    try:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            holder = lock.owner
            if holder is not None and holder.hostname == socket.gethostname():
                raise
            where = "another machine" if holder is None else holder.hostname
            log.info("waiting to see whether a process on %s still works in %s", where, folder)
            try:
                lock.acquire(timeout=1.5 * UNTOUCHED_SECONDS)
            except Timeout:
                if lock.owner is not None:
                    raise
                # The process that created the file died before its name was in it.
                lock.force_break()
                lock.acquire(timeout=0)
    except Timeout as error:
        holder = lock.owner
        which = "" if holder is None else f" It is process {holder.pid} on {holder.hostname}."
        raise UserError(f"Another process is running in {folder}; wait for it, or stop it first.{which}") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _exit(folder: Path) -> None:
    print(f"This process was disconnected from {folder} for too long: another one has it now.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def printing_to_log(job: Job) -> Iterator[None]:
    """Redirect what this process prints in this block to the run's log.txt."""
    with (job.folder / LOG).open("ab") as file, ExitStack() as undo:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            before = os.dup(number)
            undo.callback(os.close, before)
            undo.callback(os.dup2, before, number)
            os.dup2(file.fileno(), number)
        undo.callback(sys.stderr.flush)
        undo.callback(sys.stdout.flush)
        yield


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """Write what this program logs in this block to the run's log.txt as well."""
    to_file = logging.FileHandler(make_folder(job.folder) / LOG)
    to_file.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(to_file)
    try:
        yield
    finally:
        log.removeHandler(to_file)
        to_file.close()
