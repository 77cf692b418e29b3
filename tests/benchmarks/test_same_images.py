"""Gradient steps and Gauss-Newton on the same images, on a run of seconds."""

import pytest
from click.testing import CliRunner
from small_runs import base_job, read_json

from aafit.experiment.runs.execute import execute
from benchmarks import same_images


def test_both_begin_from_the_same_start_and_are_judged_on_the_same_images(tmp_path):
    base = base_job(tmp_path, train_images=100, holdout=100, epochs=1)
    execute(base)
    options = ["--base", base.folder, "--cnn", "LEAF as SiLU", "--fc", "LEAF as Tanh", "--epochs", "4"]
    options += ["--json", tmp_path / "found.json"]
    done = CliRunner().invoke(same_images.main, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ((title, rows),) = read_json(tmp_path / "found.json")["tables"].items()
    assert "80 images fitted, 20 kept back" in title
    found = {row.pop("network"): row for row in rows}
    assert found["base"]["test loss"] == pytest.approx(
        read_json(base.folder / "done.json")["result"]["last_loss"], rel=1e-5
    )
    (identified,) = (row for name, row in found.items() if name.startswith("identified"))
    assert identified["loss, fitted"] < found["before tuning"]["loss, fitted"]
    assert identified["seconds"] > 0
    for epochs in (1, 3, 4):
        with_dropout, without = (found[f"{kind}, {epochs} epochs"] for kind in ("Adam", "Adam, no dropout"))
        assert with_dropout.pop("seconds") > 0
        assert without.pop("seconds") > 0
        # LeNet-5 has no dropout; each begins from the same start, whatever was done to a copy of it before.
        assert with_dropout == without
    assert found["Adam, 4 epochs"]["loss, fitted"] < found["Adam, 1 epochs"]["loss, fitted"]
