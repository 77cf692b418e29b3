"""The machine of the schedule loses its own Ray node: Ray then takes no task at all, and the runs are not to blame."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_suite import SUITE, Fake, statuses
from rich.console import Console

import aafit.experiment.scheduling.schedule
from aafit.errors import UserError
from aafit.experiment.runs.job import jobs_of

pytest.importorskip("ray")
from aafit.experiment.scheduling.engines import ray as engines_ray

ERRORS = engines_ray.exceptions


class Task:
    """What Ray hands out for a task, which is its own next result."""

    def __next__(self) -> "Task":
        return self


class DyingRay:
    """Ray as the engine speaks to it: the first task runs elsewhere, then the node of this machine is gone."""

    cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.tasks: list[Task] = []
        self.cancelled: list[Task] = []
        self.asked = 0

    def init(self, **_: object) -> None: ...

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "1", "NodeManagerAddress": "127.0.0.1", "Resources": {"CPU": 2.0}}]

    def remote(self, **_: object) -> Any:
        task = SimpleNamespace(remote=self.submit)
        task.options = lambda **_: task
        return lambda function: task

    def submit(self, *_: object) -> Task:
        self.asked += 1
        if self.refuses and self.tasks:
            raise OSError("Broken pipe")
        self.tasks.append(Task())
        return self.tasks[-1]

    def wait(self, tasks: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        running = [task for task in tasks if task is self.tasks[0] and task not in self.cancelled]
        return [task for task in tasks if task not in running], running

    def get(self, task: Task, timeout: float = 0.0) -> None:
        raise ERRORS.TaskCancelledError() if task in self.cancelled else ERRORS.LocalRayletDiedError()

    def cancel(self, task: Task, force: bool) -> None:
        self.cancelled.append(task)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(aafit.experiment.scheduling.schedule, "POLL_SECONDS", 0.01)
    return Fake(tmp_path)


@pytest.mark.parametrize("own_disks", [False, True])
def test_the_suite_ends_in_a_sentence_and_no_run_has_failed(
    own_disks: bool, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = DyingRay(refuses=own_disks)
    monkeypatch.setattr(engines_ray, "ray", ray)
    engine = engines_ray.RayEngine("auto", "cpu", own_disks=own_disks)
    engine.check = lambda jobs: None
    summary = fake(engine=engine)
    assert statuses(summary) == dict.fromkeys(["base", "other", "child", "grandchild", "long"], "stopped")
    assert ray.asked == 2, "nothing is tried again that cannot be done"
    assert ray.cancelled[:1] == ray.tasks[:1], "the task that still runs elsewhere is stopped"
    assert summary.stopped
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(summary)
    last = console.export_text().splitlines()[-1]
    assert last == engines_ray.LOST
    assert last.startswith("The Ray node of this machine has died, so no more runs can be started. Nothing is lost")


def test_it_is_said_before_anything_starts(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = DyingRay(refuses=False)
    ray.tasks.append(Task())
    monkeypatch.setattr(engines_ray, "ray", ray)
    monkeypatch.setattr(engines_ray, "NodeAffinitySchedulingStrategy", lambda *_, **__: None)
    jobs = list(jobs_of(SUITE, fake.runs).values())
    with pytest.raises(UserError, match="The Ray node of this machine has died"):
        engines_ray.RayEngine("auto", "cpu").check(jobs)
