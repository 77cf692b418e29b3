"""The cost of a suite: the measured seconds of an epoch, and the time that follows for all runs side by side.

Costs come from the metrics of epochs that were already run; a dry run can time the kinds of run that have none yet.
Read `estimate` first.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from aafit.errors import UserError
from aafit.experiment.devices import choose_device, slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import METRICS, Config
from aafit.experiment.runs.job import Job, is_done, jobs_of, lockstep_groups
from aafit.experiment.runs.metrics import read_columns
from aafit.experiment.runs.start import trained_parameters
from aafit.experiment.runs.suite import Suite
from aafit.training.precision import device_name, has_bf16_arithmetic

Key = tuple[str, int]
"""A run of a suite: its name and seed."""

Measure = Callable[[RunConfig, str, int], float]
"""Times a run: takes its settings, the device and how many runs go in lockstep; returns the run's seconds an epoch."""

START_SECONDS = 9.0
"""Cost of a run besides its epochs: the process, loading the data, the first evaluation, writing the files."""
COMPARISON_EPOCHS = 0.55
"""Cost of the comparison with the base network, in epochs."""


def kind_of(run: RunConfig) -> tuple[object, ...]:
    """Return the settings that determine the cost of an epoch."""
    families = run.cnn.split()[0], run.fc.split()[0]
    data = run.dataset, run.train_images, run.holdout
    return run.network, *families, run.sharing, *data, run.batch_size, run.train, run.dspu4, run.precision


class Costs:
    """Seconds of an epoch, evaluation included, by kind of run."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], list[float]] = {}

    def add(self, run: RunConfig, seconds: float) -> None:
        self._seconds.setdefault(kind_of(run), []).append(seconds)

    def of(self, run: RunConfig) -> float | None:
        """Return the median of the measured epochs of this kind, None if there are none."""
        measured = self._seconds.get(kind_of(run))
        return median(measured) if measured else None

    def guess(self, run: RunConfig) -> float | None:
        """Return the same, or the mean over the other kinds; None if nothing was measured."""
        return self.of(run) or (mean(map(median, self._seconds.values())) if self._seconds else None)

    @classmethod
    def measured(cls, runs_dir: Path, device: str) -> "Costs":
        """Return the costs of all epochs under `runs_dir` that were run on `device`, named as in config.json."""
        costs = cls()
        for file in sorted(runs_dir.glob(f"*/*/seed*/{METRICS}")):
            # A damaged folder is reported by the command that runs its suite.
            with suppress(UserError):
                config = Config.read(file.parent)
                if config is not None and config.environment.get("device") == device:
                    for seconds in epoch_seconds(file.parent):
                        costs.add(config.run, seconds)
        return costs


def epoch_seconds(folder: Path) -> list[float]:
    """Return the seconds of each measured epoch of a run folder, training and evaluation."""
    columns = read_columns(folder / METRICS)
    if not {"seconds", "evaluation_seconds"} <= columns.keys():
        return []
    trained = np.isfinite(columns["seconds"])
    both = columns["seconds"] + np.nan_to_num(columns["evaluation_seconds"])
    return [float(seconds) for seconds in both[trained]]


def last_epoch(job: Job) -> int:
    """Return the last measured epoch of the job's folder, or the run's first epoch."""
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


def critical_paths(seconds: Mapping[Key, float], parents: Mapping[Key, Key | None]) -> dict[Key, float]:
    """Return for each run the seconds from its start to the end of the longest chain of its descendants.

    Args:
        seconds: cost of each remaining run; parents come before their children.
    """
    longest = dict(seconds)
    for key in reversed(list(seconds)):
        parent = parents[key]
        if parent in longest:
            longest[parent] = max(longest[parent], seconds[parent] + longest[key])
    return longest


def wall_seconds(
    seconds: Mapping[Key, float], parents: Mapping[Key, Key | None], slots: int, running: Iterable[Key] = ()
) -> float:
    """Return how long the runs take on `slots` processes if the run with the longest critical path goes first.

    Args:
        seconds: cost of each remaining run; other runs count as finished. Parents come before their children.
        running: the runs that have a process already.
    """
    longest, now, first = critical_paths(seconds, parents), 0.0, set(running)
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
        epoch_seconds: seconds of an epoch, None if unknown; in lockstep, the run's share.
        source: where `epoch_seconds` comes from, in words.
        lockstep: number of runs in the same lockstep group, this one included.
    """

    job: Job
    done: bool
    epochs_left: int
    parameters: int
    epoch_seconds: float | None
    source: str
    lockstep: int = 1

    def seconds(self, bf16_ratio: float = 1.0) -> float:
        """Return the cost of the run, where bf16 takes `bf16_ratio` of the time of float32."""
        if self.done:
            return 0.0
        run = self.job.config
        # Runs in lockstep share their epochs, but each is compared with the base separately.
        compared = self.job.parent is not None and self.epochs_left == run.epochs
        epochs = self.epochs_left + (COMPARISON_EPOCHS * self.lockstep if compared else 0.0)
        ratio = bf16_ratio if can_train_in_bf16(run) else 1.0
        return START_SECONDS + epochs * (self.epoch_seconds or 0.0) * ratio


