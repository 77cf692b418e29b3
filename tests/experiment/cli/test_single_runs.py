"""Runs that resume from finished ones: the one that the flags describe, or an error that lists those there are."""

import json

import pytest
import torch
from click.testing import CliRunner
from data_files import write_fashion

import aafit
from aafit.experiment.cli.main import main
from aafit.experiment.models import build

COMMON = "--net LeNet-5 --ds F-MNIST --opt adam --dev cpu"
PATCH = "leaf_shared --acts ReLU --start_ep 1 --end_ep 2 --tune_aaf --p24sl --patch_base"
MORE = "leaf_shared --acts ReLU --start_ep 2 --end_ep 3 --tune_aaf --p24sl --patched --tuned"


@pytest.fixture
def call(tmp_path, monkeypatch):
    data = write_fashion(tmp_path / "data" / "fashion-mnist")
    monkeypatch.delenv("SRGK_RUNS_PATH", raising=False)

    def run(command, refused=""):
        where = ["--data-dir", str(data), "--runs-dir", str(tmp_path / "runs")]
        result = CliRunner().invoke(main, ["train", *command.split(), *COMMON.split(), *where])
        output = " ".join(result.output.split())
        assert result.exit_code == (2 if refused else 0), output
        assert refused in output
        return output

    return run


def finished(tmp_path, name):
    folder = tmp_path / "runs" / "individual" / f"LeNet-5-F-MNIST-{name}" / "seed42"
    assert (folder / "done.json").exists(), sorted(path.name for path in folder.parent.parent.iterdir())
    return folder, json.loads((folder / "config.json").read_text())


def test_a_run_resumes_from_the_base_that_the_flags_name(call, tmp_path):
    for command in (
        "base --acts all_lus --end_ep 1",
        f"{PATCH} --patched_from_af ReLU",
        f"{PATCH} --patched_from_af SiLU",
        f"{MORE} --patched_from_af ReLU",
        f"{MORE} --patched_from_af SiLU",
    ):
        call(command)
    form = "leaf_shared-ReLU-from_{}-{}tune-p24sl-adam-bs64-{}"
    for base in ("ReLU", "SiLU"):
        _, patched = finished(tmp_path, form.format(base, "", "1-2"))
        _, more = finished(tmp_path, form.format(base, "patched-tuned-", "2-3"))
        assert more["parent_hash"] == patched["hash"]
        assert more["run"]["resume_optimizer"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--p24sl", ""), "p24sl: True there, False here"),
        (("--tuned", ""), "tuned: True there, False here"),
        (("--acts ReLU", "--acts ReLU --patched_from_af SiLU"), "base: ReLU there, SiLU here"),
        (("--acts ReLU", "--acts ReLU --act_cnn SiLU"), "cnn: LEAF as ReLU there, LEAF as SiLU here"),
        (("--acts ReLU", "--acts ReLU --bs 32"), "batch_size: 64 there, 32 here"),
        (("--acts ReLU", "--acts ReLU --holdout 10"), "holdout: 0 there, 10 here"),
        (("--acts ReLU", "--acts ReLU --train-images 10"), "train_images: None there, 10 here"),
        (("--acts ReLU", "--acts ReLU --precision fp64"), "precision: float32 there, float64 here"),
        (("--start_ep 2", "--start_ep 3"), "end_epoch: 2 there, 3 here"),
        (("leaf_shared", "leaf"), "sharing: layer there, neuron here"),
        (("--acts ReLU", "--acts ReLU --seed 1"), "With seed 1 there is none of LeNet-5 on Fashion-MNIST"),
    ],
)
def test_if_no_run_matches_the_flags_the_finished_ones_are_listed(call, change, said):
    call("base --acts ReLU --end_ep 1")
    call(PATCH)
    output = call(MORE.replace(*change), refused=said)
    assert "Traceback" not in output
    assert "--patch_base" not in output


def test_of_two_runs_that_match_one_is_chosen_by_name(call, tmp_path):
    call("base --acts ReLU --end_ep 1")
    call(f"{PATCH} --lr 0.01 --folder mine/one")
    call(f"{PATCH} --lr 0.03 --folder mine/two")
    call(f"{MORE} --lr 0.02", refused="lr: 0.01 there, 0.02 here")
    call("base --acts ReLU --end_ep 1 --lr 0.01")
    call(PATCH, refused="several finished runs, with different networks")
    call(f"{MORE} --lr 0.02 --from mine/two --folder mine/three")
    config = json.loads((tmp_path / "runs" / "mine" / "three" / "seed42" / "config.json").read_text())
    assert config["parent"] == "../../two/seed42"
    call(f"{PATCH} --from mine/two", refused="--from mine/two is not the run that the flags describe (end_epoch: 2")


def test_four_epochs_are_two_and_two(call, tmp_path):
    call("base --acts ReLU --end_ep 4")
    call("base --acts ReLU --end_ep 2")
    call("base --acts ReLU --start_ep 2 --end_ep 4")
    call("base --acts ReLU --start_ep 2 --end_ep 4 --new-optimizer")
    names = ("0-4", "2-4", "newoptimizer-adam-bs64-2-4")
    whole, more, afresh = (
        (finished(tmp_path, f"base-ReLU-{name if 'adam' in name else f'adam-bs64-{name}'}")[0] / "network.safetensors")
        for name in names
    )
    assert more.read_bytes() == whole.read_bytes()
    assert afresh.read_bytes() != whole.read_bytes()


