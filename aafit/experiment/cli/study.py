"""The command `aafit study`: the whole analysis of a network, any program's or a finished run's, on one page."""

import os
import shlex
import sys
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from torch import nn

from aafit.activations import ADAPTIVE, AdaptiveActivation, fit_from_text, from_text
from aafit.errors import UserError, check_name, nearest, needs_extra
from aafit.experiment.cli.options import SHARINGS, Command, data_dir_option, device_option
from aafit.experiment.devices import choose_device
from aafit.identification.identify import TARGETS
from aafit.plots.style import FIGURE_METADATA
from aafit.studies.families import FAMILIES
from aafit.studies.figures import write_figure
from aafit.studies.study import study as study_of


@click.command(cls=Command)
@click.argument("network")
@click.argument("batches", required=False)
@click.option(
    "--heldout", help="module:function of the held-out batches [default: a run's test images, else part of BATCHES]."
)
@click.option(
    "--replace",
    "replaced",
    multiple=True,
    metavar="WHAT=BY",
    help='As "ReLU=LEAF", "features.*=F-Neuron" (fitted to the original activation) or "act7=F-Neuron as Tanh"; may be '
    'repeated [default: "*=F-Neuron"].',
)
@click.option(
    "--heldout-share", type=float, help="Share of BATCHES to hold out without --heldout [default: 0.2 of 500 or more]."
)
@click.option("--output", "outputs", help="module:function that selects the output tensor of what the network returns.")
@click.option(
    "--families",
    multiple=True,
    metavar="NAME",
    help="Also compare families in each layer and in all: names such as LEAF, module:name of your own class, or "
    "'default'; may be repeated.",
)
@click.option("--sharing", type=click.Choice(SHARINGS), default="layer")
@click.option("--target", type=click.Choice(TARGETS), help="[default: the labels if there are some, else logits]")
@click.option("--steps", type=click.IntRange(min=0), default=30, help="Largest number of identification steps.")
@click.option(
    "--samples", type=click.IntRange(min=2), default=1024, help="Samples for the audit and the predicted gains."
)
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), default=Path("study.html"), help="The page.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also the shapes of all layers in one figure for a paper, as .svg, .pdf or .png.",
)
@device_option
@data_dir_option
def study(
    network: str,
    batches: str | None,
    heldout: str | None,
    replaced: tuple[str, ...],
    outputs: str | None,
    families: tuple[str, ...],
    figure: Path | None,
    device: str,
    data_dir: Path | None,
    **options: Any,
) -> None:
    """Study the activations of a network: their inputs, the learned shapes, and the gain on held-out data.

    NETWORK is module:function (or module:name) that returns a torch.nn.Module, and BATCHES one that returns batches of
    (inputs, labels): a few thousand samples that the network was not trained on. A module is a file, as in
    mynet.py:build, or a name that is looked up in the current folder too. Or NETWORK is the folder of a finished run.
    The page is written to --report; after a stop the same command resumes from the folder alongside it.
    """
    if figure is not None:
        check_name("kind of figure", figure.suffix.removeprefix("."), FIGURE_METADATA)
    if Path(network).is_dir():
        if batches is not None:
            raise UserError(f"{network} is the folder of a run, which has its own batches: leave {batches} out.")
        try:
            with needs_extra("A study of a finished run", "experiment"):
                from aafit.experiment.runs.start import load_for_study
        except ImportError as error:
            raise UserError(str(error)) from error
        net, fitted, judged = load_for_study(Path(network), data_dir, choose_device(device))
    else:
        if batches is None:
            raise UserError(
                f"{network} is not the folder of a run, so batches are needed: aafit study {network} module:function."
            )
        net, fitted, judged = _network(network, device), _iterable(batches), None
    if heldout is not None:
        judged = _iterable(heldout)
    # The other options are arguments of the same name.
    result = study_of(
        net,
        fitted,
        dict(_replacement(text) for text in replaced) or None,
        heldout=judged,
        output=None if outputs is None else _function(outputs),
        families=[family for name in families for family in _families(name)] or None,
        command=shlex.join(["aafit", *sys.argv[1:]]),
        **options,
    )
    click.echo(str(result))
    click.echo(result.page)
    if figure is not None:
        click.echo(write_figure(result, figure))


def _network(text: str, device: str) -> nn.Module:
    net = _value(text)
    if not isinstance(net, nn.Module):
        raise UserError(f"{text} returns a {type(net).__name__}: it must return a torch.nn.Module.")
    return net.to(choose_device(device))


def _iterable(text: str) -> Iterable[Any]:
    batches = _value(text)
    if not isinstance(batches, Iterable):
        raise UserError(f"{text} returns a {type(batches).__name__}: it must return batches, as a list or DataLoader.")
    return batches


def _value(text: str) -> Any:
    """Return the object module:name, or what it returns if it is a function."""
    value = _object(text)
    if not callable(value) or isinstance(value, nn.Module):
        return value
    try:
        signature(value).bind()
    except TypeError as error:
        raise UserError(f"{text} cannot be called without arguments ({error}): name a function that can.") from error
    except ValueError:  # Python does not know the parameters of some builtin functions.
        pass
    return value()


def _function(text: str) -> Any:
    function = _object(text)
    if not callable(function):
        raise UserError(f"{text} is a {type(function).__name__}: it must be a function of what the network returns.")
    return function


def _object(text: str) -> Any:
    """Return the object that module:name or file.py:name stands for."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise UserError(f"{text} is neither the folder of a run nor module:function.")
    module = _module(place)
    if not hasattr(module, name):
        names = [one for one in vars(module) if not one.startswith("_")]
        raise UserError(f"The module {place!r} has no {name!r}. {nearest(name, names)}")
    return getattr(module, name)


def _module(place: str) -> ModuleType:
    """Return the module of a name or a Python file, which can import the files next to it."""
    file = Path(place).absolute() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UserError(f"There is no file {place}.")
    folder, name = (os.getcwd(), place) if file is None else (str(file.parent), file.stem)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if file is not None and getattr(sys.modules.get(name), "__file__", "") != str(file):
        sys.modules.pop(name, None)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise UserError(f"There is no module {name!r} in this folder or among the installed ones.") from error
        raise


def _families(name: str) -> Iterable[Any]:
    if name == "default":
        return FAMILIES
    if ":" in name:
        return [_object(name)]
    return [name if fit_from_text(name) else check_name("family", name, ("default", *ADAPTIVE))]


def _replacement(text: str) -> tuple[str, str | type[AdaptiveActivation] | nn.Module]:
    what, sign, by = text.partition("=")
    if not sign or not what:
        raise UserError(f"--replace {text!r} is not of the form WHAT=BY, as 'ReLU=LEAF' or '*=F-Neuron as Tanh'.")
    if by in ADAPTIVE:
        return what, ADAPTIVE[by]
    return what, by if fit_from_text(by) else from_text(by)
