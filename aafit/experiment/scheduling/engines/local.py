"""The engine of this machine: a process for each core, or for each GPU."""

from collections.abc import Sequence

from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.devices import Slot, choose_device, slots
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.engine import WORKER, End, worker_input
from aafit.experiment.scheduling.engines.node import required_data
from aafit.experiment.scheduling.engines.process import WorkerProcess
from aafit.training.precision import device_name


class LocalProcess(WorkerProcess):
    """A process that takes one of this machine's slots and returns it to `free` when it has ended."""

    def __init__(self, jobs: Sequence[Job], slot: Slot, free: list[Slot], command: Sequence[str]) -> None:
        super().__init__(command, worker_input(jobs, slot), slot.environment, str(jobs[0].folder / LOG))
        self.slot, self.free, self.ended = slot, free, False

    def end(self) -> End | None:
        code = self.exit_code()
        if code is None:
            return None
        if not self.ended:
            self.ended = True
            self.free.append(self.slot)
        return End(code == 0, self.why(code))


class LocalEngine:
    """Worker processes on this machine.

    Args:
        device, jobs: as in `aafit.experiment.scheduling.schedule.open_engine`.
        command: the command of a worker process.
    """

    def __init__(self, device: str = "auto", jobs: int | None = None, command: Sequence[str] = WORKER) -> None:
        self.free = slots(device, jobs)
        self.slots, self.command = len(self.free), command
        self.device = device_name(choose_device(self.free[0].device))

    def check(self, jobs: Sequence[Job]) -> None:
        for arguments in required_data(jobs):
            load_dataset(*arguments)

    def start(self, jobs: Sequence[Job]) -> LocalProcess:
        slot = self.free.pop(0)
        try:
            return LocalProcess(jobs, slot, self.free, self.command)
        except OSError:
            self.free.append(slot)
            raise

    def close(self) -> None:
        pass
