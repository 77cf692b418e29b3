"""A suite: the graph of runs, read from a TOML file.

A suite file has `name`, `description`, `seeds`, a table `[defaults]` with settings for every run, and one `[[runs]]`
for each. A key that is not known is refused at every level, so that a misspelt setting never becomes a default.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aafit.errors import UserError, check_name, nearest
from aafit.experiment.runs.config import RunConfig, folder_name

__all__ = ["RunConfig", "Suite", "load_suite", "shipped_suites"]

SEEDS = 2**64
"""A seed is below this: torch's generators take no larger one."""

SHIPPED = Path(__file__).parent.parent / "suites"

TOP_LEVEL = {
    "name": (str, "a text"),
    "description": (str, "a text"),
    "seeds": (list, "a list of whole numbers"),
    "defaults": (dict, "a table [defaults]"),
    "runs": (list, "tables [[runs]]"),
}

OF_ONE_RUN = {"name", "parent", "init_from", "start_epoch"}
"""What cannot stand in [defaults]."""

INHERITED = ("network", "dataset", "holdout", "train_images", "cnn", "fc", "sharing", "interval", "pieces")
"""What a child takes from its parent where its own table does not say otherwise: the network as it is, and its data."""

SAME_AS_PARENT = ("network", "dataset", "holdout")


@dataclass(frozen=True)
class Suite:
    """Runs, each repeated for every seed. `runs` are in order: a parent comes before its children.

    Raises:
        UserError: no run or no seed, a name used twice, a parent that is missing or comes round to itself, a child with
            another network or other data than its parent's.
    """

    name: str
    runs: tuple[RunConfig, ...]
    seeds: tuple[int, ...] = (42,)
    description: str = ""

    def __post_init__(self) -> None:
        folder_name(self.name)
        if (
            not self.seeds
            or len(set(self.seeds)) < len(self.seeds)
            or not all(0 <= seed < SEEDS for seed in self.seeds)
        ):
            raise UserError(
                f"Suite {self.name!r}: seeds = {list(self.seeds)} must be different whole numbers from 0 to 2^64 - 1."
            )
        order = _parents_first({run.name: run.parent for run in _unique(self.runs, self.name)}, self.name)
        object.__setattr__(self, "runs", tuple(sorted(self.runs, key=lambda run: order.index(run.name))))
        for run in self.runs:
            if run.parent is not None:
                _check_child(run, self.run(run.parent), self.name)

    def run(self, name: str) -> RunConfig:
        check_name("run", name, [run.name for run in self.runs])
        return next(run for run in self.runs if run.name == name)

    def only(self, names: Iterable[str]) -> "Suite":
        """The runs of these names or stages ("base-relu", "stage4", "4"), and the runs they come from.

        Raises:
            UserError: a name matches no run.
        """
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
        return replace(self, runs=tuple(run for run in self.runs if run.name in chosen))

    def scaled(self, factor: float) -> "Suite":
        """The same suite with `factor` times the epochs in every run that trains, at least 1."""
        if not 0 < factor < float("inf"):
            raise UserError(f"The epochs cannot be scaled by {factor}: give a number above 0.")
        ends: dict[str | None, int] = {}
        runs = []
        for run in self.runs:
            epochs = max(1, round(run.epochs * factor)) if run.epochs else 0
            start = ends.get(run.parent, run.start_epoch)
            scaled = run.model_dump(mode="json") | {"start_epoch": start, "epochs": epochs}
            runs.append(RunConfig.checked(scaled, f"Suite {self.name!r}: run {run.name!r}"))
            ends[run.name] = start + epochs
        return replace(self, runs=tuple(runs))

    def with_seeds(self, seeds: Iterable[int]) -> "Suite":
        return replace(self, seeds=tuple(seeds))

    def with_precision(self, precision: str) -> "Suite":
        """The same suite with all runs in this arithmetic."""
        runs = (RunConfig.checked(run.model_dump(mode="json") | {"precision": precision}) for run in self.runs)
        return replace(self, runs=tuple(runs))


def _unique(runs: tuple[RunConfig, ...], suite: str) -> tuple[RunConfig, ...]:
    if not runs:
        raise UserError(f"Suite {suite!r} has no runs.")
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Suite {suite!r} has {names.count(name)} runs with the name {name!r}: rename all but one.")
    return runs


