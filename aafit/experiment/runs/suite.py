"""A suite: a graph of runs, read from a TOML file.

A suite file has `name`, `description`, `seeds`, a table `[defaults]` with settings for every run, and a table
`[[runs]]` for each run. An unknown key is refused at every level, so that a misspelt setting never becomes a default.
"""

import tomllib
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from aafit.errors import UserError, check_line, check_name, nearest
from aafit.experiment.runs.config import Line, Name, RunConfig, Settings
from aafit.files import is_file

__all__ = ["RunConfig", "Suite", "load_suite", "shipped_suites"]

SEEDS = 2**64
"""Seeds are below this number: torch's generators accept no larger one."""

SHIPPED = Path(__file__).parent.parent / "suites"

SINGLE_RUN_KEYS = {"name", "parent", "init_from", "start_epoch"}
"""Settings that cannot stand in [defaults]."""

INHERITED = {"network", "dataset", "holdout", "train_images", "cnn", "fc", "sharing", "interval", "knots"}
"""What a child takes from its parent unless its own table says otherwise: the network as it is, and its data."""

SAME_AS_PARENT = ("network", "dataset", "holdout")


class Suite(Settings):
    """Runs, each repeated for every seed; a parent stands before its children."""

    name: Name
    runs: tuple[RunConfig, ...]
    seeds: tuple[int, ...] = (42,)
    description: Line = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.runs:
            raise UserError("it has no runs.")
        if not self.seeds or len({seed for seed in self.seeds if 0 <= seed < SEEDS}) < len(self.seeds):
            raise UserError(f"seeds = {list(self.seeds)} must be different integers from 0 to 2^64 - 1.")
        names = [run.name for run in self.runs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{names.count(name)} runs have the name {name!r}: rename all but one.")
        order = _parents_first({run.name: run.parent for run in self.runs})
        # Frozen for everybody else.
        object.__setattr__(self, "runs", tuple(sorted(self.runs, key=lambda run: order.index(run.name))))
        for run in self.runs:
            if run.parent is not None:
                _check_child(run, self.run(run.parent))
        return self

    def run(self, name: str) -> RunConfig:
        """Return the run of this name."""
        check_name("run", name, [run.name for run in self.runs])
        return next(run for run in self.runs if run.name == name)

    def with_(self, **changes: Any) -> "Suite":
        """Return the suite with other values of these fields."""
        return Suite.checked({**dict(self), **changes}, f"Suite {self.name!r}")

    def only(self, names: Iterable[str]) -> "Suite":
        """Return the suite with the runs of these names or stages ("base-relu", "stage4", "4") and their ancestors."""
        chosen: set[str] = set()
        for name in names:
            matched = {run.name for run in self.runs if name in (run.name, run.stage, f"stage{run.stage}")}
            if not matched:
                stages = dict.fromkeys(f"stage{run.stage}" for run in self.runs if run.stage)
                hint = nearest(name, [*(run.name for run in self.runs), *stages])
                raise UserError(f"Suite {self.name!r} has no run or stage {name!r}. {hint}")
            chosen |= matched
        for run in reversed(self.runs):
            if run.name in chosen and run.parent is not None:
                chosen.add(run.parent)
        if not chosen:
            raise UserError(f"Suite {self.name!r}: no run was chosen; name at least one.")
        return self.with_(runs=[run for run in self.runs if run.name in chosen])

    def scaled(self, factor: float) -> "Suite":
        """Return the suite with `factor` times the epochs in every run that trains, at least 1."""
        if not 0 < factor < float("inf"):
            raise UserError(f"The epochs cannot be scaled by {factor}: give a number above 0.")
        ends: dict[str | None, int] = {}
        runs = []
        for run in self.runs:
            epochs = max(1, round(run.epochs * factor)) if run.epochs else 0
            start = ends.get(run.parent, run.start_epoch)
            runs.append(run.model_copy(update={"start_epoch": start, "epochs": epochs}))
            ends[run.name] = start + epochs
        return self.with_(runs=runs)

    def with_seeds(self, seeds: Iterable[int]) -> "Suite":
        """Return the suite with other seeds."""
        return self.with_(seeds=list(seeds))

    def with_precision(self, precision: str) -> "Suite":
        """Return the suite with all runs in this precision."""
        return self.with_(runs=[run.model_copy(update={"precision": precision}) for run in self.runs])


def _parents_first(parents: Mapping[str, str | None]) -> list[str]:
    """Return the names, each after its parent, and otherwise in the given order."""
    for name, parent in parents.items():
        if parent is not None and parent not in parents:
            hint = nearest(parent, [known for known in parents if known != name])
            raise UserError(f"run {name!r} has the parent {parent!r}, which is missing. {hint}")
    try:
        TopologicalSorter({name: [] if parent is None else [parent] for name, parent in parents.items()}).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        raise UserError(f"the parents of run {circle[0]!r} form a circle: {' -> '.join(circle)}.") from None
    order: dict[str, None] = {}
    for name in parents:
        chain = [name]
        while (parent := parents[chain[-1]]) is not None:
            chain.append(parent)
        order |= dict.fromkeys(reversed(chain))
    return [*order]


def _check_child(run: RunConfig, parent: RunConfig) -> None:
    for key in SAME_AS_PARENT:
        mine, other = getattr(run, key), getattr(parent, key)
        if mine != other:
            raise UserError(
                f"run {run.name!r} has {key} = {mine!r}, but its parent {parent.name!r} has {other!r}: a child has its "
                "parent's network and data."
            )
    if run.start_epoch != parent.end_epoch:
        raise UserError(
            f"run {run.name!r} has start_epoch = {run.start_epoch}, but its parent {parent.name!r} ends at "
            f"{parent.end_epoch}: leave start_epoch out."
        )


def shipped_suites() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def load_suite(path_or_name: str | Path) -> Suite:
    """Return the suite of a TOML file, or the one of that name that comes with the package ("paper", "cpu", ...)."""
    file = Path(path_or_name)
    if not is_file(file):
        shipped = shipped_suites()
        if str(path_or_name) not in shipped:
            check_line(str(path_or_name))
            raise UserError(
                f"No suite {str(path_or_name)!r}: neither a file nor one that comes with aafit. "
                f"{nearest(str(path_or_name), shipped)}"
            )
        file = SHIPPED / f"{path_or_name}.toml"
    try:
        # Some editors put a byte order mark first, which is no part of TOML.
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of tomllib, of the encoding, or a number of too many digits
        raise UserError(f"{file}: not a TOML file: {error}.") from None
    except RecursionError:
        raise UserError(f"{file}: not a suite: its values are nested too deeply.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    return _suite_of(document, file)


def _suite_of(document: dict[str, Any], file: Path) -> Suite:
    defaults, tables = document.pop("defaults", {}), document.pop("runs", [])
    for key in document:
        if key not in Suite.model_fields:
            hint = nearest(key, [*Suite.model_fields, "defaults"])
            raise UserError(f"{file}: unknown key {key!r} at the top level. {hint}")
    if not isinstance(defaults, dict):
        raise UserError(f"{file}: defaults = {defaults!r} is not valid: it must be a table [defaults].")
    if not isinstance(tables, list):
        raise UserError(f"{file}: runs = {tables!r} is not valid: it must be tables [[runs]].")
    if not tables:
        raise UserError(f"{file}: 'runs' is missing or empty: a suite has at least one [[runs]] table.")
    return Suite.checked({**document, "runs": _resolved(_named(tables, file), defaults, file)}, str(file))


def _named(tables: list[Any], file: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of the runs by name."""
    named: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(tables, 1):
        name = table.get("name") if isinstance(table, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{file}: run number {number} has no name: each [[runs]] table needs one, as text.")
        if not isinstance(table.get("parent", ""), str):
            raise UserError(f"{file}: run {name!r}: parent = {table['parent']!r} is not valid: give a run's name.")
        if name in named:
            raise UserError(f"{file}: two runs have the name {name!r}: rename one.")
        named[name] = table
    return named


def _resolved(tables: dict[str, dict[str, Any]], defaults: dict[str, Any], file: Path) -> list[RunConfig]:
    """Return the runs with every setting that their tables leave to [defaults] or to the parent."""
    valid = [key for key in RunConfig.model_fields if key not in SINGLE_RUN_KEYS]
    for key in defaults:
        if key not in valid and key != "pieces":
            belongs = f"{key!r} belongs to one run" if key in SINGLE_RUN_KEYS else f"unknown key {key!r}"
            raise UserError(f"{file}: {belongs}, it cannot stand in [defaults]. {nearest(key, valid)}")
    try:
        order = _parents_first({name: table.get("parent") for name, table in tables.items()})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    runs: dict[str, RunConfig] = {}
    for name in order:
        table, values = tables[name], dict(defaults)
        if "parent" in table:
            parent = runs[table["parent"]]
            values = {"train": "activations", **values, **parent.model_dump(mode="json", include=INHERITED)}
            values["start_epoch"] = parent.end_epoch
        if isinstance(table.get("init_from"), str):
            checkpoint = file.parent / table["init_from"]
            if not is_file(checkpoint):
                raise UserError(f"{file}: run {name!r}: init_from: there is no file {str(checkpoint)!r}.")
            table = {**table, "init_from": str(checkpoint)}
        runs[name] = RunConfig.checked({**values, **table}, f"{file}: run {name!r}")
    return list(runs.values())
