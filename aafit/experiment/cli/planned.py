"""What flags say: the runs to do, and the finished ones or the checkpoints that those go on from."""

import logging
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from aafit.errors import UserError
from aafit.experiment.cli.authors import ACTS, DATASETS, NETWORKS, Words, find_checkpoint
from aafit.experiment.cli.flags import FORM, FOUND, Flags
from aafit.experiment.cli.lookup import (
    COMPARED,
    OF_ACTIVATIONS,
    OF_THE_IMAGES,
    Finished,
    differences,
    find_run,
    read_finished,
)
from aafit.experiment.cli.options import given
from aafit.experiment.cli.standalone import Place
from aafit.experiment.runs.config import METHODS, RunConfig
from aafit.experiment.runs.folder import has_optimizer
from aafit.experiment.runs.job import Job, content_of, learning_rate

log = logging.getLogger("aafit")


@dataclass(frozen=True)
class Planned:
    """A run, and the import of a checkpoint that it comes from."""

    job: Job
    imported: Job | None = None


def plan(flags: Flags, place: Place) -> list[Planned]:
    """All runs that the flags describe, with what they go on from, before one of them has begun.

    Raises:
        UserError: one of them cannot be done as the flags say.
    """
    flags.check()
    nets = list(NETWORKS) if flags.net == "all" else [flags.net]
    data_sets = list(DATASETS)[:2] if flags.ds == "all" else [flags.ds]
    every = list(product(nets, data_sets, ACTS[flags.acts]))
    if flags.folder is not None and len(every) > 1:
        raise UserError(f"--folder {flags.folder} is for one run, but these flags describe {len(every)}.")
    return [_One(flags, place, *one).planned() for one in every]


