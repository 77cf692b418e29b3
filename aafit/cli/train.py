"""One run by the authors' command line: `experiments/train_individual.py TYPE --net ... --acts ...`."""

import logging
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click

from aafit.cli.options import data_dir_option
from aafit.cli.standalone import Place, find_authors_checkpoint, find_run, run_alone
from aafit.errors import UserError
from aafit.runs.config import RunConfig, choices
from aafit.runs.documents import Done

log = logging.getLogger("aafit")

FAMILIES = {"base": None, "ahaf": "AHAF", "leaf": "LEAF", "fuzzy_ffn": "F-Neuron"}
TYPES = [*FAMILIES, "ahaf_shared", "leaf_shared", "fuzzy_ffn_shared"]
NETWORKS = ["LeNet-5", "KerasNet"]
DATASETS = {"F-MNIST": "Fashion-MNIST", "CIFAR-10": "CIFAR-10"}
ACTS = {
    "ReLU": ["ReLU"],
    "SiLU": ["SiLU"],
    "Tanh": ["Tanh"],
    "Sigmoid": ["Sigmoid"],
    "Random": ["Random"],
    "all": ["ReLU", "SiLU", "Tanh", "Sigmoid"],
    "all_lus": ["ReLU", "SiLU"],
    "all_bfs": ["Tanh", "Sigmoid"],
}


@click.command(short_help="One run by the authors' command line.")
@click.argument("kind", metavar="TYPE", type=click.Choice(TYPES))
@click.option("--net", type=click.Choice([*NETWORKS, "all"]), default="all", show_default=True)
@click.option("--ds", type=click.Choice([*DATASETS, "all"]), default="all", show_default=True, help="Data set.")
@click.option("--opt", type=click.Choice(["rmsprop", "adam"]), default="rmsprop", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True)
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
@click.option(
    "--act_cnn",
    type=click.Choice(["ReLU", "SiLU", "Tanh", "Sigmoid", "Random"]),
    help="The same for the CNN layers where it differs.",
)
@click.option("--start_ep", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--end_ep", type=click.IntRange(min=0), default=100, show_default=True, help="Equal to --start_ep: only evaluate."
)
@click.option("--patch_base", is_flag=True, help="Load the base network at --start_ep and replace its activations.")
@click.option("--patched", is_flag=True, help="Go on with a network whose activations were replaced.")
@click.option(
    "--patched_from_af",
    type=click.Choice(["ReLU", "SiLU", "Tanh", "Sigmoid"]),
    help="Activation of the base [default: --acts].",
)
@click.option("--tune_aaf", is_flag=True, help="Train the adaptive parameters alone.")
@click.option("--tuned", is_flag=True, help="Go on with a network whose adaptive parameters alone were trained.")
@click.option("--p24sl", is_flag=True, help="LEAF's p2 and p4 learn slowly.")
@click.option("--dspu4", is_flag=True, help="2SPU-4: first a step on the activations, then one on all else.")
@click.option("--precision", type=click.Choice(choices("precision")), default="float32", show_default=True)
@click.option("--wandb", is_flag=True, help="Write to Weights & Biases too.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard files too.")
@click.option(
    "--init-from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Base checkpoint of the authors' program for --patch_base.",
)
@data_dir_option
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=["AAFIT_RUNS", "SRGK_RUNS_PATH"],
    default=Path("runs"),
    show_default=True,
)
@click.option("--fresh", is_flag=True, help="Set an earlier result of the same run aside and start again.")
def train(
    kind: str,
    net: str,
    ds: str,
    opt: str,
    seed: int,
    bs: int,
    dev: str,
    acts: str,
    act_cnn: str | None,
    start_ep: int,
    end_ep: int,
    patch_base: bool,
    patched: bool,
    patched_from_af: str | None,
    tune_aaf: bool,
    tuned: bool,
    p24sl: bool,
    dspu4: bool,
    precision: str,
    wandb: bool,
    tensorboard: bool,
    init_from: Path | None,
    data_dir: Path | None,
    runs_dir: Path,
    fresh: bool,
) -> None:
    """Train or tune one network (or each of several), as the authors' train_individual.py does.

    Results go to RUNS_DIR/individual. TYPE with _shared has one parameter set for a layer, without it one for every
    neuron.
    """
    if end_ep < start_ep:
        raise UserError(f"--end_ep {end_ep} lies before --start_ep {start_ep}.")
    if init_from is not None and not patch_base:
        raise UserError("--init-from gives the base network whose activations are replaced: it needs --patch_base.")
    place = Place(
        runs_dir, seed, data_dir, "cpu" if dev == "cpu" else "auto", tensorboard=tensorboard, wandb=wandb, fresh=fresh
    )
    flags = {"patched": patched, "tuned": tuned, "tune": tune_aaf, "p24sl": p24sl, "dspu4": dspu4}
    nets = NETWORKS if net == "all" else [net]
    data_sets = list(DATASETS) if ds == "all" else [ds]
    for network, data_set, act in product(nets, data_sets, ACTS[acts]):
        base = patched_from_af or act
        common = {
            "network": network,
            "dataset": DATASETS[data_set],
            "optimizer": opt,
            "batch_size": bs,
            "precision": precision,
        }
        texts = _activations(kind, act, act_cnn, base)
        parent = None
        if patch_base:
            parent = _base(place, common, base, start_ep, init_from)
        elif start_ep > 0:
            parent = find_run(place, common | texts | ({"train": "activations"} if tuned else {}), start_ep, patched)
        name = [network, data_set, kind, act]
        name += [f"cnn_{act_cnn}"] * (act_cnn is not None) + [f"from_{base}"] * patch_base
        name += [*(flag for flag, given in flags.items() if given), opt, f"bs{bs}"]
        name += [precision] * (precision != "float32") + [f"{start_ep}-{end_ep}"]
        train = "none" if start_ep == end_ep else "activations" if tune_aaf else "all"
        settings = {"train": train, "start_epoch": start_ep, "epochs": end_ep - start_ep, "p24sl": p24sl}
        config = RunConfig.checked({"name": "-".join(name), **common, **texts, **settings, "dspu4": dspu4})
        folder = run_alone(place, config, parent)
        result = Done.of(folder).result
        log.info("test accuracy %.2f%%, loss %.4f: %s", 100 * (result.last_accuracy or 0), result.last_loss, folder)


