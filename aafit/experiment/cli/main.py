"""The command line: aafit run | train | identify | study | show | compare | report."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from aafit.errors import UserError
from aafit.experiment.cli.authors import suite_commands
from aafit.experiment.cli.identify import identify
from aafit.experiment.cli.options import (
    Command,
    data_dir_option,
    device_option,
    fresh_option,
    precision_option,
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
from aafit.experiment.runs.start import compare_runs, parent_folder
from aafit.experiment.runs.suite import Suite, load_suite, shipped_suites
from aafit.experiment.runs.timing import seconds_an_epoch
from aafit.experiment.scheduling.plan import estimate, time_bf16
from aafit.experiment.scheduling.schedule import ENGINES, RunOptions, run_suite
from aafit.version import __version__


def _integers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 42,100.") from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Learn the activation functions of trained networks: replace, identify or tune, compare, draw."""


main.command_class = Command
main.add_command(train)
main.add_command(identify)
main.add_command(study)


@main.command()
@click.option(
    "--suite",
    "suite_name",
    default="paper",
    show_default=True,
    help=f"One of {', '.join(shipped_suites())}, or a TOML file.",
)
@click.option("--seeds", callback=_integers, help="Seeds instead of the suite's, for example 42,100.")
@click.option("--only", help="Only these runs or stages, and their parents: stage4,base-relu.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes at the same time [default: one for each core, or for each GPU].",
)
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Where the runs go.")
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
@tensorboard_option
@wandb_option
@click.pass_context
def run(
    context: click.Context,
    suite_name: str,
    seeds: tuple[int, ...] | None,
    only: str | None,
    epochs_scale: float | None,
    precision: str | None,
    runs_dir: Path,
    dry_run: bool,
    print_commands: bool,
    **options: Any,
) -> None:
    """Run a suite: all its runs, then tables, figures and a report.

    Finished runs are skipped, stopped runs resume.
    """
    suite = _selected(load_suite(suite_name), seeds, only, epochs_scale, precision)
    chosen = RunOptions(**options)
    if print_commands:
        folders = _given_words(context, {"runs_dir", "data_dir"})
        settings = _given_words(context, {"suite_name", "seeds", "only", "epochs_scale", "precision", "device"})
        click.echo(suite_commands(suite, chosen.device, folders, [*settings, *folders]))
        return
    console = _console()
    if dry_run:
        device, jobs, fresh = chosen.device, chosen.jobs, chosen.fresh
        plan = estimate(suite, runs_dir, device=device, jobs=jobs, fresh=fresh, measure=seconds_an_epoch)
        console.print(plan)
        return
    begun = any(job.folder.exists() for job in jobs_of(suite, runs_dir).values())
    device = slots(chosen.device, chosen.jobs)[0].device
    bf16 = None if begun else time_bf16(suite.runs, device, seconds_an_epoch)
    if bf16 is not None:
        _print(console, bf16[0])
    summary = run_suite(suite, runs_dir, chosen, console=console)
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


def _print(console: Console, text: str) -> None:
    """Print a text of any content on one line."""
    console.print(text, markup=False, soft_wrap=True)


def _report(suite_folder: Path, console: Console) -> None:
    report = write_report(suite_folder)
    console.print(report.table.terminal())
    _print(console, f"report   {report.page}")
    for table in report.tables:
        _print(console, f"table    {table}")
    _print(console, f"figures  {report.page.parent / 'figures'} ({len(report.figures)} files)")


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
@runs_dir_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the figures: <out>/<suite>/<run> [default: figures/ in each run's folder].",
)
@click.option("--animate", is_flag=True, help="Also animate how the shapes changed, as a GIF.")
@click.option("--mp4", is_flag=True, help="The same as an MP4 (needs ffmpeg).")
@click.option("--times", is_flag=True, help="Also one figure of all runs: test accuracy over the seconds of tuning.")
@click.option("--print-commands", is_flag=True, help="Print a command for each run, to be run by hand; draw nothing.")
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

    FOLDERS are runs folders, or folders of suites or runs in them; by default RUNS_DIR. A run that cannot be drawn is
    reported, and the others are drawn.
    """
    finished = list(dict.fromkeys(run for folder in folders or (runs_dir,) for run in _finished_runs(folder)))
    if not finished:
        where = ", ".join(map(str, folders or (runs_dir,)))
        raise UserError(f"There is no finished run with adaptive activations in {where}; run a suite first.")
    if print_commands:
        more = [] if out is None else ["--out", str(out.absolute())]
        for folder in finished:
            click.echo(shlex.join(["./show_aaf_all.sh", str(folder), *more]))
        return
    drawn, failed = [], []
    for folder in finished:
        place = folder / "figures" if out is None else out / folder.parent.parent.name / folder.parent.name
        try:
            for figure in draw_activations(folder, place):
                click.echo(figure)
            for video in [False] * animate + [True] * mp4:
                click.echo(animate_activations(folder, place, video))
            drawn.append(folder)
        except UserError as error:
            failed.append(str(error))
    if times and drawn:
        for figure in draw_time_axis(drawn, out or runs_dir / "figures"):
            click.echo(figure)
    if failed:
        raise UserError("\n".join([f"{len(failed)} of {len(finished)} runs could not be drawn:", *failed]))


def _finished_runs(folder: Path) -> list[Path]:
    """Return the finished runs with adaptive activations in a runs folder, or in a suite's or a run's folder in it."""
    depths = ("", "seed*/", "*/seed*/", "*/*/seed*/")
    files = [file for depth in depths for file in folder.absolute().glob(f"{depth}{ACTIVATIONS}")]
    return sorted(file.parent for file in files if (file.parent / DONE).exists())


@main.command()
@click.argument("run_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("other", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@data_dir_option
@device_option
def compare(run_folder: Path, other: Path | None, data_dir: Path | None, device: str) -> None:
    """Compare the networks of two finished runs on the test images.

    With RUN_FOLDER alone, the run's tuned network is compared with its base network.
    """
    first, second = (parent_folder(run_folder), run_folder) if other is None else (run_folder, other)
    comparison = compare_runs(first, second, data_dir, device)
    click.echo(f"{first}  compared with  {second}")
    click.echo(str(comparison))


@main.command()
@click.argument("suite_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(suite_folder: Path) -> None:
    """Write the tables, figures and report of a suite's folder (such as runs/cpu) again."""
    _report(suite_folder, _console())


if __name__ == "__main__":
    main()