def test_runs_that_end_with_the_same_network_are_one(call, tmp_path):
    """Whatever way the network was trained on; a replacement stays with the run that it began with."""
    call("base --acts ReLU --end_ep 1")
    call("base --acts ReLU --start_ep 1 --end_ep 2")
    tune = "leaf_shared --acts ReLU --start_ep 2 --end_ep 3 --tune_aaf --patch_base"
    call(tune)
    _, before = finished(tmp_path, "leaf_shared-ReLU-from_ReLU-tune-adam-bs64-2-3")
    call("base --acts ReLU --end_ep 2")
    call(tune)
    _, after = finished(tmp_path, "leaf_shared-ReLU-from_ReLU-tune-adam-bs64-2-3")
    assert after == before
    call(f"{tune} --folder mine/anew")


def test_2spu4_with_all_else_frozen_is_tuning(call, tmp_path):
    call("base --acts ReLU --end_ep 1")
    call(PATCH)
    assert "--dspu4 with --tune_aaf is the same as --tune_aaf" in call(f"{PATCH} --dspu4")
    folders = [
        finished(tmp_path, f"leaf_shared-ReLU-from_ReLU-tune-p24sl{way}-adam-bs64-1-2") for way in ("", "-dspu4")
    ]
    (one, first), (other, second) = folders
    assert first["hash"] == second["hash"]
    assert (one / "network.safetensors").read_bytes() == (other / "network.safetensors").read_bytes()


def write_tuned(path):
    """As the authors' program writes a network whose activations were replaced and tuned."""
    torch.manual_seed(0)
    base = build("LeNet-5", (1, 28, 28), 10)
    net, _ = aafit.replace_activations(base, {"ReLU": aafit.LEAF.like("ReLU")}, sample=torch.zeros(1, 1, 28, 28))
    tensors = net.state_dict()
    tensors["act1.p2"].fill_(0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": tensors, "opts": []}, path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "lenet5_f-mnist_ReLU_patched_tuned_leaf_shared_adam_p24sl_2ep_checkp.bin",
        "lenet5_f-mnist_ReLU_patched_from_ReLU_tuned_leaf_shared_adam_p24sl_2ep_checkp.bin",
    ],
)
def test_a_tuned_checkpoint_of_the_authors_is_resumed(call, tmp_path, monkeypatch, name):
    monkeypatch.setenv("SRGK_RUNS_PATH", str(tmp_path / "theirs"))
    write_tuned(tmp_path / "theirs" / name)
    assert "a new optimizer is used" in call(MORE)
    folder, config = finished(tmp_path, "leaf_shared-ReLU-from_ReLU-patched-tuned-tune-p24sl-adam-bs64-2-3")
    assert config["run"]["init_from"].endswith(name)
    start = (folder / "metrics.csv").read_text().splitlines()
    assert float(dict(zip(start[0].split(","), start[1].split(","), strict=True))["act1.p2"]) == 0.25
    for other in (f"{MORE} --patched_from_af SiLU", MORE.replace("--p24sl", ""), MORE.replace("--tuned", "")):
        if "from" not in name and "SiLU" in other:
            continue  # an older name does not say where it comes from
        call(other, refused="No finished run with replaced activations")


def test_a_tuned_checkpoint_is_no_base_and_leaves_nothing_in_the_way(call, tmp_path):
    bad, good = write_tuned(tmp_path / "tuned.bin"), tmp_path / "base.bin"
    torch.save({"net": build("LeNet-5", (1, 28, 28), 10).state_dict(), "opts": []}, good)
    broken = tmp_path / "broken.bin"
    broken.write_bytes(good.read_bytes()[:-100])
    call(f"{PATCH} --init-from {bad}", refused="has other activations than")
    call(f"{PATCH} --init-from {broken}", refused="broken.bin is truncated")
    call(f"{PATCH} --init-from {good}")
    torch.save({"net": build("LeNet-5", (1, 28, 28), 10).state_dict(), "opts": []}, good)
    call(f"{PATCH} --init-from {good}", refused="its parent has other settings")
    call(f"{PATCH} --init-from {good} --fresh")


def test_all_runs_are_checked_before_one_is_trained(call, tmp_path):
    call("ahaf_shared --acts all --end_ep 1", refused="AHAF as Tanh")
    call("base --acts ReLU --end_ep 1")
    call("leaf_shared --acts all --start_ep 1 --end_ep 2 --patch_base", refused="cnn: ReLU there, SiLU here")
    assert [path.name for path in (tmp_path / "runs" / "individual").iterdir()] == [
        "LeNet-5-F-MNIST-base-ReLU-adam-bs64-0-1"
    ]


def test_the_authors_words_for_arithmetics(call, tmp_path):
    call("base --acts ReLU --end_ep 1 --precision fp64")
    _, config = finished(tmp_path, "base-ReLU-adam-bs64-float64-0-1")
    assert config["run"]["precision"] == "float64"
