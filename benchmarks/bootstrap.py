"""Compare the standard errors of an identification with the standard deviation of refits on bootstrap samples.

./run_experiment.sh benchmarks/bootstrap.py --base runs/cpu/base-silu/seed42 --data-dir DATA --fc "F-Neuron as Tanh"
./run_experiment.sh benchmarks/bootstrap.py --base runs/cpu/base-relu/seed42 --data-dir DATA \
    --cnn "LEAF as ReLU" --fc "LEAF as Tanh"

The activations are identified once, with standard errors. Each refit draws as many of the fitted images with
replacement and minimizes the loss on that sample, starting at the identified parameters. It stops when a step
promises less than a hundredth of the standard error of the loss, which leaves about a tenth of a standard error of
each parameter.

The standard deviation of n refits has a relative standard error of 1 / sqrt(2 (n - 1)), 13% for 30. Only parameters
with a printed standard error are counted.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import torch
from torch import Tensor

from aafit.errors import UserError
from aafit.experiment.data.batches import derived_seed
from aafit.identification import CROSS_ENTROPY, Identification, identify
from aafit.identification.coordinates import Coordinates
from aafit.identification.gauss_newton import Descent
from aafit.identification.problem import Problem
from aafit.identification.samples import prepare
from aafit.networks.batches import Batch
from aafit.networks.running import evaluation_mode
from aafit.training.precision import arithmetic
from aafit.training.predictor import Predictor
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.workload import HELD_OUT, Setting, base_option, images_dir_option, images_of, images_option, setting_of

MEMORY = 2 << 30
MOST_STEPS = 20
WORTHWHILE = 1e-2  # of the noise: a smaller gain is not worth a step
FIRST_DAMPING = 1e-3


@dataclass(frozen=True)
class Refit:
    """The result of a refit: its parameters, the number of attempted steps, and whether it converged."""

    vector_P: Tensor
    steps: int
    converged: bool


def refit(problem: Problem, vector_P: Tensor, sample: Batch, seed: int) -> Refit:
    """Minimize the mean loss over the sample from a given vector, by the steps of an identification."""
    # No ridge and no held-out set: the optimum of this very sample is sought.
    descent = Descent(problem, sample, 1, 0.0, vector_P, 0.0, WORTHWHILE)
    damping, refused = FIRST_DAMPING, False
    for number in range(MOST_STEPS):
        outcome = descent.step(vector_P, sample, damping, math.inf, seed + number)
        if not outcome.promised:
            return Refit(vector_P, number, converged=not refused)
        # If no damping achieved the predicted gain, the next attempt begins with a larger one.
        refused = not outcome.moved
        vector_P, damping = outcome.vector_P, outcome.damping
    return Refit(vector_P, MOST_STEPS, converged=False)


def refits_of(setting: Setting, result: Identification, count: int) -> list[Refit]:
    """Refit on bootstrap samples of the images that `result` was fitted on."""
    net, run = setting.net, setting.run
    coordinates, vector_P, found = Coordinates(net), result.state.vector_P, []
    with evaluation_mode(net):
        predictor = Predictor(net, precision=run.precision, batch_size=run.batch_size)
        parts = prepare(predictor, setting.batches(), None, CROSS_ENTROPY, HELD_OUT, MEMORY, setting.seed)
        problem = Problem(parts.predictor, coordinates, CROSS_ENTROPY)
        fitted, n = parts.fitted, len(parts.fitted)
        for number in range(count):
            seed = derived_seed("bootstrap", setting.seed, number)
            drawn_N = torch.randint(n, (n,), generator=torch.Generator().manual_seed(seed))
            sample = fitted.at(drawn_N)
            found.append(refit(problem, vector_P, sample, seed % (1 << 62)))
    return found


def compared(result: Identification, values_RP: Tensor) -> list[Row]:
    """Return each parameter's standard error beside its standard deviation over the R refits.

    The shift is how far the mean of the refits is from the value found, in standard errors: an identification stops a
    little before the optimum of its own images.
    """
    assert result.uncertainty is not None
    rows: list[Row] = []
    for row, values_R in zip(result.uncertainty.rows, values_RP.T, strict=True):
        spread = values_R.std().item()
        predicted = row.error if row.determined else None
        rows.append(
            {
                "parameter": row.name,
                "value": row.value,
                "predicted": predicted,
                "bootstrap": spread,
                "ratio": spread / predicted if predicted else None,
                "shift": (values_R.mean().item() - row.value) / predicted if predicted else None,
                "if the model were true": row.model_error if row.determined else None,
                "counted": bool(predicted),
            }
        )
    return rows


def calibration(rows: list[Row]) -> str:
    """Return one sentence: the median ratio, and the share of ratios within a factor of 2."""
    ratios = [float(str(row["ratio"])) for row in rows if row["counted"]]
    left_out = f"{len(rows) - len(ratios)} of {len(rows)} parameters have no error"
    if not ratios:
        return f"No parameter to count: {left_out}."
    near = sum(0.5 <= ratio <= 2 for ratio in ratios)
    return (
        f"Ratio of bootstrap to predicted: median {median(ratios):.2f}, within [0.5, 2] {near} of {len(ratios)} "
        f"({near / len(ratios):.0%}); {left_out}, and are not counted."
    )


@click.command(cls=Command)
@base_option
@click.option("--cnn", help='Of the convolutional layers, as "LEAF as ReLU" [default: the base network\'s].')
@click.option("--fc", help='Of the fully connected layers [default: "F-Neuron as Tanh" where --cnn is not given].')
@click.option("--refits", default=30, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--trained-on", is_flag=True, help="On the images that the base network was trained on [default: the others]."
)
@images_option
@images_dir_option
@json_option
@markdown_option
def main(
    folder: Path,
    cnn: str | None,
    fc: str | None,
    refits: int,
    trained_on: bool,
    images: int | None,
    data_dir: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Check the calibration of the standard errors of an identification."""
    setting = setting_of(folder, cnn, fc or (None if cnn else "F-Neuron as Tanh"), data_dir, images)
    run = setting.run
    if trained_on:
        train = images_of(run.dataset, data_dir, run.holdout).train
        setting = replace(setting, heldout=train.at(torch.arange(min(images or len(train), len(train)))))
    with report(json_path, markdown_path) as out, arithmetic(run.precision):
        result = identify(
            setting.net,
            setting.batches(),
            base=setting.base,
            steps=run.epochs,
            heldout=HELD_OUT,
            memory=MEMORY,
            batch_size=run.batch_size,
            precision=run.precision,
            seed=setting.seed,
        )
        if result.uncertainty is None:
            raise UserError("The network has too many adaptive parameters for standard errors: share them by layer.")
        began = perf_counter()
        found = refits_of(setting, result, refits)
        seconds = perf_counter() - began
        coordinates = Coordinates(setting.net)
        values_RP = torch.stack([coordinates.values(one.vector_P) for one in found])
        rows = compared(result, values_RP)
        out.table(f"Standard errors: CNN {run.cnn}, FC {run.fc}, {result.images} images, {refits} refits", rows)
        out.note(calibration(rows))
        for pair in result.uncertainty.pairs:
            out.note(f"Cannot be out apart: {pair.first} and {pair.second} (correlation {pair.correlation:+.3f})")
        steps, ended = [one.steps for one in found], sum(one.converged for one in found)
        out.note(f"The identification took {result.seconds:.1f} s, to a loss of {result.steps[-1].loss:.3g}.")
        out.note(
            f"{refits} refits of {min(steps)} to {max(steps)} steps took {seconds:.1f} s. {ended} of them ended where "
            "no step promised enough, the others where none gave what it promised."
        )


if __name__ == "__main__":
    main()
