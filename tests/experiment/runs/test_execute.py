import errno
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import base_job, child_job, read_json, untimed_rows

import aafit
from aafit.activations import LEAF, IntervalActivation
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError
from aafit.experiment.cli.single_runs import read_finished
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.models import build
from aafit.experiment.report.page import write_report
from aafit.experiment.runs.documents import load_json, save_json
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.process import locked
from aafit.files import sha256_of
from aafit.networks.surgery import replace_activations


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    job = base_job(tmp_path_factory.mktemp("runs"), holdout=100)
    execute(job)
    return job


@pytest.fixture(scope="module")
def child(base):
    job = child_job(base)
    execute(job)
    return job


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_base_run_leaves_its_whole_folder(base):
    files = set(contents(base.folder))
    assert {"config.json", "metrics.csv", "network.safetensors", "done.json"} <= files
    assert not {"state.pt", "compare.json", "activations.safetensors"} & files
    rows = untimed_rows(base.folder)
    assert [row[0] for row in rows] == ["epoch", "0", "1", "2"]
    result = read_json(base.folder / "done.json")["result"]
    assert result["tuned_parameters"] == sum(p.numel() for p in aafit.load_run(base.folder).parameters())
    assert result["base_accuracy"] is None
    assert result["heldout_epoch"] in (0, 1, 2)
    config = read_json(base.folder / "config.json")
    assert config["hash"] == base.settings_hash
    assert config["data"]["in_shape"] == [1, 28, 28]


def test_training_learns(base):
    rows = untimed_rows(base.folder)
    loss = rows[0].index("test_loss")
    assert float(rows[-1][loss]) < float(rows[1][loss]) - 0.05


def test_the_saved_network_is_the_measured_one(base):
    data = load_dataset("MNIST-5k")
    evaluation = aafit.evaluate(aafit.load_run(base.folder), evaluation_batches(data.test))
    result = read_json(base.folder / "done.json")["result"]
    assert evaluation.accuracy == result["last_accuracy"]
    assert evaluation.loss == pytest.approx(result["last_loss"], rel=1e-5)


def test_a_tuned_run_changes_its_activations_alone(base, child):
    before, after = load_file(base.folder / "network.safetensors"), load_file(child.folder / "network.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    adaptive = set(after) - set(before)
    assert adaptive == {f"act{layer}.p{index}" for layer in (1, 2, 3) for index in (1, 2, 3, 4)}
    tuned = load_file(child.folder / "activations.safetensors")
    assert {name for name in adaptive if not torch.equal(tuned[name], tuned[f"start.{name}"])}
    assert tuned["start.act3.p4"].item() == -1.0
    assert all(torch.equal(tuned[name], after[name]) for name in adaptive)


def test_a_tuned_run_starts_where_its_base_ended(base, child):
    result, base_result = (read_json(job.folder / "done.json")["result"] for job in (child, base))
    compared = read_json(child.folder / "compare.json")
    assert result["base_accuracy"] == compared["base_accuracy"] == base_result["last_accuracy"]
    rows = untimed_rows(child.folder)
    assert [row[0] for row in rows[1:]] == ["2", "3", "4"]
    assert float(rows[1][rows[0].index("test_accuracy")]) == compared["replaced_accuracy"]
    assert result["tuned_parameters"] == 12
    assert {row["path"] for row in compared["layers"]} == {"act1", "act2", "act3"}
    assert {curve["dtype"] for curve in compared["curves"]} >= {"float32", "float64", "bfloat16"}


def test_metrics_hold_every_shared_parameter(child):
    rows = untimed_rows(child.folder)
    tuned = load_file(child.folder / "activations.safetensors")
    for name in ("act1.p1", "act3.p3"):
        assert float(rows[-1][rows[0].index(name)]) == tuned[name].item()


def test_a_finished_run_is_left_as_it_is(child):
    before = contents(child.folder)
    execute(child)
    assert contents(child.folder) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "epochs: 2 there, 3 here"),
        ({"lr": 0.5}, "lr"),
        ({"fc": "LEAF as ReLU"}, '"LEAF as Tanh" there, "LEAF as ReLU" here'),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(base, child, settings, message):
    before = contents(child.folder)
    other = child_job(base, **settings)
    with pytest.raises(UserError, match="holds a run with other settings") as error:
        execute(other)
    assert message in str(error.value)
    assert contents(child.folder) == before


