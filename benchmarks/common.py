"""What all benchmarks share: their command line, and the tables they print and write down."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from aafit.devices import processor_name, usable_cores
from aafit.errors import UserError
from aafit.files import write_atomically
from aafit.version import __version__

Row = Mapping[str, str | int | float | bool | None]

WIDTH_OF_A_LOG = 140

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


class Command(click.Command):
    """Ends what a user can mend in one sentence and exit code 2, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.UsageError(str(error)) from error


class Report:
    """The tables of one benchmark: printed as they are made, and kept for the file."""

    def __init__(self) -> None:
        console = Console()
        self.console = console if console.is_terminal else Console(width=max(WIDTH_OF_A_LOG, console.width))
        self.content: dict[str, Any] = {
            "command": command(sys.argv),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "tables": {},
            "notes": [],
        }

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Print rows with the same keys as a table, and keep them."""
        self.content["tables"][title] = [dict(row) for row in rows]
        table = Table(title=title, title_justify="left")
        for key, value in rows[0].items():
            table.add_column(key, justify="left" if isinstance(value, (str, bool)) else "right")
        for row in rows:
            table.add_row(*map(_text, row.values()))
        self.console.print(table)

    def say(self, sentence: str) -> None:
        """Print a sentence, and keep it."""
        self.content["notes"].append(sentence)
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def heading(self) -> None:
        known = self.content["machine"] | self.content["versions"]
        text = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def report(json_path: Path | None) -> Iterator[Report]:
    """The report of a benchmark, written to `json_path` at the end.

    Raises:
        UserError: that file cannot be written; this is found out before anything is measured.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise UserError(f"The folder of {json_path} does not exist: make it first, or choose another file.")
    opened = Report()
    opened.heading()
    yield opened
    if json_path is not None:
        write_atomically(json_path, json.dumps(opened.content, indent=1) + "\n")


def machine() -> dict[str, str | int | float | None]:
    """What the figures depend on: the processor, its cores, the GPU, and what else ran when the benchmark began."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """The versions of what computes."""
    return {
        "aafit": __version__,
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "python": platform.python_version(),
    }


def command(arguments: Sequence[str]) -> str:
    """The command that gave these figures, without the folders of the machine it ran on."""
    script, *options = (Path(part).name if Path(part).is_absolute() else part for part in arguments)
    return shlex.join(["./run_experiment.sh", f"benchmarks/{Path(script).name}", *options])


def whole_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """A click callback: "1,2,4" as whole numbers above 0."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers above 0 such as 1,2,4.")
    return numbers


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def stopwatch(spent: list[float], device: torch.device) -> Iterator[None]:
    """Append the seconds that the block takes."""
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
