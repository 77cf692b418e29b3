"""A suite as a list of commands: run by hand, they give the results of the suite."""

import json
import shlex

import pytest
from click.testing import CliRunner

from aafit.experiment.cli.main import main
from aafit.experiment.runs.documents import save_json
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import is_done, jobs_of
from aafit.experiment.runs.suite import load_suite, shipped_suites

SUITE = """
name = "tiny"
seeds = [3]
[defaults]
network = "LeNet-5"
dataset = "MNIST-5k"
train_images = 150
holdout = 100
[[runs]]
name = "base"
stage = "1"
epochs = 1
[[runs]]
name = "tuned"
stage = "2"
parent = "base"
cnn = "LEAF as ReLU"
fc = "AHAF random"
p24sl = true
lr = 0.01
epochs = 1
[[runs]]
name = "more"
stage = "2"
parent = "tuned"
train = "all"
dspu4 = true
resume_optimizer = true
epochs = 1
[[runs]]
name = "found"
stage = "3"
parent = "base"
fc = "F-Neuron as HardTanh"
interval = [-3.0, 3.5]
knots = 10
method = "gauss-newton"
target = "logits"
heldout = 0.3
prior = 10.0
epochs = 2
[[runs]]
name = "evaluated"
parent = "tuned"
train = "none"
epochs = 0
[[runs]]
name = "scratch"
cnn = "LEAF as SiLU"
fc = "F-Neuron random"
sharing = "neuron"
optimizer = "rmsprop"
batch_size = 50
augment = false
shuffle = false
precision = "float64"
epochs = 1
"""


def call(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def printed(*arguments):
    """The words of each command for a run, after the script's name."""
    lines = [shlex.split(line) for line in call("run", "--print-commands", *arguments).splitlines()]
    return [words[2:] for words in lines if words[:2] == ["./run_experiment.sh", "experiments/train_individual.py"]]


def test_the_commands_give_the_results_of_the_suite(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(SUITE)
    by_hand, by_suite = tmp_path / "hand", tmp_path / "suite"
    for words in printed("--suite", file, "--device", "cpu", "--runs-dir", by_hand):
        call("train", *words)
    jobs = jobs_of(load_suite(file), by_suite).values()
    for job in jobs:
        execute(job.model_copy(update={"device": "cpu", "threads": 1}))
        assert is_done(job.model_copy(update={"folder": by_hand / job.folder.relative_to(by_suite)}))
    for folder in [job.folder.relative_to(by_suite) for job in jobs]:
        for name in ("network.safetensors", "activations.safetensors", "optimizer.pt"):
            one, other = by_hand / folder / name, by_suite / folder / name
            assert one.exists() == other.exists()
            assert not one.exists() or one.read_bytes() == other.read_bytes(), folder


@pytest.mark.parametrize("suite", shipped_suites())
def test_the_commands_of_every_suite_say_its_settings(suite, tmp_path, monkeypatch):
    """Runs are noted as finished instead of done."""

    def note(launcher, job):
        job.folder.mkdir(parents=True)
        parent = None if job.parent is None else str(job.parent)
        data = {"sha256": "0", "in_shape": [3, 32, 32], "classes": 10}
        config = {"hash": job.settings_hash, "run": job.config.model_dump(mode="json"), "parent": parent, "data": data}
        save_json(job.folder / "config.json", {**config, "seed": job.seed})
        result = {"last_accuracy": 0.5, "last_loss": 1.0, "tuned_parameters": 1, "epochs": 1}
        done = {"hash": job.settings_hash, "sha256": {}, "finished": "", "seconds": 1.0, "result": result}
        save_json(job.folder / "done.json", done)
        return job.folder

    monkeypatch.setattr("aafit.experiment.cli.single_runs.Launcher.run", note)
    for words in printed("--suite", suite, "--runs-dir", tmp_path, "--seeds", "42,7"):
        call("train", *words)
    wanted = jobs_of(load_suite(suite).with_seeds((42, 7)), tmp_path)
    for job in wanted.values():
        stored = json.loads((job.folder / "config.json").read_text())
        assert (stored["hash"], stored["run"]["stage"]) == (job.settings_hash, job.config.stage)
        assert stored["run"]["parent"] == job.config.parent


def test_stages_come_after_those_that_they_resume_from():
    lines = call("run", "--suite", "paper", "--print-commands").splitlines()
    heads = [line for line in lines if line.startswith("# Stage")]
    assert heads[:3] == ["# Stage 1", "# Stage 2, after base-relu", "# Stage 3, after base-silu"]
    assert lines[-1] == "./run_experiment_all.sh --suite paper"


def test_no_text_of_a_suite_becomes_a_command(tmp_path):
    """Settings with line breaks are refused; names with spaces and quotes are quoted."""
    folder = tmp_path / "a folder; touch x"
    lines = call("run", "--suite", "demo", "--print-commands", "--runs-dir", folder).splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert {shlex.split(line)[0] for line in commands} == {"./run_experiment.sh", "./run_experiment_all.sh"}
    assert all(str(folder) in shlex.split(line) for line in commands)
