"""What a person sees while a suite runs: one live table on a terminal, plain lines elsewhere.

Both are fed from the run folders: `RunState.refresh` reads the end of a run's metrics.csv.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aafit.errors import UserError
from aafit.experiment.runs.documents import LOG, METRICS
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import read_columns
from aafit.experiment.scheduling.plan import START_SECONDS, Costs, Key, clock, parents_of, wall_seconds


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    ALREADY_DONE = "already done"
    FAILED = "failed"
    NOT_RUN = "not run"
    STOPPED = "stopped"


STYLES = {
    Status.WAITING: "dim",
    Status.RUNNING: "bold",
    Status.DONE: "green",
    Status.ALREADY_DONE: "green",
    Status.FAILED: "bold red",
    Status.NOT_RUN: "red",
    Status.STOPPED: "yellow",
}

LEFT = (Status.WAITING, Status.RUNNING)


@dataclass
class RunState:
    """How one run of the suite stands: its part in the schedule, and what its folder says."""

    job: Job
    status: Status = Status.WAITING
    message: str = ""
    seconds: float = 0.0
    epoch: int | None = None
    accuracy: float | None = None
    epoch_seconds: float | None = None
    _read: tuple[int, int] = (0, 0)

    def refresh(self) -> bool:
        """Read the run's folder; True if it has a new row."""
        file = self.job.folder / METRICS
        try:
            now = (file.stat().st_mtime_ns, file.stat().st_size)
            if now == self._read:
                return False
            last = {name: float(values[-1]) for name, values in read_columns(file).items() if len(values)}
        # Whoever reads the finished run is told what is damaged.
        except (OSError, UserError):
            return False
        if not last:
            return False
        epoch, accuracy = int(last["epoch"]), last["test_accuracy"]
        seconds = last.get("seconds", math.nan) + last.get("evaluation_seconds", math.nan)
        new, self._read = epoch != self.epoch, now
        self.epoch = epoch
        # Empty where the network diverged, and before the first epoch.
        self.accuracy = accuracy if math.isfinite(accuracy) else None
        self.epoch_seconds = seconds if math.isfinite(seconds) else None
        return new

    def seconds_left(self, costs: Costs) -> float | None:
        """Until the run ends; None where no cost is known."""
        run = self.job.config
        start = START_SECONDS if self.status is Status.WAITING else 0.0
        left = run.end_epoch - (run.start_epoch if self.epoch is None else self.epoch)
        cost = self.epoch_seconds or costs.guess(run)
        return start if left == 0 else None if cost is None else start + left * cost


class View(Protocol):
    """Shows the runs while they go on; `update` is called often, the other two once for a run each."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def started(self, state: RunState) -> None: ...

    def ended(self, state: RunState) -> None: ...

    def update(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> None: ...


def view_for(console: Console) -> View:
    return LiveTable(console) if console.is_terminal else PlainLines(console)


DRAWING_SHARE = 0.02
"""The share of its time that a schedule may spend on showing its runs."""


class LiveTable:
    """One table of all runs, redrawn in place, with a line on the whole below it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.began = time.monotonic()
        self.due = self.affordable = 0.0

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, state: RunState) -> None:
        self.due = 0.0

    def ended(self, state: RunState) -> None:
        self.due = 0.0

    def update(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> None:
        began = time.monotonic()
        if began >= max(self.due, self.affordable):
            self.live.update(self.table(states, costs, slots), refresh=True)
            self.due = began + 1
            self.affordable = began + (time.monotonic() - began) / DRAWING_SHARE

    def table(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> Group:
        table = Table("run", "seed", "status", "epoch", "test accuracy", "time left")
        for column in table.columns[3:]:
            column.justify = "right"
        shown = list(states.values())
        if len(shown) > max(4, self.console.height - 6):  # a table higher than the screen cannot be redrawn in place
            shown = [state for state in shown if state.status in (Status.RUNNING, Status.FAILED)]
        for state in shown:
            left = state.seconds_left(costs) if state.status in LEFT else None
            table.add_row(
                state.job.config.name,
                str(state.job.seed),
                state.status,
                f"{state.job.config.start_epoch if state.epoch is None else state.epoch}/{state.job.config.end_epoch}",
                "-" if state.accuracy is None else f"{state.accuracy:.2%}",
                "-" if left is None else clock(left),
                style=STYLES[state.status],
            )
        elapsed = clock(time.monotonic() - self.began)
        return Group(table, Text(f"{overall(states, costs, slots)}, {elapsed} gone. Ctrl-C stops; nothing is lost."))


def overall(states: Mapping[Key, RunState], costs: Costs, slots: int) -> str:
    """All runs in one line: how many have each status, and the time left at this pace."""
    counts = Counter(state.status for state in states.values())
    text = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    left = {key: state.seconds_left(costs) for key, state in states.items() if state.status in LEFT}
    known = {key: seconds for key, seconds in left.items() if seconds is not None}
    if left and len(known) == len(left):
        running = [key for key, state in states.items() if state.status is Status.RUNNING]
        parents = parents_of({key: state.job for key, state in states.items()})
        text += f", about {clock(wall_seconds(known, parents, slots, running))} left"
    return text


class PlainLines:
    """A line when a run starts, at most one every few seconds as its epochs end, and one at its end."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.told: dict[Key, tuple[float, int | None]] = {}
        self.affordable = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, state: RunState) -> None:
        self.told[state.job.config.name, state.job.seed] = (time.monotonic(), state.epoch)
        self.line(state, f"started; log: {state.job.folder / LOG}")

    def ended(self, state: RunState) -> None:
        accuracy = "" if state.accuracy is None else f", test accuracy {state.accuracy:.2%}"
        spent = f" after {clock(state.seconds)}" if state.seconds else ""
        self.line(state, f"{state.status}{spent}{accuracy}{': ' if state.message else ''}{state.message}")

    def update(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> None:
        began = time.monotonic()
        if began < self.affordable:
            return
        for key, state in states.items():
            told_at, told = self.told.get(key, (0.0, None))
            new = state.status is Status.RUNNING and state.epoch is not None and state.epoch != told
            if new and time.monotonic() - told_at >= self.every:
                self.told[key] = (time.monotonic(), state.epoch)
                left = state.seconds_left(costs)
                self.line(
                    state,
                    f"epoch {state.epoch}/{state.job.config.end_epoch}, "
                    + ("diverged" if state.accuracy is None else f"test accuracy {state.accuracy:.2%}")
                    + ("" if left is None else f", {clock(left)} left"),
                )
        self.affordable = began + (time.monotonic() - began) / DRAWING_SHARE

    def line(self, state: RunState, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {state.job.config.name} (seed {state.job.seed}): {text}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