def test_the_second_process_in_a_folder_is_refused(base):
    with locked(base.folder), pytest.raises(UserError, match="Another process is running in"):
        execute(base)


def test_a_parent_that_was_altered_is_refused_by_name(tmp_path):
    parent = base_job(tmp_path, epochs=0, train="none")
    execute(parent)
    network = parent.folder / "network.safetensors"
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    with pytest.raises(UserError, match=r"network\.safetensors is missing, truncated or was altered"):
        execute(child_job(parent))


def test_an_unfinished_parent_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not finished"):
        execute(child_job(base_job(tmp_path)))


def test_other_images_in_a_run_begun_are_refused(tmp_path):
    job = base_job(tmp_path, epochs=0, train="none")
    execute(job)
    (job.folder / "done.json").unlink()
    config = job.folder / "config.json"
    content = load_json(config)
    save_json(config, {**content, "data": {**content["data"], "sha256": "0" * 64}})
    with pytest.raises(UserError, match="begun on another copy of MNIST-5k"):
        execute(job)


def test_a_full_disk_ends_the_run_in_a_sentence_and_the_run_goes_on_later(tmp_path, monkeypatch):
    job = base_job(tmp_path)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write .*: No space left on device"):
        execute(job)
    monkeypatch.undo()
    assert not list(job.folder.glob(".*part"))
    execute(job)
    untouched = base_job(tmp_path / "other")
    execute(untouched)
    assert untimed_rows(job.folder) == untimed_rows(untouched.folder)


@pytest.mark.parametrize(
    ("settings", "tuned"),
    [
        ({"cnn": "AHAF as SiLU", "fc": "AHAF as SiLU", "sharing": "neuron", "dspu4": True, "epochs": 1}, None),
        (
            {"cnn": "LEAF random", "fc": "F-Neuron ramp", "sharing": "channel", "epochs": 1, "optimizer": "rmsprop"},
            None,
        ),
        ({"cnn": "LEAF as SiLU", "fc": "LEAF as SiLU", "train": "activations", "epochs": 1}, 12),
        ({"epochs": 0, "train": "none"}, 0),
        ({"epochs": 1, "precision": "float64"}, None),
        ({"epochs": 1, "precision": "bf16", "cnn": "AHAF as ReLU"}, None),
    ],
)
def test_regimes_from_scratch(tmp_path, settings, tuned):
    job = base_job(tmp_path, **settings)
    execute(job)
    result = read_json(job.folder / "done.json")["result"]
    assert result["epochs"] == job.config.epochs
    parameters = sum(p.numel() for p in aafit.load_run(job.folder).parameters())
    assert result["tuned_parameters"] == (parameters if tuned is None else tuned)


def test_weights_at_the_start_do_not_depend_on_the_activations(tmp_path):
    tensors = []
    for name in ("ReLU", "LEAF random"):
        job = base_job(tmp_path / name, epochs=0, train="none", cnn=name, fc=name)
        execute(job)
        tensors.append(load_file(job.folder / "network.safetensors"))
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_a_child_goes_on_with_the_activations_it_shares_with_its_parent(child):
    grandchild = child_job(child, "grandchild", epochs=0, train="none")
    execute(grandchild)
    before, after = (load_file(job.folder / "network.safetensors") for job in (child, grandchild))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_family_with_its_size_in_the_text(base):
    texts = {"cnn": "Polynomial(degree=4) as ReLU", "fc": "PiecewiseLinear(segments=4) as ReLU"}
    job = child_job(base, "sized", interval=(-6.0, 6.0), sharing="channel", epochs=1, p24sl=False, **texts)
    with compiled_loops(False):
        execute(job)
        found = aafit.adaptive_activations(aafit.load_run(job.folder)).values()
    assert {one.text for one in found} == {*texts.values()}
    assert all(isinstance(one, IntervalActivation) and one.interval == (-6.0, 6.0) for one in found)
    same = read_finished(job.folder).facts()
    assert same["interval"] == (-6.0, 6.0)
    assert "knots" not in same


