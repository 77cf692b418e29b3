"""A run folder for one process alone, on whichever machine.

The lock is a file, `lease`, that its holder touches every few seconds: the locks of the system do not reach over every
network file system. That a holder died is seen at once on its own machine, by its process number and start; on another
after a time without a touch, by the clock of whoever waits: the clocks of two machines are never compared.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from aafit.errors import UserError
from aafit.files import cannot_write, make_folder

log = logging.getLogger("aafit")

FILE = "lease"

UNTOUCHED_SECONDS = 30.0
"""After so long without a touch the holder counts as dead."""


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """The run folder for this process alone, until it lets go of it or ends, however it ends.

    A process that has lost the folder to another one, as it was stopped or cut off for too long, ends at once.

    Args:
        patience: how long to wait for a process that works in it, in seconds; where it is on another machine, at least
            until it can be told whether that process is alive.

    Raises:
        UserError: another process has it, or the folder cannot be made or written to.
    """
    lock = SoftFileLease(
        make_folder(folder) / FILE,
        lease_duration=UNTOUCHED_SECONDS,
        on_compromise=lambda _: _end(folder),
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
                # Whoever made the file died before its name was in it.
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


def _end(folder: Path) -> None:
    print(f"This process was cut off from {folder} for too long: another one has it now.", file=sys.stderr, flush=True)
    os._exit(1)
