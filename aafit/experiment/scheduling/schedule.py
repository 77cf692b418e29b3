"""A suite on the processes of an engine: each run in a process, a child as soon as its parent is done.

Runs that have all but the adaptive activations in common go in lockstep in one process, see
`aafit.experiment.runs.gradient`.

The run folders are the truth: a run that is finished there is skipped, an unfinished one goes on, so the same command
again completes what was stopped. A run that fails takes along only the runs that come from it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from aafit.errors import UserError
from aafit.experiment.runs.documents import DONE, LOG
from aafit.experiment.runs.job import Job, is_done, jobs_of, set_aside
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines.choose import open_engine
from aafit.experiment.scheduling.engines.engine import End, Engine, Process
from aafit.experiment.scheduling.engines.process import GRACE_SECONDS
from aafit.experiment.scheduling.options import RunOptions
from aafit.experiment.scheduling.order import Order
from aafit.experiment.scheduling.plan import Costs, Key, clock
from aafit.experiment.scheduling.progress import STYLES, RunState, Status, View, view_for
from aafit.files import make_folder

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
"""How often the folders of the running runs are read."""


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
    """How all runs ended; prints as a table with what went wrong and what to do.

    Attributes:
        stopped: whether the schedule was stopped before all runs had ended, by a signal or because the engine was lost.
        lost: why the engine can start nothing any more, and what to do; empty where it still can.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    stopped: bool
    lost: str = ""

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
            yield Text(self.lost or "Stopped. The same command goes on from here.")
        elif not self.ok:
            yield Text("Once the cause is mended, the same command goes on with what is missing.")


def run_suite(
    suite: Suite,
    runs_dir: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - it cannot be changed
    *,
    console: Console | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Do all runs of a suite that are not done yet, side by side, until all ended or a signal stops them.

    Args:
        console: where the runs are shown meanwhile.
        engine: starts the worker processes, instead of the one that the options name; left open.

    Raises:
        UserError: before anything has started: a folder holds a run with other settings or cannot be written, the data
            is not there, the device is not, or the engine cannot be used.
    """
    with ExitStack() as opened:
        if engine is None:
            engine = open_engine(
                options.engine, options.address, options.device, options.jobs, own_disks=options.own_disks
            )
            opened.callback(engine.close)
        table = jobs_of(
            suite, runs_dir, data_dir=options.data_dir, tensorboard=options.tensorboard, wandb=options.wandb
        )
        states = {key: RunState(job) for key, job in table.items()}
        if options.fresh:
            _set_aside([job.folder for job in table.values() if job.folder.exists()])
        for state in states.values():
            if is_done(state.job):
                state.status = Status.ALREADY_DONE
        missing = [state.job for state in states.values() if state.status is Status.WAITING]
        for job in missing:
            make_folder(job.folder)
        if missing:
            engine.check(missing)
        costs = Costs.measured(runs_dir, engine.device)
        with view_for(console or Console()) as view:
            return _Schedule(states, costs, engine, view).run()


def _set_aside(folders: list[Path]) -> None:
    """Move run folders out of the way, unless another process works in one of them: then none is moved."""
    for folder in folders:
        with locked(folder):
            pass
    for folder in folders:
        set_aside(folder)


@dataclass(frozen=True)
class _Started:
    """Runs that are in one process, and since when."""

    process: Process
    keys: tuple[Key, ...]
    began: float


class _Schedule:
    """The runs, the processes they are in, and the loop that starts and ends them."""

    def __init__(self, states: Mapping[Key, RunState], costs: Costs, engine: Engine, view: View) -> None:
        self.states, self.costs, self.engine, self.view = states, costs, engine, view
        self.order = Order(states, costs)
        self.running: dict[Key, _Started] = {}
        self.looked = -LOOK_SECONDS
        self.lost = ""

    def run(self) -> Summary:
        began = time.monotonic()
        for state in self.states.values():
            state.refresh()
        with _signals() as asked:
            try:
                while not (asked or self.lost) and (self.running or self.order.ready):
                    self._start_ready()
                    self._look()
                    self.view.update(self.states, self.costs, self.engine.slots)
                    if self.running or self.order.ready:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop(asked)
        outcomes = [Outcome(state.job, state.status, state.seconds, state.message) for state in self.states.values()]
        return Summary(tuple(outcomes), time.monotonic() - began, bool(asked or self.lost), self.lost)

    def _start_ready(self) -> None:
        free = self.engine.slots - len({id(started) for started in self.running.values()})
        while self.order.ready and free > 0:
            self._start(self.order.take())
            free -= 1

    def _start(self, keys: tuple[Key, ...]) -> None:
        states = [self.states[key] for key in keys]
        try:
            started = _Started(self.engine.start([state.job for state in states]), keys, time.monotonic())
        except (OSError, UserError) as error:
            why = str(error) if isinstance(error, UserError) else f"it cannot be started: {error}."
            for key in keys:
                self._fail(key, why)
            return
        for key, state in zip(keys, states, strict=True):
            self.running[key] = started
            state.status = Status.RUNNING
            self.view.started(state)

    def _look(self) -> None:
        """See what ended and, every second, how far the others are."""
        due = time.monotonic() - self.looked >= LOOK_SECONDS
        if due:
            self.looked = time.monotonic()
        ends = {id(started): started.process.end() for started in self.running.values()}
        for key, started in list(self.running.items()):
            state, end = self.states[key], ends[id(started)]
            if (due or end is not None) and state.refresh() and state.epoch_seconds is not None:
                self.costs.add(state.job.config, state.epoch_seconds)
            state.seconds = time.monotonic() - started.began
            if end is not None:
                del self.running[key]
                if _finished(state, end):
                    self._end(state, Status.DONE, "")
                    self.order.done(key)
                elif end.lost:
                    self.lost = end.why
                    self._end(state, Status.STOPPED, "")
                elif len(started.keys) > 1:
                    state.status = Status.WAITING
                    self.order.again_alone(key)
                else:
                    self._fail(key, end.why)

    def _fail(self, key: Key, why: str) -> None:
        self._end(self.states[key], Status.FAILED, why)
        for below in self.order.below(key):
            self._end(self.states[below], Status.NOT_RUN, f"{key[0]} failed.")

    def _end(self, state: RunState, status: Status, message: str) -> None:
        state.status, state.message = status, message
        self.view.ended(state)

    def _stop(self, asked: list[int]) -> None:
        """End every process still running: politely, and after a while, or when asked again, at once."""
        left = {id(started): started.process for started in self.running.values()}
        for process in left.values():
            process.stop(at_once=False)
        times, deadline = len(asked), time.monotonic() + GRACE_SECONDS
        ends: dict[int, End] = {}
        while left:
            for number, process in list(left.items()):
                if (end := process.end()) is not None:
                    ends[number] = end
                    del left[number]
            if time.monotonic() > deadline or len(asked) > times:
                for process in left.values():
                    process.stop(at_once=True)
            if left:
                time.sleep(POLL_SECONDS)
        for key, started in self.running.items():
            finished = _finished(self.states[key], ends[id(started)])
            self._end(self.states[key], Status.DONE if finished else Status.STOPPED, "")
        for state in self.states.values():
            if state.status is Status.WAITING:
                state.status = Status.STOPPED


def _finished(state: RunState, end: End) -> bool:
    # A folder that another machine writes to is up to date once it is listed; a single file of it may not be.
    return end.ok and DONE in os.listdir(state.job.folder)


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
