"""Pack the folders of stopped runs without the weights of their base networks, and unpack them to resume elsewhere.

./run_experiment.sh benchmarks/stopped_runs.py pack --suite full docs/results/full/stopped.tar.xz
./run_experiment.sh benchmarks/stopped_runs.py unpack --suite full docs/results/full/stopped.tar.xz

The state of a run that trains activations alone holds the whole network, of which all but the activations equals the
base's. Without these tensors a state takes some kilobytes. Unpacking needs the finished folder of the base.
"""

import io
import tarfile
import tempfile
from pathlib import Path

import click
import torch

from aafit.errors import UserError
from aafit.experiment.runs.documents import DONE, NETWORK, STATE, load_json
from aafit.experiment.runs.folder import load_state, load_tensors, save_state
from aafit.files import make_folder, write_atomically
from benchmarks.harness import Command

OF_THE_BASE = "tensors of the base"
CPU = torch.device("cpu")
LEFT_OUT = ("lease", "lock")


def base_of(folder: Path) -> Path:
    """Return the folder of the base network of a run.

    Raises:
        UserError: the run has no base, or its network is missing.
    """
    parent = load_json(folder / "config.json").get("parent")
    if parent is None or not (folder / parent / NETWORK).exists():
        raise UserError(f"{folder} has no base network beside it: unpack the finished runs of the suite first.")
    base: Path = (folder / parent).resolve()
    return base


def stopped_folders(suite: Path) -> list[Path]:
    """Return the folders of the runs of a suite that have a state and are not finished.

    Raises:
        UserError: there is none.
    """
    folders = [path.parent for path in sorted(suite.glob(f"*/seed*/{STATE}")) if not (path.parent / DONE).exists()]
    if not folders:
        raise UserError(f"{suite} has no stopped run.")
    return folders


def pack(suite: Path, archive: Path) -> None:
    """Write the stopped runs of a suite into a tar.xz archive.

    Raises:
        UserError: there is no stopped run, or one without its base.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar, tempfile.TemporaryDirectory() as scratch:
        for folder in stopped_folders(suite):
            state, base = load_state(folder / STATE, CPU), load_tensors(base_of(folder) / NETWORK)
            net = state["net"]
            shared = [name for name, tensor in net.items() if name in base and torch.equal(tensor, base[name])]
            state["net"] = {name: tensor for name, tensor in net.items() if name not in shared}
            state[OF_THE_BASE] = [list(net), shared]
            small = Path(scratch) / STATE
            save_state(small, state)
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith(LEFT_OUT):
                    tar.add(small if file.name == STATE else file, f"{folder.parent.name}/{folder.name}/{file.name}")
            click.echo(f"{folder}: epoch {state['epoch']}")
    write_atomically(archive, content.getvalue())
    click.echo(f"{archive}: {len(content.getvalue()) / 1024:.0f} KiB")


def unpack(suite: Path, archive: Path) -> None:
    """Put the runs of an archive into the folder of their suite, with the weights of their bases.

    Raises:
        UserError: a run of it is there already, or its base is missing.
    """
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=make_folder(suite)) as scratch:
        tar.extractall(scratch, filter="data")
        for state_file in sorted(Path(scratch).glob(f"*/seed*/{STATE}")):
            made = state_file.parent
            target = suite / made.parent.name / made.name
            if target.exists():
                raise UserError(f"{target} is there already: move it away to take the archive's.")
            target.parent.mkdir(exist_ok=True)
            made.rename(target)
            state = load_state(target / STATE, CPU)
            names, shared = state.pop(OF_THE_BASE)
            base = load_tensors(base_of(target) / NETWORK)
            own = state["net"]
            state["net"] = type(own)((name, base[name] if name in shared else own[name]) for name in names)
            save_state(target / STATE, state)
            click.echo(f"{target}: resumes from epoch {state['epoch']}")


@click.command(cls=Command)
@click.argument("what", type=click.Choice(["pack", "unpack"]))
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--runs-dir", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--suite", default="paper", show_default=True, help="Suite of the runs.")
def main(what: str, archive: Path, runs_dir: Path, suite: str) -> None:
    """Pack the stopped runs of a suite into an archive, or unpack them."""
    (pack if what == "pack" else unpack)(runs_dir / suite, archive)


if __name__ == "__main__":
    main()
