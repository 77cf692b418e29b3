"""What all benchmarks share: the command line, tables, functions in other processes, and measurements in turns.

`python -m benchmarks.harness` reads a function's name and arguments on standard input, calls the function, and prints
its result as JSON on the last line of the output.
"""

import json
import os
import pickle
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from aafit.errors import UserError
from aafit.experiment.devices import Slot, compilation_from_environment, usable_cores
from aafit.files import write_atomically
from aafit.training.precision import processor_name
from aafit.version import __version__

Row = Mapping[str, str | int | float | bool | None]

WIDTH_OF_A_LOG = 140
LEAST_ROUNDS = 5
WIDEST_RANGE = 0.3
"""A ratio whose rounds differ by more than this share of its median counts as not measured."""
ROOT = Path(__file__).parent.parent
RESULT = b"result: "
"""Before each value of a generator in the output of a process: other lines are its log."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the tables to this file too."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto (a GPU if there is one), cpu, cuda, cuda:1, ..."
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds CIFAR-10; without it, images of noise.",
)
rounds_option = click.option(
    "--rounds",
    default=LEAST_ROUNDS,
    show_default=True,
    type=click.IntRange(min=LEAST_ROUNDS),
    help="Turns of each candidate.",
)
markdown_option = click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file too, as the docs have them.",
)


class Command(click.Command):
    """A command that reports a `UserError` as one sentence with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with compilation_from_environment():
                return super().invoke(ctx)
        except UserError as error:
            raise click.UsageError(str(error)) from error


class Report:
    """The tables of a benchmark, printed when complete and written to files row by row."""

    def __init__(self, json_path: Path | None = None, markdown_path: Path | None = None) -> None:
        self.json_path, self.markdown_path = json_path, markdown_path
        console = Console()
        self.console = console if console.is_terminal else Console(width=max(WIDTH_OF_A_LOG, console.width))
        self.content: dict[str, Any] = {
            "command": command(sys.argv),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "finished": False,
            "tables": {},
            "notes": [],
        }

    def table(self, title: str, rows: Iterable[Row]) -> None:
        """Print rows with the same keys as a table; each row is written to the files as soon as it exists."""
        kept: list[dict[str, Any]] = []
        for row in rows:
            kept.append(dict(row))
            self.content["tables"][title] = kept
            self.write()
        table = Table(title=title, title_justify="left")
        for key, value in kept[0].items():
            table.add_column(key, justify="left" if isinstance(value, (str, bool)) else "right")
        for row in kept:
            table.add_row(*map(_text, row.values()))
        self.console.print(table)

    def note(self, sentence: str) -> None:
        """Print a sentence and add it to the notes."""
        self.content["notes"].append(sentence)
        self.write()
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def write(self) -> None:
        """Write the files. A benchmark that is stopped keeps what it has measured."""
        if self.json_path is not None:
            write_atomically(self.json_path, json.dumps(self.content, indent=1) + "\n")
        if self.markdown_path is not None:
            write_atomically(self.markdown_path, in_markdown(self.content))

    def heading(self) -> None:
        known = self.content["machine"] | self.content["versions"]
        text = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Loss(float):
    """A number shown with four decimals."""

    def __format__(self, specification: str) -> str:
        return float.__format__(self, ".4f")


@contextmanager
def report(json_path: Path | None, markdown_path: Path | None = None) -> Iterator[Report]:
    """Provide the report of a benchmark, written row by row; "finished" in the JSON says that it is complete.

    Raises:
        UserError: a file cannot be written; checked before anything is measured.
    """
    for path in (json_path, markdown_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"The folder of {path} does not exist: make it first, or choose another file.")
    out = Report(json_path, markdown_path)
    out.heading()
    yield out
    out.content["finished"] = True
    out.write()


def in_markdown(content: dict[str, Any]) -> str:
    """Return a report as Markdown: command, machine, tables and notes."""
    known = content["machine"] | content["versions"]
    machine = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    lines = [f"`{content['command']}`", "", f"{content['date'][:10]}; {machine}", ""]
    for title, rows in content["tables"].items():
        numbers = ["---" if isinstance(value, (str, bool)) else "--:" for value in rows[0].values()]
        cells = [list(rows[0]), numbers, *([_text(value) for value in row.values()] for row in rows)]
        lines += [f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join([*lines, *(f"- {note}" for note in content["notes"])]) + "\n"


def machine() -> dict[str, str | int | float | None]:
    """Describe the machine: processor, cores, GPU, and the load when the benchmark began."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    return {
        "aafit": __version__,
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "python": platform.python_version(),
    }


def command(arguments: Sequence[str]) -> str:
    """Return the command as it would be typed, without the folders of this machine."""
    script, *options = arguments
    folders = Path(__file__).parent
    found = next(folders.rglob(Path(script).name), folders / Path(script).name)
    options = [Path(part).name if Path(part).is_absolute() else part for part in options]
    return shlex.join(["./run_experiment.sh", str(Path("benchmarks") / found.relative_to(folders)), *options])


def whole_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Parse "1,2,4" as positive integers (a click callback)."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is not a list of integers above 0 such as 1,2,4.")
    return numbers


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def stopwatch(spent: list[float], device: torch.device) -> Iterator[None]:
    """Append the duration of the block in seconds."""
    synchronise(device)
    began = time.perf_counter()
    yield
    synchronise(device)
    spent.append(time.perf_counter() - began)


def _text(value: str | int | float | bool | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def call(function: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """Call "module:function" in a new process; without `environment`, torch chooses its number of threads.

    Raises:
        UserError: the function raised it.
        RuntimeError: the process failed otherwise; the message ends with its last output.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness"],
            input=pickle.dumps((function, arguments)),
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(environment),
            check=False,
        )
        errors.seek(0)
        if process.returncode:
            raise _failure(function, process.returncode, errors.read())
    return json.loads(process.stdout.splitlines()[-1])


