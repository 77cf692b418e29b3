"""Runs on machines that do not see the runs folder: what a run needs is taken there, what it writes is brought back.

The runs folder stays the truth: a run is held here for as long as it is anywhere, and whatever dies, it goes on from
what was brought back last.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from aafit.experiment.runs.documents import DONE, STATE
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.process import locked
from aafit.experiment.scheduling.engines.engine import End
from aafit.experiment.scheduling.engines.process import PLACE, Files, new_files
from aafit.experiment.scheduling.engines.resume import ResumedProcess, Task
from aafit.files import make_folder, write_atomically


class CarriedProcess(ResumedProcess):
    """A process on another machine's disk. Its runs are held here, so that no other schedule starts them.

    Raises:
        UserError: another process works in one of the folders.
    """

    def __init__(self, jobs: Sequence[Job], submit: Callable[[], Task]) -> None:
        with ExitStack() as held:
            for job in jobs:
                held.enter_context(locked(job.folder))
            super().__init__(jobs, submit)
            self.held = held.pop_all()

    def end(self) -> End | None:
        ended = super().end()
        if ended is not None:
            self.held.close()
        return ended


def runs_folder(jobs: Sequence[Job]) -> Path:
    return jobs[0].folder.parents[2]


def folders_of(jobs: Sequence[Job]) -> list[str]:
    """The folders of the runs, below the runs folder."""
    return [job.folder.relative_to(runs_folder(jobs)).as_posix() for job in jobs]


def as_placed(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs where `PLACE` is the runs folder."""
    runs, place = runs_folder(jobs), Path(PLACE)

    def there(folder: Path | None) -> Path | None:
        return None if folder is None else place / folder.relative_to(runs)

    return [job.model_copy(update={"folder": there(job.folder), "parent": there(job.parent)}) for job in jobs]


def packed(jobs: Sequence[Job]) -> Files:
    """What the runs need: what they have done so far, and the finished runs that they come from."""
    runs = runs_folder(jobs)
    parents = {job.parent.relative_to(runs).as_posix(): None for job in jobs if job.parent is not None}
    return new_files(str(runs), [*folders_of(jobs), *parents], {})


def unpack(runs: Path, files: Files) -> None:
    """Put what was brought back into the runs folder: a state after the rows it knows of, `done.json` last.

    Raises:
        UserError: it cannot be written.
    """
    for name in sorted(files, key=lambda name: (name.endswith(DONE), name.endswith(STATE))):
        make_folder((runs / name).parent)
        write_atomically(runs / name, files[name])
        if name.endswith(DONE):
            (runs / name).with_name(STATE).unlink(missing_ok=True)
