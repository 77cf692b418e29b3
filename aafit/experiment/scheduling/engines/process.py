"""A worker process on the machine that it runs on.

An engine sends the code of this file to its nodes as it is: it imports nothing of the package, which would take seconds
and hundreds of megabytes in a process that only waits.
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
"""In a command, the interpreter of the machine that runs it."""

HERE = str(Path(__file__).parents[4])
"""Where the package is."""

GRACE_SECONDS = 15.0
"""How long a stopped process may take to end by itself."""

POLL_SECONDS = 0.1

PLACE = "{place}"
"""In what a worker is told, the folder on its machine's own disk that the runs folder is there."""

BROUGHT_SECONDS = 10.0
"""How often what a run has written on such a disk is brought back."""

Files = dict[str, bytes]
"""The content of files by their paths below the runs folder."""


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
        _end(process)


def run_on_own_disk(
    command: Sequence[str], told: str, environment: Mapping[str, str], log: str, folders: Sequence[str], files: Files
) -> Iterator[tuple[Files, tuple[bool, str] | None]]:
    """Run a worker process on this machine's own disk, where it finds `files` and nothing else.

    Args:
        folders: those of its runs, below the runs folder.

    Yields:
        What is new in these folders, every few seconds; at last with whether it ended well, and why not.
    """
    with TemporaryDirectory(prefix="aafit-") as place:
        for folder in folders:
            Path(place, folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Path(place, name).write_bytes(content)
        seen: dict[str, tuple[int, int]] = {}
        new_files(place, folders, seen)
        process = WorkerProcess(command, told.replace(PLACE, place), environment, log.replace(PLACE, place))
        try:
            due = time.monotonic() + BROUGHT_SECONDS
            while (code := process.code()) is None:
                time.sleep(POLL_SECONDS)
                if time.monotonic() >= due:
                    yield new_files(place, folders, seen), None
                    due = time.monotonic() + BROUGHT_SECONDS
            last = new_files(place, folders, seen), (code == 0, process.why(code))
        finally:
            _end(process)
    # Not before the folder is removed: whoever is told of the end may end this process, and the folder would stay.
    yield last


def new_files(place: str, folders: Sequence[str], seen: dict[str, tuple[int, int]]) -> Files:
    """The files of these folders that are not as they were `seen` before, without leases and files half written.

    What a state was saved after is read after it, so that it holds no less.
    """
    found = {}
    for folder in folders:
        paths = [
            path for path in Path(place, folder).rglob("*") if path.is_file() and not path.name.startswith("lease")
        ]
        for path in sorted(paths, key=lambda path: (path.suffix != ".pt", path.name)):
            name = path.relative_to(place).as_posix()
            with suppress(FileNotFoundError):
                now = path.stat().st_mtime_ns, path.stat().st_size
                if not path.name.startswith(".") and seen.get(name) != now:
                    found[name], seen[name] = path.read_bytes(), now
    return found


def _end(process: WorkerProcess) -> None:
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
