"""The commands of the benchmarks, on a handful of images; most of them within this process, which saves its start."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from small_runs import write_done

from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.suite import Suite, load_suite
from aafit.experiment.scheduling.progress import RunState, Status
from aafit.experiment.scheduling.schedule import Summary
from benchmarks import (
    activations,
    epochs,
    floor,
    harness,
    parts,
    precision_accuracy,
    scaling,
    straightforward,
    whole,
    workload,
)
from benchmarks.floor import DATA, FORWARD, LAYERS, WEIGHTS, Floor
from benchmarks.workload import Measured, Sample, chosen_kinds, measured_run

TINY_SUITE = """
name = "tiny"
[defaults]
network = "LeNet-5"
dataset = "MNIST-5k"
train_images = 64
[[runs]]
name = "base"
epochs = 1
"""


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler takes seconds in each process."""
    monkeypatch.setenv("AAFIT_COMPILE", "0")


@pytest.fixture
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates take two turns instead of five, which is what the commands insist on."""

    def take_turns(candidates: Mapping[str, Callable[[], float]], rounds: int) -> harness.Turns:
        assert rounds == 5
        return harness.take_turns(candidates, 2)

    monkeypatch.setattr(harness, "LEAST_ROUNDS", 2)
    for module in (activations, epochs, whole):
        monkeypatch.setattr(module, "take_turns", take_turns)


@pytest.fixture
def within_this_process(monkeypatch: pytest.MonkeyPatch, two_rounds: None) -> None:
    """One slot, no new processes, and batches of 16 images."""
    paper = load_suite("paper")
    small = paper.with_(runs=[run.model_copy(update={"batch_size": 16}) for run in paper.runs])

    def call(function: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        module, _, name = function.partition(":")
        return json.loads(json.dumps(getattr(import_module(module), name)(**arguments)))

    @contextmanager
    def measuring(function: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Iterator[Any]:
        module, _, name = function.partition(":")
        values = getattr(import_module(module), name)(**arguments)
        yield lambda: json.loads(json.dumps(next(values)))
        values.close()

    for module in (harness, activations):
        monkeypatch.setattr(module, "call", call)
    for module in (straightforward, workload):
        monkeypatch.setattr(module, "measuring", measuring)
    monkeypatch.setattr(workload, "load_suite", lambda name: small)
    monkeypatch.setattr("aafit.experiment.devices.usable_cores", lambda: 1)
    monkeypatch.setattr(straightforward, "WORKERS", 0)
    monkeypatch.setattr(straightforward, "WARM_STEPS", 1)
    monkeypatch.setattr(workload, "EVALUATED", 20)


def done(command: click.Command, tmp_path: Path, options: Sequence[str]) -> dict[str, Any]:
    """The tables that the command wrote down."""
    file = tmp_path / "result.json"
    result = CliRunner().invoke(command, [*options, "--device", "cpu", "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["machine"]["cores"] >= 1
    assert {"torch", "aafit"} <= content["versions"].keys()
    assert all(content[key] for key in ("command", "date", "tables"))
    tables: dict[str, Any] = content["tables"]
    return tables


@pytest.mark.usefixtures("within_this_process")
def test_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "TOKENS", (2, 3, 4))
    tables = done(activations.main, tmp_path, ["--shape", "8x16"])
    assert len(tables) == 3
    forward = tables.popitem()[1]
    assert {row["activation"] for row in forward} == {"F.gelu", "F.silu", "AHAF", "LEAF", "F-Neuron"}
    assert all(row["ms"] > 0 and row["to F.gelu, range"] for row in forward)
    for rows in tables.values():
        assert [row["activation"] for row in rows][:5] == ["F.relu", "F.silu", "AHAF", "LEAF", "F-Neuron"]
        assert all(row["ms"] > 0 and row["extra arrays"] >= 2 for row in rows)


@pytest.mark.usefixtures("within_this_process")
def test_epochs(tmp_path: Path) -> None:
    options = ["--kind", "F-Neuron tuning", "--steps", "1", "--batch-size", "8", "--evaluated", "10"]
    tables = done(epochs.main, tmp_path, options)
    (speed,), (floor,), (shares,) = tables.values()
    assert speed["program, machine"] > 0
    assert speed["straightforward, machine"] > 0
    assert floor["TFLOP/s of the machine"] > 0
    assert sum(value for key, value in shares.items() if isinstance(value, float)) == pytest.approx(1)


def test_epochs_of_all_kinds_give_one_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An epoch of a batch: two processes side by side need 0.2 s for theirs, the straightforward loop 0.5 s.
    fixed = Measured(Sample("CIFAR-10", 128, 1_000), 128, 0.2, 1.0, 20.0, 4, 2, None)
    least_seconds = Floor(128, {(layer.name, what): 0.01 for layer in LAYERS for what in (FORWARD, DATA, WEIGHTS)})
    monkeypatch.setattr(epochs, "measured_in_turns", lambda *_, **__: nullcontext(lambda: fixed))
    monkeypatch.setattr(epochs, "straightforward_step", lambda *_: nullcontext(lambda: 0.5))
    monkeypatch.setattr(epochs, "measure_floor", lambda *_: (least_seconds, 2))
    monkeypatch.setattr(parts, "shares_of_an_epoch", lambda *_: {"training steps": 0.96, "evaluation": 0.04})
    speed, paper, least, shares = done(epochs.main, tmp_path, ["--precision", "bf16"]).values()
    assert all(row["program, machine"] == pytest.approx(0.1 * 391) for row in speed)
    assert all(row["times faster"] == pytest.approx(5) for row in speed)
    assert paper[-1]["epochs"] == 4600
    assert paper[-1]["program, h"] == pytest.approx(4600 * 0.1 * 391 / 3600)
    assert paper[-1]["straightforward, h"] == pytest.approx(4600 * 0.5 * 391 / 3600)
    assert least[0]["floor, s an epoch"] == pytest.approx(17 * 0.01 * 391 / 2)
    assert least[-1]["floor, s an epoch"] == pytest.approx((5 / 2 + 2) * 0.01 * 391 / 2)
    assert [row["runs in lockstep"] for row in speed] == [1, 1, 1, 1, 2]
    assert all(row["each but the steps below 5%"] for row in shares)


@pytest.mark.usefixtures("within_this_process")
def test_parts(tmp_path: Path) -> None:
    ((row,),) = done(parts.main, tmp_path, ["--kind", "base ReLU", "--steps", "2"]).values()
    assert all(0 <= row[part] < 1 for part in parts.PARTS)
    assert row["logging"] > 0
    assert sum(row[part] for part in parts.PARTS) == pytest.approx(1)


@pytest.mark.usefixtures("within_this_process")
def test_floor(tmp_path: Path) -> None:
    (rows,) = done(floor.main, tmp_path, ["--batch-size", "4"]).values()
    assert [row["layer"] for row in rows] == [layer.name for layer in LAYERS]
    assert all(row[what] > 0 for row in rows for what in (FORWARD, DATA, WEIGHTS))


@pytest.mark.usefixtures("within_this_process")
def test_straightforward(tmp_path: Path) -> None:
    (rows,) = done(straightforward.main, tmp_path, ["--steps", "1"]).values()
    assert len(rows) == 5
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.usefixtures("within_this_process")
def test_scaling(tmp_path: Path) -> None:
    sizes = ["--batch-sizes", "16,32", "--processes", "1", "--seeds", "1,2", "--lockstep", "1,2", "--images", "32"]
    tables = done(scaling.main, tmp_path, [*sizes, "--kind", "LEAF tuning"])
    assert [len(rows) for rows in tables.values()] == [2, 1, 2, 2]
    assert all(row["memory, MiB a process"] > 100 for rows in tables.values() for row in rows)


@pytest.mark.usefixtures("within_this_process")
def test_whole(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_SUITE)
    options = ["--suite", str(tmp_path / "tiny.toml"), "--check", "1", "--steps", "1"]
    (wall,) = done(whole.main, tmp_path, options)["Wall time"]
    assert wall["projected, s"] > 0
    assert wall["real, s"] > 0
    low, high = map(float, wall["real / projected, range"].split(" to "))
    assert 0 < low <= high


def test_precision_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_suite(suite: Suite, runs_dir: Path, *_: object, **__: object) -> Summary:
        outcomes = []
        for job in jobs_of(suite, runs_dir).values():
            job.folder.mkdir(parents=True)
            accuracy = 0.7 + 0.01 * job.seed + 0.001 * (job.config.precision == "bf16")
            write_done(job.folder, job.settings_hash, last_accuracy=accuracy)
            outcomes.append(RunState(job, Status.DONE, seconds=1.0))
        return Summary(tuple(outcomes), 1.0, False)

    monkeypatch.setattr(precision_accuracy, "run_suite", run_suite)
    options = ["--train-images", "32", "--epochs", "1", "--seeds", "1,2"]
    rows, each = done(precision_accuracy.main, tmp_path, options).values()
    assert [row["network"] for row in rows] == ["base, SiLU", "tuned, AHAF as SiLU"]
    assert all(row["bf16 - float32"] == pytest.approx(0.1) and row["within the spread"] for row in rows)
    assert [row["seed 2"] for row in each] == pytest.approx([72.0, 72.0, 72.1, 72.1])


def test_an_epoch_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "EVALUATED", 20)
    run = chosen_kinds(["LEAF tuning"])["LEAF tuning"].model_copy(update={"batch_size": 16})
    found = measured_run(run, steps=2, epochs=1, device="cpu", processes=1)
    assert found.processes == 1
    assert 0 < found.training < found.wall
    assert found.peak is None or found.peak > 1 << 26


def test_an_error_in_another_process_is_one_sentence(tmp_path: Path) -> None:
    options = ["--steps", "1", "--data-dir", str(tmp_path / "nothing"), "--device", "cpu"]
    result = CliRunner().invoke(straightforward.main, options)
    assert result.exit_code == 2
    assert "does not exist" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (epochs.main, ["--kind", "nothing"]),
        (scaling.main, ["--seeds", "1,x"]),
        (activations.main, ["--shape", "8xa"]),
        (whole.main, ["--check", "-1"]),
        (epochs.main, ["--json", "no/such/folder/file.json"]),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(command: click.Command, options: list[str]) -> None:
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 2
    assert "Error: " in result.output
