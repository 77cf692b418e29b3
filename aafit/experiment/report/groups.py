"""Which runs share a figure of training curves."""

from collections.abc import Mapping
from dataclasses import dataclass

from aafit.experiment.report.runs import RunRecord, SuiteRuns

PAPER = (
    ("relu-to-tanh-relu", "ReLU → Tanh + ReLU", "ReLU", "4", "2"),
    ("silu-to-tanh-silu", "SiLU → Tanh + SiLU", "SiLU", "5", "3"),
    ("silu-to-relu", "SiLU → ReLU", "SiLU", "6", "3"),
    ("relu-to-silu", "ReLU → SiLU", "ReLU", "7", "2"),
)
"""The paper's four groups: file name, title, the base's function, the group's stage, that of its like-for-like runs."""


@dataclass(frozen=True)
class Group:
    """A base's runs and those tuned from it, by name, each with its seeds: the runs of one figure."""

    key: str
    title: str
    bases: dict[str, list[RunRecord]]
    tuned: dict[str, list[RunRecord]]


def groups(suite: SuiteRuns) -> list[Group]:
    """The paper's groups, where the suite has their stages; other tuned runs, by the base they began from.

    Where a base is in no group yet, all bases of its network and data set are one more.
    """
    names = suite.by_name()
    roots = {name: (suite.ancestors(runs[0]) or runs[:1])[-1].name for name, runs in names.items()}
    children = {name: runs for name, runs in names.items() if runs[0].settings.parent is not None}
    found: list[Group] = []
    placed: set[str] = set()
    for key, title, function, stage, with_matching_modules in PAPER:
        for base in _bases(roots, names, function):
            tuned = {name: runs for name, runs in children.items() if roots[name] == base}
            group = {name: runs for name, runs in tuned.items() if runs[0].settings.stage == stage}
            if group:
                alike = {name: runs for name, runs in tuned.items() if runs[0].settings.stage == with_matching_modules}
                suffix, place = _place(base, function, names, roots)
                found.append(Group(key + suffix, title + place, {base: names[base]}, {**group, **alike}))
                placed |= {base, *group, *alike}
    for base in dict.fromkeys(roots.values()):
        rest = {name: runs for name, runs in children.items() if roots[name] == base and name not in placed}
        if rest:
            own = {} if base in rest else {base: names[base]}
            found.append(Group(f"from-{base}", f"Tuned from {base}", own, rest))
            placed |= {base, *rest}
    return found + _from_scratch(names, placed)


def _from_scratch(names: Mapping[str, list[RunRecord]], placed: set[str]) -> list[Group]:
    kinds: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for name, runs in names.items():
        settings = runs[0].settings
        if settings.parent is None:
            kinds.setdefault((settings.network, settings.dataset), {})[name] = runs
    return [
        Group(f"from-scratch-{network}-{dataset}", f"{network} on {dataset}, trained from scratch", bases, {})
        for (network, dataset), bases in kinds.items()
        if not placed.issuperset(bases)
    ]


def _bases(roots: Mapping[str, str], names: Mapping[str, list[RunRecord]], function: str) -> list[str]:
    """The bases whose activations are all the fixed `function`."""
    return [
        base
        for base in dict.fromkeys(roots.values())
        if names[base][0].settings.cnn == names[base][0].settings.fc == function
    ]


def _place(base: str, function: str, names: Mapping[str, list[RunRecord]], roots: Mapping[str, str]) -> tuple[str, str]:
    """What tells a base from others of the same function, for the file's name and the title: mostly nothing."""
    return ("", "") if len(_bases(roots, names, function)) == 1 else (f"-{base}", f" ({base})")
