"""The command `aafit identify`: other activations for a finished run's network, identified by Gauss-Newton."""

import re
from pathlib import Path

import click

from aafit.cli.options import data_dir_option, device_option, runs_dir_option
from aafit.cli.standalone import Place, run_alone
from aafit.errors import UserError
from aafit.report.page import draw_activations
from aafit.runs.config import RunConfig, choices
from aafit.runs.documents import Config, Done, check_finished


@click.command()
@click.argument("base_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--cnn", help='Activation of the convolutional layers, as "AHAF as ReLU" [default: as they are].')
@click.option("--fc", help='Activation of the fully connected layers, as "F-Neuron random" [default: as they are].')
@click.option("--sharing", type=click.Choice(choices("sharing")), default="layer", show_default=True)
@click.option(
    "--target",
    type=click.Choice(choices("target")),
    default="labels",
    show_default=True,
    help="What is matched: the labels, or the base network's outputs or activations, which needs no labels.",
)
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Joint steps at most.")
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True)
@device_option
@data_dir_option
@runs_dir_option
@click.option("--fresh", is_flag=True, help="Set an earlier result of the same run aside and start again.")
def identify(
    base_folder: Path,
    cnn: str | None,
    fc: str | None,
    sharing: str,
    target: str,
    steps: int,
    seed: int,
    device: str,
    data_dir: Path | None,
    runs_dir: Path,
    fresh: bool,
) -> None:
    """Replace activations of the finished run in BASE_FOLDER by adaptive ones and identify them by Gauss-Newton.

    On the images that the run held out, else on augmented train images. The result goes to RUNS_DIR/individual.
    """
    if cnn is None and fc is None:
        raise UserError("Nothing to replace was given: give --cnn, --fc, or both, for example --fc 'F-Neuron as Tanh'.")
    check_finished(base_folder)
    base = Config.of(base_folder).run
    texts = {"cnn": cnn or base.cnn, "fc": fc or base.fc}
    words = [base.name, texts["cnn"], texts["fc"], *([sharing] if sharing != "layer" else []), target]
    kept = {"network", "dataset", "interval", "pieces", "batch_size", "precision", "holdout", "train_images"}
    config = RunConfig.checked(
        {
            **base.model_dump(mode="json", include=kept),
            **texts,
            "name": re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join([*words, "identified"])),
            "sharing": sharing,
            "train": "activations",
            "method": "gauss-newton",
            "target": target,
            "start_epoch": base.end_epoch,
            "epochs": steps,
        }
    )
    place = Place(runs_dir, seed, data_dir, device, tensorboard=False, wandb=False, fresh=fresh)
    folder = run_alone(place, config, base_folder.absolute())
    result = Done.of(folder).result
    shares = (result.base_accuracy, result.replaced_accuracy, result.last_accuracy)
    click.echo("test accuracy: base {:.2%}, replaced {:.2%}, identified {:.2%}".format(*shares))
    for picture in draw_activations(folder, folder / "figures"):
        click.echo(picture)
    click.echo(folder)
