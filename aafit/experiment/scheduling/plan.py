"""What a suite costs: the measured seconds of an epoch, and the wall time that follows from them.

Costs come from the metrics of epochs already run. A dry run may time the kinds of run that have none yet.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from aafit.errors import UserError
from aafit.experiment.devices import choose_device, slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import METRICS, Config
from aafit.experiment.runs.job import Job, is_done, jobs_of, lockstep_groups
from aafit.experiment.runs.metrics import read_columns
from aafit.experiment.runs.start import trained_parameters
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.bf16 import Bf16, time_bf16
from aafit.experiment.scheduling.options import RunOptions
from aafit.training.precision import device_name

Key = tuple[str, int]
"""A run of a suite: its name and seed."""

START_SECONDS = 9.0
"""What a run costs beside its epochs: a new process, its data, the first evaluation, the files at the end."""
COMPARED = 0.55
"""A run with a base network is first compared with it: that costs this share of an epoch."""


def kind_of(run: RunConfig) -> tuple[object, ...]:
    """What an epoch's cost depends on: runs of the same kind cost the same."""
    families = run.cnn.split()[0], run.fc.split()[0]
    images = run.dataset, run.train_images, run.holdout
    return run.network, *families, run.sharing, *images, run.batch_size, run.train, run.dspu4, run.precision


class Costs:
    """Seconds an epoch, evaluation included, by kind of run."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], list[float]] = {}

    def add(self, run: RunConfig, seconds: float) -> None:
        self._seconds.setdefault(kind_of(run), []).append(seconds)

    def of(self, run: RunConfig) -> float | None:
        """The median of what was measured, None where nothing was."""
        measured = self._seconds.get(kind_of(run))
        return median(measured) if measured else None

    def guess(self, run: RunConfig) -> float | None:
        """As `of`; where nothing was measured, the mean of the other kinds; None where there are none."""
        return self.of(run) or (mean(map(median, self._seconds.values())) if self._seconds else None)

    @classmethod
    def measured(cls, runs_dir: Path, device: str) -> "Costs":
        """The costs of the epochs under `runs_dir` that this device ran, by its name as in a run's config.json.

        What another device took tells nothing of this one.
        """
        costs = cls()
        for file in sorted(runs_dir.glob(f"*/*/seed*/{METRICS}")):
            # What cannot be read tells nothing of the cost; whoever runs that suite is told that it is damaged.
            with suppress(UserError):
                config = Config.read(file.parent)
                if config is not None and config.environment.get("device") == device:
                    for seconds in epoch_seconds(file.parent):
                        costs.add(config.run, seconds)
        return costs


def epoch_seconds(folder: Path) -> list[float]:
    """Seconds of each epoch that a run folder has measured, training and evaluation."""
    columns = read_columns(folder / METRICS)
    if not {"seconds", "evaluation_seconds"} <= columns.keys():
        return []
    trained = np.isfinite(columns["seconds"])
    both = columns["seconds"] + np.nan_to_num(columns["evaluation_seconds"])
    return [float(seconds) for seconds in both[trained]]


def last_epoch(job: Job) -> int:
    """The last epoch that the job's folder has measured; its first one where there is none."""
    with suppress(UserError):
        epochs = read_columns(job.folder / METRICS).get("epoch", np.empty(0))
        return max(map(int, epochs), default=job.config.start_epoch)
    return job.config.start_epoch


def parents_of(jobs: Mapping[Key, Job]) -> dict[Key, Key | None]:
    return {key: (job.config.parent, job.seed) if job.config.parent is not None else None for key, job in jobs.items()}


def children_of(parents: Mapping[Key, Key | None]) -> dict[Key, list[Key]]:
    children: dict[Key, list[Key]] = {key: [] for key in parents}
    for key, parent in parents.items():
        if parent in children:
            children[parent].append(key)
    return children


def chains(seconds: Mapping[Key, float], parents: Mapping[Key, Key | None]) -> dict[Key, float]:
    """For each run the seconds from its start to the end of the longest chain of runs that come from it."""
    longest = dict(seconds)
    for key in reversed(list(seconds)):
        parent = parents[key]
        if parent in longest:
            longest[parent] = max(longest[parent], seconds[parent] + longest[key])
    return longest


def wall_seconds(
    seconds: Mapping[Key, float], parents: Mapping[Key, Key | None], slots: int, running: Iterable[Key] = ()
) -> float:
    """How long the runs take on `slots` processes, if each ready run with the longest chain goes first.

    Args:
        seconds: of each run that is left; runs that are not in it count as finished. Parents come before children.
        running: those that have their process already.
    """
    longest, now, first = chains(seconds, parents), 0.0, set(running)
    children = children_of({key: parents[key] for key in seconds})

    def rank(key: Key) -> tuple[bool, float, Key]:
        return key not in first, -longest[key], key

    ready = [rank(key) for key in seconds if parents[key] not in seconds]
    heapq.heapify(ready)
    ends: list[tuple[float, Key]] = []
    while ready or ends:
        while ready and len(ends) < max(slots, 1):
            *_, key = heapq.heappop(ready)
            heapq.heappush(ends, (now + seconds[key], key))
        now, ended = heapq.heappop(ends)
        for child in children[ended]:
            heapq.heappush(ready, rank(child))
    return now


