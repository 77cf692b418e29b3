"""Paired differences: the interval, and the command on runs of seconds."""

import json

import pytest
import torch
from click.testing import CliRunner
from small_runs import base_job, child_job

from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.start import load_run
from aafit.training.compare import compare
from benchmarks import paired


@pytest.mark.parametrize(("wins", "losses"), [(300, 100), (50, 50), (0, 20)])
def test_the_interval_is_that_of_a_mean_of_many_images(wins, losses):
    difference_N = torch.zeros(2_000, dtype=torch.float64)
    difference_N[:wins], difference_N[wins : wins + losses] = 1, -1
    mean, error = difference_N.mean().item(), difference_N.std().item() / len(difference_N) ** 0.5
    low, high = paired.interval(difference_N.unsqueeze(0), draws=1_000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.25 * error)


def test_seeds_that_agree_make_it_narrower_only_by_what_they_differ_in():
    generator = torch.Generator().manual_seed(0)
    one_N = torch.randint(-1, 2, (2_000,), generator=generator).double()
    other_N = one_N[torch.randperm(2_000, generator=generator)]
    alone = paired.interval(one_N.unsqueeze(0), draws=1_000)
    assert paired.interval(torch.stack([one_N, one_N]), draws=1_000) == alone
    apart = paired.interval(torch.stack([one_N, other_N]), draws=1_000)
    assert apart[1] - apart[0] == pytest.approx((alone[1] - alone[0]) / 2**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("by_seed", "expected"),
    [
        ([0.5], (None, None)),
        # Student's t at 97.5%: 12.706 with one degree of freedom, 2.776 with four.
        ([0.1, 0.3], (0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], (3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5)),
        ([0.2, 0.2, 0.2], (0.2, 0.2)),
    ],
)
def test_the_interval_over_seeds(by_seed, expected):
    assert paired.over_seeds(by_seed) == pytest.approx(expected, abs=1e-3)


def test_runs_against_their_bases(tmp_path):
    for seed in (42, 43):
        base = base_job(tmp_path / "runs" / "tiny", epochs=2, seed=seed)
        execute(base)
        execute(child_job(base, epochs=1, lr=0.05))
    unfinished = base_job(tmp_path / "runs" / "tiny", epochs=2, seed=44)
    unfinished.folder.mkdir(parents=True)
    options = ["--runs-dir", tmp_path / "runs", "--suite", "tiny", "--json", tmp_path / "found.json"]
    done = CliRunner().invoke(paired.main, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (row,), (loss,) = json.loads((tmp_path / "found.json").read_text())["tables"].values()
    assert (row["run"], row["seeds"]) == ("child", 2)
    assert row["from"] <= row["points"] <= row["to"]
    assert row["points"] == pytest.approx(row["now, %"] - row["base, %"])
    test = load_dataset("MNIST-5k").test
    found = [
        compare(*(load_run(tmp_path / "runs/tiny" / name / f"seed{seed}") for name in ("base", "child")), batches)
        for seed, batches in ((42, list(evaluation_batches(test))), (43, list(evaluation_batches(test))))
    ]
    accuracy = 100 * sum(one.replaced_accuracy for one in found) / 2
    assert row["now, %"] == pytest.approx(accuracy)
    assert loss["now"] == pytest.approx(sum(one.replaced_loss for one in found) / 2, rel=1e-5)
    assert loss["difference"] == pytest.approx(loss["now"] - loss["base"])
    assert loss["from"] <= loss["difference"] <= loss["to"]
    assert row["seeds above"] == sum(one.replaced_accuracy > one.base_accuracy for one in found)
    assert loss["seeds below"] == sum(one.replaced_loss < one.base_loss for one in found)
    assert row["won"] - row["lost"] == pytest.approx(row["points"] / 100 * 2 * len(test))


def test_nothing_to_compare(tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    done = CliRunner().invoke(paired.main, ["--runs-dir", str(tmp_path / "runs"), "--suite", "empty"])
    assert done.exit_code == 2
    assert "no run" in done.output or "no finished run" in done.output
