"""The benchmarks of the schedule and its engines, with a few runs that sleep for no time."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from fake_suite import WORKER, Fake

from aafit.experiment.scheduling.engines.local import LocalEngine
from benchmarks import many_runs
from benchmarks.weather import MARK


def tables_of(command: Any, tmp_path: Path, *options: str) -> dict[str, Any]:
    file = tmp_path / "result.json"
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
    options = ["--suite", str(suite), "--runs", "4", "--jobs", "2", "--seconds", "0", "--folder", str(tmp_path / "all")]
    (schedule,), (report,) = tables_of(many_runs.main, tmp_path, *options).values()
    assert (schedule["runs"], schedule["done"], schedule["done now"]) == (4, 4, 4)
    assert schedule["peak MB"] > 0
    assert report["figures"] > 0
    monkeypatch.setattr(many_runs, "reported", lambda folder: {})
    (schedule,), _ = tables_of(many_runs.main, tmp_path, *options).values()
    assert (schedule["done"], schedule["done now"]) == (4, 0), "the folders are those of finished runs"


@pytest.fixture
def engine_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Both engines are this machine's here: a cluster takes longer to start than all the rest."""
    pytest.importorskip("ray")
    from benchmarks import engine_cost

    monkeypatch.setattr(engine_cost, "RayNodes", Mock)
    monkeypatch.setattr(engine_cost, "RayEngine", lambda *_, command: LocalEngine("cpu", 2, command))
    for name in ("SLEEPER", MARK):
        monkeypatch.setenv(name, "")
    return engine_cost


def test_what_an_engine_costs(engine_cost: ModuleType, tmp_path: Path) -> None:
    (start,), (cost,) = tables_of(
        engine_cost.main, tmp_path, "--seconds", "0.3", "--runs", "4", "--repeats", "1"
    ).values()
    assert all(value > 0 for value in start.values())
    for engine in ("local", "ray"):
        assert cost[f"{engine}, s"] >= 0.6
        assert cost[f"{engine}, s a run beside its sleep"] == pytest.approx(cost[f"{engine}, s"] / 2 - 0.3)
    assert cost["ray over local"] == pytest.approx(cost["ray, s"] / cost["local, s"] - 1)


def test_what_an_engine_costs_runs_that_train(
    engine_cost: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that pretends to."""
    Fake(tmp_path).prepare(engine_cost.suite_of(2, "any", epochs=3), {})
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(engine_cost, "WORKER", WORKER)
    tables = tables_of(engine_cost.main, tmp_path, "--epochs", "3", "--runs", "2", "--repeats", "2")
    (row,) = tables["2 runs that train 3 epochs, 2 at once, 2 times by each engine"]
    assert row["local, s"] > 0
    assert row["ray over local"] == pytest.approx(row["ray, s"] / row["local, s"] - 1)
    assert row["ray over local, the quickest of each"] > -1
    starts = [line.split()[:2] for line in (tmp_path / "events.txt").read_text().splitlines()]
    assert starts.count(["run0", "start"]) == 5, "the first, and two by each engine"
