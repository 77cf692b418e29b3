"""The storm, small: it finds what it is there to find, and the program stands it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest
from small_runs import write_config

from aafit.experiment.runs.documents import Done, Result
from aafit.experiment.runs.job import jobs_of
from benchmarks import storm, witness
from benchmarks.witness import Schedule

ROOT = Path(__file__).parents[2]

TINY = """
name = "tiny"
[defaults]
network = "LeNet-5"
dataset = "MNIST-5k"
train_images = 64
[[runs]]
name = "base"
epochs = 2
[[runs]]
name = "child"
parent = "base"
fc = "LEAF as Tanh"
train = "activations"
epochs = 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.mark.skipif(not shutil.which("unshare") or not shutil.which("cc"), reason="no unshare, or no C compiler")
def test_kills_a_clock_that_jumps_and_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    options = ["--suite", str(tiny), "--part", "clock", "--part", "disk", "--kills", "2", "--every", "2", "--jobs", "1"]
    command = [sys.executable, str(ROOT / "benchmarks/storm.py"), *options, "--json", str(tmp_path / "result.json")]
    # The compiler takes seconds in each process.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AAFIT_COMPILE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "No disk can be mounted here" in done.stderr:
        pytest.skip("no disk can be mounted here")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    (disturbed,), (full,) = result["tables"].values()
    assert disturbed["kills"] == 2
    assert full["tracebacks"] == 0
    assert any("No space left on device. Free some space" in sentence for sentence in result["notes"])
    assert sum("the same bits as undisturbed; no run was in two" in sentence for sentence in result["notes"]) >= 2


def finished(schedule: Schedule) -> None:
    """Finished runs without training."""
    for job in jobs_of(schedule.chosen(), schedule.runs_dir).values():
        job.folder.mkdir(parents=True)
        write_config(job.folder, job.config, job.settings_hash)
        (job.folder / "metrics.csv").write_text("epoch,test_loss,seconds\n0,1.0,\n1,0.5,3.2\n")
        (job.folder / "network.safetensors").write_bytes(b"weights")
        result = Result(tuned_parameters=1, epochs=1)
        digests = {"network.safetensors": sha256(b"weights").hexdigest()}
        Done(hash=job.settings_hash, sha256=digests, finished="", seconds=1.0, result=result).write(job.folder)


def change(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    done = Done.of(folder)
    if name in done.sha256:
        done.model_copy(update={"sha256": {name: sha256(content.encode()).hexdigest()}}).write(folder)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("metrics.csv", "epoch,test_loss,seconds\n0,1.0,\n1,0.5,99\n", []),
        ("metrics.csv", "epoch,test_loss,seconds\n0,1.0,\n1,0.6,3.2\n", ["child (seed 42): metrics.csv"]),
        ("metrics.csv", "epoch,test_loss,seconds\n0,1.0,\n", ["child (seed 42): metrics.csv"]),
        ("metrics.csv", "epoch,test_loss,seconds\n0,1.0,\n1,0.5,1\n1,0.5,1\n", ["child (seed 42): metrics.csv"]),
        ("network.safetensors", "weightt", ["child (seed 42): network.safetensors"]),
    ],
)
def test_what_differs_is_found(name: str, content: str, found: list[str], tiny: Path, tmp_path: Path) -> None:
    first, other = (
        Schedule(suite=str(tiny), seeds=None, epochs_scale=None, engine="local", runs_dir=tmp_path / folder)
        for folder in ("first", "other")
    )
    finished(first)
    finished(other)
    change(first.runs_dir / "tiny/child/seed42", name, content)
    assert storm.differences(first, other.runs_dir) == found


def test_a_run_that_is_missing_is_found(tiny: Path, tmp_path: Path) -> None:
    schedule = Schedule(suite=str(tiny), seeds=None, epochs_scale=None, engine="local", runs_dir=tmp_path / "runs")
    finished(schedule)
    shutil.copytree(schedule.runs_dir, tmp_path / "other")
    (schedule.runs_dir / "tiny/base/seed42/done.json").unlink()
    (difference,) = storm.differences(schedule, tmp_path / "other")
    assert difference.startswith("base (seed 42): The run in")


def test_two_processes_in_one_folder_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(witness.FOLDER, str(tmp_path))
    monkeypatch.setattr(witness, "locked", lambda folder, patience: nullcontext())
    run = tmp_path / "run"
    with witness.witnessed(run):
        assert not (tmp_path / witness.TWICE).exists()
        with witness.witnessed(tmp_path / "another"):
            assert not (tmp_path / witness.TWICE).exists()
        with witness.witnessed(run):
            assert (tmp_path / witness.TWICE).read_text() == f"{run}\n"