@dataclass(frozen=True)
class _One:
    """One of the runs that flags describe."""

    flags: Flags
    place: Place
    network: str
    data_set: str
    act: str

    @property
    def base(self) -> str:
        return self.flags.patched_from_af or self.act

    def words(self) -> Words:
        return Words(self.flags.kind, self.act, self.flags.act_cnn, self.base)

    def common(self) -> dict[str, Any]:
        """What a run has in common with the one that it goes on from."""
        flags = self.flags
        return {
            "network": self.network,
            "dataset": DATASETS[self.data_set],
            "optimizer": flags.opt,
            "batch_size": flags.bs,
            "precision": flags.precision,
            "holdout": flags.holdout,
            "train_images": flags.train_images,
            "augment": not flags.no_augment,
            "shuffle": not flags.no_shuffle,
        }

    def settings(self) -> dict[str, Any]:
        flags = self.flags
        own = {key: getattr(flags, key) for key in FORM}
        found = {key: getattr(flags, key) for key in FOUND}
        identified = METHODS[flags.method].activations_only
        nothing = flags.start_ep == flags.end_ep
        train = flags.train or ("none" if nothing else "activations" if flags.tune_aaf or identified else "all")
        if flags.dspu4 and train == "activations":
            log.info("--dspu4 with --tune_aaf is --tune_aaf: all that the second step would train is frozen")
        return {
            **self.common(),
            **self.words().texts(),
            **given(own),
            **given(found),
            "stage": flags.stage,
            "method": flags.method,
            "train": train,
            "start_epoch": flags.start_ep,
            "epochs": flags.end_ep - flags.start_ep,
            "lr": flags.lr,
            "p24sl": flags.p24sl,
            "dspu4": flags.dspu4 and train == "all",
        }

    def planned(self) -> Planned:
        settings = self.settings() | {"name": self.flags.name(self.network, self.data_set, self.act)}
        run = RunConfig.checked(settings)
        if self.flags.init_from is not None and not self.flags.patch_base:
            return self._going_on_from_file(settings, self.flags.init_from)
        if self.flags.from_run is not None:
            return self._going_on(settings, self._named(self.flags.from_run))
        if self.flags.patch_base:
            return self._patched(settings)
        if self.flags.start_ep == 0:
            return Planned(self._job(settings))
        kind = {"patched": self.flags.patched, "tuned": self.flags.tuned}
        try:
            base = self.base if self.flags.patched else None
            told = {"base": base, "tuned": self.flags.tuned, "dspu4": self.flags.dspu4, "lr": learning_rate(run)}
            found = self._find(run, **told)
        except UserError as error:
            marks = {**kind, "dspu4": self.flags.dspu4, "p24sl": self.flags.p24sl}
            return self._going_on_from_file(settings, self._checkpoint(self.words(), marks, error))
        return self._going_on(settings, found)

    def _find(self, described: RunConfig, **more: Any) -> Finished:
        """The finished run that has these settings, and what else is told of it."""
        keys = (*COMPARED, *OF_THE_IMAGES, *OF_ACTIVATIONS)
        wanted = {key: getattr(described, key) for key in keys} | {"end_epoch": self.flags.start_ep} | more
        return find_run(self.place.runs_dir, self.flags.seed, wanted, self.place.suite)

    def _named(self, name: str) -> Finished:
        folder = self.place.runs_dir.absolute() / name / f"seed{self.flags.seed}"
        found = read_finished(folder if folder.exists() else Path(name).absolute())
        common = self.common()
        wanted = {key: common[key] for key in ("network", "dataset", "holdout")} | {"end_epoch": self.flags.start_ep}
        if self.flags.patch_base and self.flags.patched_from_af is not None:
            wanted |= {"cnn": self.base, "fc": self.base}
        if different := differences(found.facts(), wanted):
            raise UserError(f"--from {name} is not the run that the flags describe ({', '.join(different)}).")
        return found

    def _patched(self, settings: dict[str, Any]) -> Planned:
        """The run that replaces activations of a base network: a finished run, or a checkpoint of the authors'."""
        file = self.flags.init_from
        if file is None:
            try:
                base = {"name": "base", "cnn": self.base, "fc": self.base, "epochs": 0}
                found = self._find(RunConfig.checked(self.common() | base), base=None, tuned=False)
                return self._going_on(settings, found)
            except UserError as error:
                marks = dict.fromkeys(("patched", "tuned", "dspu4", "p24sl"), False)
                file = self._checkpoint(Words("base", self.base, None, self.base), marks, error)
        log.info("base network: %s", file)
        content = content_of(file)[:8]
        imported = {
            **self.common(),
            "name": f"{self.network}-{self.data_set}-base-{self.base}-imported-{content}-{self.flags.start_ep}",
            "cnn": self.base,
            "fc": self.base,
            "train": "none",
            "start_epoch": self.flags.start_ep,
            "epochs": 0,
            "init_from": file.absolute(),
        }
        job = self.place.job(RunConfig.checked(imported))
        return Planned(self._job(settings, job.folder, job.settings_hash), job)

    def _checkpoint(self, words: Words, marks: dict[str, bool], error: UserError) -> Path:
        folders = [self.place.runs_dir, *map(Path, filter(None, [os.environ.get("SRGK_RUNS_PATH")]))]
        where = self.network, self.data_set, self.flags.opt, self.flags.start_ep
        file = find_checkpoint(folders, words, *where, marks)
        if file is None:
            raise UserError(f"{error} A checkpoint of the authors' program can be named by --init-from.") from None
        log.info("going on from the authors' checkpoint %s", file)
        return file

    def _going_on(self, settings: dict[str, Any], parent: Finished) -> Planned:
        log.info("going on from %s", parent.folder)
        run = RunConfig.checked(settings)
        same = (run.cnn, run.fc) == (parent.run.cnn, parent.run.fc)
        same = same and (not run.adaptive or _form(run) == _form(parent.run))
        resume = same and not self.flags.new_optimizer and run.takes_gradient_steps
        if resume and not has_optimizer(parent.folder):
            log.info("%s kept no optimizer: it starts afresh", parent.name)
            resume = False
        more = {"resume_optimizer": resume, "parent": parent.folder.parent.name}
        return Planned(self._job(settings | more, parent.folder, parent.hash))

    def _going_on_from_file(self, settings: dict[str, Any], file: Path) -> Planned:
        if settings["train"] != "none":
            log.info(
                "the optimizer starts afresh: the states in a checkpoint of the authors' program are not taken over"
            )
        return Planned(self._job(settings | {"init_from": file.absolute()}))

    def _job(self, settings: dict[str, Any], parent: Path | None = None, parent_hash: str | None = None) -> Job:
        return self.place.job(RunConfig.checked(settings), parent, parent_hash)


def _form(run: RunConfig) -> tuple[object, ...]:
    return run.sharing, run.interval, run.knots
