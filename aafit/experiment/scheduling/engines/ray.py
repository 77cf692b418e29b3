"""The engine of a Ray cluster: each worker process is a Ray task.

The task only starts the process and waits for it. The process ends with its Ray worker, and that one with its raylet,
Ray's own process on each node. Ray does not retry tasks; remote.py does.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aafit.errors import UserError
from aafit.experiment.devices import node_slot
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines import process
from aafit.experiment.scheduling.engines.engine import WITH_PATIENCE, WORKER, End, worker_input
from aafit.experiment.scheduling.engines.node import COMMAND, check_report, node_request
from aafit.experiment.scheduling.engines.remote import (
    ResumedProcess,
    relative_folders,
    required_files,
    runs_folder,
    with_placeholder,
    write_files,
)
from aafit.training.precision import processor_name

# Ray reads these when it is imported: it sends no usage statistics, a task without a GPU sees none, and it gives up
# soon on an address without a cluster.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_NUM_REDIS_GET_RETRIES": "2",
}

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MACHINE_DIED = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
)
"""Errors of Ray where a task's worker or its node has died: the run resumes elsewhere."""

OWN_NODE_DIED = (exceptions.LocalRayletDiedError, OSError)
"""Errors of Ray where the raylet of this machine has died; the OSError is that of its object store."""

LOST = (
    "The Ray node of this machine has died, so no more runs can be started. Nothing is lost: restart the node "
    "(`ray start`), then the same command resumes."
)

NODES_SECONDS = 5.0
"""How often the number of nodes is read."""

REPORT_SECONDS = 300.0
"""How long a node may take to report: it may have to download the data."""

LOST_SECONDS = 60
"""How long Ray may take to notice that a node is gone."""


class RayProcess:
    """A Ray task that runs a worker process to its end.

    Args:
        submit: starts the task.
        runs: the runs folder, where the task runs on its node's own disk and yields what it writes.
    """

    def __init__(self, submit: Callable[[], Any], runs: Path | None = None) -> None:
        self.runs, self.task = runs, None
        with suppress(OSError):  # raised where the raylet of this machine has died
            self.task = submit()

    def end(self) -> End | None:
        if self.task is None:
            return End(False, LOST, lost="engine")
        while True:
            try:
                if not ray.wait([self.task], timeout=0)[0]:
                    return None
                if self.runs is None:
                    return End(*ray.get(self.task))
                files, ended = ray.get(next(self.task))
            except StopIteration:
                return End(False, "its node was lost", lost="machine")
            except (exceptions.RayError, OSError) as error:
                return end_after(error)
            write_files(self.runs, files)
            if ended is not None:
                return End(*ended)

    def stop(self, *, at_once: bool) -> None:
        if self.task is not None:
            ray.cancel(self.task, force=at_once)


