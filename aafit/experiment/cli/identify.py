"""The command `aafit identify`: other activations for a finished run's network, identified by Gauss-Newton."""

from pathlib import Path
from typing import Any

import click

from aafit.errors import UserError
from aafit.experiment.cli.flags import name_of
from aafit.experiment.cli.options import (
    Precision,
    data_dir_option,
    device_option,
    form_options,
    fresh_option,
    gauss_newton_options,
    given,
    runs_dir_option,
    seed_option,
    tensorboard_option,
    threads_option,
    wandb_option,
)
from aafit.experiment.cli.standalone import Place
from aafit.experiment.report.page import draw_activations
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import Config, Done, check_finished

KEPT = ("network", "dataset", "interval", "knots", "batch_size", "precision", "holdout", "train_images")


@click.command()
@click.argument("base_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--cnn", help='Activation of the convolutional layers, as "AHAF as ReLU" [default: as they are].')
@click.option("--fc", help='Activation of the fully connected layers, as "F-Neuron random" [default: as they are].')
@form_options
@gauss_newton_options
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Joint steps at most.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images at once [default: as the run had].")
@click.option("--precision", type=Precision(), help="Arithmetic [default: as the run had].")
@click.option("--no-augment", is_flag=True, help="Where no images are held out, take the train images as they are.")
@click.option("--no-shuffle", is_flag=True, help="Where no images are held out, take the first of the train images.")
@seed_option
@device_option
@threads_option
@data_dir_option
@runs_dir_option
@fresh_option
@tensorboard_option
@wandb_option
def identify(
    base_folder: Path,
    cnn: str | None,
    fc: str | None,
    steps: int,
    no_augment: bool,
    no_shuffle: bool,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
    runs_dir: Path,
    fresh: bool,
    tensorboard: bool,
    wandb: bool,
    **settings: Any,
) -> None:
    """Replace activations of the finished run in BASE_FOLDER by adaptive ones and identify them by Gauss-Newton.

    On the images that the run held out, else on augmented train images. The result goes to RUNS_DIR/individual.
    """
    if cnn is None and fc is None:
        raise UserError("Nothing to replace was given: give --cnn, --fc, or both, for example --fc 'F-Neuron as Tanh'.")
    check_finished(base_folder)
    base = Config.of(base_folder).run
    texts = {"cnn": cnn or base.cnn, "fc": fc or base.fc}
    chosen = given(settings)
    words = [base.name, *texts.values(), *([chosen["sharing"]] if chosen.get("sharing", "layer") != "layer" else [])]
    words += [chosen.get("target", "labels")]
    others = {key: value for key, value in chosen.items() if key not in ("sharing", "target")}
    others |= {"no_augment": no_augment} if no_augment else {}
    others |= {"no_shuffle": no_shuffle} if no_shuffle else {}
    words += [f"{key}_{value}" for key, value in others.items()]
    config = RunConfig.checked(
        {
            **base.model_dump(mode="json", include=set(KEPT)),
            **texts,
            **chosen,
            "name": name_of([*words, "identified"]),
            "train": "activations",
            "method": "gauss-newton",
            "start_epoch": base.end_epoch,
            "epochs": steps,
            "augment": not no_augment,
            "shuffle": not no_shuffle,
            "parent": base.name,
        }
    )
    place = Place(runs_dir, seed, data_dir, device, fresh, threads, tensorboard=tensorboard, wandb=wandb)
    folder = place.run(place.job(config, base_folder.absolute()))
    result = Done.of(folder).result
    shares = (result.base_accuracy, result.replaced_accuracy, result.last_accuracy)
    click.echo("test accuracy: base {:.2%}, replaced {:.2%}, identified {:.2%}".format(*shares))
    for picture in draw_activations(folder, folder / "figures"):
        click.echo(picture)
    click.echo(folder)
