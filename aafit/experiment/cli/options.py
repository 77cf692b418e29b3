"""The class of the commands, and the options that several share, with the environment variables that replace them."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from aafit.errors import UserError, nearest
from aafit.experiment.devices import compilation_from_environment
from aafit.identification.identify import CURVATURES, TARGETS
from aafit.networks.select import SHARINGS
from aafit.training.precision import PRECISIONS

SEEDS = 2**64
SYNONYMS = {"fp32": "float32", "fp64": "float64", "bfloat16": "bf16"}
DEVICES = "[auto|cpu|gpu|gpu:1|...]"
EXISTING_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
HALF = ("fp16", "float16", "fp16rpr", "float16rpr")
"""Precisions of the authors' program that are not supported."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose `UserError`s end in one sentence and exit code 2, without a traceback.

    So do the errors of the operating system about a path, such as a folder that cannot be read.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        shown = {"help_option_names": ["-h", "--help"], "show_default": True}
        super().__init__(*arguments, **{"context_settings": shown, **settings})

    def invoke(self, ctx: click.Context) -> Any:
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
        try:
            with compilation_from_environment():
                return super().invoke(ctx)
        except UserError as error:
            raise click.UsageError(str(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            raise click.UsageError(f"Cannot use {error.filename}: {error.strerror}.") from error
        except KeyboardInterrupt as stopped:
            click.echo(str(stopped) or "Stopped.", err=True)
            ctx.exit(130)


def _runs_dir(context: click.Context, option: click.Parameter, value: str) -> Path:
    """Return a folder; an address such as s3://bucket/runs is refused: it would become a folder called "s3:"."""
    if "://" in value:
        raise click.BadParameter(
            f"{value} is an address, but runs need a folder: give one of this machine, with --engine ray "
            "--own-disks if the others do not share it, and copy it to the store afterwards."
        )
    return Path(value)


def _precision(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return a precision by its name here, from that name or from one of the authors' (fp32, fp64, ...)."""
    if value is None:
        return None
    if value in HALF:
        raise click.BadParameter(
            f"{value!r} is not supported: AHAF and LEAF as ReLU start at 2^16, which is infinite in float16. Choose "
            "bf16 or float32."
        )
    precision = SYNONYMS.get(value, value)
    if precision not in PRECISIONS:
        raise click.BadParameter(f"{value!r} is not a precision. {nearest(value, [*PRECISIONS, *SYNONYMS])}")
    return precision


def _seed(context: click.Context, option: click.Parameter, seed: int) -> int:
    """Return the seed from 0 to 2^64 - 1 that gives the same random numbers in PyTorch."""
    if not -SEEDS // 2 <= seed < SEEDS:
        raise click.BadParameter(f"{seed} is not in the range from -2^63 to 2^64 - 1.")
    return seed % SEEDS


def to_torch_device(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return a device by PyTorch's name: "gpu" is "cuda"."""
    return re.sub(r"^gpu(?=$|:)", "cuda", value) if value else value


def precision_option(**settings: Any) -> Callable[[Decorated], Decorated]:
    """Return the option --precision with a default and a help text of the command's."""
    return click.option("--precision", metavar=f"[{'|'.join(PRECISIONS)}]", callback=_precision, **settings)


def _pieces(context: click.Context, option: click.Parameter, value: int | None) -> None:
    if value is not None:
        raise click.BadParameter(f"--pieces {value} is now --knots {value + 2}, the number of values of an F-Neuron.")


def _number(context: click.Context, option: click.Parameter, text: str | None) -> str | float | None:
    """Return the number that the text is, or the text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(file_okay=False),
    envvar=["AAFIT_RUNS", "SRGK_RUNS_PATH"],
    default="runs",
    callback=_runs_dir,
    help="Folder of all results (environment: AAFIT_RUNS, SRGK_RUNS_PATH).",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="AAFIT_DATA",
    help="Folder of the data set (environment: AAFIT_DATA) [default: downloaded into the user's cache].",
)
device_option = click.option(
    "--device",
    metavar=DEVICES,
    default="auto",
    callback=to_torch_device,
    help="auto: a GPU if there is one; gpu (or cuda): the first one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads [default: one for each core]. Runs of a suite have 1; only 1 gives bit-identical results.",
)
seed_option = click.option(
    "--seed",
    type=int,
    default=42,
    callback=_seed,
    help="Seed of all random numbers; -N is the same as 2^64 - N, as in PyTorch.",
)
fresh_option = click.option("--fresh", is_flag=True, help="Move an earlier result of the same run aside, start again.")
log_options = (
    click.option("--tensorboard", is_flag=True, help="Also write TensorBoard files."),
    click.option("--wandb", is_flag=True, help="Also write to Weights & Biases."),
)
launch_options = (seed_option, data_dir_option, runs_dir_option, threads_option, fresh_option, *log_options)
"""How a single run is done."""

activation_options = (
    click.option("--sharing", type=click.Choice(SHARINGS), help="What has its own parameters."),
    click.option(
        "--interval",
        type=float,
        nargs=2,
        metavar="LEFT RIGHT",
        help="F-Neuron, Polynomial, Rational, PiecewiseLinear: ends of the interval [default: -4 4].",
    ),
    click.option("--knots", type=click.IntRange(min=3), help="F-Neuron: number of knots [default: 18]."),
    click.option("--pieces", type=int, hidden=True, expose_value=False, callback=_pieces),
)
"""How adaptive activations are made."""


identification_options = (
    click.option(
        "--target",
        type=click.Choice(TARGETS),
        help="What is fitted: the labels [default], or the base network's logits or activations, which need no labels.",
    ),
    click.option("--heldout-share", "heldout", type=float, help="Share of the images that is held out [default: 0.2]."),
    click.option(
        "--curvature",
        type=click.Choice(CURVATURES),
        help="exact: one backward pass for each output [default: sampled].",
    ),
    click.option(
        "--prior",
        metavar="WEIGHT",
        callback=_number,
        help="Weight of the prior in samples, none, or auto: by the leave-one-out estimate [default: auto].",
    ),
    click.option("--budget", type=float, help="How far the slope of a stalled activation may be lowered; 0: not."),
)
"""How activations are identified; the defaults are those of `aafit.identify`."""


def with_options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Add options to a command, in this order of its help."""

    def add(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, for settings with their own default."""
    return {key: value for key, value in values.items() if value is not None}
