"""Run a suite on the processes of an engine: each run in a process, a child as soon as its parent is done.

Read `run_suite` first. The run folders are the only truth: finished runs are skipped and unfinished ones resume, so the
same command completes what was stopped. A run that fails keeps only its descendants from running. Runs that differ in
their adaptive activations alone share a process, see `aafit.experiment.runs.gradient`.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from aafit.errors import UserError, check_name, needs_extra
from aafit.experiment.runs.documents import DONE, LOG
from aafit.experiment.runs.job import is_done, jobs_of, lockstep_groups, set_aside
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines.engine import End, Engine, Process
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.engines.process import GRACE_SECONDS
from aafit.experiment.scheduling.plan import START_SECONDS, Costs, Key, children_of, clock, critical_paths, parents_of
from aafit.experiment.scheduling.progress import STYLES, LiveTable, PlainLines, RunState, Status
from aafit.files import make_folder

ENGINES = ("local", "ray", "slurm")

POLL_SECONDS = 0.1
REFRESH_SECONDS = 1.0
"""How often the folders of the running runs are read."""
SHARE = 0.02
"""The share of its time that a schedule may spend on ranking its runs, and on showing them."""


@dataclass(frozen=True)
class Summary:
    """How all runs ended; rich prints it as a table, with the failures and what to do.

    Attributes:
        stopped: whether the schedule ended before all runs had, by a signal or because the engine was lost.
        lost: why the engine can start nothing any more, and what to do; empty if it can.
    """

    runs: tuple[RunState, ...]
    seconds: float
    stopped: bool
    lost: str = ""

    @property
    def done(self) -> int:
        return sum(state.status in (Status.DONE, Status.ALREADY_DONE) for state in self.runs)

    @property
    def ok(self) -> bool:
        return self.done == len(self.runs)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("run", "seed", "status", "time")
        for state in self.runs:
            spent, name = clock(state.seconds) if state.seconds else "", escape(state.job.config.name)
            table.add_row(name, str(state.job.seed), state.status, spent, style=STYLES[state.status])
        yield table
        for state in self.runs:
            if state.message:
                log = f" Log: {state.job.folder / LOG}" if state.status is Status.FAILED else ""
                yield Text(f"{state.title} {state.status}: {state.message}{log}", style=STYLES[state.status])
        yield Text(f"{self.done} of {len(self.runs)} runs done, {clock(self.seconds)}.")
        if self.stopped:
            yield Text(self.lost or "Stopped. The same command resumes.")
        elif not self.ok:
            yield Text("Once the cause is fixed, the same command runs what is missing.")


def open_engine(
    name: str, device: str = "auto", jobs: int | None = None, address: str | None = None, own_disks: bool = False
) -> Engine:
    """Return the engine that starts the worker processes.

    Args:
        name: "local", "ray" or "slurm".
        device: "auto" (the GPUs if there are some), "cpu", "cuda" or "cuda:1".
        jobs: processes at the same time; by default one for each usable core, or for each GPU.
        address: the Ray cluster, host:port; by default the one that this machine belongs to.
        own_disks: the nodes of the Ray cluster do not share the runs folder, see
            `aafit.experiment.scheduling.engines.remote`.
    """
    check_name("engine", name, ENGINES)
    if address is not None and name != "ray":
        raise UserError(f"--address {address} names a Ray cluster: give --engine ray too, or drop it.")
    if own_disks and name != "ray":
        raise UserError("--own-disks is for the nodes of a Ray cluster: give --engine ray too, or drop it.")
    try:
        with needs_extra(f"--engine {name}", name):
            if name == "ray":
                from aafit.experiment.scheduling.engines.ray import RayEngine

                return RayEngine(address or "auto", device, jobs, own_disks=own_disks)
            if name == "slurm":
                from aafit.experiment.scheduling.engines.slurm import SlurmEngine

                return SlurmEngine(device, jobs)
    except ImportError as error:
        raise UserError(str(error)) from error
    return LocalEngine(device, jobs)


def run_suite(
    suite: Suite,
    runs_dir: Path,
    engine: Engine,
    *,
    data_dir: Path | None = None,
    fresh: bool = False,
    tensorboard: bool = False,
    wandb: bool = False,
    console: Console | None = None,
) -> Summary:
    """Run all runs of a suite that are not done yet, until all have ended or a signal stops them.

    No option changes a result.

    Args:
        suite: the runs.
        runs_dir: folder of all results.
        engine: starts the worker processes; it is left open.
        data_dir: folder of the data sets; by default they are looked for, or downloaded.
        fresh: move the folders of these runs aside and start again.
        tensorboard: also write TensorBoard files.
        wandb: also write to Weights & Biases.
        console: where the progress is shown.
    """
    table = jobs_of(suite, runs_dir, data_dir=data_dir, tensorboard=tensorboard, wandb=wandb)
    states = {key: RunState(job) for key, job in table.items()}
    if fresh:
        folders = [job.folder for job in table.values() if job.folder.exists()]
        # None is moved if another process works in one of them.
        for folder in folders:
            with locked(folder):
                pass
        for folder in folders:
            set_aside(folder)
    for state in states.values():
        if is_done(state.job):
            state.status = Status.ALREADY_DONE
    missing = [state.job for state in states.values() if state.status is Status.WAITING]
    for job in missing:
        make_folder(job.folder)
    if missing:
        engine.check(missing)
    costs = Costs.measured(runs_dir, engine.device)
    console = console or Console()
    view = LiveTable(console) if console.is_terminal else PlainLines(console)
    with view.live:
        return _Schedule(states, costs, engine, view).run()


class Order:
    """The waiting runs, those with the longest critical path first.

    Attributes:
        ready: the runs whose parent is done.
    """

    def __init__(self, states: Mapping[Key, RunState], costs: Costs) -> None:
        self.states, self.costs = states, costs
        jobs = {key: state.job for key, state in states.items()}
        self.parents, self.lockstep = parents_of(jobs), lockstep_groups(jobs)
        self.children = children_of(self.parents)
        self.alone: set[Key] = set()
        done = {key for key, state in states.items() if state.status is not Status.WAITING} | {None}
        self.ready = {key: None for key in states if key not in done and self.parents[key] in done}
        self.longest: dict[Key, float] = {}
        self.rank_again = 0.0

    def take(self) -> tuple[Key, ...]:
        """Remove the next run from `ready`, with those that go in lockstep with it, and return them."""
        began = time.monotonic()
        if began >= self.rank_again:
            self.longest = self._critical_paths()
            self.rank_again = time.monotonic() + (time.monotonic() - began) / SHARE
        keys = tuple(key for key in self._group(max(self.ready, key=self.longest.__getitem__)) if key in self.ready)
        for key in keys:
            del self.ready[key]
        return keys

    def add_children(self, key: Key) -> None:
        """Add the runs whose parent is the run `key`, which is done."""
        self.ready |= dict.fromkeys(self._waiting_children(key))

    def add_alone(self, key: Key) -> None:
        """Add a run that failed in lockstep again, to run alone, so that it cannot end the other runs."""
        self.alone.add(key)
        self.ready[key] = None

    def descendants(self, key: Key) -> list[Key]:
        """Return the waiting runs that depend on the run `key`, directly or not."""
        found: list[Key] = []
        for child in self._waiting_children(key):
            found += [child, *self.descendants(child)]
        return found

    def _waiting_children(self, key: Key) -> list[Key]:
        return [child for child in self.children[key] if self.states[child].status is Status.WAITING]

    def _group(self, key: Key) -> list[Key]:
        """Return the runs that go in lockstep with the run `key`, itself included."""
        return [key] if key in self.alone else [other for other in self.lockstep[key] if other not in self.alone]

    def _critical_paths(self) -> dict[Key, float]:
        cost = {}
        for key, state in self.states.items():
            if state.status is Status.WAITING:
                left = state.seconds_left(self.costs)
                # Without a known cost, the longest chain is that with the most runs.
                cost[key] = START_SECONDS if left is None else left
        of_process = {key: sum(cost[other] for other in self._group(key) if other in cost) for key in cost}
        return critical_paths(of_process, self.parents)


class _Schedule:
    """The loop that starts processes, watches them and ends them.

    Attributes:
        running: the processes by the runs that they do.
    """

    def __init__(
        self, states: Mapping[Key, RunState], costs: Costs, engine: Engine, view: LiveTable | PlainLines
    ) -> None:
        self.states, self.costs, self.engine, self.view = states, costs, engine, view
        self.order = Order(states, costs)
        self.running: dict[tuple[Key, ...], Process] = {}
        self.refreshed = -REFRESH_SECONDS
        self.show_at = self.show_again = 0.0
        self.lost = ""

    def run(self) -> Summary:
        began = time.monotonic()
        for state in self.states.values():
            state.refresh()
        with _collect_signals() as signals:
            try:
                while not (signals or self.lost) and (self.running or self.order.ready):
                    self._start_ready()
                    self._watch()
                    self._show()
                    if self.running or self.order.ready:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop(signals)
        return Summary(tuple(self.states.values()), time.monotonic() - began, bool(signals or self.lost), self.lost)

    def _start_ready(self) -> None:
        free = self.engine.slots - len(self.running)
        while self.order.ready and free > 0:
            self._start(self.order.take())
            free -= 1

    def _start(self, keys: tuple[Key, ...]) -> None:
        states = [self.states[key] for key in keys]
        try:
            self.running[keys] = self.engine.start([state.job for state in states])
        except (OSError, UserError) as error:
            why = str(error) if isinstance(error, UserError) else f"it cannot be started: {error}."
            for key in keys:
                self._fail(key, why)
            return
        for state in states:
            state.began, state.status = time.monotonic(), Status.RUNNING
            self._changed(state)

    def _watch(self) -> None:
        """Handle the processes that have ended and, every second, read the progress of the others."""
        due = time.monotonic() - self.refreshed >= REFRESH_SECONDS
        if due:
            self.refreshed = time.monotonic()
        for keys, process in list(self.running.items()):
            end = process.end()
            for state in (self.states[key] for key in keys):
                if (due or end is not None) and state.refresh() and state.epoch_seconds is not None:
                    self.costs.add(state.job.config, state.epoch_seconds)
                state.seconds = time.monotonic() - state.began
            if end is not None:
                del self.running[keys]
                for key in keys:
                    self._handle_end(key, end, in_lockstep=len(keys) > 1)

    def _handle_end(self, key: Key, end: End, *, in_lockstep: bool) -> None:
        state = self.states[key]
        if _finished(state, end):
            self._set_ended(state, Status.DONE)
            self.order.add_children(key)
        elif end.lost:
            self.lost = end.why
            self._set_ended(state, Status.STOPPED)
        elif in_lockstep:
            state.status = Status.WAITING
            self.order.add_alone(key)
        else:
            self._fail(key, end.why)

    def _fail(self, key: Key, why: str) -> None:
        self._set_ended(self.states[key], Status.FAILED, why)
        for other in self.order.descendants(key):
            self._set_ended(self.states[other], Status.NOT_RUN, f"{key[0]} failed.")

    def _set_ended(self, state: RunState, status: Status, message: str = "") -> None:
        state.status, state.message = status, message
        self._changed(state)

    def _changed(self, state: RunState) -> None:
        self.view.changed(state)
        self.show_at = 0.0

    def _show(self) -> None:
        """Update the view if a second has passed or a run has started or ended."""
        began = time.monotonic()
        if began >= max(self.show_at, self.show_again):
            self.view.update(self.states, self.costs, self.engine.slots)
            self.show_at, self.show_again = began + 1, began + (time.monotonic() - began) / SHARE

    def _stop(self, signals: list[int]) -> None:
        """Terminate every running process; kill those left after the grace period or at another signal."""
        left = dict(self.running)
        for process in left.values():
            process.stop(at_once=False)
        received, deadline = len(signals), time.monotonic() + GRACE_SECONDS
        ends: dict[tuple[Key, ...], End] = {}
        while left:
            for keys, process in list(left.items()):
                if (end := process.end()) is not None:
                    ends[keys] = end
                    del left[keys]
            if time.monotonic() > deadline or len(signals) > received:
                for process in left.values():
                    process.stop(at_once=True)
            if left:
                time.sleep(POLL_SECONDS)
        for keys, end in ends.items():
            for state in (self.states[key] for key in keys):
                self._set_ended(state, Status.DONE if _finished(state, end) else Status.STOPPED)
        for state in self.states.values():
            if state.status is Status.WAITING:
                state.status = Status.STOPPED


def _finished(state: RunState, end: End) -> bool:
    # A folder that another machine writes to is up to date once it is listed; a single file of it may not be.
    return end.ok and DONE in os.listdir(state.job.folder)


@contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending by them."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
