"""A job: one run with one seed in one folder, everything that a process needs to know to do it."""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from aafit.activations import is_adaptive
from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig, Settings
from aafit.experiment.runs.documents import CONFIG, Done, check_files, diverged, load_json
from aafit.experiment.runs.suite import SEEDS, Suite
from aafit.files import cannot_write, is_file, sha256_of
from aafit.training.tune import LEARNING_RATES

NOT_IN_RESULT = {"name", "stage", "parent", "init_from", "lr"}
"""Settings that do not decide the result: labels, and what is hashed by its content or by its value in effect."""

NOT_HASHED = {
    "method": "gradient",
    "heldout": 0.2,
    "curvature": "sampled",
    "prior": "none",
    "budget": 0.005,
    "resume_optimizer": False,
}
"""Settings that are newer than some run folders, with the values that those runs had: these do not count."""

LOCKSTEP_SETTINGS = {"name", "stage", "fc", "sharing", "interval", "knots", "optimizer", "lr", "p24sl"}
"""Settings in which runs in lockstep may differ: how their activations are initialized and tuned."""


class Job(Settings):
    """One run with one seed.

    Attributes:
        folder: its run folder.
        parent: the run folder of its parent.
        parent_hash: `settings_hash` of its parent.
    """

    config: RunConfig
    seed: int = Field(ge=0, lt=SEEDS)
    folder: Path
    parent: Path | None = None
    parent_hash: str | None = None
    data_dir: Path | None = None
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    tensorboard: bool = False
    wandb: bool = False

    @property
    def settings_hash(self) -> str:
        """SHA-256 of everything that decides the result: the settings, the seed, and the parent's hash.

        Names, folders and the device are not included: the same run on another machine is the same run.
        """
        run = self.config
        settings = run.model_dump(mode="json", exclude=NOT_IN_RESULT | run.unused())
        settings = {key: value for key, value in settings.items() if key not in NOT_HASHED or value != NOT_HASHED[key]}
        # Run folders of format 2 counted the inner knots.
        settings["pieces"] = settings.pop("knots") - 2
        settings |= {"lr": learning_rate(run), "seed": self.seed, "parent": self.parent_hash}
        if run.init_from is not None:
            settings["init_from"] = content_of(run.init_from)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def learning_rate(run: RunConfig) -> float:
    """Return the learning rate of the run; if it has none, the usual one of its optimizer."""
    return LEARNING_RATES[run.optimizer] if run.lr is None else run.lr


def content_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's content."""
    try:
        now = checkpoint.stat()
        return _hashed(checkpoint, now.st_mtime_ns, now.st_size)
    except OSError as error:
        raise UserError(f"The checkpoint {checkpoint} cannot be read: {error.strerror}.") from None


@lru_cache
def _hashed(checkpoint: Path, changed: int, size: int) -> str:
    """Return the SHA-256 of the file as of its last change: it is needed every epoch, and the file is large."""
    return sha256_of(checkpoint)


def jobs_of(
    suite: Suite,
    runs_dir: Path,
    *,
    data_dir: Path | None = None,
    tensorboard: bool = False,
    wandb: bool = False,
) -> dict[tuple[str, int], Job]:
    """Return the jobs of a suite by (run, seed), parents first; folders are `<runs_dir>/<suite>/<run>/seed<k>`."""
    jobs: dict[tuple[str, int], Job] = {}
    for seed in suite.seeds:
        for run in suite.runs:
            parent = jobs[run.parent, seed] if run.parent is not None else None
            jobs[run.name, seed] = Job(
                config=run,
                seed=seed,
                folder=runs_dir.absolute() / suite.name / run.name / f"seed{seed}",
                parent=parent.folder if parent else None,
                parent_hash=parent.settings_hash if parent else None,
                data_dir=data_dir.absolute() if data_dir else None,
                tensorboard=tensorboard,
                wandb=wandb,
            )
    return jobs


def is_done(job: Job) -> bool:
    """Return whether the job's folder holds its finished result; a run that diverged has none."""
    check_same_settings(job)
    done = Done.read(job.folder)
    if done is None or done.hash != job.settings_hash or done.result.diverged is not None:
        return False
    check_files(job.folder, done)
    return True


def verdict(job: Job) -> str | None:
    """Return the sentence that the job diverged and will have no result; None if it did not."""
    done = Done.read(job.folder)
    if done is None or done.hash != job.settings_hash or done.result.diverged is None:
        return None
    return diverged(job.folder, done.result.diverged)


def check_same_settings(job: Job) -> None:
    """Raise a UserError if the folder holds a run with other settings."""
    path = job.folder / CONFIG
    # Not as `Config`: a run of another version may have settings that this one does not have.
    if is_file(path) and (different := differences(load_json(path), job)):
        raise UserError(
            f"{job.folder} holds a run with other settings ({'; '.join(different)}): "
            "use --fresh to move it aside and start again, or another --runs-dir."
        )


def differences(stored: Mapping[str, Any], job: Job) -> list[str]:
    """Return what differs between a run folder's config.json and a job, as texts: "epochs: 30 there, 20 here"."""
    if stored.get("hash") == job.settings_hash:
        return []
    there = {**stored.get("run", {}), "seed": stored.get("seed")}
    if there.get("lr", 0) is None:
        there["lr"] = LEARNING_RATES.get(there.get("optimizer", ""))
    here = {**job.config.model_dump(mode="json"), "lr": learning_rate(job.config), "seed": job.seed}
    texts = [
        f"{key}: {_shown(there, key)} there, {_shown(here, key)} here"
        for key in dict.fromkeys([*here, *there])
        if key not in NOT_IN_RESULT - {"lr"} and _shown(there, key) != _shown(here, key)
    ]
    if stored.get("parent_hash") != job.parent_hash:
        texts.append("its parent has other settings")
    if not texts and (there.get("init_from") or here.get("init_from")):
        texts.append("init_from: another checkpoint")
    return texts or ["the same settings, written by another version of aafit"]


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "unknown"


def set_aside(folder: Path) -> Path | None:
    """Rename a run folder to `<folder>.old-<time>`, so that a new run can begin and nothing is lost.

    Returns:
        The new path, None if there was no folder.
    """
    if not folder.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{folder.name}.old-{stamp}{suffix}" for suffix in ["", *(f"-{count}" for count in range(2, 100))])
    aside = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    try:
        folder.rename(aside)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return aside


def lockstep_group(job: Job) -> str | None:
    """Return what a job has in common with all that can be trained in lockstep with it, None if it has to run alone.

    Such runs tune activations of the fully connected layers only, by gradient steps, in one base network with one seed.
    """
    run = job.config
    if job.parent is None or run.train != "activations" or not run.takes_gradient_steps or is_adaptive(run.cnn):
        return None
    return job.model_dump_json(exclude={"config": LOCKSTEP_SETTINGS, "folder": True})


def lockstep_groups(jobs: Mapping[tuple[str, int], Job]) -> dict[tuple[str, int], list[tuple[str, int]]]:
    """Return for each job, by run and seed, the jobs that can be trained in lockstep with it, itself included."""
    alike: dict[str, list[tuple[str, int]]] = {}
    groups = {}
    for key, job in jobs.items():
        group = lockstep_group(job)
        groups[key] = [] if group is None else alike.setdefault(group, [])
        groups[key].append(key)
    return groups
