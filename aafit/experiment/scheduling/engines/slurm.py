"""The engine of a Slurm cluster, through submitit: the worker process of one or several jobs is a Slurm job.

What sbatch is to know beside cores and GPUs it reads from its own environment: SBATCH_PARTITION, SBATCH_ACCOUNT,
SBATCH_TIMELIMIT and the like.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from aafit.errors import UserError
from aafit.experiment.devices import ON_CPU
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines import process
from aafit.experiment.scheduling.engines.engine import PATIENT, WORKER, End, as_told
from aafit.experiment.scheduling.engines.node import COMMAND, accept, probe
from aafit.experiment.scheduling.engines.resume import Death, ResumedProcess
from aafit.training.precision import processor_name

JOBS = 16
"""Slurm jobs at once where --jobs does not say."""

MINUTES = 24 * 60
"""The time limit of a Slurm job where SBATCH_TIMELIMIT does not say; a run that reaches it goes on in another job."""


class SlurmTask:
    """A Slurm job that runs a worker process to its end."""

    def __init__(self, job: Any) -> None:
        self.job, self.stopped = job, False

    def end(self) -> End | Death | None:
        if not self.job.done():
            return None
        try:
            return End(*self.job.result())
        except FailedJobError as error:
            return End(False, f"it cannot be started: {str(error).strip().splitlines()[-1]}.")
        except UncompletedJobError:
            return End(False, "it was stopped.") if self.stopped else Death(f"its Slurm job ended as {self.job.state}")

    def stop(self, *, at_once: bool) -> None:
        self.stopped = True
        self.job.cancel()


class SlurmEngine:
    """Worker processes as Slurm jobs; submitit's files go to .slurm/ in the suite's folder, which all nodes must share.

    Args:
        device: "cpu", which "auto" is here, or "cuda": a GPU for each.
        jobs: Slurm jobs at once, waiting ones among them.
        command: what does the jobs.
        cluster: "slurm", or another of submitit's: "local" is processes on this machine.

    Raises:
        UserError: there is no Slurm here.
    """

    def __init__(
        self,
        device: str = "auto",
        jobs: int | None = None,
        command: Sequence[str] = WORKER,
        cluster: str = "slurm",
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device} is not valid with --engine slurm: give cpu or cuda.")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("There is no Slurm here: sbatch is not found. Start this on a login node of the cluster.")
        # The jobs get the code of process.py itself: they need not import this package only to wait.
        cloudpickle.register_pickle_by_value(process)
        self.on_gpu, self.slots, self.command, self.cluster = device == "cuda", jobs or JOBS, command, cluster
        self.device = processor_name()
        self.environment = {} if self.on_gpu else ON_CPU | {"CUDA_VISIBLE_DEVICES": ""}

    def check(self, jobs: Sequence[Job]) -> None:
        with probe(jobs, "cuda" if self.on_gpu else "cpu") as question:
            asked = self._submit(jobs, process.ask, COMMAND, question.model_dump_json(), self.environment)
            try:
                answered = asked.result()
            except UncompletedJobError as error:
                told = str(error).strip().splitlines()[0]
                raise UserError(f"A Slurm job cannot be done here: {told}.") from error
            self.device = accept("a Slurm node", answered, question.file.parent).device

    def start(self, jobs: Sequence[Job]) -> ResumedProcess:
        told = as_told(jobs, "cuda" if self.on_gpu else "cpu", None if self.on_gpu else 1)
        work = (*self.command, *PATIENT), told, self.environment, str(jobs[0].folder / LOG)
        return ResumedProcess(jobs, lambda: SlurmTask(self._submit(jobs, process.run_to_end, *work)))

    def close(self) -> None:
        pass

    def _submit(self, jobs: Sequence[Job], function: Callable[..., object], *arguments: object) -> Any:
        executor = submitit.AutoExecutor(jobs[0].folder.parents[1] / ".slurm", cluster=self.cluster)
        wanted = {"name": "aafit", "cpus_per_task": 1, "timeout_min": MINUTES}
        executor.update_parameters(**wanted, **({"gpus_per_node": 1} if self.on_gpu else {}))
        return executor.submit(function, *arguments)
