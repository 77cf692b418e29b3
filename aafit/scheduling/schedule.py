"""A suite on the processes of one machine: each run in a process, a child as soon as its parent is done.

Runs that have all but the adaptive activations in common go in lockstep in one process, see `aafit.training.lockstep`.

The run folders are the truth: a run that is finished there is skipped, an unfinished one goes on, so the same command
again completes what was stopped. A run that fails takes along only the runs that come from it.
"""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from aafit.data.datasets import load_dataset
from aafit.devices import Slot, choose_device, device_name, slots
from aafit.files import make_folder
from aafit.runs.documents import DONE, LOG
from aafit.runs.folder import locked
from aafit.runs.job import Job, is_done, jobs_of, lockstep_groups, set_aside
from aafit.runs.suite import Suite
from aafit.scheduling.options import RunOptions
from aafit.scheduling.plan import START_SECONDS, Costs, Key, chains, clock, parents_of
from aafit.scheduling.progress import STYLES, RunState, Status, View, view_for
from aafit.scheduling.worker import WORKER, Process

GRACE_SECONDS = 15.0
"""How long a stopped process may take to end by itself."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """How one run ended; `message` says why it failed or was not run."""

    job: Job
    status: Status
    seconds: float
    message: str

    @property
    def log(self) -> Path:
        return self.job.folder / LOG


@dataclass(frozen=True)
class Summary:
    """How all runs ended; prints as a table with what went wrong and what to do."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    stopped: bool

    @property
    def ok(self) -> bool:
        return all(outcome.status in (Status.DONE, Status.ALREADY_DONE) for outcome in self.outcomes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("run", "seed", "status", "time")
        for outcome in self.outcomes:
            spent = clock(outcome.seconds) if outcome.seconds else ""
            style = STYLES[outcome.status]
            table.add_row(outcome.job.config.name, str(outcome.job.seed), outcome.status, spent, style=style)
        yield table
        for outcome in self.outcomes:
            if outcome.message:
                name = f"{outcome.job.config.name} (seed {outcome.job.seed})"
                log = f" Log: {outcome.log}" if outcome.status is Status.FAILED else ""
                yield Text(f"{name} {outcome.status}: {outcome.message}{log}", style=STYLES[outcome.status])
        done = sum(outcome.status in (Status.DONE, Status.ALREADY_DONE) for outcome in self.outcomes)
        yield Text(f"{done} of {len(self.outcomes)} runs done, {clock(self.seconds)}.")
        if self.stopped:
            yield Text("Stopped. The same command goes on from here.")
        elif not self.ok:
            yield Text("Once the cause is mended, the same command goes on with what is missing.")


def run_suite(
    suite: Suite,
    runs_dir: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - it cannot be changed
    *,
    console: Console | None = None,
    worker: Sequence[str] = WORKER,
) -> Summary:
    """Do all runs of a suite that are not done yet, side by side, until all ended or a signal stops them.

    Args:
        console: where the runs are shown meanwhile.
        worker: the command that does runs; it gets the list of their jobs as a line of JSON on a standard input that
            stays open for as long as this process lives.

    Raises:
        UserError: before anything has started: a folder holds a run with other settings or cannot be written, the data
            is not there, the device is not.
    """
    places = slots(options.device, options.jobs)
    table = jobs_of(suite, runs_dir, data_dir=options.data_dir, tensorboard=options.tensorboard, wandb=options.wandb)
    states = {key: RunState(job) for key, job in table.items()}
    if options.fresh:
        _set_aside([job.folder for job in table.values() if job.folder.exists()])
    for state in states.values():
        if is_done(state.job):
            state.status = Status.ALREADY_DONE
    missing = [state.job for state in states.values() if state.status is Status.WAITING]
    for job in missing:
        make_folder(job.folder)
    configs = [job.config for job in missing]
    for needs in dict.fromkeys((one.dataset, options.data_dir, one.holdout, one.train_images) for one in configs):
        load_dataset(*needs)
    costs = Costs.measured(runs_dir, device_name(choose_device(places[0].device)))
    with view_for(console or Console()) as view:
        return _Schedule(states, costs, places, view, worker).run()


def _set_aside(folders: list[Path]) -> None:
    """Move run folders out of the way, unless another process works in one of them: then none is moved."""
    for folder in folders:
        with locked(folder):
            pass
    for folder in folders:
        set_aside(folder)


class _Schedule:
    """The runs, the processes they are in, and the loop that starts and ends them."""

    def __init__(
        self, states: Mapping[Key, RunState], costs: Costs, places: list[Slot], view: View, worker: Sequence[str]
    ) -> None:
        self.states, self.costs, self.view, self.worker = states, costs, view, worker
        self.free, self.slots = list(places), len(places)
        self.parents = parents_of({key: state.job for key, state in states.items()})
        self.groups = lockstep_groups({key: state.job for key, state in states.items()})
        self.alone: set[Key] = set()
        """Runs whose process failed: one of several must not take the others along."""
        self.running: dict[Key, Process] = {}

    def run(self) -> Summary:
        began = time.monotonic()
        for state in self.states.values():
            state.refresh()
        with _signals() as asked:
            try:
                while not asked and any(
                    state.status in (Status.WAITING, Status.RUNNING) for state in self.states.values()
                ):
                    self._start_ready()
                    self._look()
                    self.view.update(self.states, self.costs, self.slots)
                    if self.running:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop(asked)
        outcomes = [Outcome(state.job, state.status, state.seconds, state.message) for state in self.states.values()]
        return Summary(tuple(outcomes), time.monotonic() - began, bool(asked))

    def _start_ready(self) -> None:
        """Fill the free slots; what has the longest chain of runs before its end goes first, so that none ends late."""
        known = {
            key: state.seconds_left(self.costs) for key, state in self.states.items() if state.status is Status.WAITING
        }
        cost = {key: START_SECONDS if left is None else left for key, left in known.items()}
        longest = chains({key: sum(cost[other] for other in self._lockstep(key)) for key in cost}, self.parents)
        for key in sorted(known, key=lambda key: -longest[key]):
            state, parent = self.states[key], self.parents[key]
            before = self.states[parent] if parent is not None else None
            if before is not None and before.status in (Status.FAILED, Status.NOT_RUN):
                failed = f"{before.job.config.name} failed."
                self._end(state, Status.NOT_RUN, failed if before.status is Status.FAILED else before.message)
            elif state.status is not Status.WAITING:
                pass  # started with another one, in lockstep
            elif self.free and (before is None or before.status in (Status.DONE, Status.ALREADY_DONE)):
                self._start(self._lockstep(key))

    def _lockstep(self, key: Key) -> list[Key]:
        """The waiting runs, this one among them, that can go in one process."""
        if key in self.alone:
            return [key]
        waiting = {other for other in self.groups[key] if self.states[other].status is Status.WAITING}
        return [other for other in self.groups[key] if other in waiting - self.alone]

    def _start(self, keys: list[Key]) -> None:
        place, states = self.free.pop(0), [self.states[key] for key in keys]
        try:
            process = Process([state.job for state in states], place, self.worker)
        except OSError as error:
            self.free.append(place)
            for state in states:
                self._end(state, Status.FAILED, f"it cannot be started: {error}.")
            return
        for key, state in zip(keys, states, strict=True):
            self.running[key] = process
            state.status = Status.RUNNING
            self.view.started(state)

    def _look(self) -> None:
        for key, process in list(self.running.items()):
            state, code = self.states[key], process.popen.poll()
            if state.refresh() and state.epoch_seconds is not None:
                self.costs.add(state.job.config, state.epoch_seconds)
            state.seconds = time.monotonic() - process.began
            if code is not None:
                self._take_back(key)
                if code == 0 and (state.job.folder / DONE).exists():
                    self._end(state, Status.DONE, "")
                elif len(process.jobs) > 1:
                    self.alone.add(key)
                    state.status = Status.WAITING
                else:
                    self._end(state, Status.FAILED, process.why(code))

    def _take_back(self, key: Key) -> None:
        process = self.running.pop(key)
        if process not in self.running.values():
            process.close()
            self.free.append(process.place)

    def _end(self, state: RunState, status: Status, message: str) -> None:
        state.status, state.message = status, message
        self.view.ended(state)

    def _stop(self, asked: list[int]) -> None:
        """End every process still running: politely, and after a while, or when asked again, at once."""
        for process in self.running.values():
            process.popen.terminate()
        times, deadline = len(asked), time.monotonic() + GRACE_SECONDS
        while any(process.popen.poll() is None for process in self.running.values()):
            if time.monotonic() > deadline or len(asked) > times:
                for process in self.running.values():
                    process.popen.kill()
            time.sleep(POLL_SECONDS)
        for key in list(self.running):
            finished = self.running[key].popen.returncode == 0 and (self.states[key].job.folder / DONE).exists()
            self._take_back(key)
            self._end(self.states[key], Status.DONE if finished else Status.STOPPED, "")
        for state in self.states.values():
            if state.status is Status.WAITING:
                state.status = Status.STOPPED


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: Any) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