@dataclass(frozen=True)
class Estimate:
    """The plan of a suite; rich prints it as a table with the expected time.

    Attributes:
        slots: number of processes side by side.
        note: what bf16 arithmetic would save; empty if nothing.
    """

    runs: tuple[Planned, ...]
    slots: int
    wall_seconds: float
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("run", "seed", "parent", "CNN layers", "fully connected", "epochs", "left", "trained", "s/epoch")
        for column in table.columns[5:]:
            column.justify = "right"
        for planned in self.runs:
            run = planned.job.config
            table.add_row(
                escape(run.name),
                str(planned.job.seed),
                escape(run.parent or str(run.init_from or "-")),
                run.cnn,
                run.fc,
                f"{run.start_epoch}-{run.end_epoch}",
                "done" if planned.done else str(planned.epochs_left),
                f"{planned.parameters:,}",
                "?" if planned.epoch_seconds is None else f"{planned.epoch_seconds:.2f} {planned.source}",
            )
        yield table
        yield self.sentence()
        if self.note:
            yield escape(self.note)

    def sentence(self) -> str:
        left = [planned for planned in self.runs if not planned.done]
        unknown = sum(planned.epoch_seconds is None and planned.epochs_left > 0 for planned in left)
        text = (
            f"{len(left)} of {len(self.runs)} runs to do, {sum(planned.epochs_left for planned in left)} epochs: "
            f"about {clock(self.wall_seconds)} on {self.slots} process{'es' if self.slots > 1 else ''} side by side."
        )
        if unknown:
            text += f" Not included: {unknown} runs of a kind without a measured epoch."
        return text


def estimate(
    suite: Suite,
    runs_dir: Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    fresh: bool = False,
    measure: Measure | None = None,
) -> Estimate:
    """Return the plan of a suite and its cost, from the epochs that the device has run under `runs_dir`.

    Nothing is started or changed.

    Args:
        device, jobs: as in `aafit.experiment.scheduling.schedule.open_engine`.
        fresh: as in `aafit.experiment.scheduling.schedule.run_suite`.
        measure: called once for each kind of run without a measured epoch.
    """
    places = slots(device, jobs)
    costs = Costs.measured(runs_dir, device_name(choose_device(places[0].device)))
    timed: dict[tuple[object, ...], float] = {}
    table = jobs_of(suite, runs_dir)
    finished = {key: not fresh and is_done(job) for key, job in table.items()}
    lockstep = lockstep_groups({key: job for key, job in table.items() if not finished[key]})
    planned: dict[Key, Planned] = {}
    for key, job in table.items():
        begun = job.config.start_epoch if fresh else last_epoch(job)
        left = 0 if finished[key] else max(0, job.config.end_epoch - begun)
        together = len(lockstep.get(key, [key]))
        seconds, source = costs.of(job.config), "measured"
        if seconds is None and measure is not None and left > 0 and job.config.train != "none":
            kind = *kind_of(job.config), together
            if kind not in timed:
                timed[kind] = measure(job.config, places[0].device, together)
            seconds, source = timed[kind], "timed now"
        planned[key] = Planned(job, finished[key], left, trained_parameters(job.config), seconds, source, together)

    def wall(bf16_ratio: float = 1.0) -> float:
        seconds = {key: run.seconds(bf16_ratio) for key, run in planned.items() if not run.done}
        return wall_seconds(seconds, parents_of(table), len(places))

    note, all_runs = "", tuple(planned.values())
    begun = any(run.done or run.epochs_left < run.job.config.epochs for run in all_runs)
    # A suite that has begun keeps its arithmetic.
    if measure is not None and not begun and (bf16 := time_bf16(suite.runs, places[0].device, measure)) is not None:
        sentence, ratio = bf16
        note = f"{sentence} That would save about {clock(wall() - wall(ratio))} of the {clock(wall())}."
    return Estimate(all_runs, len(places), wall(), note)


def can_train_in_bf16(run: RunConfig) -> bool:
    return run.precision == "float32" and run.takes_gradient_steps


def time_bf16(runs: Sequence[RunConfig], device: str, measure: Measure) -> tuple[str, float] | None:
    """Time the longest of the runs in float32 and in bf16.

    Returns:
        A sentence, and the time of bf16 relative to that of float32. None on a GPU, on a processor without bf16
        arithmetic, if bf16 is not faster, and if no run trains by gradient steps in float32.
    """
    candidates = [run for run in runs if can_train_in_bf16(run)]
    if device != "cpu" or not candidates or not has_bf16_arithmetic():
        return None
    run = max(candidates, key=lambda run: (run.train == "all", run.epochs))
    float32, bf16 = (measure(run.model_copy(update={"precision": name}), device, 1) for name in ("float32", "bf16"))
    if bf16 >= float32:
        return None
    sentence = (
        f"This processor has bf16 arithmetic: with --precision bf16 an epoch of {run.name} takes {bf16:.2f} s instead "
        f"of {float32:.2f} s (timed now)."
    )
    return sentence, bf16 / float32


def clock(seconds: float) -> str:
    """Return a duration for people: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
