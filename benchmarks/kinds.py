"""The kinds of run of the paper suite, by what an epoch costs."""

from collections.abc import Iterable
from pathlib import Path

from aafit.errors import check_name
from aafit.runs.config import RunConfig
from aafit.runs.job import jobs_of, lockstep_groups
from aafit.runs.suite import load_suite

FIRST_OF_KIND = {
    "base ReLU": "base-relu",
    "base SiLU": "base-silu",
    "AHAF tuning": "silu-ahaf-silu",
    "LEAF tuning": "silu-leaf-silu",
    "F-Neuron tuning": "relu-fneuron-tanh",
}


def chosen_kinds(names: Iterable[str] | None = None, precision: str = "float32") -> dict[str, RunConfig]:
    """A run of each kind, or of those named.

    Raises:
        UserError: there is no such kind.
    """
    suite = load_suite("paper").with_precision(precision)
    chosen = [check_name("kind of run", name, FIRST_OF_KIND) for name in names or FIRST_OF_KIND]
    return {kind: suite.run(FIRST_OF_KIND[kind]) for kind in chosen}


def kind_of(run: RunConfig) -> str:
    """The kind that a run of the paper suite belongs to."""
    families = {run.cnn.split()[0], run.fc.split()[0]}
    if run.train == "all":
        return f"base {run.cnn}"
    return next(f"{family} tuning" for family in ("F-Neuron", "LEAF", "AHAF") if family in families)


def epochs_of_the_paper() -> dict[str, int]:
    """How many epochs of each kind the paper suite has."""
    epochs = dict.fromkeys(FIRST_OF_KIND, 0)
    for run in load_suite("paper").runs:
        epochs[kind_of(run)] += run.epochs
    return epochs


def lockstep_of_the_paper() -> dict[str, int]:
    """How many runs of each kind go in lockstep in the paper suite."""
    jobs = jobs_of(load_suite("paper"), Path())
    sizes = {kind_of(jobs[key].config): len(keys) for key, keys in lockstep_groups(jobs).items()}
    return {kind: sizes[kind] for kind in FIRST_OF_KIND}
