"""A process that does runs: how it is started, what it is told, what it does, and why it failed.

`python -m aafit.scheduling.worker` reads a list of jobs as one line of JSON on its standard input and does them: one,
or several in lockstep. It ends when that input is closed, so that it does not outlive the program that started it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from aafit.devices import Slot
from aafit.errors import UserError
from aafit.runs.documents import LOG
from aafit.runs.execute import execute
from aafit.runs.job import Job

WORKER = (sys.executable, "-m", "aafit.scheduling.worker")


class Process:
    """The process of one run, or of several in lockstep; it prints to the log of the first.

    Its standard input stays open: when this process dies, the system closes it.
    """

    def __init__(self, jobs: Sequence[Job], place: Slot, worker: Sequence[str]) -> None:
        self.jobs, self.place, self.began = jobs, place, time.monotonic()
        here = str(Path(__file__).parent.parent.parent)
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, **place.environment}
        environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with (jobs[0].folder / LOG).open("ab") as log:
            self.log_start = log.tell()
            self.popen = subprocess.Popen(
                worker,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C on the terminal reaches the schedule alone, which ends its processes
            )
        placed = {"device": place.device, "threads": place.threads}
        told = [job.model_copy(update=placed).model_dump_json() for job in jobs]
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(f"[{','.join(told)}]\n".encode())
            self.popen.stdin.flush()

    def close(self) -> None:
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.close()

    def why(self, code: int) -> str:
        """Why it failed: the last line it wrote, or how it ended."""
        with suppress(OSError), (self.jobs[0].folder / LOG).open("rb") as log:
            log.seek(self.log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            if code < 0:
                name = signal.Signals(-code).name
                return f"it was ended by {name}{' (not enough memory?)' if name == 'SIGKILL' else ''}."
            if code and lines:
                return lines[-1]
        return f"it ended with exit code {code} and wrote nothing." if code else "it ended without a result."


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_input() -> None:
    """End this process at once when its standard input is closed: a run may be stopped at any moment."""
    sys.stdin.read()
    os._exit(128 + signal.SIGTERM)


def _read_jobs(line: str) -> list[Job]:
    try:
        return TypeAdapter(Annotated[list[Job], Field(min_length=1)]).validate_json(line)
    except ValidationError as error:
        raise UserError(
            f"This is not a list of jobs: {error.errors()[0]['msg']}. `aafit run` and `aafit train` make jobs."
        ) from error


def main() -> int:
    """Do the jobs on standard input; 0 when done, 2 for what the user can mend, 128 + n when stopped by signal n."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        jobs = _read_jobs(sys.stdin.readline())
        threading.Thread(target=_end_with_input, daemon=True).start()
        execute(*jobs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
