"""The processes that storm.py kills: a schedule of real runs and its workers, each with a witness that it works alone.

`python -m benchmarks.witness worker` is `aafit.experiment.scheduling.worker` with an additional system lock on each
run folder that it works in. The system releases such a lock only when its process dies, independent of the code under
test. `python -m benchmarks.witness schedule`, with a `Schedule` as JSON on its standard input, runs a suite with such
workers.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console

from aafit.experiment.runs import execute
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import Suite, load_suite
from aafit.experiment.scheduling import worker
from aafit.experiment.scheduling.engines.process import PYTHON
from aafit.experiment.scheduling.schedule import open_engine, run_suite

FOLDER = "AAFIT_WITNESS"
"""The environment variable that names the folder of the witnesses' locks."""

TWICE = "twice.txt"
"""In it, the run folders that two processes worked in at once."""

WORKER = (PYTHON, "-m", "benchmarks.witness", "worker")


class Schedule(BaseModel):
    """What `aafit run` receives on its command line."""

    suite: str
    seeds: tuple[int, ...] | None
    epochs_scale: float | None
    engine: str
    address: str | None = None
    jobs: int | None = None
    runs_dir: Path

    def chosen(self) -> Suite:
        suite = load_suite(self.suite)
        suite = suite if self.seeds is None else suite.with_seeds(self.seeds)
        return suite if self.epochs_scale is None else suite.scaled(self.epochs_scale)

    def run(self) -> int:
        """Run the suite; return 0 if all runs are done."""
        engine = open_engine(self.engine, "cpu", self.jobs, self.address)
        engine.command = WORKER
        try:
            console = Console(width=200)
            summary = run_suite(self.chosen(), self.runs_dir, engine, console=console)
            console.print(summary)
        finally:
            engine.close()
        return 0 if summary.ok else 1


@contextmanager
def witnessed(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Lock the folder as `locked` does, and record any other process that works in it meanwhile."""
    witnesses = Path(os.environ[FOLDER])
    with locked(folder, patience), (witnesses / sha256(str(folder).encode()).hexdigest()).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with (witnesses / TWICE).open("a") as note:
                note.write(f"{folder}\n")
        yield


def main(what: str) -> int:
    if what == "schedule":
        return Schedule.model_validate_json(sys.stdin.read()).run()
    execute.locked = witnessed
    return worker.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))
