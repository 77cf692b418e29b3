"""The lock of a run folder, for one process at a time on any machine; the environment variables that processes obey."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_runs import ROOT, base_job

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.experiment.cli.options import Command
from aafit.experiment.runs import process as run_process
from aafit.experiment.runs.process import locked

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


@pytest.fixture(scope="module")
def nothing_compiled() -> None:
    """Here the compiler is what is tested."""


class CountingCompiler:
    """Has no compiled loop, and counts how often one is asked for."""

    def __init__(self) -> None:
        self.times = 0

    def run(self, *_: object) -> None:
        self.times += 1


def apply() -> None:
    LEAF.like("Tanh")(torch.zeros(1 << 15))


@pytest.mark.parametrize(("told", "times"), [({}, 1), ({"AAFIT_COMPILE": "1"}, 1), ({"AAFIT_COMPILE": "0"}, 0)])
def test_the_command_line_compiles_as_told(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], times: int) -> None:
    compiler = CountingCompiler()
    monkeypatch.setattr("aafit.activations.compiled.loop_cache", lambda device: compiler)
    monkeypatch.delenv("AAFIT_COMPILE", raising=False)
    CliRunner(env=told).invoke(Command("apply", callback=apply), [], catch_exceptions=False)
    assert compiler.times == times
    # The library itself does not look at it.
    monkeypatch.setenv("AAFIT_COMPILE", "0")
    apply()
    assert compiler.times == times + 1


WORKER = """
import sys
import torch
from aafit.activations import LEAF, compiled
from aafit.experiment.scheduling import worker

def execute(*jobs, patience):
    compiled.loop_cache = lambda device: sys.exit("asked for a compiler")
    LEAF.like("Tanh")(torch.zeros(1 << 15))

worker.execute = execute
sys.exit(worker.main())
"""


@pytest.mark.parametrize(("told", "said"), [("1", "asked for a compiler"), ("0", "")])
def test_a_worker_compiles_as_told(tmp_path: Path, told: str, said: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AAFIT_COMPILE": told}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"[{base_job(tmp_path).model_dump_json()}]\n")
        process.stdin.flush()
        assert process.stderr.read().strip() == said
