"""A process on another machine that is started again when that machine dies: the run goes on from its last epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aafit.experiment.runs.documents import METRICS
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.engine import End

DEATHS = 5
"""So many machines may die under a run, without it having done an epoch in between, before it counts as failed."""


@dataclass(frozen=True)
class Death:
    """What was under the process died, and with it the process: no fault of the run."""

    why: str


class Task(Protocol):
    """One try to run a process on another machine."""

    def end(self) -> End | Death | None:
        """How it ended, None while it waits or runs."""

    def stop(self, *, at_once: bool) -> None: ...


class ResumedProcess:
    """A process that is tried again after each death of what is under it, never after an error of the run."""

    def __init__(self, jobs: Sequence[Job], submit: Callable[[], Task]) -> None:
        self.jobs, self.submit = jobs, submit
        self.task, self.deaths, self.measured, self.stopped = submit(), 0, self._measured(), False

    def end(self) -> End | None:
        ended = self.task.end()
        if not isinstance(ended, Death):
            return ended
        before, self.measured = self.measured, self._measured()
        self.deaths = 1 if self.measured > before else self.deaths + 1
        if self.stopped or self.deaths >= DEATHS:
            return End(False, f"what it ran on died {self.deaths} times before an epoch was done; last: {ended.why}.")
        self.task = self.submit()
        return None

    def stop(self, *, at_once: bool) -> None:
        self.stopped = True
        self.task.stop(at_once=at_once)

    def _measured(self) -> int:
        """How much the jobs have measured, in bytes."""
        files = [job.folder / METRICS for job in self.jobs]
        return sum(file.stat().st_size for file in files if file.exists())
