"""One run by the authors' command line: `experiments/train_individual.py TYPE --net ... --acts ...`."""

import logging
from pathlib import Path
from typing import Any

import click

from aafit.experiment.cli.authors import ACTS, DATASETS, FUNCTIONS, NETWORKS, STARTS, TYPES
from aafit.experiment.cli.flags import Flags
from aafit.experiment.cli.options import (
    Precision,
    data_dir_option,
    form_options,
    fresh_option,
    gauss_newton_options,
    runs_dir_option,
    seed_option,
    tensorboard_option,
    threads_option,
    wandb_option,
)
from aafit.experiment.cli.planned import plan
from aafit.experiment.cli.standalone import INDIVIDUAL, Place
from aafit.experiment.runs.config import METHODS
from aafit.experiment.runs.documents import Done

log = logging.getLogger("aafit")


@click.command(short_help="One run by the authors' command line.")
@click.argument("kind", metavar="TYPE", type=click.Choice(TYPES))
@click.option("--net", type=click.Choice([*NETWORKS, "all"]), default="all", show_default=True)
@click.option(
    "--ds",
    type=click.Choice([*DATASETS, "all"]),
    default="all",
    show_default=True,
    help="Data set; all: F-MNIST and CIFAR-10.",
)
@click.option("--opt", type=click.Choice(["rmsprop", "adam"]), default="rmsprop", show_default=True)
@seed_option
@click.option("--bs", type=click.IntRange(min=1), default=64, show_default=True, help="Batch size.")
@click.option(
    "--dev",
    type=click.Choice(["cpu", "gpu"]),
    default="gpu",
    show_default=True,
    help="gpu: the CPU where there is none.",
)
@click.option(
    "--acts",
    type=click.Choice(list(ACTS)),
    default="all_lus",
    show_default=True,
    help="Activation, or what an adaptive one starts as.",
)
@click.option("--act_cnn", type=click.Choice(STARTS), help="The same for the CNN layers where it differs.")
@click.option("--start_ep", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--end_ep", type=click.IntRange(min=0), default=100, show_default=True, help="Equal to --start_ep: only evaluate."
)
@click.option("--patch_base", is_flag=True, help="Load the base network at --start_ep and replace its activations.")
@click.option("--patched", is_flag=True, help="Go on with a network whose activations were replaced.")
@click.option("--patched_from_af", type=click.Choice(FUNCTIONS), help="Activation of the base [default: --acts].")
@click.option("--tune_aaf", is_flag=True, help="Train the adaptive parameters alone.")
@click.option("--tuned", is_flag=True, help="Go on with a network whose adaptive parameters alone were trained.")
@click.option("--p24sl", is_flag=True, help="LEAF's p2 and p4 learn slowly.")
@click.option("--dspu4", is_flag=True, help="2SPU-4: first a step on the activations, then one on all else.")
@click.option("--precision", type=Precision(), default="float32", show_default=True)
@wandb_option
@tensorboard_option
@click.option(
    "--init-from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint of the authors' program: of the base with --patch_base, else of the network to go on with.",
)
@click.option("--from", "from_run", metavar="SUITE/RUN", help="The finished run to go on from, or its folder.")
@click.option("--cnn", help='Activation of the CNN layers, as "LEAF as HardTanh", instead of what TYPE and --acts say.')
@click.option("--fc", help="The same of the fully connected layers.")
@form_options
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="gradient",
    show_default=True,
    help="gauss-newton: the activations are identified, an epoch is a step.",
)
@gauss_newton_options
@click.option(
    "--train",
    type=click.Choice(["all", "activations", "none"]),
    help="What trains [default: all; with --tune_aaf activations; without an epoch none].",
)
@click.option("--lr", type=float, help="Learning rate [default: 1e-3 with adam, 1e-4 with rmsprop].")
@click.option("--holdout", type=click.IntRange(min=0), default=0, help="Train images kept aside [default: 0].")
@click.option("--train-images", type=click.IntRange(min=1), help="Train on so many images only.")
@click.option("--no-augment", is_flag=True, help="Take the train images as they are.")
@click.option("--no-shuffle", is_flag=True, help="Take the train images in their order.")
@click.option("--new-optimizer", is_flag=True, help="Where a run goes on, start its optimizer afresh.")
@click.option("--folder", metavar="SUITE/RUN", help="Folder of the result [default: individual/ and all flags].")
@click.option("--stage", default="", help="The step of an experiment that it belongs to, for tables.")
@data_dir_option
@runs_dir_option
@threads_option
@fresh_option
def train(
    dev: str,
    wandb: bool,
    tensorboard: bool,
    data_dir: Path | None,
    runs_dir: Path,
    threads: int | None,
    fresh: bool,
    **flags: Any,
) -> None:
    """Train or tune one network (or each of several), as the authors' train_individual.py does.

    Results go to RUNS_DIR/individual. TYPE with _shared has one parameter set for a layer, without it one for every
    neuron. Without --patch_base a run from --start_ep on goes on with network and optimizer of the finished run that
    the other flags describe.
    """
    said = Flags(**flags)
    place = Place(
        runs_dir,
        said.seed,
        data_dir,
        "cpu" if dev == "cpu" else "auto",
        fresh,
        threads,
        tensorboard=tensorboard,
        wandb=wandb,
        suite=INDIVIDUAL if said.folder is None else said.folder.split("/")[0],
    )
    jobs = {job.folder: job for one in plan(said, place) for job in (one.imported, one.job) if job is not None}
    for job in jobs.values():
        place.check(job)
    for job in jobs.values():
        folder = place.run(job)
        result = Done.of(folder).result
        log.info("test accuracy %.2f%%, loss %.4f: %s", 100 * (result.last_accuracy or 0), result.last_loss, folder)
