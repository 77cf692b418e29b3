"""A run that is stopped at any time resumes, and is bit-identical to one that never stopped."""

import signal
import time

import pytest
from small_runs import base_job, child_job, execute_on_few, start_process, untimed_rows

from aafit.errors import UserError
from aafit.experiment.runs import folder as run_folder
from aafit.experiment.runs.documents import load_json
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.metrics import read_rows

KINDS = {
    "base": {"cnn": "SiLU", "fc": "SiLU", "network": "KerasNet", "holdout": 100},
    "2SPU-4 by neuron": {"cnn": "LEAF as SiLU", "fc": "AHAF random", "sharing": "neuron", "dspu4": True},
    "rmsprop": {"optimizer": "rmsprop", "cnn": "LEAF as Tanh", "fc": "F-Neuron random", "p24sl": True},
}


class Stopped(BaseException):
    """Like the end of the process: nothing may catch it."""


def stop_in_epoch(monkeypatch, epoch, before_state):
    """End the run in the given epoch, just before or just after its state is saved."""
    save = run_folder.save_state

    def save_or_stop(path, state):
        if before_state and state["epoch"] == epoch:
            raise Stopped
        save(path, state)
        if state["epoch"] == epoch:
            raise Stopped

    monkeypatch.setattr(run_folder, "save_state", save_or_stop)


def assert_same_result(one, other):
    names = ["network.safetensors", "activations.safetensors"]
    assert [(one / name).exists() for name in names] == [(other / name).exists() for name in names]
    for name in names:
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert untimed_rows(one) == untimed_rows(other)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A run that never stopped."""
    job = base_job(tmp_path_factory.mktemp("whole"), epochs=3, **KINDS[request.param])
    execute_on_few(job)
    return job


@pytest.mark.parametrize("before_state", [True, False])
def test_same_bits_after_a_stop(tmp_path, monkeypatch, whole, before_state):
    broken = whole.model_copy(update={"folder": tmp_path / "base" / "seed42"})
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, before_state)
        with pytest.raises(Stopped):
            execute_on_few(broken)
    assert not (broken.folder / "done.json").exists()
    execute_on_few(broken)
    assert_same_result(whole.folder, broken.folder)
    assert not (broken.folder / "state.pt").exists()
    # The time is that of all epochs, not of those after the stop alone.
    spent = [float(row["seconds"]) for row in read_rows(broken.folder / "metrics.csv") if row["seconds"]]
    assert load_json(broken.folder / "done.json")["seconds"] == pytest.approx(sum(spent), rel=1e-3)


def test_same_bits_after_kill_and_after_the_end_of_input(tmp_path):
    """SIGKILL in the base, the end of its input in the child, and SIGTERM: each in a process of its own."""
    jobs = {}
    for name in ("whole", "broken"):
        base = base_job(tmp_path / name, epochs=12)
        jobs[name] = base, child_job(base, epochs=12)
    for job in jobs["whole"]:
        execute(job)
    stops = [lambda process: process.kill(), lambda process: process.stdin.close()]
    for job, stop, code in zip(jobs["broken"], stops, (-signal.SIGKILL, 143), strict=True):
        process = start_process(job)
        wait_for_epoch(job, 2)
        stop(process)
        assert process.wait(timeout=30) == code
        close(process)
        assert not (job.folder / "done.json").exists()
        process = start_process(job)
        wait_for_epoch(job, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, 143)
        close(process)
        execute(job)
    for whole, broken in zip(*jobs.values(), strict=True):
        assert_same_result(whole.folder, broken.folder)


def close(process):
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def wait_for_epoch(job, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (job.folder / "metrics.csv").exists() and len(untimed_rows(job.folder)) > count + 1:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} epochs within two minutes")


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:100] + b"?" + content[101:]])
def test_a_damaged_state_is_refused_by_name(tmp_path, monkeypatch, damage):
    job = base_job(tmp_path)
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1, before_state=False)
        with pytest.raises(Stopped):
            execute(job)
    state = job.folder / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(UserError, match=r"state\.pt is truncated or was altered"):
        execute(job)


def test_rows_that_a_power_cut_took_are_missed(tmp_path, monkeypatch):
    """The file is cut between two epochs, and the state knows of the later one."""
    job = base_job(tmp_path, epochs=3)
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, before_state=False)
        with pytest.raises(Stopped):
            execute(job)
    metrics = job.folder / "metrics.csv"
    whole = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(whole[:-1]))
    with pytest.raises(UserError, match=r"metrics\.csv has no row of epoch 2, but the saved state .* is of epoch 2"):
        execute(job)
    metrics.write_text("".join(whole))
    execute(job)
    assert [row[0] for row in untimed_rows(job.folder)] == ["epoch", "0", "1", "2", "3"]


def test_a_row_that_was_changed_while_the_run_was_stopped_is_noticed(tmp_path, monkeypatch):
    job = base_job(tmp_path, epochs=3)
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, before_state=False)
        with pytest.raises(Stopped):
            execute(job)
    metrics = job.folder / "metrics.csv"
    header, *rows = (line.split(",") for line in metrics.read_text().splitlines())
    rows[1][header.index("test_accuracy")] = "0.99"
    metrics.write_text("\n".join(map(",".join, [header, *rows])) + "\n")
    with pytest.raises(UserError, match=r"metrics\.csv was altered, but the saved state of this run is of epoch 2"):
        execute(job)
    assert not (job.folder / "done.json").exists()
