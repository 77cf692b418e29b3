"""A worker process, on the machine that it runs on.

An engine sends the code of this file to its nodes by value, so it imports nothing of the package: that would take
seconds and hundreds of megabytes in a process that only waits.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

PYTHON = "{python}"
"""In a command: the interpreter of the machine that runs it."""

PACKAGE_ROOT = str(Path(__file__).parents[4])

GRACE_SECONDS = 15.0
"""How long a terminated process may take to end before it is killed."""

POLL_SECONDS = 0.1

RUNS_DIR = "{runs}"
"""In a worker's input: the temporary folder that is the runs folder on a machine that does not share it."""

SYNC_SECONDS = 10.0
"""Time between two copies of the files of that folder to the schedule's machine."""

Files = dict[str, bytes]
"""Contents of files by their paths relative to the runs folder."""


class WorkerProcess:
    """A command that reads a line from standard input.

    Standard input stays open: the system closes it when this process dies, and the worker then ends too.

    Args:
        log: the file that the output is appended to.
    """

    def __init__(self, command: Sequence[str], line: str, environment: Mapping[str, str], log: str) -> None:
        self.log = log
        with open(log, "ab") as file:
            self.log_start = file.tell()
            self.popen = subprocess.Popen(
                on_this_machine(command),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=worker_environment(environment),
                start_new_session=True,  # Ctrl-C in the terminal must reach the schedule alone, which stops its workers
            )
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(line.encode())
            self.popen.stdin.flush()

    def exit_code(self) -> int | None:
        """Return the exit code, -n for a process that was ended by signal n, None while it runs; release its input."""
        code = self.popen.poll()
        if code is not None and self.popen.stdin is not None:
            with suppress(BrokenPipeError):
                self.popen.stdin.close()
        return code

    def stop(self, *, at_once: bool) -> None:
        """Terminate the process: `at_once` with SIGKILL, otherwise with SIGTERM."""
        if at_once:
            self.popen.kill()
        else:
            self.popen.terminate()

    def why(self, code: int) -> str:
        """Return why a process with this exit code failed: the last line that it wrote, or how it ended."""
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


def run_to_end(command: Sequence[str], line: str, environment: Mapping[str, str], log: str) -> tuple[bool, str]:
    """Run a worker process to its end; it ends with the caller.

    Returns:
        Whether it succeeded, and why not.
    """
    process = WorkerProcess(command, line, environment, log)
    try:
        while (code := process.exit_code()) is None:
            time.sleep(POLL_SECONDS)
        return code == 0, process.why(code)
    finally:
        _end(process)


def run_on_own_disk(
    command: Sequence[str], line: str, environment: Mapping[str, str], log: str, folders: Sequence[str], files: Files
) -> Iterator[tuple[Files, tuple[bool, str] | None]]:
    """Run a worker process in a temporary runs folder that holds `files` and nothing else.

    Args:
        folders: the folders of its runs, relative to the runs folder.

    Yields:
        The changed files of these folders, every few seconds; the last time with whether it succeeded, and why not.
    """
    with TemporaryDirectory(prefix="aafit-") as runs:
        for folder in folders:
            Path(runs, folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            Path(runs, name).parent.mkdir(parents=True, exist_ok=True)
            Path(runs, name).write_bytes(content)
        seen: dict[str, tuple[int, int]] = {}
        changed_files(runs, folders, seen)
        process = WorkerProcess(command, line.replace(RUNS_DIR, runs), environment, log.replace(RUNS_DIR, runs))
        try:
            due = time.monotonic() + SYNC_SECONDS
            while (code := process.exit_code()) is None:
                time.sleep(POLL_SECONDS)
                if time.monotonic() >= due:
                    yield changed_files(runs, folders, seen), None
                    due = time.monotonic() + SYNC_SECONDS
            last = changed_files(runs, folders, seen), (code == 0, process.why(code))
        finally:
            _end(process)
    # Only after the folder is removed: a caller that knows of the end may end this process, and the folder would stay.
    yield last


def changed_files(runs: str, folders: Sequence[str], seen: dict[str, tuple[int, int]]) -> Files:
    """Return the files of these folders that changed since they were `seen`, except leases and partial files.

    A state is read before the metrics that were written before it, so that those hold no less than it counts on.
    """
    changed = {}
    for folder in folders:
        paths = [path for path in Path(runs, folder).rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: (path.suffix != ".pt", path.name)):
            name = path.relative_to(runs).as_posix()
            with suppress(FileNotFoundError):
                now = path.stat().st_mtime_ns, path.stat().st_size
                if not path.name.startswith((".", "lease")) and seen.get(name) != now:
                    changed[name], seen[name] = path.read_bytes(), now
    return changed


def _end(process: WorkerProcess) -> None:
    if process.exit_code() is None:
        process.stop(at_once=False)
        try:
            process.popen.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.stop(at_once=True)
            process.popen.wait()
        process.exit_code()


def run_short(command: Sequence[str], text: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a short command with `text` as its input.

    Returns:
        Its exit code, its output, and what it wrote to standard error.
    """
    environment = worker_environment(environment)
    done = subprocess.run(on_this_machine(command), input=text, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def on_this_machine(command: Sequence[str]) -> list[str]:
    return [sys.executable if part == PYTHON else part for part in command]


def worker_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: it finds this package, and CUDA is deterministic."""
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, **more}
    # The safe path keeps files in a Ray worker's current folder from shadowing packages.
    return environment | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
