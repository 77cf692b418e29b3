"""One run outside of a suite, in this process, going on from any finished run that fits."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aafit.errors import UserError
from aafit.runs.config import RunConfig
from aafit.runs.documents import CONFIG, DONE, Config
from aafit.runs.execute import execute
from aafit.runs.job import Job, set_aside
from aafit.runs.log import logged

log = logging.getLogger("aafit")

SUITE = "individual"


@dataclass(frozen=True)
class Place:
    """Where and how runs are done: everything that is not a setting of the run itself."""

    runs_dir: Path
    seed: int
    data_dir: Path | None
    device: str
    tensorboard: bool
    wandb: bool
    fresh: bool


def run_alone(place: Place, config: RunConfig, parent: Path | None) -> Path:
    """Do the run, or what is left of it, and return its folder, `<runs_dir>/individual/<name>/seed<k>`.

    What it logs goes to the terminal and to its log.txt.
    """
    folder = place.runs_dir.absolute() / SUITE / config.name / f"seed{place.seed}"
    if place.fresh:
        set_aside(folder)
    job = Job(
        config=config,
        seed=place.seed,
        folder=folder,
        parent=parent,
        parent_hash=None if parent is None else Config.of(parent).hash,
        data_dir=place.data_dir,
        device=place.device,
        tensorboard=place.tensorboard,
        wandb=place.wandb,
    )
    with logged(job):
        log.info("%s, seed %d", config.name, place.seed)
        execute(job)
    return folder


def find_run(place: Place, wanted: Mapping[str, Any], end_epoch: int, patched: bool) -> Path:
    """The folder of a finished run with these settings that ended at `end_epoch`; runs outside of suites go first.

    `patched`: whether its activations were replaced in a base network, or it was trained from its beginning.

    Raises:
        UserError: there is none.
    """
    files = place.runs_dir.absolute().glob(f"*/*/seed{place.seed}/{CONFIG}")
    for file in sorted(files, key=lambda file: (file.parts[-4] != SUITE, file)):
        if not (file.parent / DONE).exists():
            continue
        config = Config.of(file.parent)
        settings = config.run.model_dump(mode="json")
        fits = all(settings[key] == value for key, value in wanted.items())
        if fits and config.run.end_epoch == end_epoch and (config.parent is not None) == patched:
            log.info("going on from %s", file.parent)
            return file.parent
    told = ", ".join(f"{key} {value}" for key, value in wanted.items() if value is not None)
    kind = "with replaced activations" if patched else "trained from its beginning"
    raise UserError(
        f"No finished run {kind} ends at epoch {end_epoch} in {place.runs_dir} ({told}, seed {place.seed}): "
        "run it first."
    )


def find_authors_checkpoint(place: Place, common: Mapping[str, Any], act: str, epoch: int) -> Path | None:
    """A file like kerasnet_cifar10_ReLU_base_adam_100ep_checkp.bin under the runs folder or $SRGK_RUNS_PATH."""
    data_set = {"Fashion-MNIST": "F-MNIST"}.get(common["dataset"], common["dataset"])
    wanted = f"{common['network']}_{data_set}_{act}_base_{common['optimizer']}_{epoch}ep_checkp.bin"
    for folder in (place.runs_dir, Path(os.environ.get("SRGK_RUNS_PATH", place.runs_dir))):
        for file in sorted(folder.rglob("*_checkp.bin")):
            if _plain(file.name) == _plain(wanted):
                return file
    return None


def _plain(name: str) -> str:
    """The authors write names of networks and data sets in lower case and without hyphens."""
    return re.sub(r"[^a-z0-9_.]", "", name.lower())
