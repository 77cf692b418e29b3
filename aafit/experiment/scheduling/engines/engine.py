"""What a schedule asks of an engine: to start the process of one or several jobs, and to tell how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.process import PYTHON

WORKER = (PYTHON, "-m", "aafit.experiment.scheduling.worker")
"""The command that does runs. It gets the list of their jobs as a line of JSON on a standard input that stays open for
as long as whoever started it lives, and exits with 0 when all are done."""

PATIENT = ("--patience", "120")
"""What is added to the command where a run may be started again while the system has not let go of its folder yet: how
long the process waits for it, in seconds."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        ok: whether it ended well.
        why: why it did not, in a sentence.
        lost: whether the engine can start nothing any more. That is no fault of the runs; `why` says what to do.
    """

    ok: bool
    why: str
    lost: bool = False


class Process(Protocol):
    """A worker process, wherever it runs."""

    def end(self) -> End | None:
        """How it ended, None while it runs."""

    def stop(self, *, at_once: bool) -> None:
        """Ask it to end; `at_once`: end it."""


class Engine(Protocol):
    """Starts worker processes.

    Attributes:
        command: what does the jobs, see `WORKER`.
    """

    command: Sequence[str]

    @property
    def slots(self) -> int:
        """How many processes it takes side by side, as of now."""

    @property
    def device(self) -> str:
        """What their device is called, as in a run's config.json; known once the jobs are checked."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuse, before anything starts, what would keep these jobs from being done.

        Raises:
            UserError: data or a folder is not there, or a machine is not fit for the jobs.
        """

    def start(self, jobs: Sequence[Job]) -> Process:
        """Start the process of one job, or of several in lockstep; it prints to the log of the first.

        Raises:
            OSError, UserError: it cannot be started.
        """

    def close(self) -> None:
        """Let go of what the engine holds, once its processes have ended."""


def as_told(jobs: Sequence[Job], device: str, threads: int | None) -> str:
    """The line that a worker reads: the jobs, with the device and the threads that they get."""
    placed = {"device": device, "threads": threads}
    return f"[{','.join(job.model_copy(update=placed).model_dump_json() for job in jobs)}]\n"
