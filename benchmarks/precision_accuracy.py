"""Compare the accuracy of short runs in float32 and in bf16, with several seeds.

./run_experiment.sh benchmarks/precision_accuracy.py --data-dir DATA --epochs 10 --seeds 42,100,128,1999,7823

A base network (SiLU) is trained; its activations are then replaced by AHAF as SiLU and tuned. The standard deviation
is that of the accuracy over the seeds. A difference between the means that is no larger than the standard deviation
of float32 is not significant.
"""

import io
import math
import tempfile
from pathlib import Path
from statistics import mean, stdev

import click
from rich.console import Console

from aafit.errors import UserError
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import Done
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.schedule import run_suite
from benchmarks.harness import Command, Row, data_dir_option, device_option, json_option, report, whole_numbers

PRECISIONS = ("float32", "bf16")
NETWORKS = {"base": "SiLU", "tuned": "AHAF as SiLU"}


def suite_of(dataset: str, train_images: int | None, epochs: int, seeds: tuple[int, ...], batch_size: int) -> Suite:
    """Return a suite with a base network and an AHAF tuned from it."""
    runs = []
    for precision in PRECISIONS:
        common = {"dataset": dataset, "train_images": train_images, "batch_size": batch_size, "precision": precision}
        base = {"name": f"base-{precision}", "cnn": "SiLU", "fc": "SiLU", "epochs": epochs}
        tuned = {"name": f"tuned-{precision}", "cnn": "AHAF as SiLU", "fc": "AHAF as SiLU", "epochs": epochs}
        child = {"parent": base["name"], "start_epoch": epochs, "train": "activations"}
        runs += [RunConfig.checked({**common, **base}), RunConfig.checked({**common, **tuned, **child})]
    return Suite(name="precision", runs=tuple(runs), seeds=seeds)


def accuracies(suite: Suite, data_dir: Path | None, device: str) -> dict[str, list[float]]:
    """Return the test accuracies in percent after the last epoch, one for each seed, by run."""
    with tempfile.TemporaryDirectory() as folder:
        console = Console(file=io.StringIO())
        summary = run_suite(suite, Path(folder), LocalEngine(device), data_dir=data_dir, console=console)
        if not summary.ok:
            failed = next((outcome for outcome in summary.runs if outcome.message), summary.runs[0])
            raise UserError(f"The runs did not end well; {failed.job.config.name} {failed.status}: {failed.message}")
        found: dict[str, list[float]] = {run.name: [] for run in suite.runs}
        for outcome in summary.runs:
            accuracy = Done.of(outcome.job.folder).result.last_accuracy
            found[outcome.job.config.name].append(100 * accuracy if accuracy is not None else math.nan)
    return found


def compared(float32: list[float], bf16: list[float]) -> Row:
    """Return the means, their difference, and the standard deviation over the seeds."""
    spreads = [stdev(values) if len(values) > 1 else None for values in (float32, bf16)]
    difference = mean(bf16) - mean(float32)
    return {
        "seeds": len(float32),
        "float32, mean %": mean(float32),
        "float32, spread": spreads[0],
        "bf16, mean %": mean(bf16),
        "bf16, spread": spreads[1],
        "bf16 - float32": difference,
        "within the spread": None if spreads[0] is None else abs(difference) <= spreads[0],
    }


@click.command(cls=Command)
@click.option("--train-images", type=click.IntRange(min=1), help="Train on so many images only [default: all].")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1), help="Of the base, and of tuning.")
@click.option("--seeds", default="42,100,128", show_default=True, callback=whole_numbers)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(min=1))
@data_dir_option
@device_option
@json_option
def main(
    train_images: int | None,
    epochs: int,
    seeds: tuple[int, ...],
    batch_size: int,
    data_dir: Path | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Compare accuracy in float32 and bf16, on CIFAR-10 if --data-dir holds it, else on MNIST-5k."""
    dataset = "CIFAR-10" if data_dir else "MNIST-5k"
    train_images = train_images or len(load_dataset(dataset, data_dir).train)
    suite = suite_of(dataset, train_images, epochs, seeds, batch_size)
    with report(json_path) as out:
        found = accuracies(suite, data_dir, device)
        rows: list[Row] = [
            {"network": f"{network}, {text}", **compared(*(found[f"{network}-{p}"] for p in PRECISIONS))}
            for network, text in NETWORKS.items()
        ]
        out.table(f"Test accuracy after {epochs} epochs on {train_images:,} images of {dataset}", rows)
        each: list[Row] = [
            {"run": run, **{f"seed {seed}": value for seed, value in zip(seeds, values, strict=True)}}
            for run, values in found.items()
        ]
        out.table("Accuracy of each seed, %", each)


if __name__ == "__main__":
    main()
