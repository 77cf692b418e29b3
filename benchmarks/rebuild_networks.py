"""Rebuild the networks of runs that were archived without them, from the network of the base and the run's
activations.

tar xJf docs/results/full/runs.tar.xz
./run_experiment.sh benchmarks/rebuild_networks.py --suite full

Only the activations of such a run were trained, so that its base's network and its `activations.safetensors`
determine its network. A rebuilt network is kept only if it has the SHA-256 recorded in the run's `done.json`.
Optimizer states cannot be rebuilt: a missing one is removed from `done.json`, and the run cannot be trained further.
"""

from pathlib import Path

import click

from aafit.errors import UserError
from aafit.experiment.report.runs import RunRecord, SuiteRuns, read_suite
from aafit.experiment.runs.documents import ACTIVATIONS, DONE, NETWORK, OPTIMIZER, Done
from aafit.experiment.runs.folder import save_network
from aafit.experiment.runs.start import load_run
from aafit.files import sha256_of
from aafit.networks.saving import load_activations
from benchmarks.harness import Command


def rebuild(suite: SuiteRuns, run: RunRecord) -> None:
    """Rebuild the network of a finished run from that of its base.

    Raises:
        UserError: it has no base or no activations, or what comes out is not the network that the run ended with.
    """
    base, done = suite.parent(run), run.done
    assert done is not None
    if base is None:
        raise UserError(f"{run.folder} has no {NETWORK}, and no base to rebuild it from: run it again with --fresh.")
    if not (run.folder / ACTIVATIONS).exists():
        raise UserError(f"{run.folder} has no {ACTIVATIONS}, without which its network cannot be rebuilt.")
    strike_missing_optimizer(base.folder)
    net = load_activations(load_run(base.folder), run.folder / ACTIVATIONS)
    made = run.folder / f"{NETWORK}.made"
    save_network(made, net)
    if sha256_of(made) != done.sha256[NETWORK]:
        made.unlink()
        raise UserError(f"The network of {run.folder} is not its base's with other activations: run it again.")
    made.rename(run.folder / NETWORK)
    click.echo(f"{run.folder / NETWORK}: rebuilt")
    strike_missing_optimizer(run.folder)


def strike_missing_optimizer(folder: Path) -> None:
    """Remove a missing optimizer state from `done.json`."""
    done = Done.of(folder)
    if OPTIMIZER in done.sha256 and not (folder / OPTIMIZER).exists():
        there = {name: digest for name, digest in done.sha256.items() if name != OPTIMIZER}
        done.model_copy(update={"sha256": there}).write(folder)
        click.echo(f"{folder / DONE}: lists no {OPTIMIZER} any longer")


@click.command(cls=Command)
@click.option("--runs-dir", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--suite", "suite_name", default="paper", show_default=True, help="Suite whose networks are rebuilt.")
def main(runs_dir: Path, suite_name: str) -> None:
    """Rebuild the missing networks of a suite's finished runs."""
    suite = read_suite(runs_dir / suite_name)
    refused = []
    for runs in suite.by_name().values():
        for run in runs:
            if run.done is not None and NETWORK in run.done.sha256 and not (run.folder / NETWORK).exists():
                try:
                    rebuild(suite, run)
                except UserError as error:
                    refused.append(str(error))
    if refused:
        raise UserError("\n".join(refused))


if __name__ == "__main__":
    main()
