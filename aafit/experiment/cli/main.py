"""The command line: aafit run | train | identify | study | show | compare | report."""

import logging
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from aafit.errors import UserError
from aafit.experiment.cli.commands import commands, show_commands
from aafit.experiment.cli.identify import identify
from aafit.experiment.cli.options import (
    Precision,
    data_dir_option,
    device_option,
    fresh_option,
    runs_dir_option,
    tensorboard_option,
    wandb_option,
)
from aafit.experiment.cli.study import study
from aafit.experiment.cli.train import train
from aafit.experiment.devices import slots
from aafit.experiment.report.page import animate_activations, draw_activations, draw_time_axis, write_report
from aafit.experiment.runs.documents import ACTIVATIONS, DONE
from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.process import compilation_from_environment
from aafit.experiment.runs.start import compare_runs, parent_folder
from aafit.experiment.runs.suite import Suite, load_suite, shipped_suites
from aafit.experiment.runs.timing import seconds_an_epoch
from aafit.experiment.scheduling.bf16 import time_bf16
from aafit.experiment.scheduling.engines.choose import ENGINES
from aafit.experiment.scheduling.options import RunOptions
from aafit.experiment.scheduling.plan import estimate
from aafit.experiment.scheduling.schedule import run_suite
from aafit.version import __version__


class CommandLine(click.Group):
    """Ends what a user can mend in one sentence and exit code 2, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.UsageError(str(error)) from error


def _whole_numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 42,100.") from error


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Adaptive activation functions in trained networks: replace, compare, tune, show."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
    context.with_resource(compilation_from_environment())


@main.command()
@click.option(
    "--suite",
    "suite_name",
    default="paper",
    show_default=True,
    help=f"One of {', '.join(shipped_suites())}, or a TOML file.",
)
@click.option("--seeds", callback=_whole_numbers, help="Seeds instead of the suite's, for example 42,100.")
@click.option("--only", help="Only these runs or stages, and what they come from: stage4,base-relu.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes side by side (default: one a core, or one a GPU).")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Where the runs go.")
@click.option("--address", help="The Ray cluster, host:port (default: the one that this machine belongs to).")
@click.option("--own-disks", is_flag=True, help="The Ray nodes do not see the runs folder: bring back what they write.")
@device_option
@data_dir_option
@runs_dir_option
@click.option("--epochs-scale", type=float, help="Multiply the epochs of all runs, for a shorter try.")
@click.option("--precision", type=Precision(), help="Arithmetic of all runs instead of the suite's.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what it will cost; run nothing.")
@click.option("--print-commands", is_flag=True, help="Print a command for each run, to run by hand; run nothing.")
@fresh_option
@tensorboard_option
@wandb_option
@click.pass_context
def run(
    context: click.Context,
    suite_name: str,
    seeds: tuple[int, ...] | None,
    only: str | None,
    jobs: int | None,
    engine: str,
    address: str | None,
    own_disks: bool,
    device: str,
    data_dir: Path | None,
    runs_dir: Path,
    epochs_scale: float | None,
    precision: str | None,
    dry_run: bool,
    print_commands: bool,
    fresh: bool,
    tensorboard: bool,
    wandb: bool,
) -> None:
    """Run a suite: all its runs, then tables, figures and a report.

    What is finished is skipped, what was stopped goes on.
    """
    suite = _chosen(load_suite(suite_name), seeds, only, epochs_scale, precision)
    options = RunOptions(
        engine=engine,
        address=address,
        own_disks=own_disks,
        jobs=jobs,
        device=device,
        data_dir=data_dir,
        fresh=fresh,
        tensorboard=tensorboard,
        wandb=wandb,
    )
    if print_commands:
        elsewhere = _words(context, {"runs_dir", "data_dir"})
        again = ["suite_name", "seeds", "only", "epochs_scale", "precision", "device"]
        click.echo(commands(suite, device, elsewhere, [*_words(context, set(again)), *elsewhere]))
        return
    console = _console()
    if dry_run:
        console.print(estimate(suite, runs_dir, options, measure=seconds_an_epoch))
        return
    begun = any(job.folder.exists() for job in jobs_of(suite, runs_dir).values())
    faster = None if begun else time_bf16(suite.runs, slots(device, jobs)[0].device, seconds_an_epoch)
    if faster is not None:
        console.print(str(faster), soft_wrap=True)
    summary = run_suite(suite, runs_dir, options, console=console)
    console.print(summary)
    if not summary.stopped:
        _report(runs_dir / suite.name, console)
    if not summary.ok:
        sys.exit(130 if summary.stopped and not summary.lost else 1)


def _words(context: click.Context, names: set[str]) -> list[str]:
    """Those of these options that the command line has, as words of another one."""
    words = []
    for option in context.command.params:
        name = option.name or ""
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [option.opts[0], str(text.absolute() if isinstance(text, Path) else text)]
    return words


def _chosen(
    suite: Suite, seeds: tuple[int, ...] | None, only: str | None, epochs_scale: float | None, precision: str | None
) -> Suite:
    if seeds is not None:
        suite = suite.with_seeds(seeds)
    if only is not None:
        suite = suite.only([name.strip() for name in only.split(",")])
    if epochs_scale is not None:
        suite = suite.scaled(epochs_scale)
    return suite if precision is None else suite.with_precision(precision)


def _console() -> Console:
    """The terminal as wide as it is; a log wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=max(120, console.width))


