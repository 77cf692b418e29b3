"""Identification as a run: in a suite, from the command line, stopped and resumed; what a user can do wrong."""

import json

import pytest
from click.testing import CliRunner

from aafit.errors import UserError
from aafit.experiment.cli.main import main
from aafit.experiment.runs import folder as run_folder
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import load_json
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job
from aafit.experiment.runs.metrics import read_rows
from aafit.experiment.runs.start import load_run

COMMON = {"network": "LeNet-5", "dataset": "MNIST-5k", "train_images": 300}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "seed42"
    job = Job(config=RunConfig(name="base", epochs=1, holdout=400, **COMMON), seed=42, folder=folder, threads=1)
    execute(job)
    return job


def job_of(base, folder, **settings):
    values = {"cnn": "ReLU", "fc": "F-Neuron as Tanh", "epochs": 3, "start_epoch": 1, "holdout": 400} | settings
    run = RunConfig(name="found", parent="base", train="activations", method="gauss-newton", **COMMON, **values)
    return Job(
        config=run, seed=42, folder=folder, parent=base.folder, parent_hash=base.settings_hash, device="cpu", threads=1
    )


@pytest.fixture(scope="module")
def found(base, tmp_path_factory):
    job = job_of(base, tmp_path_factory.mktemp("found") / "seed42")
    execute(job)
    return job


def test_a_run_is_identified_on_held_out_images(base, found):
    steps = load_json(found.folder / "identification.json")
    assert (steps["samples"], steps["heldout_samples"]) == (320, 80)
    rows = read_rows(found.folder / "metrics.csv")
    losses = [float(row["heldout_loss"]) if row["heldout_loss"] else None for row in rows]
    assert losses == [step["heldout_loss"] for step in steps["steps"]]
    assert [int(row["epoch"]) for row in rows] == [1 + step["number"] for step in steps["steps"]]
    assert float(rows[-1]["test_loss"]) < float(rows[0]["test_loss"])
    done = load_json(found.folder / "done.json")
    assert "identification.json" in done["sha256"]
    assert done["result"]["tuned_parameters"] == 18
    net = load_run(found.folder)
    assert net.act3.weight.flatten().tolist() == pytest.approx(steps["values"])


def test_a_stopped_run_resumes_bit_identically(base, found, tmp_path, monkeypatch):
    job = job_of(base, tmp_path / "seed42")
    saves = []

    def save_and_stop(job, values):
        save(job, values)
        saves.append(values)
        if len(saves) == 3:
            raise KeyboardInterrupt

    save = run_folder.save_run_state
    monkeypatch.setattr(run_folder, "save_run_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        execute(job)
    monkeypatch.setattr(run_folder, "save_run_state", save)
    execute(job)
    for name in ("network.safetensors", "activations.safetensors"):
        assert (job.folder / name).read_bytes() == (found.folder / name).read_bytes()
    values = [load_json(folder / "identification.json")["values"] for folder in (job.folder, found.folder)]
    assert values[0] == values[1]


def test_without_held_out_images_it_is_identified_on_augmented_train_images(tmp_path):
    base = Job(config=RunConfig(name="base", epochs=1, **COMMON), seed=42, folder=tmp_path / "base", threads=1)
    execute(base)
    job = job_of(base, tmp_path / "found", holdout=0, epochs=1)
    execute(job)
    assert load_json(job.folder / "identification.json")["samples"] == 240


def test_the_command_line(base, tmp_path):
    arguments = ["identify", str(base.folder), "--fc", "AHAF as SiLU", "--steps", "1", "--device", "cpu"]
    arguments += ["--runs-dir", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.glob("individual/*/seed42")
    assert folder.parent.name == "base-ReLU-AHAF_as_SiLU-labels-identified"
    assert list((folder / "figures").glob("*.svg"))
    assert (
        f"identified {json.loads((folder / 'done.json').read_text())['result']['last_accuracy']:.2%}" in result.output
    )


def test_the_command_line_has_all_settings_of_a_suite(base, tmp_path):
    arguments = ["identify", str(base.folder), "--fc", "F-Neuron as Tanh", "--interval", "-3", "3.5", "--knots", "8"]
    arguments += [
        "--heldout-share",
        "0.3",
        "--curvature",
        "exact",
        "--prior",
        "10.0",
        "--budget",
        "0.01",
        "--target",
        "logits",
    ]
    arguments += [
        "--batch-size",
        "50",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--runs-dir",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.glob("individual/*/seed42")
    run = load_json(folder / "config.json")["run"]
    chosen = {
        "interval": [-3.0, 3.5],
        "knots": 8,
        "heldout": 0.3,
        "curvature": "exact",
        "prior": 10.0,
        "budget": 0.01,
    }
    assert run | chosen | {"target": "logits", "batch_size": 50, "holdout": 400} == run
    steps = load_json(folder / "identification.json")
    assert (steps["samples"], steps["heldout_samples"], len(steps["values"])) == (280, 120, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fc", "F-Neuron as Tanh", "--interval", "3", "-3"], "interval = [3, -3] is empty"),
        (["--fc", "AHAF as ReLU", "--heldout-share", "1"], "heldout = 1.0 is not valid"),
        (["--fc", "AHAF as ReLU", "--prior", "-1"], "prior = -1.0 is not valid"),
        ([], "No activation to replace was given"),
        (["--fc", "LEAF as Tank"], "Tanh"),
        (["--fc", "Rational(degrees=5) as ReLU"], "Rational(degrees=5,4)"),
        (["--fc", "AHAF as ReLU", "--steps", "0"], "--steps"),
    ],
)
def test_what_the_command_line_refuses(base, tmp_path, arguments, message):
    result = CliRunner().invoke(main, ["identify", str(base.folder), *arguments, "--runs-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gauss-newton"}, "set train = 'activations'"),
        ({"target": "logits"}, "needs method = 'gauss-newton'"),
        ({"method": "gauss-neuton"}, "gauss-newton"),
    ],
)
def test_what_a_suite_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        RunConfig.checked({"name": "x", "cnn": "AHAF as ReLU", "epochs": 1, **settings})