@dataclass(frozen=True)
class Planned:
    """One run of the plan.

    Attributes:
        epoch_seconds: None where it is not known; in lockstep, the run's share.
        source: where `epoch_seconds` comes from, in words.
        lockstep: how many runs go together, this one among them.
    """

    job: Job
    done: bool
    epochs_left: int
    parameters: int
    epoch_seconds: float | None
    source: str
    lockstep: int = 1

    @property
    def seconds(self) -> float:
        if self.done:
            return 0.0
        begun = self.epochs_left < self.job.config.epochs
        # Runs in lockstep have their epochs in common, but each is compared for itself.
        epochs = self.epochs_left + (0.0 if self.job.parent is None or begun else COMPARED * self.lockstep)
        return START_SECONDS + epochs * (self.epoch_seconds or 0.0)

    def in_bf16(self, share: float) -> "Planned":
        """The same where an epoch takes this share of its time, if it trains in float32."""
        run = self.job.config
        if self.epoch_seconds is None or run.precision != "float32" or not run.takes_gradient_steps:
            return self
        return replace(self, epoch_seconds=self.epoch_seconds * share)


@dataclass(frozen=True)
class Estimate:
    """The plan of a suite; prints as a table with what it will cost."""

    runs: tuple[Planned, ...]
    slots: int
    wall_seconds: float
    bf16: Bf16 | None = None
    bf16_wall_seconds: float = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            "run", "seed", "comes from", "CNN layers", "fully connected", "epochs", "left", "trained", "s/epoch"
        )
        for column in table.columns[5:]:
            column.justify = "right"
        for planned in self.runs:
            run = planned.job.config
            table.add_row(
                run.name,
                str(planned.job.seed),
                run.parent or (str(run.init_from) if run.init_from else "-"),
                run.cnn,
                run.fc,
                f"{run.start_epoch}-{run.end_epoch}",
                "done" if planned.done else str(planned.epochs_left),
                f"{planned.parameters:,}",
                "?" if planned.epoch_seconds is None else f"{planned.epoch_seconds:.2f} {planned.source}",
            )
        yield table
        yield self.sentence()
        if self.bf16 is not None:
            saved = self.wall_seconds - self.bf16_wall_seconds
            yield f"{self.bf16} That would save about {clock(saved)} of the {clock(self.wall_seconds)}."

    def sentence(self) -> str:
        left = [planned for planned in self.runs if not planned.done]
        unknown = sum(planned.epoch_seconds is None and planned.epochs_left > 0 for planned in left)
        text = (
            f"{len(left)} of {len(self.runs)} runs to do, {sum(planned.epochs_left for planned in left)} epochs: "
            f"about {clock(self.wall_seconds)} on {self.slots} process{'es' if self.slots > 1 else ''} side by side."
        )
        if unknown:
            text += f" Not counted: {unknown} runs of kinds that no epoch was measured of."
        return text


def estimate(
    suite: Suite,
    runs_dir: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - it cannot be changed
    *,
    measure: Callable[[RunConfig, str, int], float] | None = None,
) -> Estimate:
    """The plan of a suite and what it will cost, from the epochs that its device ran under `runs_dir`.

    Starts and changes nothing.

    Args:
        measure: times a run: takes its settings, the device and how many runs go in lockstep, and gives the run's share
            of the seconds an epoch. Called once for each kind of run that has no measured epoch.

    Raises:
        UserError: a folder holds a run with other settings; the device is not here.
    """
    places, fresh = slots(options.device, options.jobs), options.fresh
    costs = Costs.measured(runs_dir, device_name(choose_device(places[0].device)))
    timed: dict[tuple[object, ...], float] = {}
    table = jobs_of(suite, runs_dir)
    finished = {key: not fresh and is_done(job) for key, job in table.items()}
    lockstep = lockstep_groups({key: job for key, job in table.items() if not finished[key]})
    planned: dict[Key, Planned] = {}
    for key, job in table.items():
        done = finished[key]
        left = 0 if done else job.config.end_epoch - (job.config.start_epoch if fresh else last_epoch(job))
        seconds, source = costs.of(job.config), "measured"
        if seconds is None and measure is not None and left > 0 and job.config.train != "none":
            kind = *kind_of(job.config), len(lockstep[key])
            if kind not in timed:
                timed[kind] = measure(job.config, places[0].device, len(lockstep[key]))
            seconds, source = timed[kind], "timed now"
        together = len(lockstep.get(key, [key]))
        planned[key] = Planned(job, done, left, trained_parameters(job.config), seconds, source, together)
    remaining = {key: run for key, run in planned.items() if not run.done}

    def wall(runs: Mapping[Key, Planned]) -> float:
        seconds = {key: run.seconds for key, run in runs.items()}
        return wall_seconds(seconds, parents_of(table), len(places))

    # A suite that has begun keeps its arithmetic.
    begun = any(run.done or run.epochs_left < run.job.config.epochs for run in planned.values())
    bf16 = None if begun or measure is None else time_bf16(suite.runs, places[0].device, measure)
    if bf16 is None:
        return Estimate(tuple(planned.values()), len(places), wall(remaining))
    faster = {key: run.in_bf16(bf16.share) for key, run in remaining.items()}
    return Estimate(tuple(planned.values()), len(places), wall(remaining), bf16, wall(faster))


def clock(seconds: float) -> str:
    """Seconds as people read them: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
