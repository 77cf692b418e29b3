"""The commands `aafit run` and `aafit report`: a suite of runs, and its tables, figures and page."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from aafit.experiment.cli.authors import suite_commands
from aafit.experiment.cli.options import (
    EXISTING_FOLDER,
    Command,
    data_dir_option,
    device_option,
    fresh_option,
    log_options,
    precision_option,
    runs_dir_option,
    with_options,
)
from aafit.experiment.devices import slots
from aafit.experiment.report.page import write_report
from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.suite import Suite, load_suite, shipped_suites
from aafit.experiment.runs.timing import seconds_an_epoch
from aafit.experiment.scheduling.plan import estimate, time_bf16
from aafit.experiment.scheduling.schedule import ENGINES, open_engine, run_suite


def _integers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers such as 42,100.") from error


@click.command(cls=Command)
@click.option("--suite", "suite_name", default="paper", help=f"One of {', '.join(shipped_suites())}, or a TOML file.")
@click.option("--seeds", callback=_integers, help="Seeds instead of the suite's, for example 42,100.")
@click.option("--only", help="Only these runs or stages, and their parents: stage4,base-relu.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes at the same time [default: one for each core, or for each GPU].",
)
@click.option("--engine", type=click.Choice(ENGINES), default="local", help="Where the runs go.")
@click.option("--address", help="The Ray cluster, host:port [default: the one that this machine belongs to].")
@click.option("--own-disks", is_flag=True, help="The Ray nodes do not share the runs folder: copy their files back.")
@device_option
@data_dir_option
@runs_dir_option
@click.option("--epochs-scale", type=float, help="Multiply the epochs of all runs, for a shorter trial.")
@precision_option(help="Arithmetic of all runs, instead of the suite's.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its cost; run nothing.")
@click.option("--print-commands", is_flag=True, help="Print a command for each run, to be run by hand; run nothing.")
@fresh_option
@with_options(*log_options)
@click.pass_context
def run(
    context: click.Context,
    suite_name: str,
    seeds: tuple[int, ...] | None,
    only: str | None,
    epochs_scale: float | None,
    precision: str | None,
    engine: str,
    device: str,
    jobs: int | None,
    address: str | None,
    own_disks: bool,
    runs_dir: Path,
    fresh: bool,
    dry_run: bool,
    print_commands: bool,
    **options: Any,
) -> None:
    """Run a suite: all its runs, then tables, figures and a report.

    Finished runs are skipped, stopped runs resume.
    """
    suite = _selected(load_suite(suite_name), seeds, only, epochs_scale, precision)
    if print_commands:
        folders = _given_words(context, {"runs_dir", "data_dir"})
        settings = _given_words(context, {"suite_name", "seeds", "only", "epochs_scale", "precision", "device"})
        click.echo(suite_commands(suite, device, folders, [*settings, *folders]))
        return
    console = _console()
    if dry_run:
        plan = estimate(suite, runs_dir, device=device, jobs=jobs, fresh=fresh, measure=seconds_an_epoch)
        console.print(plan)
        return
    begun = any(job.folder.exists() for job in jobs_of(suite, runs_dir).values())
    bf16 = None if begun else time_bf16(suite.runs, slots(device, jobs)[0].device, seconds_an_epoch)
    if bf16 is not None:
        console.print(bf16[0], soft_wrap=True)
    with closing(open_engine(engine, device, jobs, address, own_disks)) as opened:
        summary = run_suite(suite, runs_dir, opened, fresh=fresh, console=console, **options)
    console.print(summary)
    if not summary.stopped:
        _report(runs_dir / suite.name, console)
    if not summary.ok:
        sys.exit(130 if summary.stopped and not summary.lost else 1)


def _given_words(context: click.Context, names: set[str]) -> list[str]:
    """Return those of the options `names` that are on the command line, as words of another command line."""
    words = []
    for option in context.command.params:
        name = option.name or ""
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [option.opts[0], str(text.absolute() if isinstance(text, Path) else text)]
    return words


def _selected(
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
    """Return the terminal; a log gets lines long enough for the tables."""
    # Without markup: paths and names are printed as they are.
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=max(120, console.width))


def _report(suite_folder: Path, console: Console) -> None:
    report = write_report(suite_folder)
    console.print(report.table.terminal())
    paths = [f"report   {report.page}", *(f"table    {table}" for table in report.tables)]
    paths += [f"figures  {report.page.parent / 'figures'} ({len(report.figures)} files)"]
    for line in paths:
        console.print(line, soft_wrap=True)


@click.command(cls=Command)
@click.argument("suite_folder", type=EXISTING_FOLDER)
def report(suite_folder: Path) -> None:
    """Write the tables, figures and report of a suite's folder (such as runs/cpu) again."""
    _report(suite_folder, _console())