def no_constant(name):
    raise AssertionError(f"JSON has no {name}")


def test_a_run_that_diverges_ends_with_a_verdict(base):
    job = child_job(base, "diverging", epochs=4, lr=1e30)
    with pytest.raises(UserError, match="diverged: its loss is not finite after epoch 3"):
        execute(job)
    for file in job.folder.glob("*.json"):
        json.loads(file.read_text(), parse_constant=no_constant)
    result = read_json(job.folder / "done.json")["result"]
    assert result["diverged"] == 3
    assert result["last_accuracy"] is result["last_loss"] is result["best_test_accuracy"] is None
    rows = untimed_rows(job.folder)
    assert [row[0] for row in rows[1:]] == ["2", "3"]
    assert rows[-1][rows[0].index("test_accuracy")] == rows[-1][rows[0].index("test_loss")] == ""
    assert not {"nan", "inf", "-inf"} & {cell for row in rows for cell in row}
    assert not (job.folder / "network.safetensors").exists()
    # Neither does it start again, nor does anything go on from it.
    before = contents(job.folder)
    with pytest.raises(UserError, match="diverged"):
        execute(job)
    assert contents(job.folder) == before
    after = child_job(job, "after", epochs=1)
    with pytest.raises(UserError, match="diverged"):
        execute(after)
    table = write_report(base.folder.parents[1]).table.markdown()
    assert re.search(r"diverging.*\| diverged \|", table)


def authors_file(path, cnn):
    """A checkpoint as the authors' program writes it, of a LeNet-5 with these activations of the CNN layers."""
    net = build("LeNet-5", (1, 28, 28), 10, "ReLU", "ReLU")
    if cnn == "LEAF":
        net, _ = replace_activations(net, {at: LEAF.like("ReLU") for at in net.cnn_activations})
    torch.save({"net": net.state_dict(), "opts": []}, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"no checkpoint"), "base.bin is truncated, damaged, or not a file"),
        (lambda path: authors_file(path, "LEAF"), "base.bin has other activations .*: it has act1 LEAF, act2 LEAF"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_leaves_nothing_behind(tmp_path, spoil, sentence):
    file = tmp_path / "base.bin"
    spoil(file)
    job = base_job(tmp_path, epochs=0, train="none", init_from=str(file))
    with pytest.raises(UserError, match=sentence):
        execute(job)
    assert not contents(job.folder)
    authors_file(file, "ReLU")
    # A job of its own, as the command given again makes one.
    execute(base_job(tmp_path, epochs=0, train="none", init_from=str(file)))
    assert (job.folder / "done.json").exists()


def test_a_checkpoint_with_the_activations_that_the_settings_name(tmp_path):
    authors_file(tmp_path / "leaf.bin", "LEAF")
    settings = {"epochs": 0, "train": "none", "init_from": str(tmp_path / "leaf.bin")}
    with pytest.raises(UserError, match="has other activations"):
        execute(base_job(tmp_path / "ahaf", cnn="AHAF as ReLU", **settings))
    execute(base_job(tmp_path / "leaf", cnn="LEAF as ReLU", **settings))


@pytest.mark.parametrize("tensors", [{}, {"conv1.weight": torch.zeros(3)}], ids=["nothing", "another network"])
def test_a_network_that_is_not_that_of_the_settings_is_refused(tmp_path, tensors):
    job = base_job(tmp_path, epochs=0, train="none")
    execute(job)
    network = job.folder / "network.safetensors"
    save_file(tensors, network)
    done = load_json(job.folder / "done.json")
    save_json(job.folder / "done.json", {**done, "sha256": {**done["sha256"], network.name: sha256_of(network)}})
    with pytest.raises(UserError, match=r"network\.safetensors is not the network that .*config\.json describes"):
        aafit.load_run(job.folder)
