"""The authors' command line: each of their commands is accepted and does what its flags say."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from data_files import write_fashion
from small_runs import ROOT

from aafit.experiment.cli.authors import TYPES
from aafit.experiment.cli.main import main
from aafit.experiment.cli.train import train
from aafit.experiment.models import build

PAPER = "--net KerasNet --ds CIFAR-10 --opt adam --seed 42 --bs 128 --dev gpu"
TUNE = "--tune_aaf --patch_base --start_ep 100"
COMMANDS = [
    f"base --acts all_lus --end_ep 100 {PAPER}",
    f"ahaf_shared --acts ReLU --end_ep 200 {TUNE} {PAPER}",
    f"leaf_shared --acts ReLU --end_ep 200 --p24sl {TUNE} {PAPER}",
    f"ahaf_shared --acts SiLU --end_ep 200 {TUNE} {PAPER}",
    f"leaf_shared --acts SiLU --end_ep 200 --p24sl {TUNE} {PAPER}",
    f"fuzzy_ffn_shared --acts Tanh --act_cnn ReLU --end_ep 500 --patched_from_af ReLU {TUNE} {PAPER}",
    f"leaf_shared --acts Tanh --act_cnn ReLU --end_ep 500 --p24sl --patched_from_af ReLU {TUNE} {PAPER}",
    f"fuzzy_ffn_shared --acts Random --act_cnn ReLU --end_ep 500 --patched_from_af ReLU {TUNE} {PAPER}",
    f"fuzzy_ffn_shared --acts Tanh --act_cnn SiLU --end_ep 500 --patched_from_af SiLU {TUNE} {PAPER}",
    f"leaf_shared --acts Tanh --act_cnn SiLU --end_ep 500 --p24sl --patched_from_af SiLU {TUNE} {PAPER}",
    f"fuzzy_ffn_shared --acts Random --act_cnn SiLU --end_ep 500 --patched_from_af SiLU {TUNE} {PAPER}",
    f"ahaf_shared --acts ReLU --end_ep 500 --patched_from_af SiLU {TUNE} {PAPER}",
    f"leaf_shared --acts ReLU --end_ep 500 --p24sl --patched_from_af SiLU {TUNE} {PAPER}",
    f"ahaf_shared --acts SiLU --end_ep 500 --patched_from_af ReLU {TUNE} {PAPER}",
    f"leaf_shared --acts SiLU --end_ep 500 --p24sl --patched_from_af ReLU {TUNE} {PAPER}",
    "leaf --net all --ds all --opt rmsprop --acts all_bfs --dspu4 --precision float32",
    "ahaf --acts Random --patched --tuned --start_ep 5 --end_ep 5 --wandb",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_authors_is_accepted(command):
    assert train.make_context("train", command.split()).params["kind"] == command.split()[0]


def test_a_negative_seed_is_the_one_that_torch_takes_for_it():
    (seed,) = {train.make_context("train", ["base", "--seed", text]).params["seed"] for text in ("-3", str(2**64 - 3))}
    torch.manual_seed(-3)
    assert torch.initial_seed() == seed


def test_the_help_of_the_authors_script_lists_the_types_and_a_usage_that_works():
    script = ROOT / "experiments" / "train_individual.py"
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.startswith("Usage: experiments/train_individual.py [OPTIONS] TYPE\n"), done.stderr
    assert all(f" {kind}" in done.stdout for kind in TYPES)
    examples = [line.split() for line in done.stdout.splitlines() if "--end_ep" in line and "--net LeNet-5" in line]
    assert len(examples) == 2
    for words in examples:
        assert train.make_context("train", [*words]).params["kind"] == words[0]


@pytest.fixture
def call(tmp_path):
    data = write_fashion(tmp_path / "data" / "fashion-mnist")
    common = ["--net", "LeNet-5", "--ds", "F-MNIST", "--opt", "adam", "--dev", "cpu", "--data-dir", str(data)]

    def run(command):
        arguments = ["train", *command.split(), *common, "--runs-dir", str(tmp_path / "runs")]
        return CliRunner().invoke(main, arguments)

    return run


def runs(tmp_path):
    """The settings of the finished runs by name."""
    folders = [done.parent for done in (tmp_path / "runs").glob("*/*/*/done.json")]
    return {folder.parent.name: json.loads((folder / "config.json").read_text()) for folder in folders}


def test_base_patch_tune_go_on_and_evaluate(call, tmp_path):
    for command in (
        "base --acts all_lus --end_ep 1",
        "leaf_shared --acts Tanh --act_cnn ReLU --start_ep 1 --end_ep 2 --tune_aaf --p24sl --patch_base "
        "--patched_from_af ReLU",
        "leaf_shared --acts Tanh --act_cnn ReLU --start_ep 2 --end_ep 3 --tune_aaf --p24sl --patched --tuned "
        "--patched_from_af ReLU",
        "leaf_shared --acts Tanh --act_cnn ReLU --start_ep 3 --end_ep 3 --patched --tuned --p24sl "
        "--patched_from_af ReLU",
        "fuzzy_ffn --acts Random --start_ep 1 --end_ep 1 --patch_base --patched_from_af SiLU",
    ):
        result = call(command)
        assert result.exit_code == 0, result.output
    found = runs(tmp_path)
    assert len(found) == 6
    base, patched, more, evaluated, fuzzy = (
        found[f"LeNet-5-F-MNIST-{name}"]
        for name in (
            "base-ReLU-adam-bs64-0-1",
            "leaf_shared-Tanh-cnn_ReLU-from_ReLU-tune-p24sl-adam-bs64-1-2",
            "leaf_shared-Tanh-cnn_ReLU-from_ReLU-patched-tuned-tune-p24sl-adam-bs64-2-3",
            "leaf_shared-Tanh-cnn_ReLU-from_ReLU-patched-tuned-p24sl-adam-bs64-3-3",
            "fuzzy_ffn-Random-from_SiLU-adam-bs64-1-1",
        )
    )
    assert (base["run"]["fc"], base["run"]["train"], base["run"]["batch_size"]) == ("ReLU", "all", 64)
    assert (patched["run"]["cnn"], patched["run"]["fc"]) == ("LEAF as ReLU", "LEAF as Tanh")
    assert patched["run"]["train"] == "activations"
    assert patched["run"]["p24sl"]
    assert patched["run"]["sharing"] == "layer"
    assert patched["parent_hash"] == base["hash"]
    assert more["parent_hash"] == patched["hash"]
    assert (more["run"]["start_epoch"], more["run"]["epochs"]) == (2, 1)
    assert evaluated["parent_hash"] == more["hash"]
    assert (evaluated["run"]["train"], evaluated["run"]["epochs"]) == ("none", 0)
    assert (fuzzy["run"]["cnn"], fuzzy["run"]["fc"]) == ("SiLU", "F-Neuron random")
    assert fuzzy["run"]["sharing"] == "neuron"


def write_authors_checkpoint(path, network="LeNet-5", shape=(1, 28, 28)):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": build(network, shape, 10).state_dict(), "opts": []}, path)
    return path


@pytest.mark.parametrize("named", [True, False])
def test_a_base_checkpoint_of_the_authors_is_imported(call, tmp_path, named):
    patch = "ahaf_shared --acts ReLU --start_ep 100 --end_ep 101 --tune_aaf --patch_base"
    if named:
        patch += f" --init-from {write_authors_checkpoint(tmp_path / 'base.bin')}"
    else:
        write_authors_checkpoint(tmp_path / "runs" / "lenet5_fmnist_ReLU_base_adam_100ep_checkp.bin")
    result = call(patch)
    assert result.exit_code == 0, result.output
    (imported,) = tmp_path.glob("runs/individual/LeNet-5-F-MNIST-base-ReLU-imported-*-100")
    assert set(runs(tmp_path)) == {
        imported.name,
        "LeNet-5-F-MNIST-ahaf_shared-ReLU-from_ReLU-tune-adam-bs64-100-101",
    }


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bass --end_ep 1", "'bass' is not one of"),
        ("base --acts Relu", "'Relu' is not one of"),
        ("base --act Tanh", "No such option"),
        ("base --acts Random", "Unknown activation 'Random'"),
        ("ahaf --acts Tanh", "AHAF as Tanh"),
        ("fuzzy_ffn --acts Random", "Unknown activation 'Random'"),
        ("base --start_ep 5 --end_ep 3", "--end_ep 3 is before --start_ep 5"),
        ("base --tune_aaf", "trains adaptive activations only"),
        ("ahaf --acts all_bfs", "Unknown activation 'AHAF as Tanh'"),
        ("base --acts ReLU --seed 18446744073709551616", "18446744073709551616 is not in the range"),
        ("base --acts ReLU --end_ep 99999999999999999999", "epochs = 99999999999999999999 is not valid"),
        ("base --acts ReLU --start_ep -1", "-1 is not in the range"),
        ("base --acts ReLU --precision fp16", "'fp16' is not supported: AHAF and LEAF as ReLU start at 2^16"),
        ("base --acts ReLU --precision fp46", "Did you mean 'fp64'?"),
        ("base --acts all --folder mine/base", "--folder mine/base is for one run, but these flags describe 4"),
        ("base --acts ReLU --folder mine", "--folder mine is not of the form SUITE/RUN"),
        ("base --acts ReLU --folder ../base", "'..' cannot be a folder's name"),
        ("ahaf --acts ReLU --start_ep 1 --patched --patch_base", "give one"),
        ("ahaf --acts ReLU --patched", "give the epoch that it ended with, by --start_ep"),
        ("ahaf --acts ReLU --start_ep 1 --from mine/none", "mine/none is not finished; run it first"),
        (
            "leaf --acts ReLU --start_ep 7 --end_ep 9 --patch_base",
            "ends at epoch 7 and matches the other flags",
        ),
        (
            "leaf --acts ReLU --start_ep 7 --end_ep 9 --patched",
            "No finished run with replaced activations in",
        ),
        ("base --acts ReLU --init-from setup.cfg", "setup.cfg"),
    ],
)
def test_wrong_commands_end_in_a_sentence(call, command, message):
    result = call(command)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_checkpoint_of_another_network_is_refused(call, tmp_path):
    other = write_authors_checkpoint(tmp_path / "other.bin", "KerasNet", (3, 32, 32))
    result = call(f"leaf_shared --acts ReLU --start_ep 9 --end_ep 9 --patch_base --init-from {other}")
    assert result.exit_code == 2, result.output
    assert "other.bin is not a LeNet-5" in " ".join(result.output.split())
