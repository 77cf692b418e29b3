"""Slots: how many processes go side by side, and on which device each."""

import pytest
import torch

from aafit.errors import UserError
from aafit.experiment.devices import slots, usable_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine with so many GPUs, and what CUDA_VISIBLE_DEVICES says there."""
    count, visible = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize("machine", [(0, None)], indirect=True)
@pytest.mark.usefixtures("machine")
def test_cpu() -> None:
    for place in slots("auto"):
        assert (place.device, place.threads, place.environment["OMP_NUM_THREADS"]) == ("cpu", 1, "1")
    assert len(slots("auto")) == len(slots("cpu")) == usable_cores()
    assert len(slots("cpu", 5)) == 5


@pytest.mark.parametrize(
    ("machine", "device", "jobs", "expected"),
    [
        ((2, None), "auto", None, ["0", "1"]),
        ((2, None), "cuda", 2, ["0", "1", "0", "1"]),
        ((2, None), "cuda:1", 2, ["1", "1"]),
        ((2, "5,7"), "auto", None, ["5", "7"]),
        ((2, "5,7"), "cuda:1", None, ["7"]),
        ((1, "MIG-1234"), "cuda", None, ["MIG-1234"]),
    ],
    indirect=["machine"],
)
@pytest.mark.usefixtures("machine")
def test_gpus(device: str, jobs: int | None, expected: list[str]) -> None:
    places = slots(device, jobs)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places] == expected
    assert {place.device for place in places} == {"cuda"}


@pytest.mark.parametrize("machine", [(2, None)], indirect=True)
@pytest.mark.usefixtures("machine")
def test_cpu_where_there_are_gpus() -> None:
    assert {place.device for place in slots("cpu", 3)} == {"cpu"}


@pytest.mark.parametrize(
    ("machine", "device", "said"),
    [
        ((0, None), "cuda", "no CUDA device"),
        ((2, None), "cuda:2", "cuda:0, cuda:1"),
        ((2, None), "cuda:x", "cuda:0, cuda:1"),
        ((0, None), "gpu", "valid: auto, cpu"),
    ],
    indirect=["machine"],
)
@pytest.mark.usefixtures("machine")
def test_no_such_device(device: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        slots(device)


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_jobs(jobs: int) -> None:
    with pytest.raises(UserError, match="number of --jobs must be an integer of at least 1; got"):
        slots("cpu", jobs)
