"""The interface of an engine: it starts the worker process of one or several jobs and reports how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aafit.experiment.devices import Slot
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.process import PYTHON

WORKER = (PYTHON, "-m", "aafit.experiment.scheduling.worker")
"""The command of a worker process. It reads its jobs as a line of JSON from standard input, which stays open as long as
the process that started it lives, and exits with 0 when all jobs are done."""

WITH_PATIENCE = ("--patience", "120")
"""Added to the command where a run may be restarted before the lock of its folder is released: seconds to wait."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        ok: whether it succeeded.
        why: why it did not, as a sentence.
        lost: what died under the process, which is no fault of its runs: its "machine", so that the runs can be
            restarted elsewhere, or the "engine", so that nothing can be started any more; `why` then states what to do.
    """

    ok: bool
    why: str
    lost: Literal["machine", "engine"] | None = None


class Process(Protocol):
    """A worker process, on any machine."""

    def end(self) -> End | None:
        """Return how the process ended, or None while it runs."""

    def stop(self, *, at_once: bool) -> None:
        """Terminate the process: `at_once` with SIGKILL, otherwise with SIGTERM."""


class Engine(Protocol):
    """Starts worker processes.

    Attributes:
        command: the command of a worker process, see `WORKER`.
    """

    command: Sequence[str]

    @property
    def slots(self) -> int:
        """How many processes can run at the same time; it may change."""

    @property
    def device(self) -> str:
        """Name of the processes' device, as in a run's config.json; valid after `check`."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Check, before anything starts, that the jobs can be done."""

    def start(self, jobs: Sequence[Job]) -> Process:
        """Start the process of one job, or of several in lockstep; its output goes to the log of the first.

        Raises:
            OSError, UserError: the process cannot be started.
        """

    def close(self) -> None:
        """Release the engine's resources, once its processes have ended."""


def worker_input(jobs: Sequence[Job], slot: Slot) -> str:
    """Return the line that a worker reads: the jobs as JSON, with the device and the threads of their slot."""
    placed = {"device": slot.device, "threads": slot.threads}
    return f"[{','.join(job.model_copy(update=placed).model_dump_json() for job in jobs)}]\n"
