"""A worker process on the machine that it runs on.

An engine sends the code of this file to its nodes as it is: it imports nothing of the package, which would take seconds
and hundreds of megabytes in a process that only waits.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PYTHON = "{python}"
"""In a command, the interpreter of the machine that runs it."""

HERE = str(Path(__file__).parents[3])
"""Where the package is."""

GRACE_SECONDS = 15.0
"""How long a stopped process may take to end by itself."""

POLL_SECONDS = 0.1


class WorkerProcess:
    """A command with a line on its standard input, which stays open: when this process dies, the system closes it.

    Args:
        log: what it prints is added to this file.
    """

    def __init__(self, command: Sequence[str], told: str, environment: Mapping[str, str], log: str) -> None:
        self.log = log
        with open(log, "ab") as file:
            self.log_start = file.tell()
            self.popen = subprocess.Popen(
                on_this_machine(command),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=worker_environment(environment),
                start_new_session=True,  # Ctrl-C on the terminal reaches the schedule alone, which ends its processes
            )
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(told.encode())
            self.popen.stdin.flush()

    def code(self) -> int | None:
        """Its exit code, -n where signal n ended it, None while it runs."""
        code = self.popen.poll()
        if code is not None and self.popen.stdin is not None:
            with suppress(BrokenPipeError):
                self.popen.stdin.close()
        return code

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self.popen.kill()
        else:
            self.popen.terminate()

    def why(self, code: int) -> str:
        """Why it failed: the last line it wrote, or how it ended."""
        if code < 0:
            name = signal.Signals(-code).name
            return f"it was ended by {name}{' (not enough memory?)' if name == 'SIGKILL' else ''}."
        lines: list[str] = []
        with suppress(OSError), open(self.log, "rb") as log:
            log.seek(self.log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if code:
            return lines[-1] if lines else f"it ended with exit code {code} and wrote nothing."
        return "it ended without a result."


def run_to_end(command: Sequence[str], told: str, environment: Mapping[str, str], log: str) -> tuple[bool, str]:
    """Run a worker process to its end; whether it ended well, and why not. It ends with whoever waits for it here."""
    process = WorkerProcess(command, told, environment, log)
    try:
        while (code := process.code()) is None:
            time.sleep(POLL_SECONDS)
        return code == 0, process.why(code)
    finally:
        if process.code() is None:
            process.stop(at_once=False)
            try:
                process.popen.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.stop(at_once=True)


def ask(command: Sequence[str], text: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a short command on a text: its exit code, what it answers, and what it complains of."""
    environment = worker_environment(environment)
    done = subprocess.run(on_this_machine(command), input=text, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def on_this_machine(command: Sequence[str]) -> list[str]:
    return [sys.executable if part == PYTHON else part for part in command]


def worker_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that does runs: it finds this package, and CUDA gives the same bits each time."""
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, **more}
    # Safe: what lies in the folder that a Ray worker happens to be in does not come first.
    return environment | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