def _activations(kind: str, act: str, act_cnn: str | None, base: str) -> dict[str, str]:
    """The settings cnn, fc and sharing that a TYPE with its --acts and --act_cnn stands for."""
    family, cnn = FAMILIES[kind.removesuffix("_shared")], act_cnn or act
    if family is None:
        return {"cnn": cnn, "fc": act, "sharing": "layer"}
    sharing = "layer" if kind.endswith("_shared") else "neuron"
    if family == "F-Neuron":
        # F-Neurons are for the fully connected layers: the CNN layers keep a fixed function.
        return {"cnn": act_cnn or base, "fc": _adaptive(family, act), "sharing": sharing}
    return {"cnn": _adaptive(family, cnn), "fc": _adaptive(family, act), "sharing": sharing}


def _adaptive(family: str, act: str) -> str:
    return f"{family} random" if act == "Random" else f"{family} as {act}"


def _base(place: Place, common: dict[str, Any], act: str, epoch: int, init_from: Path | None) -> Path:
    """The folder of the base network with the function `act` everywhere, trained for `epoch` epochs.

    It is looked for among the finished runs, then among checkpoints of the authors' program, which are imported.
    """
    if init_from is None:
        try:
            wanted = {key: common[key] for key in ("network", "dataset", "optimizer")} | {"cnn": act, "fc": act}
            return find_run(place, wanted | {"init_from": None}, epoch, patched=False)
        except UserError as error:
            init_from = find_authors_checkpoint(place, common, act, epoch)
            if init_from is None:
                raise UserError(f"{error} A checkpoint of the authors' program can be named by --init-from.") from None
    log.info("base network: %s", init_from)
    settings = {"cnn": act, "fc": act, "train": "none", "start_epoch": epoch, "epochs": 0}
    name = f"{common['network']}-{common['dataset']}-base-{act}-imported-{epoch}"
    config = RunConfig.checked({"name": name, **common, **settings, "init_from": init_from.absolute()})
    return run_alone(replace(place, fresh=False), config, None)
