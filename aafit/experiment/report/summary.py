"""Runs summed up: a row for each run of a suite, with mean and spread over its seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from aafit.experiment.report.runs import RunRecord, SuiteRuns
from aafit.experiment.runs.config import RunConfig

LEAST_DROP = 0.005
"""Where the drop in accuracy is smaller than this (half a point), the share recovered says nothing."""


@dataclass(frozen=True)
class Spread:
    """Mean over `n` seeds, and their sample standard deviation (None for a single one)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """The spread of the values; None where one of the seeds has none."""
        numbers = [value for value in values if value is not None]
        if not numbers or len(numbers) < len(values):
            return None
        return cls(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


@dataclass(frozen=True)
class Row:
    """One run over its finished seeds; where none is finished, what is known so far. Accuracies are shares, 0 to 1."""

    settings: RunConfig
    status: str
    """"" where every seed is finished, else how far they are."""
    seeds: tuple[int, ...]
    """The seeds that are counted."""
    base: Spread | None
    replaced: Spread | None
    last: Spread | None
    heldout: Spread | None
    heldout_epoch: Spread | None
    best: Spread | None
    best_epoch: Spread | None
    recovered: Spread | None
    tuned_parameters: int | None
    seconds: Spread | None
    diverged: tuple[int, ...] = ()
    """The seeds whose loss was not finite in the end; they are not counted."""
    replaced_diverged: bool = False
    """Whether the loss right after the replacement was not finite."""


def summarise(suite: SuiteRuns) -> list[Row]:
    """The rows of the results table: ordered by stage, a parent before its children."""
    return [_row(runs) for runs in suite.by_name().values()]


def activations(settings: RunConfig) -> tuple[str, ...]:
    """A run's activations in words, a line for all layers or one each for those of the two kinds."""
    extra = [f"per {settings.sharing}"] if settings.sharing != "layer" else []
    extra += ["2SPU-4"] if settings.dspu4 else []
    both = (settings.cnn,) if settings.cnn == settings.fc else (f"CNN {settings.cnn}", f"FC {settings.fc}")
    return (*both, ", ".join(extra)) if extra else both


def status(run: RunRecord) -> str:
    """How far a run is, or that it diverged; empty for one with a result."""
    if run.diverged is not None:
        return f"diverged after epoch {run.diverged}"
    if run.done is not None:
        return ""
    if run.last_epoch is None:
        return "nothing measured yet"
    return f"unfinished: epoch {run.last_epoch} of {run.settings.end_epoch}"


def _row(runs: Sequence[RunRecord]) -> Row:
    finished = [run for run in runs if run.done is not None and run.diverged is None]
    counted = finished or list(runs)
    results = [run.done.result for run in finished if run.done is not None]
    base = [_base(run) for run in counted]
    replaced = [_replaced(run) for run in counted]
    last = [_last(run) for run in counted]
    recovered = [_recovered(*three) for three in zip(base, replaced, last, strict=True)] if finished else []

    def over(value: Callable[[int], float | None]) -> Spread | None:
        return Spread.of([value(index) for index in range(len(results))])

    return Row(
        settings=runs[0].settings,
        status=_status_of(runs),
        seeds=tuple(run.seed for run in counted),
        base=Spread.of(base),
        replaced=Spread.of(replaced),
        last=Spread.of(last),
        heldout=over(lambda index: results[index].heldout_selected_accuracy),
        heldout_epoch=over(lambda index: results[index].heldout_epoch),
        best=over(lambda index: results[index].best_test_accuracy),
        best_epoch=over(lambda index: results[index].best_test_epoch),
        recovered=Spread.of(recovered),
        tuned_parameters=results[0].tuned_parameters if results else None,
        seconds=Spread.of([run.done.seconds for run in finished if run.done is not None]),
        diverged=tuple(run.seed for run in runs if run.diverged is not None),
        replaced_diverged=any(run.comparison is not None and run.comparison.replaced_accuracy is None for run in runs),
    )


def _status_of(runs: Sequence[RunRecord]) -> str:
    open_ones = [run for run in runs if status(run)]
    if len(runs) == 1 or not open_ones:
        return status(runs[0])
    return "; ".join(f"seed {run.seed} {status(run)}" for run in open_ones)


def _base(run: RunRecord) -> float | None:
    if run.done is not None:
        return run.done.result.base_accuracy
    return run.comparison.base_accuracy if run.comparison is not None else None


def _replaced(run: RunRecord) -> float | None:
    if run.done is not None:
        return run.done.result.replaced_accuracy
    return run.comparison.replaced_accuracy if run.comparison is not None else None


def _last(run: RunRecord) -> float | None:
    if run.done is not None:
        return run.done.result.last_accuracy
    accuracy = float(run.columns["test_accuracy"][-1]) if run.last_epoch is not None else math.nan
    return accuracy if math.isfinite(accuracy) else None


def _recovered(base: float | None, replaced: float | None, last: float | None) -> float | None:
    """(last - replaced) / (base - replaced), where there was a drop worth speaking of."""
    if base is None or replaced is None or last is None or base - replaced < LEAST_DROP:
        return None
    return (last - replaced) / (base - replaced)
