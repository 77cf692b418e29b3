"""The command `aafit study`: a network of any program, or a finished run's, from nothing to a page."""

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from torch import nn

from aafit.activations import ADAPTIVE, AdaptiveActivation, from_text
from aafit.errors import UserError, check_name, nearest
from aafit.experiment.cli.options import data_dir_option, device_option
from aafit.experiment.devices import choose_device
from aafit.experiment.runs.config import choices
from aafit.experiment.runs.start import load_for_study
from aafit.studies.figure import KINDS, write_figure
from aafit.studies.study import study as study_of


@click.command()
@click.argument("network")
@click.argument("batches", required=False)
@click.option(
    "--heldout", help="module:function of the batches to judge on [default: a run's test images, else BATCHES]."
)
@click.option(
    "--replace",
    "replaced",
    multiple=True,
    metavar="WHAT=BY",
    help='As "ReLU=LEAF", "features.*=F-Neuron" (fitted to what stood there) or "act7=F-Neuron as Tanh"; can be given '
    'again [default: "*=F-Neuron"].',
)
@click.option("--output", "outputs", help="module:function from what the network returns to the tensor that is meant.")
@click.option("--sharing", type=click.Choice(choices("sharing")), default="layer", show_default=True)
@click.option(
    "--target",
    type=click.Choice(choices("target")),
    help="[default: the labels, where there are some, else logits]",
)
@click.option(
    "--steps", type=click.IntRange(min=0), default=30, show_default=True, help="Of the identification, at most."
)
@click.option(
    "--images", type=click.IntRange(min=2), default=1024, show_default=True, help="To audit and predict from."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), default=Path("study.html"), show_default=True
)
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The forms of all layers in one figure for a paper, as .svg, .pdf or .png.",
)
@device_option
@data_dir_option
def study(
    network: str,
    batches: str | None,
    heldout: str | None,
    replaced: tuple[str, ...],
    outputs: str | None,
    sharing: Any,
    target: str | None,
    steps: int,
    images: int,
    seed: int,
    report: Path,
    figure: Path | None,
    device: str,
    data_dir: Path | None,
) -> None:
    """Study the activations of a network: what they see, what they would like to be, and what that is worth.

    NETWORK is module:function (or module:name) that gives a torch.nn.Module, and BATCHES one that gives the batches of
    (inputs, labels), a few thousand samples that it was not trained on; modules are looked for in this folder too. Or
    NETWORK is the folder of a finished run. The page goes to --report, with a folder beside it from which the same
    command goes on after a stop.
    """
    if figure is not None:
        check_name("kind of figure", figure.suffix.removeprefix("."), KINDS)
    if Path(network).is_dir():
        if batches is not None:
            raise UserError(f"{network} is a run's folder, which has its own batches: leave {batches} out.")
        net, fitted, judged = load_for_study(Path(network), data_dir, choose_device(device))
    else:
        if batches is None:
            raise UserError(
                f"{network} is no run's folder, so it needs batches: aafit study {network} module:function."
            )
        net, fitted, judged = _network(network, device), _iterable(batches), None
    if heldout is not None:
        judged = _iterable(heldout)
    found = study_of(
        net,
        fitted,
        dict(_replacement(text) for text in replaced) or None,
        heldout=judged,
        sharing=sharing,
        target=target,
        output=None if outputs is None else _function(outputs),
        steps=steps,
        samples=images,
        seed=seed,
        report=report,
        command=" ".join(["aafit", *map(_quoted, sys.argv[1:])]),
    )
    click.echo(str(found))
    click.echo(found.page)
    if figure is not None:
        click.echo(write_figure(found, figure))


def _network(text: str, device: str) -> nn.Module:
    net = _given(text)
    if not isinstance(net, nn.Module):
        raise UserError(f"{text} gives a {type(net).__name__}: it must give a torch.nn.Module.")
    return net.to(choose_device(device))


def _iterable(text: str) -> Iterable[Any]:
    batches = _given(text)
    if not isinstance(batches, Iterable):
        raise UserError(f"{text} gives a {type(batches).__name__}: it must give batches, as a list or a DataLoader.")
    return batches


def _given(text: str) -> Any:
    """What module:name is; where it is a function, what that returns."""
    value = _named(text)
    return value() if callable(value) and not isinstance(value, nn.Module) else value


def _function(text: str) -> Any:
    function = _named(text)
    if not callable(function):
        raise UserError(f"{text} is a {type(function).__name__}: it must be a function of what the network returns.")
    return function


def _named(text: str) -> Any:
    """What module:name is."""
    module_name, _, name = text.partition(":")
    if not name:
        raise UserError(f"{text} is neither a run's folder nor module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(
                f"There is no module {module_name!r} in this folder or among the installed ones."
            ) from error
        raise
    if not hasattr(module, name):
        names = [own for own in vars(module) if not own.startswith("_")]
        raise UserError(f"The module {module_name!r} has no {name!r}. {nearest(name, names)}")
    return getattr(module, name)


def _replacement(text: str) -> tuple[str, type[AdaptiveActivation] | nn.Module]:
    what, sign, by = text.rpartition("=")
    if not sign or not what:
        raise UserError(f"--replace {text!r} is not of the form WHAT=BY, as 'ReLU=LEAF' or '*=F-Neuron as Tanh'.")
    return what, ADAPTIVE[by] if by in ADAPTIVE else from_text(by)


def _quoted(word: str) -> str:
    return f"'{word}'" if any(character in word for character in " *?=") else word
