"""A suite of runs of milliseconds: `fake_worker.py` does them and records when each started and ended."""

import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.suite import RunConfig, Suite
from aafit.experiment.scheduling.engines.engine import Engine
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.schedule import Summary, run_suite

WORKER = (sys.executable, "-S", str(Path(__file__).parent / "fake_worker.py"))

TUNED = {"fc": "LEAF as Tanh", "train": "activations"}


def run(name: str, parent: RunConfig | None = None, epochs: int = 1, **settings: object) -> RunConfig:
    values = {"name": name, "epochs": epochs, "dataset": "MNIST-5k", **settings}
    if parent is not None:
        values |= {"parent": parent.name, "start_epoch": parent.end_epoch, **TUNED}
    return RunConfig.checked(values)


BASE = run("base")
OTHER = run("other")
CHILD = run("child", BASE)
GRANDCHILD = run("grandchild", CHILD)
LONG = run("long", BASE, epochs=20)
SUITE = Suite(name="fake", runs=(BASE, OTHER, CHILD, GRANDCHILD, LONG))


def local(jobs: int = 2, command: Sequence[str] = WORKER) -> LocalEngine:
    return LocalEngine("cpu", jobs, command)


class Fake:
    """A runs folder, with the files of the fake worker next to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.output = io.StringIO()
        self.prepare(SUITE, {})

    def prepare(self, suite: Suite, behaviour: dict[str, str]) -> None:
        hashes = {f"{key[0]}/seed{key[1]}": job.settings_hash for key, job in jobs_of(suite, self.runs).items()}
        (self.folder / "hashes.json").write_text(json.dumps(hashes))
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def __call__(
        self, suite: Suite = SUITE, jobs: int = 2, fresh: bool = False, engine: Engine | None = None, **behaviour: str
    ) -> Summary:
        self.prepare(suite, behaviour)
        console = Console(file=self.output, width=200)
        return run_suite(suite, self.runs, engine or local(jobs), fresh=fresh, console=console)

    def events(self, event: str = "start") -> dict[str, tuple[float, int]]:
        """When the last such event of each run was, and in which process."""
        return {name: (at, process) for name, what, at, process in self.all_events() if what == event}

    def all_events(self) -> list[tuple[str, str, float, int]]:
        file = self.folder / "events.txt"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(name, what, float(at), int(process)) for name, what, at, process in lines]

    def wait_for(self, *names: str) -> None:
        end = time.monotonic() + 120
        while not set(names) <= set(self.events()):
            assert time.monotonic() < end, f"only {self.events()} started"
            time.sleep(0.02)


def statuses(summary: Summary) -> dict[str, str]:
    return {outcome.job.config.name: str(outcome.status) for outcome in summary.runs}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False
