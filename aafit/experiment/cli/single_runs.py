"""Single runs outside of a suite: `Launcher` does them in this process, `find_runs` finds those that they resume from.

A finished run is described by what was done to its network, not by its name.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aafit.activations import ADAPTIVE, FNeuron, IntervalActivation, parse_text
from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import DONE, NETWORK, Config, read_done
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job, learning_rate, set_aside
from aafit.experiment.runs.process import logged

log = logging.getLogger("aafit")

INDIVIDUAL = "individual"
"""The folder of runs that belong to no suite."""

LONGEST_NAME = 100

LISTED = 6
"""How many finished runs a message lists."""

ACTIVATIONS = ("sharing", "interval", "knots", "p24sl", "dspu4")
TRAINING = ("network", "dataset", "cnn", "fc", "method", "optimizer", "batch_size", "precision")
DATA = ("holdout", "train_images", "augment", "shuffle")
DESCRIBED = (*TRAINING, *DATA, *ACTIVATIONS)
"""The settings that describe a run, besides its base network and its epochs."""


@dataclass(frozen=True)
class Launcher:
    """Does single runs in this process.

    Attributes:
        fresh: move earlier folders of the same runs aside.
        options: fields of the jobs that are the same for all runs.
        suite: the folder in `runs_dir` that the runs are in.
    """

    runs_dir: Path
    seed: int
    fresh: bool
    options: dict[str, Any]
    suite: str = INDIVIDUAL

    @classmethod
    def of(cls, options: dict[str, Any], suite: str = INDIVIDUAL) -> "Launcher":
        """Return the launcher for the options of a command, which are removed from them."""
        of_jobs = {key: options.pop(key) for key in ("data_dir", "device", "threads", "tensorboard", "wandb")}
        return cls(options.pop("runs_dir"), options.pop("seed"), options.pop("fresh"), of_jobs, suite)

    def job(self, config: RunConfig, parent: Path | None = None, parent_hash: str | None = None) -> Job:
        """Return the job in `<runs_dir>/<suite>/<name>/seed<k>`; a missing hash is read from the parent's folder."""
        if parent is not None and parent_hash is None:
            parent_hash = Config.of(parent).hash
        return Job(
            config=config,
            seed=self.seed,
            folder=self.runs_dir.absolute() / self.suite / config.name / f"seed{self.seed}",
            parent=parent,
            parent_hash=parent_hash,
            **self.options,
        )

    def has_begun(self, job: Job) -> bool:
        """Return whether the job's folder holds this very job, finished or not."""
        with suppress(UserError):
            config = Config.read(job.folder)
            return config is not None and config.hash == job.settings_hash
        return False

    def run(self, job: Job) -> Path:
        """Do the run, or what is left of it; log to the terminal and to log.txt; return the run folder."""
        if self.fresh:
            set_aside(job.folder)
        with logged(job):
            log.info("%s, seed %d", job.config.name, job.seed)
            execute(job)
        return job.folder


def run_name(words: Sequence[str]) -> str:
    """Return the name of a run from these words; a name that would be too long ends in a digest of it."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(words))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        hash: hash of its settings.
        digest: SHA-256 of its network.
        ancestry: its settings, those of its parent, and so on up to the first run.
    """

    folder: Path
    hash: str
    digest: str
    ancestry: tuple[RunConfig, ...]

    @property
    def run(self) -> RunConfig:
        return self.ancestry[0]

    @property
    def name(self) -> str:
        """The run as `--from` takes it."""
        return f"{self.folder.parent.parent.name}/{self.folder.parent.name}"

    @property
    def only_evaluated(self) -> bool:
        """Whether its network is its parent's or an imported one, unchanged."""
        run, *before = self.ancestry
        unchanged = run.init_from is not None or (before and activations_of(run) == activations_of(before[0]))
        return run.train == "none" and bool(unchanged)

    def facts(self) -> dict[str, Any]:
        """Return all that flags can describe, as far as it is meaningful for this run."""
        run = self.run
        facts: dict[str, Any] = {"end_epoch": run.end_epoch}
        facts |= {key: getattr(run, key) for key in (*TRAINING, *DATA)} | {"lr": learning_rate(run)}
        if run.adaptive:
            facts["sharing"] = run.sharing
        families = {ADAPTIVE.get(parse_text(text).family, object) for text in (run.cnn, run.fc)}
        if any(issubclass(family, (FNeuron, IntervalActivation)) for family in families):
            facts["interval"] = run.interval
        if FNeuron in families:
            facts["knots"] = run.knots
        if "LEAF" in run.cnn + run.fc and run.train != "none":
            facts["p24sl"] = run.p24sl
        if run.adaptive and run.train == "all":
            facts["dspu4"] = run.dspu4
        before = next((one for one in self.ancestry if activations_of(one) != activations_of(run)), None)
        since = self.ancestry[: self.ancestry.index(before)] if before else self.ancestry
        # The history of a checkpoint before its import is unknown.
        if self.ancestry[-1].init_from is None or before is not None:
            facts["base"] = None if before is None else base_text(before)
            facts["tuned"] = any(one.train == "activations" and one.epochs for one in since)
        return facts


