"""One run outside of a suite's schedule, in this process."""

import logging
from dataclasses import dataclass
from pathlib import Path

from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import Config
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job, check_same_settings, set_aside
from aafit.experiment.runs.process import logged

log = logging.getLogger("aafit")

INDIVIDUAL = "individual"


@dataclass(frozen=True)
class Place:
    """Where and how runs are done: everything that is not a setting of the run itself."""

    runs_dir: Path
    seed: int
    data_dir: Path | None
    device: str
    fresh: bool
    threads: int | None = None
    tensorboard: bool = False
    wandb: bool = False
    suite: str = INDIVIDUAL

    def job(self, config: RunConfig, parent: Path | None = None, parent_hash: str | None = None) -> Job:
        """The run in its folder, `<runs_dir>/<suite>/<name>/seed<k>`; a parent's hash is read from its folder."""
        if parent is not None and parent_hash is None:
            parent_hash = Config.of(parent).hash
        return Job(
            config=config,
            seed=self.seed,
            folder=self.runs_dir.absolute() / self.suite / config.name / f"seed{self.seed}",
            parent=parent,
            parent_hash=parent_hash,
            data_dir=self.data_dir,
            device=self.device,
            threads=self.threads,
            tensorboard=self.tensorboard,
            wandb=self.wandb,
        )

    def check(self, job: Job) -> None:
        """Refuse a folder that holds another run, before anything is trained.

        Raises:
            UserError: it does, and is not to be set aside.
        """
        if not self.fresh:
            check_same_settings(job)

    def run(self, job: Job) -> Path:
        """Do the run, or what is left of it, and return its folder.

        What it logs goes to the terminal and to its log.txt.
        """
        if self.fresh:
            set_aside(job.folder)
        with logged(job):
            log.info("%s, seed %d", job.config.name, job.seed)
            execute(job)
        return job.folder