class RayEngine:
    """Worker processes on the nodes of a Ray cluster.

    Args:
        address: "auto" for the cluster that this machine belongs to, or host:port.
        device: "cpu", "cuda", or "auto" for the GPUs if the cluster has some.
        jobs: processes at the same time, by default one for each core; with GPUs, the number that shares each.
        command: the command of a worker process.
        own_disks: the nodes do not share the runs folder: runs are done on their own disks, see remote.py.
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
        # The nodes get the code of process.py by value: a task that only waits does not need to import this package.
        ray.cloudpickle.register_pickle_by_value(process)
        self.jobs, self.command, self.own_disks, self.device = jobs, command, own_disks, processor_name()
        self.counted, self.count = -NODES_SECONDS, 0
        gpus = ray.cluster_resources().get("GPU", 0)
        if device == "cuda" and not gpus:
            self.close()
            raise UserError("--device cuda cannot be used here: the Ray cluster has no GPU.")
        self.on_gpu = bool(gpus) and device != "cpu"
        share = 1 / (jobs or 1) if self.on_gpu else 0
        function: Any = process.run_on_own_disk if own_disks else process.run_to_end
        self.work: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(function)
        self.report = ray.remote(num_cpus=0, max_retries=0)(process.run_short)
        self.slot = node_slot(self.on_gpu)

    @property
    def slots(self) -> int:
        """How many processes the present nodes can run; --jobs if given, so that an autoscaler sees the demand."""
        if self.jobs and not self.on_gpu:
            return self.jobs
        if time.monotonic() - self.counted >= NODES_SECONDS:
            self.counted = time.monotonic()
            kind, each = ("GPU", self.jobs or 1) if self.on_gpu else ("CPU", 1)
            self.count = sum(int(node["Resources"].get(kind, 0)) * each for node in nodes())
        return self.count

    def check(self, jobs: Sequence[Job]) -> None:
        with node_request(jobs, self.slot.device) as request:
            tasks = {}
            for node in nodes():
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = self.report.options(scheduling_strategy=there).remote(
                    COMMAND, request.model_dump_json(), self.slot.environment
                )
                tasks[task] = node
            ended = []
            for task, node in tasks.items():
                try:
                    ended.append((node["NodeManagerAddress"], ray.get(task, timeout=REPORT_SECONDS)))
                except exceptions.LocalRayletDiedError as error:
                    raise UserError(LOST) from error
                except exceptions.RayError as error:
                    # A node may die before it gets the task, or while it works on it.
                    if isinstance(error, (exceptions.TaskUnschedulableError, *MACHINE_DIED)) and is_lost(
                        node["NodeID"]
                    ):
                        continue
                    why = str(error).strip().splitlines()[0]
                    raise UserError(f"A node of the Ray cluster does not answer ({why}); see `ray status`.") from error
        for address, one in ended:
            report = check_report(address, one, request.file.parent, own_disks=self.own_disks)
            if not (report.token or ip_address(address).is_loopback):
                raise UserError(
                    f"The Ray node {address} accepts commands from everyone who can reach it: set RAY_AUTH_MODE=token "
                    "for `ray start` on each node and here, see docs/how-to/cluster.md."
                )
            self.device = report.device

    def start(self, jobs: Sequence[Job]) -> ResumedProcess:
        placed = with_placeholder(jobs) if self.own_disks else jobs
        command, log = (*self.command, *WITH_PATIENCE), str(placed[0].folder / LOG)
        arguments = command, worker_input(placed, self.slot), self.slot.environment, log
        if not self.own_disks:
            return ResumedProcess(jobs, lambda: RayProcess(lambda: self.work.remote(*arguments)))
        folders, runs = relative_folders(jobs), runs_folder(jobs)

        def submit() -> RayProcess:
            files = required_files(jobs)
            return RayProcess(lambda: self.work.remote(*arguments, folders, files), runs)

        return ResumedProcess(jobs, submit, lock=True)

    def close(self) -> None:
        ray.shutdown()


def end_after(error: exceptions.RayError | OSError) -> End:
    """Return how a task ended that raised this error."""
    if isinstance(error, exceptions.TaskCancelledError):
        return End(False, "it was stopped.")
    if isinstance(error, exceptions.RayTaskError):
        return End(False, f"it cannot be started: {error.cause}.")
    if isinstance(error, OWN_NODE_DIED):
        return End(False, LOST, lost="engine")
    if isinstance(error, MACHINE_DIED):
        return End(False, type(error).__name__, lost="machine")
    raise error


def check_address(address: str) -> None:
    """Fail soon for an address that nothing listens on, where Ray would retry for minutes.

    Raises:
        OSError, ValueError: nothing listens, or the address is not host:port.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def is_lost(node: str) -> bool:
    """Return whether a node that takes no task is gone; Ray lists it for some more seconds."""
    until = time.monotonic() + LOST_SECONDS
    while time.monotonic() < until:
        if node not in {each["NodeID"] for each in nodes()}:
            return True
        time.sleep(0.5)
    return False


def nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
