"""Measure paired differences of accuracy and loss between each tuned or identified network and its base.

./run_experiment_all.sh --suite demo
./run_experiment.sh benchmarks/paired.py --suite demo --json paired.json

For each run and seed, both networks are compared image by image, by their predictions and by their cross-entropy.
There are two intervals of the mean difference. The first is a bootstrap over the test images: N of the N images are
drawn with replacement, 10,000 times, the same ones for all seeds; it describes these networks on images like these.
The second is Student's t over the seeds, if there are several; it describes the difference expected for other seeds
of training.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t
from torch import Tensor

from aafit.errors import UserError
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Dataset, load_dataset
from aafit.experiment.report.runs import SuiteRuns, read_suite
from aafit.experiment.runs.start import load_run
from aafit.networks.running import evaluation_mode
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report
from benchmarks.workload import images_dir_option

DRAWS = 10_000
LEVEL = 0.95


class Answers(NamedTuple):
    """Correctness (1 or 0) and loss of a network on each of N test images."""

    right_N: Tensor
    loss_N: Tensor


def answers(folder: Path, data: Dataset) -> Answers:
    """Return the answers of the network of a run."""
    net = load_run(folder).float()
    right, loss = [], []
    with evaluation_mode(net):
        for x_B, y_B in evaluation_batches(data.test):
            logits_BK = net(x_B).double()
            right.append((logits_BK.argmax(1) == y_B).double())
            loss.append(F.cross_entropy(logits_BK, y_B, reduction="none"))
    return Answers(torch.cat(right), torch.cat(loss))


def interval(differences_SN: Tensor, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap interval of the mean difference over the N images, which all S seeds share."""
    mean_N = differences_SN.mean(0)
    generator = torch.Generator().manual_seed(seed)
    count = len(mean_N)
    means = [mean_N[torch.randint(count, (count,), generator=generator)].mean().item() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def over_seeds(by_seed: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the mean over seeds, by Student's t; None for a single seed."""
    if len(by_seed) < 2:
        return None, None
    reach = float(t.ppf((1 + LEVEL) / 2, len(by_seed) - 1)) * stdev(by_seed) / len(by_seed) ** 0.5
    return fmean(by_seed) - reach, fmean(by_seed) + reach


def accuracy_row(name: str, before_SN: Tensor, after_SN: Tensor) -> Row:
    """Return accuracies in percent, their difference with intervals, and the images gained and lost."""
    differences_SN = after_SN - before_SN
    low, high = interval(differences_SN)
    by_seed = (100 * differences_SN.mean(1)).tolist()
    lowest, highest = over_seeds(by_seed)
    return {
        "run": name,
        "seeds": len(by_seed),
        "base, %": 100 * before_SN.mean().item(),
        "now, %": 100 * after_SN.mean().item(),
        "points": fmean(by_seed),
        "from": 100 * low,
        "to": 100 * high,
        "spread": stdev(by_seed) if len(by_seed) > 1 else None,
        "over seeds, from": lowest,
        "over seeds, to": highest,
        "seeds above": sum(points > 0 for points in by_seed),
        "won": int((differences_SN > 0).sum()),
        "lost": int((differences_SN < 0).sum()),
    }


def loss_row(name: str, before_SN: Tensor, after_SN: Tensor) -> Row:
    """Return cross-entropies in nats, and their difference with intervals."""
    differences_SN = after_SN - before_SN
    low, high = interval(differences_SN)
    by_seed = differences_SN.mean(1).tolist()
    lowest, highest = over_seeds(by_seed)
    return {
        "run": name,
        "seeds": len(by_seed),
        "base": Loss(before_SN.mean()),
        "now": Loss(after_SN.mean()),
        "difference": Loss(fmean(by_seed)),
        "from": Loss(low),
        "to": Loss(high),
        "spread": Loss(stdev(by_seed)) if len(by_seed) > 1 else None,
        "over seeds, from": None if lowest is None else Loss(lowest),
        "over seeds, to": None if highest is None else Loss(highest),
        "seeds below": sum(difference < 0 for difference in by_seed),
    }


def finished_pairs(suite: SuiteRuns) -> dict[str, list[tuple[Path, Path]]]:
    """Return for each run the folders of its base and of itself, for each seed that both have finished."""
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for name, runs in suite.by_name().items():
        for run in runs:
            base = suite.parent(run)
            if base is not None and all(each.done is not None and each.diverged is None for each in (base, run)):
                pairs.setdefault(name, []).append((base.folder, run.folder))
    return pairs


@click.command(cls=Command)
@click.option("--runs-dir", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--suite", "suite_name", default="paper", show_default=True, help="Suite whose runs are compared.")
@images_dir_option
@json_option
@markdown_option
def main(
    runs_dir: Path, suite_name: str, data_dir: Path | None, json_path: Path | None, markdown_path: Path | None
) -> None:
    """Compare every finished run of a suite with its base, image by image."""
    suite = read_suite(runs_dir / suite_name)
    pairs = finished_pairs(suite)
    if not pairs:
        raise UserError(f"The suite {suite_name!r} in {runs_dir} has no finished run with a finished base.")
    data = load_dataset(suite.runs[0].settings.dataset, data_dir)
    known: dict[Path, Answers] = {}

    def answers_of(folders: Sequence[Path]) -> Answers:
        for folder in folders:
            if folder not in known:
                known[folder] = answers(folder, data)
        return Answers(*map(torch.stack, zip(*(known[folder] for folder in folders), strict=True)))

    with report(json_path, markdown_path) as out:
        accuracies, losses = [], []
        for name, of_seeds in pairs.items():
            before, after = (answers_of(folders) for folders in zip(*of_seeds, strict=True))
            accuracies.append(accuracy_row(name, before.right_N, after.right_N))
            losses.append(loss_row(name, before.loss_N, after.loss_N))
        out.table(f"Test accuracy against the base, {len(data.test)} images", accuracies)
        out.table("Test loss against the base, the same images", losses)
        out.note(
            f"From, to: {LEVEL:.0%} interval of the difference by a bootstrap over the test images ({DRAWS:,} draws). "
            "Spread: standard deviation of the difference over the seeds. Over seeds, from, to: the interval for other "
            "seeds, by Student's t. Won, lost: images that only the network now predicts, and that only its base did."
        )


if __name__ == "__main__":
    main()