def _parents_first(parents: Mapping[str, str | None], where: str) -> list[str]:
    """The names, each after its parent, and otherwise in the order given."""
    order: list[str] = []
    for name in parents:
        path: list[str] = []
        current: str | None = name
        while current is not None and current not in order:
            if current in path:
                circle = " -> ".join([*path[path.index(current) :], current])
                raise UserError(f"{where}: the parents of run {current!r} go in a circle: {circle}.")
            if current not in parents:
                hint = nearest(current, [known for known in parents if known != path[-1]])
                raise UserError(f"{where}: run {path[-1]!r} has the parent {current!r}, which is not there. {hint}")
            path.append(current)
            current = parents[current]
        order += reversed(path)
    return order


def _check_child(run: RunConfig, parent: RunConfig, where: str) -> None:
    for key in SAME_AS_PARENT:
        mine, other = getattr(run, key), getattr(parent, key)
        if mine != other:
            raise UserError(
                f"{where}: run {run.name!r} has {key} = {mine!r}, but its parent {parent.name!r} has {other!r}: "
                "a child goes on with its parent's network and data."
            )
    if run.start_epoch != parent.end_epoch:
        raise UserError(
            f"{where}: run {run.name!r} has start_epoch = {run.start_epoch}, but its parent {parent.name!r} ends at "
            f"{parent.end_epoch}: leave start_epoch out."
        )


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def load_suite(path_or_name: str | Path) -> Suite:
    """The suite of that name that comes with the package ("paper", "cpu", ...), or that of a TOML file.

    Raises:
        UserError: there is none, it is no TOML, or something in it is not valid; the message says where.
    """
    file = Path(path_or_name)
    if not file.is_file():
        shipped = shipped_suites()
        if str(path_or_name) not in shipped:
            raise UserError(
                f"No suite {str(path_or_name)!r}: neither a file nor one that comes with aafit. "
                f"{nearest(str(path_or_name), shipped)}"
            )
        file = SHIPPED / f"{path_or_name}.toml"
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a TOML file: {error}.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    return _suite_of(document, file)


def _suite_of(document: dict[str, Any], file: Path) -> Suite:
    for key, value in document.items():
        if key not in TOP_LEVEL:
            raise UserError(f"{file}: unknown key {key!r} at the top level. {nearest(key, TOP_LEVEL)}")
        kind, description = TOP_LEVEL[key]
        if not isinstance(value, kind):
            raise UserError(f"{file}: {key} = {value!r} is not valid: it must be {description}.")
    for key in ("name", "runs"):
        if not document.get(key):
            raise UserError(f"{file}: {key!r} is missing or empty: a suite has a name and at least one [[runs]] table.")
    seeds = document.get("seeds", [42])
    if not all(type(seed) is int for seed in seeds):
        raise UserError(f"{file}: seeds = {seeds} is not valid: give whole numbers.")
    runs = _resolved(_named(document["runs"], file), document.get("defaults", {}), file)
    try:
        return Suite(document["name"], runs, tuple(seeds), document.get("description", ""))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _named(tables: list[Any], file: Path) -> dict[str, dict[str, Any]]:
    """The tables of the runs by name."""
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


def _resolved(tables: dict[str, dict[str, Any]], defaults: dict[str, Any], file: Path) -> tuple[RunConfig, ...]:
    """The runs with everything said that their tables leave to [defaults] or to the parent."""
    valid = [key for key in RunConfig.model_fields if key not in OF_ONE_RUN]
    for key in defaults:
        if key not in valid:
            belongs = f"{key!r} belongs to one run" if key in OF_ONE_RUN else f"unknown key {key!r}"
            raise UserError(f"{file}: {belongs}, it cannot stand in [defaults]. {nearest(key, valid)}")
    runs: dict[str, RunConfig] = {}
    for name in _parents_first({name: table.get("parent") for name, table in tables.items()}, str(file)):
        own, values = tables[name], dict(defaults)
        if "parent" in own:
            parent = runs[own["parent"]]
            values = {"train": "activations", **values, **parent.model_dump(mode="json", include=set(INHERITED))}
            values["start_epoch"] = parent.end_epoch
        if isinstance(own.get("init_from"), str):
            own = {**own, "init_from": str(_existing(file.parent / own["init_from"], f"{file}: run {name!r}"))}
        runs[name] = RunConfig.checked({**values, **own}, f"{file}: run {name!r}")
    return tuple(runs.values())


def _existing(checkpoint: Path, where: str) -> Path:
    if not checkpoint.is_file():
        raise UserError(f"{where}: init_from: there is no file {checkpoint}.")
    return checkpoint