def _report(suite_folder: Path, console: Console) -> None:
    report = write_report(suite_folder)
    console.print(report.table.terminal())
    console.print(f"report   {report.page}", soft_wrap=True)
    for table in report.tables:
        console.print(f"table    {table}", soft_wrap=True)
    console.print(f"figures  {report.page.parent / 'figures'} ({len(report.figures)} files)", soft_wrap=True)


main.add_command(train)
main.add_command(identify)
main.add_command(study)


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
@runs_dir_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the pictures go [default: figures/ in each run's folder].",
)
@click.option("--animate", is_flag=True, help="How the forms came about too, as a GIF.")
@click.option("--mp4", is_flag=True, help="The same as an MP4 (needs ffmpeg).")
@click.option("--times", is_flag=True, help="One figure of all: test accuracy over the seconds of tuning.")
@click.option("--print-commands", is_flag=True, help="Print a command for each run, to run by hand; draw nothing.")
def show(
    folders: tuple[Path, ...],
    runs_dir: Path,
    out: Path | None,
    animate: bool,
    mp4: bool,
    times: bool,
    print_commands: bool,
) -> None:
    """Draw the activations of finished runs, before and after tuning.

    FOLDERS are run folders or folders that hold some; without one, all of the runs folder.
    """
    found = sorted({file.parent for folder in (folders or (runs_dir,)) for file in folder.rglob(ACTIVATIONS)})
    finished = [folder for folder in found if (folder / DONE).exists()]
    if not finished:
        where = ", ".join(map(str, folders or (runs_dir,)))
        raise UserError(f"No finished run with adaptive activations in {where}; run a suite first.")
    if print_commands:
        click.echo(show_commands(finished, out))
        return
    for folder in finished:
        for picture in draw_activations(folder, out or folder / "figures"):
            click.echo(picture)
        for video in [False] * animate + [True] * mp4:
            click.echo(animate_activations(folder, out or folder / "figures", video))
    if times:
        for picture in draw_time_axis(finished, out or runs_dir / "figures"):
            click.echo(picture)


@main.command()
@click.argument("run_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("other", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@data_dir_option
@device_option
def compare(run_folder: Path, other: Path | None, data_dir: Path | None, device: str) -> None:
    """Compare the networks of two finished runs on the test images.

    With one RUN_FOLDER: the run's network as it came out of tuning against its base.
    """
    first, second = (parent_folder(run_folder), run_folder) if other is None else (run_folder, other)
    comparison = compare_runs(first, second, data_dir, device)
    click.echo(f"{first}  against  {second}")
    click.echo(str(comparison))


@main.command()
@click.argument("suite_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(suite_folder: Path) -> None:
    """Make the tables, figures and report of a suite's folder (such as runs/cpu) again."""
    _report(suite_folder, _console())


if __name__ == "__main__":
    main()
