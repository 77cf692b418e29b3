"""Check whether a machine of a cluster can run the jobs, before anything starts.

`python -m aafit.experiment.scheduling.engines.node` reads a `NodeRequest` as JSON from standard input and prints a
`NodeReport`; `run_short` of process.py is the code that starts it there.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from pydantic import BaseModel, ValidationError

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
"""The arguments of `load_dataset`."""


class NodeRequest(BaseModel):
    """The request to check a machine: a file of the runs folder and its content, data, checkpoints and device."""

    file: Path
    content: str
    data: tuple[Data, ...]
    checkpoints: tuple[Path, ...]
    device: str


class NodeReport(BaseModel):
    """The report of a machine.

    Attributes:
        aafit, torch: versions, see `versions`.
        sees_runs: whether it can read what was written into the runs folder, and write there.
        missing: why a data set, a checkpoint or the device cannot be used there, as a sentence; empty if all can.
        device: name of its device.
        token: whether its Ray accepts commands only with the token.
    """

    aafit: str
    torch: str
    sees_runs: bool
    missing: str
    device: str
    token: bool


def required_data(jobs: Sequence[Job]) -> tuple[Data, ...]:
    """Return the data sets of the jobs, each once."""
    needs = [(one.config.dataset, one.data_dir, one.config.holdout, one.config.train_images) for one in jobs]
    return tuple(dict.fromkeys(needs))


def versions() -> tuple[str, str]:
    """Return the version of aafit, with a digest of its source, and that of torch without its build ("+cu130")."""
    package = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{__version__} (source {digest.hexdigest()[:8]})", torch.__version__.partition("+")[0]


def inspect_node(request: NodeRequest) -> NodeReport:
    """Check this machine."""
    aafit_version, torch_version = versions()
    try:
        sees_runs = request.file.read_text() == request.content and os.access(request.file.parent, os.W_OK)
    except OSError:
        sees_runs = False
    device = missing = ""
    try:
        for arguments in request.data:
            load_dataset(*arguments)
        for checkpoint in request.checkpoints:
            if not os.access(checkpoint, os.R_OK):
                raise UserError(f"The checkpoint {checkpoint} cannot be read.")
        device = device_name(choose_device(request.device))
    except UserError as error:
        missing = str(error)
    return NodeReport(
        aafit=aafit_version,
        torch=torch_version,
        sees_runs=sees_runs,
        missing=missing,
        device=device,
        token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
    )


@contextmanager
def node_request(jobs: Sequence[Job], device: str) -> Iterator[NodeRequest]:
    """Yield the request for these jobs; its file is in the runs folder until the context ends."""
    folder = make_folder(jobs[0].folder.parents[2])
    content = uuid4().hex
    checkpoints = dict.fromkeys(job.config.init_from for job in jobs if job.config.init_from is not None)
    file = folder / f".{content}.seen"
    write_atomically(file, content)
    try:
        yield NodeRequest(
            file=file, content=content, data=required_data(jobs), checkpoints=tuple(checkpoints), device=device
        )
    finally:
        file.unlink(missing_ok=True)


def check_report(name: str, ended: tuple[int, str, str], runs: Path, *, own_disks: bool = False) -> NodeReport:
    """Return the report of the machine `name` if it can run the jobs.

    Args:
        ended: exit code, output and standard error of the command.
        own_disks: the machine does not have to see the runs folder.
    """
    code, output, stderr = ended
    aafit_version, torch_version = versions()
    try:
        report = NodeReport.model_validate_json(output)
    except ValidationError:
        last = (stderr.strip().splitlines() or [f"exit code {code}"])[-1]
        raise UserError(
            f"aafit cannot be run on {name} ({last}): install aafit {aafit_version} and its dependencies there."
        ) from None
    for package, there, here in (("aafit", report.aafit, aafit_version), ("torch", report.torch, torch_version)):
        if there != here:
            raise UserError(f"{name} has {package} {there}, this machine {here}: install the same version on both.")
    if not (report.sees_runs or own_disks):
        raise UserError(
            f"{name} cannot read or write {runs}: give a folder that all machines share as --runs-dir, or, with "
            "--engine ray, --own-disks."
        )
    if report.missing:
        raise UserError(f"On {name}: {report.missing}")
    return report


if __name__ == "__main__":
    print(inspect_node(NodeRequest.model_validate_json(sys.stdin.read())).model_dump_json())
