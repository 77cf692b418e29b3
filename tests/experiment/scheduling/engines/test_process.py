"""A worker process on the machine that it runs on: it ends with whatever waits for it."""

import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_suite import alive

from aafit.experiment.scheduling.engines import process

POLITE = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {POLITE}"


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[process.WorkerProcess]:
    """The processes that are started; the wait for one ends by Ctrl-C as soon as it is ready."""
    started: list[process.WorkerProcess] = []
    start = process.WorkerProcess.__init__

    def noted(worker: process.WorkerProcess, *arguments: object) -> None:
        start(worker, *arguments)
        started.append(worker)

    def interrupt(seconds: float) -> None:
        time.sleep(0.01)
        if "ready" in Path(started[-1].log).read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(process.WorkerProcess, "__init__", noted)
    monkeypatch.setattr(process, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    return started


@pytest.mark.parametrize(("program", "ended_by"), [(POLITE, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
def test_a_process_is_ended_with_whoever_waits_for_it(
    program: str, ended_by: int, stopped: list[process.WorkerProcess], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        process.run_to_end([sys.executable, "-c", program], "", {}, str(tmp_path / "log.txt"))
    (worker,) = stopped
    assert worker.popen.wait(10) == -ended_by
    assert not alive(worker.popen.pid)


@pytest.mark.parametrize(("program", "ended_by"), [(POLITE, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
def test_a_process_on_its_own_disk_is_ended_and_leaves_nothing(
    program: str, ended_by: int, stopped: list[process.WorkerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    log = f"{process.RUNS_DIR}/s/run/seed1/log.txt"
    files = process.run_on_own_disk([sys.executable, "-c", program], "", {}, log, ["s/run/seed1"], {})
    with pytest.raises(KeyboardInterrupt):
        list(files)
    (worker,) = stopped
    assert worker.popen.wait(10) == -ended_by
    assert not list(tmp_path.glob("aafit-*"))
