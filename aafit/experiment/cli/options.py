"""Options that several commands share, with the environment variables that stand in for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from aafit.errors import nearest
from aafit.experiment.runs.config import choices
from aafit.experiment.runs.suite import SEEDS

PRECISIONS = choices("precision")
SPELLED = {"fp32": "float32", "fp64": "float64", "bfloat16": "bf16"}
HALF = ("fp16", "float16", "fp16rpr", "float16rpr")
"""Arithmetics of the authors' program that there are not here."""

Command = TypeVar("Command", bound=Callable[..., Any])


class RunsDir(click.Path):
    """A folder of the file system. What is meant for a store, s3://bucket/runs, would become a folder called "s3:"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(
                f"{value} is an address, and runs are done in a folder: give one of this machine, with --engine ray "
                "--own-disks where the others do not see it, and copy it to the store afterwards."
            )
        return super().convert(value, param, ctx)


runs_dir_option = click.option(
    "--runs-dir",
    type=RunsDir(path_type=Path, file_okay=False),
    envvar=["AAFIT_RUNS", "SRGK_RUNS_PATH"],
    default=Path("runs"),
    show_default=True,
    help="Folder of all results (environment: AAFIT_RUNS, SRGK_RUNS_PATH).",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="AAFIT_DATA",
    help="Folder that holds the data set (environment: AAFIT_DATA) [default: a download, kept in the user's cache].",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto (a GPU if there is one), cpu, cuda, cuda:1, ..."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads on the CPU [default: one a core]; a suite's runs have 1, and the same bits with 1 only.",
)
seed_option = click.option("--seed", type=click.IntRange(0, SEEDS - 1), default=42, show_default=True)
fresh_option = click.option(
    "--fresh", is_flag=True, help="Set an earlier result of the same run aside and start again."
)
tensorboard_option = click.option("--tensorboard", is_flag=True, help="Write TensorBoard files too.")
wandb_option = click.option("--wandb", is_flag=True, help="Write to Weights & Biases too.")


class Precision(click.ParamType):
    """An arithmetic, by this program's name or by that of the authors' (fp32, float32, fp64, tf32, ...)."""

    name = "precision"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(PRECISIONS)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in HALF:
            self.fail(
                f"{value!r} is not supported: AHAF and LEAF as ReLU start at 2^16, which is infinite in float16; "
                "take bf16, or float32."
            )
        precision = SPELLED.get(value, value)
        if precision not in PRECISIONS:
            self.fail(f"{value!r} is not one of the arithmetics. {nearest(value, [*PRECISIONS, *SPELLED])}")
        return precision


def form_options(command: Command) -> Command:
    """How adaptive activations are made, in whatever has some."""
    for option in (
        click.option(
            "--knots",
            type=click.IntRange(min=3),
            help="F-Neuron: number of its knots [default: 18].",
        ),
        click.option(
            "--interval",
            type=float,
            nargs=2,
            metavar="LEFT RIGHT",
            help="F-Neuron: where they lie [default: -4 4].",
        ),
        click.option("--sharing", type=click.Choice(choices("sharing")), help="What has parameters of its own."),
    ):
        command = option(command)
    return command


def gauss_newton_options(command: Command) -> Command:
    """How an identification goes; the defaults are those of `aafit.identify`."""
    for option in (
        click.option(
            "--budget", type=float, help="How much a steepness that cannot move may be lowered, 0 to leave it."
        ),
        click.option("--ridge", type=float, help="Weight of half the squared distance from the start [default: 0]."),
        click.option(
            "--curvature",
            type=click.Choice(choices("curvature")),
            help="exact: a backward pass for each output [default: sampled].",
        ),
        click.option("--heldout", type=float, help="Share of the images that no step is fitted to [default: 0.2]."),
        click.option(
            "--target",
            type=click.Choice(choices("target")),
            help="What is matched: the labels [default], or the base network's outputs or activations, which needs no "
            "labels.",
        ),
    ):
        command = option(command)
    return command


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given, for settings that have a default of their own."""
    return {key: value for key, value in values.items() if value is not None}
