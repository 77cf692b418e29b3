"""Finished runs, told by what was done: which one the flags of a command describe."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aafit.activations import is_adaptive
from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import DONE, Config, Done
from aafit.experiment.runs.job import learning_rate

SHOWN = 6
COMPARED = ("network", "dataset", "cnn", "fc", "method", "optimizer", "batch_size", "precision")
OF_ACTIVATIONS = ("sharing", "interval", "knots", "p24sl", "dspu4")
OF_THE_IMAGES = ("holdout", "train_images", "augment", "shuffle")


@dataclass(frozen=True)
class Finished:
    """A finished run; `line` is itself, then what it comes from, up to the first."""

    folder: Path
    hash: str
    line: tuple[RunConfig, ...]

    @property
    def run(self) -> RunConfig:
        return self.line[0]

    @property
    def name(self) -> str:
        """As `--from` takes it."""
        return f"{self.folder.parent.parent.name}/{self.folder.parent.name}"

    @property
    def only_evaluated(self) -> bool:
        """Whether it has its parent's network as it was, or an imported one."""
        run = self.run
        if run.train != "none":
            return False
        return run.init_from is not None or (len(self.line) > 1 and _texts(run) == _texts(self.line[1]))

    def facts(self) -> dict[str, Any]:
        """All that flags can say of it, as far as it means anything for this run."""
        run = self.run
        facts: dict[str, Any] = {"end_epoch": run.end_epoch}
        facts |= {key: getattr(run, key) for key in (*COMPARED, *OF_THE_IMAGES)} | {"lr": learning_rate(run)}
        if run.adaptive:
            facts["sharing"] = run.sharing
        if "F-Neuron" in run.cnn + run.fc:
            facts |= {"interval": run.interval, "knots": run.knots}
        if "LEAF" in run.cnn + run.fc and run.train != "none":
            facts["p24sl"] = run.p24sl
        if run.adaptive and run.train == "all":
            facts["dspu4"] = run.dspu4
        before = next((one for one in self.line if _texts(one) != _texts(run)), None)
        since = self.line[: self.line.index(before)] if before else self.line
        # What a checkpoint went through before it was imported is not known here.
        if self.line[-1].init_from is None or before is not None:
            facts["base"] = None if before is None else base_text(before)
            facts["tuned"] = any(one.train == "activations" and one.epochs for one in since)
        return facts


def base_text(run: RunConfig) -> str:
    """The activations of a network in a word: "ReLU", or "ReLU, fully connected Tanh"."""
    return run.cnn if run.cnn == run.fc else f"{run.cnn}, fully connected {run.fc}"


def _texts(run: RunConfig) -> tuple[object, ...]:
    form = (run.sharing, run.interval, run.knots) if is_adaptive(run.cnn) or is_adaptive(run.fc) else ()
    return run.cnn, run.fc, *form


def finished_runs(runs_dir: Path, seed: int) -> list[Finished]:
    """All runs with this seed under `runs_dir` that have a result, in the order of their folders."""
    found = []
    for file in sorted(runs_dir.absolute().glob(f"*/*/seed{seed}/{DONE}")):
        # What cannot be read is not what was meant; whoever names it is told that it is damaged.
        with suppress(UserError):
            if Done.of(file.parent).result.diverged is None:
                found.append(read_finished(file.parent))
    return found


def read_finished(folder: Path) -> Finished:
    """The finished run in a folder.

    Raises:
        UserError: there is none, or a file of it or of what it comes from is damaged.
    """
    if not (folder / DONE).exists():
        raise UserError(f"There is no finished run in {folder}; run it first.")
    line, place = [Config.of(folder)], folder
    while (parent := line[-1].parent_of(place)) is not None:
        line.append(Config.of(parent))
        place = parent
    return Finished(folder, line[0].hash, tuple(config.run for config in line))


def differences(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {facts[key]} there, {value} here"
        for key, value in wanted.items()
        if key in facts and facts[key] != value
    ]


def find_run(runs_dir: Path, seed: int, wanted: Mapping[str, Any], first: str) -> Finished:
    """The finished run that `wanted` describes; of several that are the same, that of the suite `first`.

    Raises:
        UserError: there is none, or there are several that differ; the message lists what there is.
    """
    runs = [run for run in finished_runs(runs_dir, seed) if not run.only_evaluated]
    fitting = [run for run in runs if not differences(run.facts(), wanted)]
    if len({run.hash for run in fitting}) == 1:
        return min(fitting, key=lambda run: run.folder.parent.parent.name != first)
    if fitting:
        listed = ", ".join(run.name for run in fitting)
        raise UserError(f"More than one finished run is what the flags describe: {listed}. Name one by --from.")
    kind = "trained from its beginning" if wanted["base"] is None else "with replaced activations"
    text = f"No finished run {kind} ends at epoch {wanted['end_epoch']} in {runs_dir} as the flags describe it. "
    near = [run for run in runs if (run.run.network, run.run.dataset) == (wanted["network"], wanted["dataset"])]
    near.sort(key=lambda run: len(differences(run.facts(), wanted)))
    if not near:
        raise UserError(f"{text}There is none of {wanted['network']} on {wanted['dataset']} with seed {seed}.")
    there = "; ".join(f"{run.name} ({', '.join(differences(run.facts(), wanted))})" for run in near[:SHOWN])
    more = f"; and {len(near) - SHOWN} more" if len(near) > SHOWN else ""
    raise UserError(f"{text}There are, with seed {seed}: {there}{more}. Change the flags, or name one by --from.")
