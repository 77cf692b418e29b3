"""Compare gradient steps with Gauss-Newton on the same images from the same initialization, to isolate the method.

./run_experiment.sh benchmarks/same_images.py --base runs/cpu/base-silu/seed42 --data-dir DATA \
    --cnn "LEAF as SiLU" --fc "LEAF as SiLU"

The paper's recipe trains the activations on the augmented images that the base network has seen; an identification
uses held-out ones. Here both are given the same held-out images, unaugmented, except those that the identification
keeps as its own held-out set. The gradient steps are those of `aafit.tune`, Adam at 1e-3 in batches of 128, without
p24sl, with and without dropout. Seconds are those of tuning, and of `identify` with its standard errors.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import click
from torch import Tensor, nn

from aafit.experiment.data.batches import evaluation_batches, training_batches
from aafit.experiment.data.datasets import Split
from aafit.networks.running import evaluation_mode
from aafit.training.evaluate import evaluate
from aafit.training.precision import arithmetic, data_type
from aafit.training.tune import tune
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report
from benchmarks.workload import Setting, base_option, images_dir_option, images_of, images_option, setting_of

SHOWN = (1, 3, 10, 30, 100, 300)


class Judge:
    """Evaluates a network of a setting on the fitted, the held-out and the test images."""

    def __init__(self, setting: Setting, test: Split) -> None:
        self.setting, self.test = setting, test

    def row(self, what: str, net: nn.Module, seconds: float) -> Row:
        run, halves = self.setting.run, self.setting.halves
        tested = evaluate(net, evaluation_batches(self.test, dtype=data_type(run.precision)), run.precision)
        return {
            "network": what,
            "loss, fitted": Loss(halves.on_fitted(net).loss),
            "loss, kept back": Loss(halves.on_rest(net).loss),
            "test loss": Loss(tested.loss),
            "test accuracy, %": 100 * tested.accuracy,
            "seconds": seconds,
        }


def tuned_rows(judge: Judge, epochs: int, dropout: bool) -> list[Row]:
    """Return rows of gradient steps, evaluated after some of the epochs."""
    setting = judge.setting
    run, net = setting.run, copy.deepcopy(setting.net)
    if not dropout:
        for module in net.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
    kind = "Adam" if dropout else "Adam, no dropout"
    rows: list[Row] = []
    spent, began = 0.0, perf_counter()

    def after_epoch(epoch: int, loss: float) -> None:
        nonlocal spent, began
        spent += perf_counter() - began
        if epoch + 1 in SHOWN or epoch + 1 == epochs:
            with evaluation_mode(net):
                rows.append(judge.row(f"{kind}, {epoch + 1} epochs", net, spent))
        began = perf_counter()

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        dtype = data_type(run.precision)
        return training_batches(setting.halves.fitted, run.batch_size, setting.seed, epoch, augment=False, dtype=dtype)

    tune(net, batches, epochs, precision=run.precision, after_epoch=after_epoch)
    return rows


def identified_row(judge: Judge) -> Row:
    """Return the row of a full identification."""
    setting = judge.setting
    net = copy.deepcopy(setting.net)
    began = perf_counter()
    result = setting.identify(net, setting.base)
    seconds = perf_counter() - began
    return judge.row(f"identified, {len(result.steps) - 1} steps", net, seconds)


@click.command(cls=Command)
@base_option
@click.option("--cnn", default="LEAF as SiLU", show_default=True, help="Of the convolutional layers.")
@click.option("--fc", default="LEAF as SiLU", show_default=True, help="Of the fully connected layer.")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(min=1), help="Of gradient steps.")
@images_option
@images_dir_option
@json_option
@markdown_option
def main(
    folder: Path,
    cnn: str,
    fc: str,
    epochs: int,
    images: int | None,
    data_dir: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Compare Adam and Gauss-Newton on the same held-out images, from the same initialization."""
    setting = setting_of(folder, cnn, fc, data_dir, images)
    judge = Judge(setting, images_of(setting.run.dataset, data_dir, setting.run.holdout).test)
    with report(json_path, markdown_path) as out, arithmetic(setting.run.precision):
        rows = [judge.row("base", setting.base, 0.0), judge.row("before tuning", setting.net, 0.0)]
        rows.append(identified_row(judge))
        for dropout in (True, False):
            rows += tuned_rows(judge, epochs, dropout)
        halves = setting.halves
        sizes = f"{len(halves.fitted)} images fitted, {len(halves.rest)} kept back"
        out.table(f"CNN {cnn}, FC {fc}, base {setting.run.parent}: {sizes}", rows)


if __name__ == "__main__":
    main()
