"""Worker processes on other machines: restarted when their machine dies, with or without a shared runs folder.

The runs folder of the schedule stays the only truth: a run resumes from what is in it. Machines that do not share it
get the files that a run needs, and what the run writes is copied back.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from aafit.experiment.runs.documents import DONE, METRICS, STATE
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.process import locked
from aafit.experiment.scheduling.engines.engine import End, Process
from aafit.experiment.scheduling.engines.process import RUNS_DIR, Files, changed_files
from aafit.files import make_folder, write_atomically

MAX_DEATHS = 5
"""A run fails when so many machines in a row died under it before it finished another epoch."""


class ResumedProcess:
    """A process that is submitted again whenever its machine dies, but never after an error of the run.

    Args:
        submit: starts the process on another machine.
        lock: hold the run folders meanwhile, since a process that does not see them cannot.
    """

    def __init__(self, jobs: Sequence[Job], submit: Callable[[], Process], *, lock: bool = False) -> None:
        self.jobs, self.submit, self.deaths, self.stopped = jobs, submit, 0, False
        with ExitStack() as locks:
            for job in jobs if lock else ():
                locks.enter_context(locked(job.folder))
            self.process, self.measured = submit(), self._measured_bytes()
            self.locks = locks.pop_all()

    def end(self) -> End | None:
        ended = self.process.end()
        if ended is not None and ended.lost == "machine":
            before, self.measured = self.measured, self._measured_bytes()
            self.deaths = 1 if self.measured > before else self.deaths + 1
            if not self.stopped and self.deaths < MAX_DEATHS:
                self.process = self.submit()
                return None
            why = f"its machine died {self.deaths} times before an epoch was done; last: {ended.why}."
            ended = End(False, why)
        if ended is not None:
            self.locks.close()
        return ended

    def stop(self, *, at_once: bool) -> None:
        self.stopped = True
        self.process.stop(at_once=at_once)

    def _measured_bytes(self) -> int:
        """Return the size of the jobs' metrics, which grows with each epoch."""
        files = [job.folder / METRICS for job in self.jobs]
        return sum(file.stat().st_size for file in files if file.exists())


def runs_folder(jobs: Sequence[Job]) -> Path:
    return jobs[0].folder.parents[2]


def relative_folders(jobs: Sequence[Job]) -> list[str]:
    """Return the run folders, relative to the runs folder."""
    return [job.folder.relative_to(runs_folder(jobs)).as_posix() for job in jobs]


def with_placeholder(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with `RUNS_DIR`, which the worker's machine fills in, in place of the runs folder."""
    runs = runs_folder(jobs)

    def moved(folder: Path | None) -> Path | None:
        return None if folder is None else Path(RUNS_DIR, folder.relative_to(runs))

    return [job.model_copy(update={"folder": moved(job.folder), "parent": moved(job.parent)}) for job in jobs]


def required_files(jobs: Sequence[Job]) -> Files:
    """Return the files that the runs need: those they have written so far, and their parents'."""
    runs = runs_folder(jobs)
    parents = {job.parent.relative_to(runs).as_posix(): None for job in jobs if job.parent is not None}
    return changed_files(str(runs), [*relative_folders(jobs), *parents], {})


def write_files(runs: Path, files: Files) -> None:
    """Write files into the runs folder: a state after the rows that it counts on, `done.json` last."""
    for name in sorted(files, key=lambda name: (name.endswith(DONE), name.endswith(STATE))):
        make_folder((runs / name).parent)
        write_atomically(runs / name, files[name])
        if name.endswith(DONE):
            (runs / name).with_name(STATE).unlink(missing_ok=True)
