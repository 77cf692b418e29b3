"""Run folders read into plain values: all that tables, figures and the page are made from.

    <suite>/<run>/seed<k>/   config.json, metrics.csv, compare.json, done.json; its activations: adapted.py

Every number of a file that should be there is checked; a file that was cut short or altered is named in the error.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aafit.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What config.json says of a run, as far as a reader wants to know it."""

    name: str
    epochs: int
    stage: str = ""
    network: str = ""
    dataset: str = ""
    parent: str | None = None
    cnn: str = "ReLU"
    fc: str = "ReLU"
    sharing: str = "layer"
    interval: tuple[float, float] = (-4.0, 4.0)
    pieces: int = 16
    train: str = "all"
    start_epoch: int = 0
    dspu4: bool = False
    holdout: int = 0

    @property
    def end_epoch(self) -> int:
        return self.start_epoch + self.epochs


@dataclass(frozen=True)
class Config:
    run: Settings
    seed: int
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What done.json reports. Accuracies are shares (0 to 1) of the full test set.

    `diverged` is the epoch after which the loss was not finite; such a run has no accuracy.
    """

    tuned_parameters: int
    last_accuracy: float | None = None
    best_test_accuracy: float | None = None
    best_test_epoch: int | None = None
    diverged: int | None = None
    base_accuracy: float | None = None
    replaced_accuracy: float | None = None
    heldout_epoch: int | None = None
    heldout_selected_accuracy: float | None = None


@dataclass(frozen=True)
class Done:
    finished: str
    seconds: float
    result: Result


@dataclass(frozen=True)
class Difference:
    """How far the replaced network's values are from the base's, over the test set; None: not finite."""

    max_abs: float | None
    mean_abs: float | None


@dataclass(frozen=True)
class LayerDifference(Difference):
    path: str


@dataclass(frozen=True)
class CurveError:
    """How far a new activation is from the function it replaced, over an interval of inputs, in one arithmetic."""

    path: str
    old: str
    new: str
    dtype: str
    max: float | None
    mean_squared: float | None
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    layers: tuple[LayerDifference, ...]
    logits: Difference
    agreement: float | None
    base_accuracy: float | None
    replaced_accuracy: float | None
    curves: tuple[CurveError, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One run folder. `columns` is metrics.csv, a float64 array a column, NaN where a cell is empty."""

    folder: Path
    settings: Settings
    seed: int
    environment: dict[str, Any]
    columns: dict[str, NDArray[np.float64]]
    done: Done | None
    comparison: Comparison | None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def diverged(self) -> int | None:
        """The epoch after which the loss was not finite, None where it is."""
        return self.done.result.diverged if self.done is not None else None

    @property
    def last_epoch(self) -> int | None:
        """The last epoch that was measured; None: not one."""
        epochs = self.columns.get("epoch", np.empty(0))
        return int(epochs[-1]) if len(epochs) else None

    @property
    def parameters(self) -> dict[str, NDArray[np.float64]]:
        """The values over the epochs of every parameter that a layer shares, e.g. `act1.gamma`, `act7.weight[0]`."""
        return {name: values for name, values in self.columns.items() if "." in name}


@dataclass(frozen=True)
class SuiteRuns:
    """All runs of a suite's folder; `no_config` are the run folders in which nothing began yet."""

    folder: Path
    runs: tuple[RunRecord, ...]
    no_config: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def by_name(self) -> dict[str, list[RunRecord]]:
        """The seeds' runs of each name, in the order of the stages, a parent before its children."""
        names: dict[str, list[RunRecord]] = {}
        for run in sorted(self.runs, key=self._order):
            names.setdefault(run.name, []).append(run)
        return names

    def parent(self, run: RunRecord) -> RunRecord | None:
        """The run that this one began from, of the same seed."""
        wanted = (run.settings.parent, run.seed)
        return next((other for other in self.runs if (other.name, other.seed) == wanted), None)

    def ancestors(self, run: RunRecord) -> list[RunRecord]:
        """The parent, its parent, ... as far as they are there."""
        chain: list[RunRecord] = []
        parent = self.parent(run)
        while parent is not None and parent not in chain:
            chain.append(parent)
            parent = self.parent(parent)
        return chain

    def _order(self, run: RunRecord) -> tuple[Any, ...]:
        stage = run.settings.stage
        return (stage == "", _natural(stage), len(self.ancestors(run)), _natural(run.name), run.seed)


def read_suite(folder: Path) -> SuiteRuns:
    """Read every `<run>/seed<k>` folder of a suite.

    Raises:
        UserError: there is none, or one of their files is damaged.
    """
    found = list(_run_folders(folder))
    if not found:
        suites = sorted({path.parents[1].name for path in folder.glob("*/*/seed*")})
        hint = (
            f"Give one of the suites in it: {', '.join(suites)}." if suites else "Give the folder of a suite that ran."
        )
        raise UserError(f"{folder} has no run folders (<run>/seed<k>/config.json). {hint}")
    runs = tuple(read_run(path) for path in found if (path / "config.json").exists())
    return SuiteRuns(folder, runs, tuple(path for path in found if not (path / "config.json").exists()))


def read_run(folder: Path) -> RunRecord:
    """Read one run folder, finished or not.

    Raises:
        UserError: it is not a run folder, or one of its files is damaged.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a run folder: it has no config.json. Give <suite>/<run>/seed<k>.")
    config = _read_json(folder / "config.json", Config)
    done, comparison = folder / "done.json", folder / "compare.json"
    return RunRecord(
        folder=folder,
        settings=config.run,
        seed=config.seed,
        environment=config.environment,
        columns=_read_metrics(folder / "metrics.csv"),
        done=_read_json(done, Done) if done.exists() else None,
        comparison=_read_json(comparison, Comparison) if comparison.exists() else None,
    )


def _run_folders(suite: Path) -> Iterator[Path]:
    for path in sorted(suite.glob("*/seed*"), key=lambda path: _natural(str(path))):
        if path.is_dir() and re.fullmatch(r"seed-?\d+", path.name):
            yield path


def _natural(text: str) -> tuple[Any, ...]:
    """A key that puts 2 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def _read_json(file: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_python(json.loads(file.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is damaged: {where or 'its content'}: {first['msg']}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}.") from error


def _read_metrics(file: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of metrics.csv; a last line that a stop cut short is left out, as the run will write it again."""
    if not file.exists():
        return {}
    try:
        lines = file.read_text().split("\n")[:-1]
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}.") from error
    if not lines:
        return {}
    header, *rows = csv.reader(lines)
    missing = [name for name in ("epoch", "train_loss", "test_loss", "test_accuracy") if name not in header]
    if missing:
        raise UserError(f"{file} is damaged: its first line has no column {missing[0]!r}.")
    table = np.full((len(rows), len(header)), np.nan)
    for number, row in enumerate(rows):
        try:
            table[number] = [float(cell) if cell else np.nan for cell in row]
        except ValueError as error:
            raise UserError(f"{file} is damaged: line {number + 2} does not fit its first line ({error}).") from error
    return {name: table[:, index] for index, name in enumerate(header)}
