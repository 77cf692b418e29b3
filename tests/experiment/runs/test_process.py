"""The lock of a run folder: one process at once, on whichever machine it is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aafit.errors import UserError
from aafit.experiment.runs import process as run_process
from aafit.experiment.runs.process import locked

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time, pathlib
from aafit.experiment.runs import process as run_process
run_process.UNTOUCHED_SECONDS = float(sys.argv[2])
with run_process.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that holds the folder, with a lease of a second."""
    monkeypatch.setattr(run_process, "UNTOUCHED_SECONDS", 1.0)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path), "1.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def on_another_machine(folder: Path) -> None:
    """What is in the lock names another machine, as if its holder were there."""
    file = folder / run_process.LEASE
    lines = [line for line in file.read_text().splitlines() if not line.startswith("start=")]
    text = "\n".join("host=elsewhere" if line.startswith("host=") else line for line in lines) + "\n"
    with file.open("r+") as opened:
        opened.write(text)
        opened.truncate()


def test_a_second_process_is_refused_and_told_which_one_has_it(holder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Another process is running in .*process {holder.pid} on"), locked(tmp_path):
        pass


def test_a_killed_process_has_let_go(holder, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / run_process.LEASE).exists()


def test_on_another_machine_it_counts_as_alive_while_it_touches_the_lock(holder, tmp_path: Path) -> None:
    on_another_machine(tmp_path)
    with pytest.raises(UserError, match="on elsewhere"), locked(tmp_path):
        pass


def test_on_another_machine_it_counts_as_dead_after_a_while(holder, tmp_path: Path) -> None:
    on_another_machine(tmp_path)
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_a_process_that_was_cut_off_for_too_long_ends(holder, tmp_path: Path) -> None:
    on_another_machine(tmp_path)
    holder.send_signal(signal.SIGSTOP)
    with locked(tmp_path):
        holder.send_signal(signal.SIGCONT)
        _, complaint = holder.communicate(timeout=60)
    assert holder.returncode == 1
    assert "disconnected" in complaint


def test_a_holder_that_died_before_it_gave_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_process, "UNTOUCHED_SECONDS", 0.5)
    (tmp_path / run_process.LEASE).touch()
    with locked(tmp_path):
        assert (tmp_path / run_process.LEASE).read_text()


def test_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(held, seconds: float) -> None:
        with locked(tmp_path):
            held.set()
            time.sleep(seconds)

    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(held, 0.5))
    process.start()
    held.wait()
    with locked(tmp_path, patience=60):
        assert process.exitcode == 0 or process.join() is None