@contextmanager
def measuring(
    function: str, environment: Mapping[str, str] | None = None, **arguments: Any
) -> Iterator[Callable[[], Any]]:
    """Start a process that calls a generator function "module:function" and keeps what it returns.

    The block gets a callable that advances the generator and returns its next value. Two programs can thus take turns
    without being started again for every turn.

    Raises:
        UserError: the function raised it.
        RuntimeError: the process failed otherwise; the message ends with its last output.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(environment),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def following() -> Any:
            try:
                stdin.write(b"next\n")
                stdin.flush()
            except BrokenPipeError:
                pass  # the reason is in what the process wrote
            for line in stdout:
                if line.startswith(RESULT):
                    return json.loads(line.removeprefix(RESULT))
            errors.seek(0)
            raise _failure(function, process.wait(), errors.read())

        try:
            stdin.write(pickle.dumps((function, arguments)))
            stdin.flush()
            yield following
        finally:
            # The process ends when its input ends, together with its data loader workers.
            with suppress(BrokenPipeError):
                stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            stdout.close()


def _environment(own: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment of a new process, in which torch chooses its number of threads unless `own` sets it."""
    inherited = {name: value for name, value in os.environ.items() if name not in THREADS}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**inherited, **(own or {}), "PYTHONPATH": path}


def _failure(function: str, status: int, errors: bytes) -> Exception:
    """Return the exception for a process that ended with this exit status."""
    text = errors.decode(errors="replace").strip()
    return UserError(text.splitlines()[-1]) if status == 2 else RuntimeError(f"{function} failed:\n{text[-2000:]}")


def side_by_side(function: str, places: Sequence[Slot], each: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Call the function for each set of arguments, each in a new process, one at a time in a slot."""
    free: SimpleQueue[Slot] = SimpleQueue()
    for place in places:
        free.put(place)

    def one(arguments: Mapping[str, Any]) -> Any:
        place = free.get()
        try:
            out = {"device": place.device, "threads": place.threads}
            return call(function, place.environment, **{**out, **arguments})
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, each))


@dataclass(frozen=True)
class Ratio:
    """The ratio of two times that were measured in turns: one value for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return median(self.rounds)

    @property
    def is_measured(self) -> bool:
        """Whether the rounds agree: their range is at most 30% of the median."""
        return max(self.rounds) - min(self.rounds) <= WIDEST_RANGE * self.median

    def cells(self, name: str) -> dict[str, str | int | float | bool | None]:
        """Two cells of a table: the median, or "not measured" where the rounds disagree, and the range."""
        return {
            name: self.median if self.is_measured else "not measured",
            f"{name}, range": f"{min(self.rounds):.3g} to {max(self.rounds):.3g}",
        }

    def against(self, target: float | None) -> dict[str, str | int | float | bool | None]:
        """Two cells of a table: the ratio to reach, and whether it was reached."""
        if target is None:
            return {"to reach": "-", "reached": "-"}
        reached = "not measured" if not self.is_measured else "yes" if self.median <= target else "no"
        return {"to reach": f"at most {target:g}", "reached": reached}


@dataclass(frozen=True)
class Turns:
    """Seconds of several candidates, measured in turns.

    Attributes:
        seconds: for each candidate a value for each round.
        other_load: cores kept busy by other processes meanwhile; None where the system does not report it.
    """

    seconds: Mapping[str, Sequence[float]]
    other_load: float | None

    def median(self, name: str) -> float:
        """The median seconds of a candidate."""
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> Ratio:
        """The seconds of one candidate divided by those of another in the same round."""
        return Ratio(tuple(one / other for one, other in zip(self.seconds[name], self.seconds[to], strict=True)))


def take_turns(candidates: Mapping[str, Callable[[], float]], rounds: int = LEAST_ROUNDS) -> Turns:
    """Measure several candidates in turns, so that what slows the machine for a while slows all of them.

    Args:
        candidates: functions that measure themselves once and return the seconds.
        rounds: how often each is measured; at least 5, for a range that means something.

    Raises:
        UserError: fewer than 5 rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise UserError(f"{rounds} rounds are too few to compare times: take at least {LEAST_ROUNDS}.")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    began, busy = time.monotonic(), _busy_seconds()
    for _ in range(rounds):
        for name, measure in candidates.items():
            seconds[name].append(measure())
    others = None if busy is None else ((_busy_seconds() or 0.0) - busy) / max(time.monotonic() - began, 1e-9)
    return Turns(seconds, None if others is None else round(max(others, 0.0), 2))


def _busy_seconds() -> float | None:
    """Return the processor seconds that other processes have used since boot; None where /proc is missing.

    This process and its descendants, which a benchmark starts, do not count.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    # Time taken by the hypervisor ("steal") counts as load of others.
    total = user + nice + system + irq + softirq + steal
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            status = path.read_text().rpartition(")")[2].split()
            # Its own time and that of its children that have ended.
            parents[int(path.parent.name)], ticks[int(path.parent.name)] = int(status[1]), sum(map(int, status[11:15]))
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return (total - sum(ticks.get(pid, 0) for pid in own)) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes, on the GPU if it used one; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        # Not getrusage: a new process inherits its parent's peak there.
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Call the function that standard input names."""
    name, arguments = pickle.load(sys.stdin.buffer)
    module, _, function = name.partition(":")
    try:
        with compilation_from_environment():
            result = getattr(import_module(module), function)(**arguments)
            if isinstance(result, Iterator):
                for _ in sys.stdin.buffer:
                    print(f"\n{RESULT.decode()}{json.dumps(next(result))}", flush=True)
                return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{json.dumps(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
