"""The commands `aafit show` and `aafit compare`: the activations and the networks of finished runs."""

import shlex
from pathlib import Path

import click

from aafit.errors import UserError
from aafit.experiment.cli.options import EXISTING_FOLDER, Command, data_dir_option, device_option, runs_dir_option
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.devices import choose_device
from aafit.experiment.report.page import animate_activations, draw_activations, draw_time_axis
from aafit.experiment.runs.documents import ACTIVATIONS, DONE, Config
from aafit.experiment.runs.start import load_run
from aafit.training.compare import compare as compare_networks


@click.command(cls=Command)
@click.argument("folders", nargs=-1, type=EXISTING_FOLDER)
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


@click.command(cls=Command)
@click.argument("run_folder", type=EXISTING_FOLDER)
@click.argument("other", required=False, type=EXISTING_FOLDER)
@data_dir_option
@device_option
def compare(run_folder: Path, other: Path | None, data_dir: Path | None, device: str) -> None:
    """Compare the networks of two finished runs on the test images.

    With RUN_FOLDER alone, the run's tuned network is compared with its base network.
    """
    config, place = Config.of(run_folder), choose_device(device)
    first, second = (config.parent_of(run_folder), run_folder) if other is None else (run_folder, other)
    if first is None:
        raise UserError(f"The run in {run_folder} has no base to compare with; name a second run folder.")
    base, net = (load_run(folder).float().to(place) for folder in (first, second))
    data = load_dataset(config.run.dataset, data_dir).to(place)
    comparison = compare_networks(base, net, evaluation_batches(data.test))
    click.echo(f"{first}  compared with  {second}")
    click.echo(str(comparison))