def base_text(run: RunConfig) -> str:
    """Return the activations of a network as a text: "ReLU", or "ReLU, fully connected Tanh"."""
    return run.cnn if run.cnn == run.fc else f"{run.cnn}, fully connected {run.fc}"


def activations_of(run: RunConfig) -> tuple[object, ...]:
    """Return the settings that determine the activations of a network."""
    return run.cnn, run.fc, *((run.sharing, run.interval, run.knots) if run.adaptive else ())


def read_finished(folder: Path) -> Finished:
    """Return the finished run in a folder; its network is checked when a run resumes from it."""
    done = read_done(folder)
    configs, place = [Config.of(folder)], folder
    while (parent := configs[-1].parent_of(place)) is not None:
        configs.append(Config.of(parent))
        place = parent
    digest = done.sha256.get(NETWORK, configs[0].hash)
    return Finished(folder, configs[0].hash, digest, tuple(config.run for config in configs))


def differences(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return where the facts about a run differ from the wanted ones, as texts."""
    return [
        f"{key}: {facts[key]} there, {value} here"
        for key, value in wanted.items()
        if key in facts and facts[key] != value
    ]


def find_runs(launcher: Launcher, wanted: Mapping[str, Any]) -> list[Finished]:
    """Return the finished runs that `wanted` describes, which all end with the same network; the suite's own first."""
    runs: list[Finished] = []
    for file in sorted(launcher.runs_dir.absolute().glob(f"*/*/seed{launcher.seed}/{DONE}")):
        # A run that is damaged or has diverged is reported where it is named.
        with suppress(UserError):
            runs.append(read_finished(file.parent))
    runs = [run for run in runs if not run.only_evaluated]
    fitting = [run for run in runs if not differences(run.facts(), wanted)]
    if len({run.digest for run in fitting}) == 1:
        return sorted(fitting, key=lambda run: run.folder.parent.parent.name != launcher.suite)
    if fitting:
        names = ", ".join(run.name for run in fitting)
        raise UserError(
            f"The flags describe several finished runs, with different networks: {names}. Choose one by --from."
        )
    kind = "trained from its beginning" if wanted["base"] is None else "with replaced activations"
    where = f"in {launcher.runs_dir} ends at epoch {wanted['end_epoch']} and matches the other flags"
    text = f"No finished run {kind} {where}. With seed {launcher.seed} there"
    near = [run for run in runs if (run.run.network, run.run.dataset) == (wanted["network"], wanted["dataset"])]
    near.sort(key=lambda run: len(differences(run.facts(), wanted)))
    if not near:
        raise UserError(f"{text} is none of {wanted['network']} on {wanted['dataset']}.")
    listed = "; ".join(f"{run.name} ({', '.join(differences(run.facts(), wanted))})" for run in near[:LISTED])
    more = f"; and {len(near) - LISTED} more" if len(near) > LISTED else ""
    raise UserError(f"{text} are: {listed}{more}. Change the flags, or choose one by --from.")
