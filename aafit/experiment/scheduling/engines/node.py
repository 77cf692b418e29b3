"""What a machine of a cluster is asked before anything starts: whether it is fit for the jobs.

`python -m aafit.experiment.scheduling.engines.node` reads a `Question` as JSON on its standard input and prints a
`Node`. The code of a Ray worker or a Slurm job that runs it there is process.py.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from pydantic import BaseModel

from aafit.errors import UserError
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.devices import choose_device
from aafit.experiment.runs.job import Job
from aafit.experiment.scheduling.engines.process import PYTHON
from aafit.files import make_folder, write_atomically
from aafit.training.precision import device_name
from aafit.version import __version__

COMMAND = (PYTHON, "-m", "aafit.experiment.scheduling.engines.node")

Data = tuple[str, Path | None, int, int | None]
"""A data set as `load_dataset` takes it."""


class Question(BaseModel):
    """What to look at: a file of the runs folder and what is in it, the data, imported networks, the device."""

    file: Path
    content: str
    data: tuple[Data, ...]
    checkpoints: tuple[Path, ...]
    device: str


class Node(BaseModel):
    """What a machine says of itself.

    Attributes:
        sees_runs: it reads what was written into the runs folder, and can write there.
        data: why a data set or an imported network cannot be read there, in a sentence.
        device: what its device is called.
        token: its Ray takes commands only from who has the token.
    """

    aafit: str
    torch: str
    sees_runs: bool
    data: str
    device: str
    token: bool


def data_of(jobs: Sequence[Job]) -> tuple[Data, ...]:
    """The data that jobs need, each once."""
    needs = [(one.config.dataset, one.data_dir, one.config.holdout, one.config.train_images) for one in jobs]
    return tuple(dict.fromkeys(needs))


def here() -> tuple[str, str]:
    """The versions of aafit, with a digest of its source, and of torch; not how torch was built: "+cpu", "+cu130"."""
    package = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{__version__} (source {digest.hexdigest()[:8]})", torch.__version__.partition("+")[0]


def answer(question: Question) -> Node:
    aafit, its_torch = here()
    try:
        sees_runs = question.file.read_text() == question.content and os.access(question.file.parent, os.W_OK)
    except OSError:
        sees_runs = False
    try:
        for needs in question.data:
            load_dataset(*needs)
        for checkpoint in question.checkpoints:
            if not os.access(checkpoint, os.R_OK):
                raise UserError(f"The checkpoint {checkpoint} cannot be read.")
        device, missing = device_name(choose_device(question.device)), ""
    except UserError as error:
        device, missing = "", str(error)
    token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    return Node(aafit=aafit, torch=its_torch, sees_runs=sees_runs, data=missing, device=device, token=token)


@contextmanager
def probe(jobs: Sequence[Job], device: str) -> Iterator[Question]:
    """The question of what these jobs need; the file in the runs folder is there for as long as it is asked.

    Raises:
        UserError: the runs folder cannot be written to.
    """
    folder = make_folder(jobs[0].folder.parents[2])
    content = uuid4().hex
    checkpoints = dict.fromkeys(job.config.init_from for job in jobs if job.config.init_from is not None)
    file = folder / f".{content}.seen"
    write_atomically(file, content)
    try:
        yield Question(file=file, content=content, data=data_of(jobs), checkpoints=tuple(checkpoints), device=device)
    finally:
        file.unlink(missing_ok=True)


def accept(name: str, answered: tuple[int, str, str], runs: Path, *, own_disks: bool = False) -> Node:
    """What the machine `name` answered, if it is fit for the jobs.

    Args:
        own_disks: it need not see the runs folder.

    Raises:
        UserError: it is not; the message says why and what to do.
    """
    code, output, complaint = answered
    aafit, its_torch = here()
    last = (complaint.strip().splitlines() or [f"exit code {code}"])[-1]
    if code:
        raise UserError(f"aafit cannot be run on {name} ({last}): install aafit {aafit} and its packages there.")
    node = Node.model_validate_json(output)
    for package, theirs, ours in (("aafit", node.aafit, aafit), ("torch", node.torch, its_torch)):
        if theirs != ours:
            raise UserError(f"{name} has {package} {theirs}, this machine {ours}: install the same on both.")
    if not (node.sees_runs or own_disks):
        raise UserError(
            f"{name} cannot see or write {runs}: give a folder as --runs-dir that all machines share, or, with "
            "--engine ray, --own-disks."
        )
    if node.data:
        raise UserError(f"On {name}: {node.data}")
    return node


def main() -> int:
    print(answer(Question.model_validate_json(sys.stdin.read())).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
