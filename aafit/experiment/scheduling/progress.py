"""The state of each run of a suite, and how it is shown: a live table on a terminal, plain lines elsewhere.

Both views read the run folders, through `RunState.refresh`.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
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


@dataclass
class RunState:
    """The state of one run of the suite.

    Attributes:
        message: why the run failed or was not run.
        seconds: time since its process was started.
        epoch, accuracy, epoch_seconds: its last row of metrics.csv.
    """

    job: Job
    status: Status = Status.WAITING
    message: str = ""
    began: float = 0.0
    seconds: float = 0.0
    epoch: int | None = None
    accuracy: float | None = None
    epoch_seconds: float | None = None
    _read: tuple[int, int] = (0, 0)

    @property
    def key(self) -> Key:
        return self.job.config.name, self.job.seed

    @property
    def title(self) -> str:
        return f"{self.job.config.name} (seed {self.job.seed})"

    def refresh(self) -> bool:
        """Read the run's metrics; return whether there is a new row."""
        file = self.job.folder / METRICS
        try:
            now = (file.stat().st_mtime_ns, file.stat().st_size)
            if now == self._read:
                return False
            last = {name: float(values[-1]) for name, values in read_columns(file).items() if len(values)}
        # Damage is reported by whatever reads the finished run.
        except (OSError, UserError):
            return False
        if not last:
            return False
        epoch, accuracy = int(last["epoch"]), last["test_accuracy"]
        seconds = last.get("seconds", math.nan) + last.get("evaluation_seconds", math.nan)
        new, self._read = epoch != self.epoch, now
        self.epoch = epoch
        # The cells are empty where the network diverged, and before the first epoch.
        self.accuracy = accuracy if math.isfinite(accuracy) else None
        self.epoch_seconds = seconds if math.isfinite(seconds) else None
        return new

    @property
    def epochs(self) -> str:
        """The last epoch of how many."""
        run = self.job.config
        last = run.start_epoch if self.epoch is None else self.epoch
        return f"{last}/{max(last, run.end_epoch)}"

    def seconds_left(self, costs: Costs) -> float | None:
        """Return the seconds until the run ends; None for a run that has ended or has no known cost."""
        if self.status not in (Status.WAITING, Status.RUNNING):
            return None
        run = self.job.config
        start = START_SECONDS if self.status is Status.WAITING else 0.0
        # An identification may take more steps than it has epochs: those that prepare it are counted too.
        left = max(0, run.end_epoch - (run.start_epoch if self.epoch is None else self.epoch))
        cost = self.epoch_seconds or costs.guess(run)
        return start if left == 0 else None if cost is None else start + left * cost


def overall(states: Mapping[Key, RunState], costs: Costs, slots: int) -> str:
    """Return all runs in one line: the number with each status, and the time left."""
    counts = Counter(state.status for state in states.values())
    text = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    left = counts[Status.WAITING] + counts[Status.RUNNING]
    seconds = {key: state.seconds_left(costs) for key, state in states.items()}
    known = {key: one for key, one in seconds.items() if one is not None}
    if left and len(known) == left:
        running = [key for key, state in states.items() if state.status is Status.RUNNING]
        parents = parents_of({key: state.job for key, state in states.items()})
        text += f", about {clock(wall_seconds(known, parents, slots, running))} left"
    return text


class LiveTable:
    """A table of all runs, redrawn in place, with a summary line below it. It is shown while `live` is entered."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.began = time.monotonic()

    def changed(self, state: RunState) -> None:
        """Do nothing: the next update shows the run."""

    def update(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> None:
        """Redraw the table."""
        self.live.update(self.table(states, costs, slots), refresh=True)

    def table(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> Group:
        table = Table("run", "seed", "status", "epoch", "test accuracy", "time left")
        for column in table.columns[3:]:
            column.justify = "right"
        shown = list(states.values())
        if len(shown) > max(4, self.console.height - 6):  # a table higher than the screen cannot be redrawn in place
            shown = [state for state in shown if state.status in (Status.RUNNING, Status.FAILED)]
        for state in shown:
            run, left = state.job.config, state.seconds_left(costs)
            table.add_row(
                escape(run.name),
                str(state.job.seed),
                state.status,
                state.epochs,
                "-" if state.accuracy is None else f"{state.accuracy:.2%}",
                "-" if left is None else clock(left),
                style=STYLES[state.status],
            )
        elapsed = clock(time.monotonic() - self.began)
        return Group(table, Text(f"{overall(states, costs, slots)}, {elapsed} elapsed. Ctrl-C stops; nothing is lost."))


class PlainLines:
    """A line when a run starts, at most one every few seconds as its epochs end, and one at its end."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.live = nullcontext()
        self.printed: dict[Key, tuple[float, int | None]] = {}

    def changed(self, state: RunState) -> None:
        """Print that a run was started, or how it has ended."""
        if state.status is Status.RUNNING:
            self.printed[state.key] = (time.monotonic(), state.epoch)
            self._line(state, f"started; log: {state.job.folder / LOG}")
            return
        accuracy = "" if state.accuracy is None else f", test accuracy {state.accuracy:.2%}"
        spent = f" after {clock(state.seconds)}" if state.seconds else ""
        self._line(state, f"{state.status}{spent}{accuracy}{': ' if state.message else ''}{state.message}")

    def update(self, states: Mapping[Key, RunState], costs: Costs, slots: int) -> None:
        """Print the last epoch of each run with a new one, unless its last line is too recent."""
        for key, state in states.items():
            printed_at, printed = self.printed.get(key, (0.0, None))
            new = state.status is Status.RUNNING and state.epoch is not None and state.epoch != printed
            if new and time.monotonic() - printed_at >= self.every:
                self.printed[key] = (time.monotonic(), state.epoch)
                left = state.seconds_left(costs)
                accuracy = "diverged" if state.accuracy is None else f"test accuracy {state.accuracy:.2%}"
                rest = "" if left is None else f", {clock(left)} left"
                self._line(state, f"epoch {state.epochs}, {accuracy}{rest}")

    def _line(self, state: RunState, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {state.title}: {text}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
