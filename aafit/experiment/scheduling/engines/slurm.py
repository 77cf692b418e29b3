"""The engine of a Slurm cluster: each worker process is a Slurm job, submitted through submitit.

sbatch reads everything besides cores and GPUs from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from aafit.errors import UserError
from aafit.experiment.devices import node_slot
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines import process
from aafit.experiment.scheduling.engines.engine import WITH_PATIENCE, WORKER, End, worker_input
from aafit.experiment.scheduling.engines.node import COMMAND, check_report, node_request
from aafit.experiment.scheduling.engines.remote import ResumedProcess
from aafit.training.precision import processor_name

DEFAULT_JOBS = 16
"""Slurm jobs at the same time, unless --jobs is given."""

MINUTES = 24 * 60
"""Time limit of a Slurm job, unless SBATCH_TIMELIMIT is set. A run that reaches it resumes in another job."""


class SlurmProcess:
    """A Slurm job that runs a worker process to its end."""

    def __init__(self, job: Any) -> None:
        self.job, self.stopped = job, False

    def end(self) -> End | None:
        if not self.job.done():
            return None
        try:
            return End(*self.job.result())
        except FailedJobError as error:
            return End(False, f"it cannot be started: {str(error).strip().splitlines()[-1]}.")
        except UncompletedJobError:
            if self.stopped:
                return End(False, "it was stopped.")
            return End(False, f"its Slurm job ended as {self.job.state}", lost="machine")

    def stop(self, *, at_once: bool) -> None:
        self.stopped = True
        self.job.cancel()


class SlurmEngine:
    """Worker processes as Slurm jobs. All nodes must share the runs folder; submitit's files go to `<suite>/.slurm`.

    Args:
        device: "cpu", also meant by "auto", or "cuda": one GPU for each process.
        jobs: Slurm jobs at the same time, including those that wait.
        command: the command of a worker process.
        cluster: "slurm", or another executor of submitit: "local" runs processes on this machine.
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
        # The jobs get the code of process.py by value: a job that only waits does not need to import this package.
        cloudpickle.register_pickle_by_value(process)
        self.slots, self.command, self.cluster = jobs or DEFAULT_JOBS, command, cluster
        self.device = processor_name()
        self.slot = node_slot(device == "cuda")

    def check(self, jobs: Sequence[Job]) -> None:
        with node_request(jobs, self.slot.device) as request:
            checking = self._submit(jobs, process.run_short, COMMAND, request.model_dump_json(), self.slot.environment)
            try:
                ended = checking.result()
            except UncompletedJobError as error:
                why = str(error).strip().splitlines()[0]
                raise UserError(f"Slurm jobs cannot be run here: {why}.") from error
            self.device = check_report("a Slurm node", ended, request.file.parent).device

    def start(self, jobs: Sequence[Job]) -> ResumedProcess:
        command, log = (*self.command, *WITH_PATIENCE), str(jobs[0].folder / LOG)
        arguments = command, worker_input(jobs, self.slot), self.slot.environment, log
        return ResumedProcess(jobs, lambda: SlurmProcess(self._submit(jobs, process.run_to_end, *arguments)))

    def close(self) -> None:
        pass

    def _submit(self, jobs: Sequence[Job], function: Callable[..., object], *arguments: object) -> Any:
        executor = submitit.AutoExecutor(jobs[0].folder.parents[1] / ".slurm", cluster=self.cluster)
        settings = {"name": "aafit", "cpus_per_task": 1, "timeout_min": MINUTES}
        executor.update_parameters(**settings, **({"gpus_per_node": 1} if self.slot.device == "cuda" else {}))
        return executor.submit(function, *arguments)
