"""A stopped run that is packed without its base's weights and unpacked elsewhere resumes, bit-identical."""

import shutil

import pytest
from click.testing import CliRunner
from small_runs import base_job, child_job, untimed_rows

from aafit.experiment.runs import folder as run_folder
from aafit.experiment.runs.execute import execute
from benchmarks import stopped_runs


class Stopped(BaseException):
    """Like the end of the process: nothing may catch it."""


def command(what, runs, archive):
    return CliRunner().invoke(stopped_runs.main, [what, str(archive), "--runs-dir", str(runs), "--suite", "tiny"])


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A finished base, a run that was stopped after its first epoch, and the same run without a stop."""
    base = base_job(tmp_path / "runs" / "tiny", epochs=1)
    child, full = (child_job(base, name, lr=0.05) for name in ("child", "full"))
    execute(base)
    execute(full)
    save = run_folder.save_state

    def save_and_stop(path, state):
        save(path, state)
        if state["epoch"] == child.config.start_epoch + 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_state", save_and_stop)
        with pytest.raises(Stopped):
            execute(child)
    return tmp_path / "runs", child, full


def test_it_resumes_elsewhere(stopped, tmp_path):
    runs, child, full = stopped
    archive = tmp_path / "stopped.tar.xz"
    packed = command("pack", runs, archive)
    assert packed.exit_code == 0, packed.output
    assert archive.stat().st_size < (child.folder / "state.pt").stat().st_size / 10
    before = run_folder.load_state(child.folder / "state.pt", stopped_runs.CPU)
    shutil.rmtree(child.folder)
    assert command("unpack", runs, archive).exit_code == 0
    after = run_folder.load_state(child.folder / "state.pt", stopped_runs.CPU)
    assert list(after["net"]) == list(before["net"])
    assert all((after["net"][name] == tensor).all() for name, tensor in before["net"].items())
    execute(child)
    assert untimed_rows(child.folder) == untimed_rows(full.folder)
    networks = [(job.folder / "network.safetensors").read_bytes() for job in (child, full)]
    assert networks[0] == networks[1]


def test_what_is_there_is_not_overwritten(stopped, tmp_path):
    runs, _, _ = stopped
    archive = tmp_path / "stopped.tar.xz"
    command("pack", runs, archive)
    refused = command("unpack", runs, archive)
    assert refused.exit_code == 2
    assert "is there already: move it away" in refused.output


def test_no_stopped_run_is_one_sentence(tmp_path):
    (tmp_path / "tiny").mkdir()
    refused = command("pack", tmp_path, tmp_path / "x.tar.xz")
    assert refused.exit_code == 2
    assert "has no stopped run" in refused.output
