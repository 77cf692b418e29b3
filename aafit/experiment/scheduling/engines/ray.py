"""The engine of a Ray cluster: the worker process of one or several jobs is a Ray task.

The task only starts the process and waits for it. The process ends with its Ray worker, and that with its raylet, which
is Ray's own process on each node. Ray itself tries nothing again, see resume.py.
"""

import os
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aafit.errors import UserError
from aafit.experiment.devices import ON_CPU
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines import process
from aafit.experiment.scheduling.engines.carried import (
    CarriedProcess,
    as_placed,
    folders_of,
    packed,
    runs_folder,
    unpack,
)
from aafit.experiment.scheduling.engines.engine import PATIENT, WORKER, End, as_told
from aafit.experiment.scheduling.engines.node import COMMAND, accept, probe
from aafit.experiment.scheduling.engines.resume import Death, ResumedProcess
from aafit.training.precision import processor_name

# Ray reads these when it is imported: it reports no usage, a task without a GPU sees none, and an address where
# there is no cluster is given up soon.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_NUM_REDIS_GET_RETRIES": "2",
}

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DIED = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
)
"""What Ray raises where the worker of a task or its node has died: the run goes on elsewhere."""

OWN_NODE_DIED = (exceptions.LocalRayletDiedError, OSError)
"""What Ray raises where the raylet of this machine has died. An OSError comes from its object store, a part of it."""

LOST = (
    "The Ray node of this machine has died, so that no more runs can be started: nothing is lost, and once it is there "
    "again (`ray start`), the same command goes on from here."
)

LOOK_SECONDS = 5.0
"""How often it is looked how many nodes there are."""

ASK_SECONDS = 300.0
"""How long a node may take to say what it is: it may have to download the data."""

LOST_SECONDS = 60
"""How long Ray may take to see that a node is gone."""


class RayTask:
    """A Ray task that runs a worker process to its end."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def end(self) -> End | Death | None:
        try:
            if not ray.wait([self.reference], timeout=0)[0]:
                return None
            return End(*ray.get(self.reference))
        except (exceptions.RayError, OSError) as error:
            return failed(error)

    def stop(self, *, at_once: bool) -> None:
        ray.cancel(self.reference, force=at_once)


class CarriedTask(RayTask):
    """The same on the node's own disk: what it yields is put into the runs folder."""

    def __init__(self, generator: Any, runs: Path) -> None:
        super().__init__(generator)
        self.runs = runs

    def end(self) -> End | Death | None:
        while True:
            try:
                if not ray.wait([self.reference], timeout=0)[0]:
                    return None
                files, ended = ray.get(next(self.reference))
            except StopIteration:
                return Death("its node was lost")
            except (exceptions.RayError, OSError) as error:
                return failed(error)
            unpack(self.runs, files)
            if ended is not None:
                return End(*ended)


class LostTask:
    """Stands for a task that Ray did not take, because the Ray node of this machine has died."""

    def end(self) -> End:
        return End(False, LOST, lost=True)

    def stop(self, *, at_once: bool) -> None:
        pass


