"""Options that several commands share, with the environment variables that stand in for them."""

from pathlib import Path

import click

runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AAFIT_RUNS",
    default=Path("runs"),
    show_default=True,
    help="Folder of all results (environment: AAFIT_RUNS).",
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
