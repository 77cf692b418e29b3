"""A process that does runs: how it is started, what it is told, and why it failed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aafit.job import Job
from aafit.slots import Slot

WORKER = (sys.executable, "-m", "aafit.execute")


class Process:
    """The process of one run, or of several in step; it prints to the log of the first.

    Its standard input stays open: when this process dies, the system closes it.
    """

    def __init__(self, jobs: Sequence[Job], place: Slot, worker: Sequence[str]) -> None:
        self.jobs, self.place, self.began = jobs, place, time.monotonic()
        here = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, **place.environment}
        environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with (jobs[0].folder / "log.txt").open("ab") as log:
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
        with suppress(OSError), (self.jobs[0].folder / "log.txt").open("rb") as log:
            log.seek(self.log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            if code < 0:
                name = signal.Signals(-code).name
                return f"it was ended by {name}{' (not enough memory?)' if name == 'SIGKILL' else ''}."
            if code and lines:
                return lines[-1]
        return f"it ended with exit code {code} and wrote nothing." if code else "it ended without a result."
