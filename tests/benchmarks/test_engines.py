"""The benchmarks of the schedule and its engines, with a few runs that sleep for no time."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import many_runs

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}


def told(command: Any, tmp_path: Path, *options: str) -> dict[str, Any]:
    file = tmp_path / "told.json"
    done = CliRunner().invoke(command, [*options, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    tables: dict[str, Any] = json.loads(file.read_text())["tables"]
    return tables


def test_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def within_this_process(function: str, **arguments: Any) -> Any:
        module, _, name = function.partition(":")
        return getattr(import_module(module), name)(**arguments)

    monkeypatch.setattr(many_runs, "call", within_this_process)
    monkeypatch.setenv("SLEEPER", "")
    suite = tmp_path / "two.toml"
    suite.write_text(
        'name = "two"\n[defaults]\ndataset = "MNIST-5k"\n[[runs]]\nname = "base"\nepochs = 2\n'
        '[[runs]]\nname = "child"\nparent = "base"\ncnn = "LEAF as ReLU"\ntrain = "activations"\nepochs = 2\n'
    )
    options = ["--suite", str(suite), "--runs", "6", "--jobs", "3", "--seconds", "0", "--folder", str(tmp_path / "all")]
    (schedule,), (report,) = told(many_runs.main, tmp_path, *options).values()
    assert (schedule["runs"], schedule["done"], schedule["done now"]) == (6, 6, 6)
    assert schedule["peak MB"] > 0
    assert report["figures"] > 0
    (schedule,), _ = told(many_runs.main, tmp_path, *options).values()
    assert (schedule["done"], schedule["done now"]) == (6, 0), "the folders are those of finished runs"


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_what_an_engine_costs(tmp_path: Path) -> None:
    file = tmp_path / "told.json"
    command = [sys.executable, str(ROOT / "benchmarks/engine_cost.py"), "--seconds", "0.5", "--runs", "2"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--json", str(file)], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    (start,), (cost,) = json.loads(file.read_text())["tables"].values()
    assert all(value > 0 for value in start.values())
    assert cost["local, s"] >= 0.5
    assert cost["ray, s"] >= 0.5
