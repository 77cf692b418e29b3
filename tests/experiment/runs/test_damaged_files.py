"""Files that a disk or a transfer has damaged, of every kind that the program reads: refused in one sentence.

A bit is flipped, or the file cut, at a random place. All that a program wrote carries a checksum, its own or in
done.json, and is refused always, unless what it holds is the same: a time in an archive's header. A suite is written by
a person: a changed digit in it can leave a valid file with another value, so that it is refused, or read without an
error of any other kind.

A subset of the 1,000 goes each time; `DAMAGED=1000 pytest tests/experiment/runs/test_damaged_files.py` does them all.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from data_files import write_fashion
from small_runs import base_job, child_job

from aafit.errors import UserError
from aafit.experiment.authors_checkpoint import load_authors_checkpoint
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.models import build
from aafit.experiment.runs.documents import Config, StoredComparison, check_finished, load_json, save_json
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.folder import load_state, save_state
from aafit.experiment.runs.start import load_run
from aafit.experiment.runs.suite import SHIPPED, load_suite

COUNT = int(os.environ.get("DAMAGED", "100"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every kind, and the folder of a finished run with its parent's beside it."""
    folder = tmp_path_factory.mktemp("whole")
    base = base_job(folder / "runs" / "suite", epochs=1)
    execute(base)
    execute(child_job(base, epochs=1))
    shutil.copy(SHIPPED / "demo.toml", folder / "suite.toml")
    write_fashion(folder / "fashion-mnist")
    torch.manual_seed(0)
    net = build("LeNet-5", (1, 28, 28), 10)
    torch.save({"net": net.state_dict(), "opts": []}, folder / "base.bin")
    save_state(folder / "state.pt", {"net": net.state_dict(), "epoch": 1, "optimizers": []})
    shutil.copytree(folder / RUN, folder / BEGUN, ignore=shutil.ignore_patterns("done.json"))
    save_json(folder / "identification.json", {"steps": [{"number": 1, "loss": 0.1 + 0.2}], "values": {}})
    return folder


RUN = "runs/suite/child/seed42"
BEGUN = "begun"
"""The folder of a run that is not finished, so that nothing else vouches for its documents."""


def imported(folder: Path) -> str:
    """What decides how the network of the authors' checkpoint computes, as a digest."""
    tensors = load_authors_checkpoint(folder / "base.bin").state_dict()
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


CHECKED: dict[str, Callable[[Path], object]] = {
    "state.pt": lambda folder: load_state(folder / "state.pt", torch.device("cpu")),
    "fashion-mnist/train-images-idx3-ubyte.gz": lambda folder: load_dataset("Fashion-MNIST", folder).fingerprint,
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": lambda folder: load_dataset("Fashion-MNIST", folder).fingerprint,
    **{
        f"{RUN}/{name}": lambda folder: load_run(folder / RUN)
        for name in ("config.json", "metrics.csv", "compare.json", "network.safetensors", "activations.safetensors")
    },
    f"{RUN}/done.json": lambda folder: check_finished(folder / RUN),
    f"{BEGUN}/config.json": lambda folder: Config.of(folder / BEGUN),
    f"{BEGUN}/compare.json": lambda folder: StoredComparison.of(folder / BEGUN),
    "identification.json": lambda folder: load_json(folder / "identification.json"),
    "base.bin": imported,
}
UNCHECKED: dict[str, Callable[[Path], object]] = {
    "suite.toml": lambda folder: load_suite(folder / "suite.toml"),
}

SAME_IF_INTACT = {name for name in CHECKED if name.endswith((".gz", ".bin"))}


def damages(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The content with a bit flipped, or cut, in turn."""
    chance = random.Random(seed)
    for number in range(count):
        at = chance.randrange(len(content))
        if number % 2:
            yield content[:at]
        else:
            yield content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def test_the_files_are_read_as_long_as_they_are_whole(whole: Path) -> None:
    for read in (*CHECKED.values(), *UNCHECKED.values()):
        read(whole)


@pytest.mark.parametrize("name", [*CHECKED, *UNCHECKED])
def test_damaged_files(name: str, whole: Path) -> None:
    file, read = whole / name, {**CHECKED, **UNCHECKED}[name]
    content, intact, accepted = file.read_bytes(), read(whole), 0
    each = COUNT // len({**CHECKED, **UNCHECKED}) + 1
    try:
        for damaged in damages(content, each, seed=len(name)):
            file.write_bytes(damaged)
            with suppress(UserError):
                # A bit of an archive's own header, such as its time, changes nothing of what is in it.
                accepted += read(whole) != intact or name not in SAME_IF_INTACT
    finally:
        file.write_bytes(content)
    assert not accepted or name in UNCHECKED
