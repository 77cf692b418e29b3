"""The measurements of each epoch: metrics.csv always, TensorBoard and Weights & Biases on request."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aafit.errors import UserError
from aafit.files import cannot_write, write_atomically
from aafit.tables import ranges

Row = Mapping[str, float | int | None]
WriteRow = Callable[[Row], None]

REQUIRED = ("epoch", "train_loss", "test_loss", "test_accuracy")


@contextmanager
def metrics_file(
    path: Path, columns: Sequence[str], measured: range = range(0), digest: str | None = None
) -> Iterator[WriteRow]:
    """Open `metrics.csv`, keep the rows of the epochs in `measured`, and yield the function that appends a row.

    Floats are written so that they are read back bit-identical; what is not finite becomes an empty cell.

    Args:
        path: the file; it is replaced atomically before the first row is appended.
        columns: names of the columns.
        measured: epochs that the saved state of a stopped run includes.
        digest: SHA-256 of the file when that state was saved, None if the state does not have it.
    """
    header = io.StringIO()
    csv.DictWriter(header, columns, lineterminator="\n").writeheader()
    write_atomically(path, _kept_lines(path, header.getvalue(), measured, digest) if measured else header.getvalue())

    def write(row: Row) -> None:
        # An empty cell means that there is no number: other programs read "nan" in different ways.
        numbers = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
        try:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(numbers)
                file.flush()
                # On the disk before this returns: no state may be saved that includes a row which is not.
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error

    yield write


def _kept_lines(path: Path, header: str, epochs: range, digest: str | None) -> str:
    """Return the header and the rows of `epochs`."""
    try:
        with path.open(newline="\n") as file:
            first, *lines = file.readlines() or [""]
        rows = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) in epochs]
        missing = sorted(set(epochs) - {int(row.partition(",")[0]) for row in rows})
        kept = "".join([first, *rows])
        if first and first != header:
            fault = "has other columns than this run"
        elif missing:
            fault = f"has no row of epoch {ranges(missing)}"
        elif len(rows) > len(epochs):
            fault = "has rows twice"
        elif digest is not None and hashlib.sha256(kept.encode()).hexdigest() != digest:
            fault = "was altered"
        else:
            return kept
    except FileNotFoundError:
        fault = "is missing"
    except (OSError, ValueError) as error:
        fault = f"is damaged ({error})"
    raise UserError(
        f"{path} {fault}, but the saved state of this run is of epoch {epochs[-1]}: a power cut can cause that, or "
        "another program. Give --fresh to set the folder aside and start this run again."
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a metrics file; a last line that was cut short is left out."""
    text = path.read_text()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a metrics file, with NaN for an empty cell; empty if the file is missing or empty."""
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    # A last line that was cut short is left out: the run writes it again.
    lines = text.split("\n")[:-1]
    if not lines:
        return {}
    try:
        header, *rows = csv.reader(lines)
    except csv.Error as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise UserError(f"{path} is damaged: its first line, the header, has no column {missing[0]!r}.")
    table = np.full((len(rows), len(header)), np.nan)
    for number, row in enumerate(rows):
        try:
            table[number] = [float(cell) if cell else np.nan for cell in row]
        except ValueError as error:
            raise UserError(f"{path} is damaged: line {number + 2} does not fit its header ({error}).") from error
    return {name: table[:, index] for index, name in enumerate(header)}


@contextmanager
def tensorboard(folder: Path, last_epoch: int | None = None) -> Iterator[WriteRow]:
    """Write scalars for `tensorboard --logdir <run folder>`; what is there beyond `last_epoch` is dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs the package tensorboard: pip install 'aafit[tensorboard]'.") from error
    purge_step = None if last_epoch is None else last_epoch + 1
    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def write(row: Row) -> None:
        for name, value in row.items():
            if value is not None and name != "epoch":
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def wandb(folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[WriteRow]:
    """Log to a Weights & Biases run; without a login or with WANDB_MODE=offline it stays in the folder."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install 'aafit[wandb]'.") from error
    # wandb reads this variable itself; passed explicitly, so that it does not stop to ask for a login.
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    # Runs in lockstep share one process, and each is a run of its own.
    run = wandb.init(project="aafit", name=name, dir=str(folder), config=dict(settings), mode=mode, reinit="create_new")
    try:
        yield lambda row: run.log(
            {key: value for key, value in row.items() if value is not None}, step=int(row["epoch"] or 0)
        )
    finally:
        run.finish()
