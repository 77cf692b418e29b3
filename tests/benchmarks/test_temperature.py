"""A temperature fitted to logits, and the command on runs of seconds."""

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import base_job, child_job, read_json

from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.execute import execute
from benchmarks import temperature


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 6.0), st.integers(0, 1000))
def test_the_temperature_of_labels_drawn_at_it_is_found(true, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 3 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    labels_N = torch.multinomial((logits_NK / true).softmax(1), 1, generator=generator).squeeze(1)
    assert temperature.fitted_temperature(logits_NK, labels_N) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("seeds", [(42,), (42, 43)])
def test_the_networks_of_a_suite(tmp_path, seeds):
    for seed in seeds:
        base = base_job(tmp_path / "runs" / "tiny", epochs=3, seed=seed, holdout=100)
        execute(base)
        execute(child_job(base, epochs=1))
    options = ["--runs-dir", tmp_path / "runs", "--suite", "tiny", "--json", tmp_path / "found.json"]
    done = CliRunner().invoke(temperature.main, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ((row, child),) = json.loads((tmp_path / "found.json").read_text())["tables"].values()
    assert [(one["run"], one["seeds"]) for one in (row, child)] == [("base", len(seeds)), ("child", len(seeds))]
    assert child["test loss"] != row["test loss"]
    folders = [tmp_path / f"runs/tiny/base/seed{seed}" for seed in seeds]
    losses = [read_json(folder / "done.json")["result"]["last_loss"] for folder in folders]
    assert row["test loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert row["from"] <= row["temperature"] <= row["to"]
    assert row["difference"] == pytest.approx(row["with temperature"] - row["test loss"])
    if len(seeds) == 1:
        test = load_dataset("MNIST-5k").test
        logits_NK = temperature.logits_of(folders[0], test)
        scaled = F.cross_entropy(logits_NK / row["temperature"], test.labels_B).item()
        assert row["with temperature"] == pytest.approx(scaled, rel=1e-6)
        assert row["temperature"] != pytest.approx(1.0, abs=1e-3)


def test_without_a_finished_run(tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    done = CliRunner().invoke(temperature.main, ["--runs-dir", str(tmp_path / "runs"), "--suite", "empty"])
    assert done.exit_code == 2
    assert "no run" in done.output or "no finished run" in done.output
