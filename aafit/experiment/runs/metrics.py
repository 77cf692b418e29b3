"""What is measured each epoch: always a CSV file, on request TensorBoard or Weights & Biases too."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aafit.errors import UserError
from aafit.files import cannot_write, write_atomically
from aafit.tables import ranges

Row = Mapping[str, float | int | None]


class Logger(Protocol):
    """One more place for the numbers of an epoch."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """`metrics.csv`: a row an epoch, appended; floats are written so that reading them gives the same bits."""

    def __init__(self, path: Path, columns: Sequence[str], measured: range = range(0)) -> None:
        """Open the file, keeping the rows of the epochs in `measured`: those that the run's state was saved after.

        Raises:
            UserError: a row of these is missing or damaged, as after a power cut, or the file cannot be written.
        """
        self.path, self.columns = path, list(columns)
        kept = _rows_of(path, measured) if measured else []
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(path, buffer.getvalue())

    def write(self, row: Row) -> None:
        """Append a row that is on the disk when this returns, so that no state is saved before the rows it knows of."""
        # An empty cell says that there is no number: other programs read "nan" as they like.
        numbers = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(numbers)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        pass


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics file; a last line that a stop cut short is left out."""
    text = path.read_text()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a metrics file, NaN where a cell is empty; none where there is no file or nothing in it yet.

    Raises:
        UserError: the file is damaged.
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    # A last line that a stop cut short is left out: the run writes it again.
    lines = text.split("\n")[:-1]
    if not lines:
        return {}
    header, *rows = csv.reader(lines)
    missing = [name for name in ("epoch", "train_loss", "test_loss", "test_accuracy") if name not in header]
    if missing:
        raise UserError(f"{path} is damaged: its first line has no column {missing[0]!r}.")
    table = np.full((len(rows), len(header)), np.nan)
    for number, row in enumerate(rows):
        try:
            table[number] = [float(cell) if cell else np.nan for cell in row]
        except ValueError as error:
            raise UserError(f"{path} is damaged: line {number + 2} does not fit its first line ({error}).") from error
    return {name: table[:, index] for index, name in enumerate(header)}


def _rows_of(path: Path, epochs: range) -> list[dict[str, str]]:
    """The rows of these epochs, one each."""
    try:
        rows = [row for row in read_rows(path) if int(row["epoch"]) in epochs]
        missing = sorted(set(epochs) - {int(row["epoch"]) for row in rows})
        what = (
            f"has no row of epoch {ranges(missing)}" if missing else "has rows twice" if len(rows) > len(epochs) else ""
        )
    except FileNotFoundError:
        what = "is not there"
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        what = f"is damaged ({error})"
    if what:
        raise UserError(
            f"{path} {what}, but the saved state of this run is of epoch {epochs[-1]}: a power cut can leave that, or "
            "another program. Give --fresh to set the folder aside and start this run again."
        )
    return rows


class TensorBoardLogger:
    """Scalars for `tensorboard --logdir <run folder>`; needs the extra `aafit[tensorboard]`."""

    def __init__(self, folder: Path, last_epoch: int | None = None) -> None:
        """Open the files of a run, dropping what they have beyond `last_epoch`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs the package tensorboard: pip install 'aafit[tensorboard]'.") from error
        self.writer: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if last_epoch is None else last_epoch + 1
        )

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if value is not None and name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """A Weights & Biases run; without a login or with WANDB_MODE=offline it stays in the folder for `wandb sync`."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb needs the package wandb: pip install 'aafit[wandb]'.") from error
        # What wandb itself would obey; given, so that without a login it does not stop to ask for one.
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        # Runs in lockstep are in one process: each is to be a run of its own.
        self.run = wandb.init(
            project="aafit", name=name, dir=str(folder), config=dict(settings), mode=mode, reinit="create_new"
        )

    def write(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if value is not None}, step=int(row["epoch"] or 0))

    def close(self) -> None:
        self.run.finish()
