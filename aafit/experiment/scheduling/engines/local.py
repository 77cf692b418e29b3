"""The engine of this machine: a process for each core, or for each GPU."""

from collections.abc import Sequence

from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.devices import Slot, choose_device, slots
from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.engine import WORKER, End, as_told
from aafit.experiment.scheduling.engines.node import data_of
from aafit.experiment.scheduling.engines.process import WorkerProcess
from aafit.training.precision import device_name


class LocalProcess(WorkerProcess):
    """A process in one of the places of this machine, which it gives back when it has ended."""

    def __init__(self, jobs: Sequence[Job], place: Slot, free: list[Slot], command: Sequence[str]) -> None:
        told = as_told(jobs, place.device, place.threads)
        super().__init__(command, told, place.environment, str(jobs[0].folder / LOG))
        self.place, self.free, self.ended = place, free, False

    def end(self) -> End | None:
        code = self.code()
        if code is None:
            return None
        if not self.ended:
            self.ended = True
            self.free.append(self.place)
        return End(code == 0, self.why(code))


class LocalEngine:
    """Worker processes on this machine.

    Args:
        device, jobs: as in `aafit.experiment.scheduling.options.RunOptions`.
        command: what does the jobs.

    Raises:
        UserError: the device is not here.
    """

    def __init__(self, device: str = "auto", jobs: int | None = None, command: Sequence[str] = WORKER) -> None:
        self.free = slots(device, jobs)
        self.slots, self.command = len(self.free), command
        self.device = device_name(choose_device(self.free[0].device))

    def check(self, jobs: Sequence[Job]) -> None:
        for needs in data_of(jobs):
            load_dataset(*needs)

    def start(self, jobs: Sequence[Job]) -> LocalProcess:
        place = self.free.pop(0)
        try:
            return LocalProcess(jobs, place, self.free, self.command)
        except OSError:
            self.free.append(place)
            raise

    def close(self) -> None:
        pass