class RayEngine:
    """Worker processes on the nodes of a Ray cluster.

    Args:
        address: of the cluster: "auto" (the one this machine belongs to), or host:port.
        device: "cpu", "cuda", or "auto": the GPUs where the cluster has some.
        jobs: processes at once, by default one for each core; on GPUs, so many share each.
        command: what does the jobs.
        own_disks: the nodes do not see the runs folder: they do the runs on disks of their own, see carried.py.

    Raises:
        UserError: there is no cluster at the address, it runs another version of Ray or Python, or it has no GPU.
    """

    def __init__(
        self,
        address: str = "auto",
        device: str = "auto",
        jobs: int | None = None,
        command: Sequence[str] = WORKER,
        *,
        own_disks: bool = False,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device} is not valid with --engine ray: give auto, cpu or cuda.")
        try:
            check_address(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"There is no Ray cluster at {address}: start one with `ray start --head`, "
                "or give the --address host:port of one."
            ) from error
        except RuntimeError as error:
            raise UserError(f"The Ray cluster at {address} cannot be used: {str(error).splitlines()[0]}") from error
        # The nodes get the code of process.py itself: they need not import this package only to wait.
        ray.cloudpickle.register_pickle_by_value(process)
        self.jobs, self.command, self.own_disks, self.device = jobs, command, own_disks, processor_name()
        self.looked, self.fits = -LOOK_SECONDS, 0
        gpus = ray.cluster_resources().get("GPU", 0)
        if device == "cuda" and not gpus:
            self.close()
            raise UserError("--device cuda cannot be used here: the Ray cluster has no GPU.")
        self.on_gpu = bool(gpus) and device != "cpu"
        share = 1 / (jobs or 1) if self.on_gpu else 0
        work: Any = process.run_on_own_disk if own_disks else process.run_to_end
        self.work: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(work)
        self.ask = ray.remote(num_cpus=0, max_retries=0)(process.ask)
        self.environment = {} if self.on_gpu else ON_CPU | {"CUDA_VISIBLE_DEVICES": ""}

    @property
    def slots(self) -> int:
        """What fits on the nodes that are there now; --jobs where it is given, so that an autoscaler sees the need."""
        if self.jobs and not self.on_gpu:
            return self.jobs
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            kind, each = ("GPU", self.jobs or 1) if self.on_gpu else ("CPU", 1)
            self.fits = sum(int(node["Resources"].get(kind, 0)) * each for node in nodes())
        return self.fits

    def check(self, jobs: Sequence[Job]) -> None:
        with probe(jobs, "cuda" if self.on_gpu else "cpu") as question:
            answers = {}
            for node in nodes():
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked = self.ask.options(scheduling_strategy=there).remote(
                    COMMAND, question.model_dump_json(), self.environment
                )
                answers[asked] = node
            found = []
            for asked, node in answers.items():
                try:
                    found.append((node["NodeManagerAddress"], ray.get(asked, timeout=ASK_SECONDS)))
                except exceptions.LocalRayletDiedError as error:
                    raise UserError(LOST) from error
                except exceptions.RayError as error:
                    # A node may be lost before it is asked, or while it answers.
                    if isinstance(error, (exceptions.TaskUnschedulableError, *DIED)) and is_lost(node["NodeID"]):
                        continue
                    told = str(error).strip().splitlines()[0]
                    raise UserError(f"A node of the Ray cluster does not answer ({told}); see `ray status`.") from error
        for name, answered in found:
            fit = accept(name, answered, question.file.parent, own_disks=self.own_disks)
            if not (fit.token or ip_address(name).is_loopback):
                raise UserError(
                    f"The Ray node {name} takes commands from whoever can reach it: set RAY_AUTH_MODE=token for "
                    "`ray start` on each node and here, see docs/how-to/cluster.md."
                )
            self.device = fit.device

    def start(self, jobs: Sequence[Job]) -> ResumedProcess:
        placed = as_placed(jobs) if self.own_disks else jobs
        told = as_told(placed, "cuda" if self.on_gpu else "cpu", None if self.on_gpu else 1)
        what = (*self.command, *PATIENT), told, self.environment, str(placed[0].folder / LOG)
        if not self.own_disks:
            return ResumedProcess(jobs, lambda: RayTask(self.work.remote(*what)))
        folders, runs = folders_of(jobs), runs_folder(jobs)

        def submit() -> CarriedTask | LostTask:
            files = packed(jobs)
            try:
                return CarriedTask(self.work.remote(*what, folders, files), runs)
            except OSError:
                return LostTask()

        return CarriedProcess(jobs, submit)

    def close(self) -> None:
        ray.shutdown()


def failed(error: exceptions.RayError | OSError) -> End | Death:
    """How a task ended that raised this error in place of an answer."""
    if isinstance(error, exceptions.TaskCancelledError):
        return End(False, "it was stopped.")
    if isinstance(error, exceptions.RayTaskError):
        return End(False, f"it cannot be started: {error.cause}.")
    if isinstance(error, OWN_NODE_DIED):
        return End(False, LOST, lost=True)
    if isinstance(error, DIED):
        return Death(type(error).__name__)
    raise error


def check_address(address: str) -> None:
    """Let go soon of an address that nothing listens at: Ray itself tries for minutes.

    Raises:
        OSError, ValueError: nothing does, or it is not host:port.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def is_lost(node: str) -> bool:
    """Whether a node that takes no task is gone: it stays in the list for some seconds."""
    until = time.monotonic() + LOST_SECONDS
    while time.monotonic() < until:
        if node not in {each["NodeID"] for each in nodes()}:
            return True
        time.sleep(0.5)
    return False


def nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
