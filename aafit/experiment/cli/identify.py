"""The command `aafit identify`: replace activations of a finished run's network and identify them by Gauss-Newton."""

from pathlib import Path
from typing import Any

import click

from aafit.errors import UserError
from aafit.experiment.cli.options import (
    EXISTING_FOLDER,
    Command,
    activation_options,
    device_option,
    given,
    identification_options,
    launch_options,
    precision_option,
    with_options,
)
from aafit.experiment.cli.single_runs import Launcher, run_name
from aafit.experiment.report.page import draw_activations
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import Config, Done, check_finished

INHERITED = {"network", "dataset", "interval", "knots", "batch_size", "precision", "holdout", "train_images"}
"""Settings of the base run that are used unless options replace them."""


@click.command(cls=Command)
@click.argument("base_folder", type=EXISTING_FOLDER)
@click.option("--cnn", help='Activation of the convolutional layers, as "AHAF as ReLU" [default: unchanged].')
@click.option("--fc", help='Activation of the fully connected layers, as "F-Neuron random" [default: unchanged].')
@with_options(*activation_options, *identification_options)
@click.option("--steps", type=click.IntRange(min=1), default=30, help="At most this many joint steps.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images at the same time [default: as the run].")
@precision_option(help="Arithmetic [default: as the run].")
@click.option("--no-augment", is_flag=True, help="If no images are held out: do not augment the train images.")
@click.option("--no-shuffle", is_flag=True, help="If no images are held out: take the first of the train images.")
@device_option
@with_options(*launch_options)
def identify(
    base_folder: Path,
    cnn: str | None,
    fc: str | None,
    steps: int,
    no_augment: bool,
    no_shuffle: bool,
    **options: Any,
) -> None:
    """Replace activations of the finished run in BASE_FOLDER by adaptive ones and identify them by Gauss-Newton.

    They are identified on the images that the run held out, otherwise on augmented train images. The result goes to
    RUNS_DIR/individual.
    """
    if cnn is None and fc is None:
        raise UserError("No activation to replace was given: give --cnn, --fc, or both, as in --fc 'F-Neuron as Tanh'.")
    check_finished(base_folder)
    base = Config.of(base_folder).run
    activations = {"cnn": cnn or base.cnn, "fc": fc or base.fc}
    launcher = Launcher.of(options)
    settings = given(options)
    words = [base.name, *activations.values()]
    words += [settings["sharing"]] if settings.get("sharing", "layer") != "layer" else []
    words += [settings.get("target", "labels")]
    others = {key: value for key, value in settings.items() if key not in ("sharing", "target")}
    others |= {"no_augment": no_augment} if no_augment else {}
    others |= {"no_shuffle": no_shuffle} if no_shuffle else {}
    words += [f"{key}_{value}" for key, value in others.items()]
    config = RunConfig.checked(
        {
            **base.model_dump(mode="json", include=INHERITED),
            **activations,
            **settings,
            "name": run_name([*words, "identified"]),
            "train": "activations",
            "method": "gauss-newton",
            "start_epoch": base.end_epoch,
            "epochs": steps,
            "augment": not no_augment,
            "shuffle": not no_shuffle,
            "parent": base.name,
        }
    )
    folder = launcher.run(launcher.job(config, base_folder.absolute()))
    result = Done.of(folder).result
    accuracies = (result.base_accuracy, result.replaced_accuracy, result.last_accuracy)
    click.echo("test accuracy: base {:.2%}, replaced {:.2%}, identified {:.2%}".format(*accuracies))
    for figure in draw_activations(folder, folder / "figures"):
        click.echo(figure)
    click.echo(folder)
