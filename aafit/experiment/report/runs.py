"""Run folders read into plain values, from which tables, figures and the page are made.

Every file is checked while it is read; a truncated or altered file is named in the error.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import (
    CONFIG,
    DONE,
    METRICS,
    NETWORK,
    OPTIMIZER,
    Config,
    Done,
    StoredComparison,
    check_files,
    check_place,
)
from aafit.experiment.runs.metrics import read_columns


@dataclass(frozen=True)
class RunRecord:
    """One run folder. `columns` holds metrics.csv, a float64 array a column, with NaN for an empty cell."""

    folder: Path
    settings: RunConfig
    seed: int
    environment: dict[str, Any]
    columns: dict[str, NDArray[np.float64]]
    done: Done | None
    comparison: StoredComparison | None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def diverged(self) -> int | None:
        """The epoch after which the loss was not finite; None if it always was finite."""
        return self.done.result.diverged if self.done is not None else None

    @property
    def last_epoch(self) -> int | None:
        """The last measured epoch; None if there is none."""
        epochs = self.columns.get("epoch", np.empty(0))
        return int(epochs[-1]) if len(epochs) else None

    @property
    def parameters(self) -> dict[str, NDArray[np.float64]]:
        """The values over the epochs of each parameter that a layer shares, such as `act7.weight[0]`."""
        return {name: values for name, values in self.columns.items() if "." in name}


@dataclass(frozen=True)
class SuiteRuns:
    """All runs of a suite's folder; `no_config` are the folders of runs that have not started."""

    folder: Path
    runs: tuple[RunRecord, ...]
    no_config: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def by_name(self) -> dict[str, list[RunRecord]]:
        """Return the runs of each name, one a seed, ordered by stage, each parent before its children."""
        names: dict[str, list[RunRecord]] = {}
        for run in self._ordered:
            names.setdefault(run.name, []).append(run)
        return names

    @cached_property
    def _ordered(self) -> list[RunRecord]:
        def order(run: RunRecord) -> tuple[Any, ...]:
            stage = run.settings.stage
            return (stage == "", _natural(stage), len(self.ancestors(run)), _natural(run.name), run.seed)

        return sorted(self.runs, key=order)

    def parent(self, run: RunRecord) -> RunRecord | None:
        """Return the run of the same seed that this one started from; None if there is none."""
        return None if run.settings.parent is None else self._by_key.get((run.settings.parent, run.seed))

    @cached_property
    def _by_key(self) -> dict[tuple[str, int], RunRecord]:
        return {(run.name, run.seed): run for run in self.runs}

    def ancestors(self, run: RunRecord) -> list[RunRecord]:
        """Return the parent, its parent and so on, as far as they are in the suite."""
        chain: list[RunRecord] = []
        parent = self.parent(run)
        while parent is not None and parent not in chain:
            chain.append(parent)
            parent = self.parent(parent)
        return chain


def read_suite(folder: Path) -> SuiteRuns:
    """Read every folder `<run>/seed<k>` of a suite."""
    folders = _run_folders(folder)
    if not any((path / CONFIG).exists() for path in folders):
        suites = sorted({path.parents[1].name for path in folder.glob("*/*/seed*")})
        hint = (
            f"Give one of the suites in it: {', '.join(suites)}." if suites else "Give the folder of a suite that ran."
        )
        raise UserError(f"{folder} has no run folders (<run>/seed<k>/config.json). {hint}")
    runs = tuple(read_run(path) for path in folders if (path / CONFIG).exists())
    return SuiteRuns(folder, runs, tuple(path for path in folders if not (path / CONFIG).exists()))


def read_run(folder: Path) -> RunRecord:
    """Read one run folder, finished or not."""
    config, done = Config.of(folder), Done.read(folder)
    check_place(folder, config)
    if done is not None:
        # An archive may lack the networks, but what is there has to be the run's.
        check_files(folder, done, may_lack=(NETWORK, OPTIMIZER))
        if done.hash != config.hash:
            raise UserError(f"{folder}: {CONFIG} and {DONE} belong to different runs; run it again with --fresh.")
    return RunRecord(
        folder=folder,
        settings=config.run,
        seed=config.seed,
        environment=config.environment,
        columns=read_columns(folder / METRICS),
        done=done,
        comparison=StoredComparison.read(folder),
    )


def _run_folders(suite: Path) -> list[Path]:
    # Not glob, which leaves out folders that cannot be read.
    try:
        folders = [path for run in suite.iterdir() if run.is_dir() for path in run.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from error
    of_runs = [path for path in folders if re.fullmatch(r"seed-?\d+", path.name)]
    return sorted(of_runs, key=lambda path: _natural(str(path)))


def _natural(text: str) -> tuple[Any, ...]:
    """Return a sort key that puts 2 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)
