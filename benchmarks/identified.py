"""What the benchmarks of identification share: the images in their two parts, the start, and tables for the docs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.data.batches import evaluation_batches
from aafit.data.datasets import Dataset, Split, load_dataset
from aafit.errors import UserError
from aafit.files import write_atomically
from aafit.runs.checkpoint import check_finished, load_json
from aafit.runs.config import RunConfig
from aafit.runs.job import Job
from aafit.runs.start import Start, starting_network
from aafit.training.evaluate import Evaluation, evaluate
from aafit.training.precision import data_type
from benchmarks.common import Report, _text, report

HELD_OUT = 0.2  # the share that `aafit.identify` holds out, unless told otherwise

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds the images [default: where `aafit run` looks for them].",
)
base_option = click.option(
    "--base",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Run folder of the base network, <suite>/<run>/seed<k>.",
)
images_option = click.option(
    "--images", type=click.IntRange(min=10), help="So many of the held-out images only [default: all]."
)
markdown_option = click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file too, as the docs have them.",
)


class Loss(float):
    """A number that tables show with four decimals."""

    def __format__(self, specification: str) -> str:
        return float.__format__(self, ".4f")


@contextmanager
def documented(json_path: Path | None, markdown_path: Path | None) -> Iterator[Report]:
    """`report`, also written as Markdown.

    Raises:
        UserError: a file cannot be written; this is found out before anything is measured.
    """
    if markdown_path is not None and not markdown_path.absolute().parent.is_dir():
        raise UserError(f"The folder of {markdown_path} does not exist: make it first, or choose another file.")
    with report(json_path) as told:
        yield told
    if markdown_path is not None:
        write_atomically(markdown_path, in_markdown(told.content))


def in_markdown(content: dict[str, Any]) -> str:
    """The command, the machine, the tables and the sentences of a report."""
    known = content["machine"] | content["versions"]
    machine = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    lines = [f"`{content['command']}`", "", f"{content['date'][:10]}; {machine}", ""]
    for title, rows in content["tables"].items():
        numbers = ["---" if isinstance(value, (str, bool)) else "--:" for value in rows[0].values()]
        cells = [list(rows[0]), numbers, *([_text(value) for value in row.values()] for row in rows)]
        lines += [f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join([*lines, *(f"- {note}" for note in content["notes"])]) + "\n"


@dataclass(frozen=True)
class Halves:
    """The held-out images of a run as an identification takes them: those that it fits, and the rest."""

    fitted: Split
    rest: Split
    precision: str

    @classmethod
    def of(cls, heldout: Split, rest: int, seed: int, precision: str) -> "Halves":
        """In the order that `aafit.identify` draws from the seed; the first `rest` images are not fitted."""
        order_N = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(seed))
        return cls(heldout.at(order_N[rest:]), heldout.at(order_N[:rest]), precision)

    def batches(self, part: Split) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(part, dtype=data_type(self.precision))

    def on_fitted(self, net: nn.Module) -> Evaluation:
        return evaluate(net, self.batches(self.fitted), self.precision)

    def on_rest(self, net: nn.Module) -> Evaluation:
        return evaluate(net, self.batches(self.rest), self.precision)


@cache
def images_of(name: str, folder: Path | None, holdout: int) -> Dataset:
    return load_dataset(name, folder, holdout)


def heldout_of(run: RunConfig, fingerprint: str, folder: Path | None) -> Split:
    """The images held out of a run's training.

    Raises:
        UserError: it held none out, or the folder has another copy of the data set.
    """
    if not run.holdout:
        raise UserError(f"The run {run.name!r} held no images out (holdout = 0), so that there are none to compare on.")
    data = images_of(run.dataset, folder, run.holdout)
    if data.fingerprint != fingerprint:
        raise UserError(f"The run {run.name!r} was done on another copy of {run.dataset}: give that as --data-dir.")
    assert data.heldout is not None
    return data.heldout


@dataclass(frozen=True)
class Setting:
    """A base network with its activations replaced, and held-out images to identify them on."""

    run: RunConfig
    seed: int
    start: Start
    heldout: Split
    halves: Halves

    @property
    def base(self) -> nn.Module:
        assert self.start.base is not None
        return self.start.base

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of the images, in the order in which a run hands them to `aafit.identify`."""
        return self.halves.batches(self.heldout)


def setting_of(
    folder: Path, cnn: str | None, fc: str | None, data_dir: Path | None, images: int | None = None
) -> Setting:
    """The base network of a run folder with other activations, from the start that a suite's run would have.

    Raises:
        UserError: the run is not finished, held no images out, or is given no adaptive activation.
    """
    check_finished(folder)
    config = load_json(folder / "config.json")
    base, seed = RunConfig.checked(config["run"], str(folder)), config["seed"]
    changes = {"cnn": cnn or base.cnn, "fc": fc or base.fc, "parent": base.name, "start_epoch": base.end_epoch}
    changes |= {"name": "replaced", "train": "activations", "method": "gauss-newton", "epochs": 30}
    run = RunConfig.checked(base.model_dump(mode="json") | changes, "The replacement")
    heldout = heldout_of(base, config["data"]["sha256"], data_dir)
    job = Job(config=run, seed=seed, folder=folder, parent=folder)
    start = starting_network(job, images_of(run.dataset, data_dir, run.holdout)).to(torch.device("cpu"), run.precision)
    if images is not None:
        heldout = heldout.at(torch.arange(min(images, len(heldout))))
    halves = Halves.of(heldout, round(HELD_OUT * len(heldout)), seed, run.precision)
    return Setting(run, seed, start, heldout, halves)
