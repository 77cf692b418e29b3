"""Measure the gain from a temperature alone: one number that divides the logits, fitted on an identification's images.

./run_experiment_all.sh --suite demo
./run_experiment.sh benchmarks/temperature.py --suite demo --json temperature.json

Trained networks tend to be overconfident. Dividing the logits by a temperature above 1 lowers the cross-entropy and
leaves every prediction unchanged. The gain of an identification has to be compared with that of a temperature. Every
run of the suite, bases included, is given a temperature, so that two networks can be compared at the best temperature
of each. It is fitted to the held-out images that identifications are fitted to, and evaluated on the test images.
Source: Guo et al. (2017), On Calibration of Modern Neural Networks.
"""

from pathlib import Path
from statistics import fmean

import click
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from aafit.errors import UserError
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Split, load_dataset
from aafit.experiment.report.runs import RunRecord, read_suite
from aafit.experiment.runs.documents import Config
from aafit.experiment.runs.start import load_run
from aafit.networks.running import evaluation_mode
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report
from benchmarks.workload import HELD_OUT, Halves, heldout_of, images_dir_option

COLDEST, HOTTEST = 0.05, 20.0


def logits_of(folder: Path, images: Split) -> Tensor:
    """Return the logits of the network of a run, (N, K) in float64."""
    net = load_run(folder).float()
    with evaluation_mode(net):
        return torch.cat([net(x_B).double() for x_B, _ in evaluation_batches(images)])


def fitted_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the temperature T > 0 that minimizes the mean cross-entropy of logits / T."""

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits_NK / torch.tensor(log_temperature).exp(), labels_N).item()

    bounds = torch.tensor([COLDEST, HOTTEST]).log().tolist()
    return float(torch.tensor(minimize_scalar(loss, bounds=bounds, method="bounded").x).exp())


def row_of(name: str, runs: list[RunRecord], data_dir: Path | None) -> Row:
    """Return the means over the seeds of a run: temperature, and test loss without and with it."""
    temperatures, before, after = [], [], []
    for run in runs:
        config = Config.of(run.folder)
        heldout = heldout_of(config.run, config.data.sha256, data_dir)
        test = load_dataset(config.run.dataset, data_dir).test
        fitted = Halves.of(heldout, round(HELD_OUT * len(heldout)), run.seed, config.run.precision).fitted
        temperatures.append(fitted_temperature(logits_of(run.folder, fitted), fitted.labels_B))
        logits_NK = logits_of(run.folder, test)
        before.append(F.cross_entropy(logits_NK, test.labels_B).item())
        after.append(F.cross_entropy(logits_NK / temperatures[-1], test.labels_B).item())
    return {
        "run": name,
        "seeds": len(runs),
        "temperature": Loss(fmean(temperatures)),
        "from": Loss(min(temperatures)),
        "to": Loss(max(temperatures)),
        "test loss": Loss(fmean(before)),
        "with temperature": Loss(fmean(after)),
        "difference": Loss(fmean(after) - fmean(before)),
    }


@click.command(cls=Command)
@click.option("--runs-dir", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--suite", "suite_name", default="identify", show_default=True, help="Suite whose networks are taken.")
@images_dir_option
@json_option
@markdown_option
def main(
    runs_dir: Path, suite_name: str, data_dir: Path | None, json_path: Path | None, markdown_path: Path | None
) -> None:
    """Measure the test loss of every network of a suite, without and with a fitted temperature."""
    by_name = read_suite(runs_dir / suite_name).by_name()
    finished = {
        name: [run for run in runs if run.done is not None and run.diverged is None] for name, runs in by_name.items()
    }
    if not any(finished.values()):
        raise UserError(f"The suite {suite_name!r} in {runs_dir} has no finished run.")
    with report(json_path, markdown_path) as out:
        rows = [row_of(name, runs, data_dir) for name, runs in finished.items() if runs]
        out.table("With a temperature fitted to each network", rows)
        out.note("Means over the seeds; from, to: the lowest and the highest temperature. Cross-entropy in nats.")


if __name__ == "__main__":
    main()
