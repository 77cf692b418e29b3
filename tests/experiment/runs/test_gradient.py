"""Runs in lockstep: the same bits as on their own, and what is frozen below them computed once."""

import io
import shutil

import pytest
import torch
from rich.console import Console
from small_runs import base_job, child_job, read_json, untimed_rows

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.experiment.models import build
from aafit.experiment.runs import folder as run_folder
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.gradient import Lockstep
from aafit.experiment.runs.job import lockstep_group
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.schedule import run_suite
from aafit.networks.adaptive import train_only_activations
from aafit.networks.surgery import replace_activations
from aafit.training.tune import make_optimizers, train_epoch

MAKERS = {
    "F-Neuron as Tanh": (lambda: FNeuron.like("Tanh"), {}),
    "F-Neuron random": (lambda: FNeuron.random(generator=torch.Generator().manual_seed(3)), {"lr": 0.01}),
    "LEAF as Tanh": (lambda: LEAF.like("Tanh"), {"optimizer": "rmsprop", "p24sl": True}),
}


def network(maker):
    torch.manual_seed(0)
    net, _ = replace_activations(build("KerasNet", (3, 32, 32), 10, "SiLU", "SiLU"), {"act7": maker()})
    train_only_activations(net)
    return net.to(memory_format=torch.channels_last)


def batches(steps=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x_BCHW = torch.rand(16, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        yield x_BCHW, torch.randint(0, 10, (16,), generator=generator)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_networks_in_lockstep_get_the_bits_they_get_alone(precision):
    """With dropout below and above the activations that are tuned, for several epochs and optimizers."""
    together = [network(maker) for maker, _ in MAKERS.values()]
    optimizers = [make_optimizers(net, **options) for net, (_, options) in zip(together, MAKERS.values(), strict=True)]
    lockstep = Lockstep.of(together, next(batches())[0])
    assert lockstep is not None
    torch.manual_seed(7)
    found = [lockstep.train_epoch(together, batches(), optimizers, precision) for _ in range(2)]
    for at, (maker, options) in enumerate(MAKERS.values()):
        alone = network(maker)
        own = make_optimizers(alone, **options)
        torch.manual_seed(7)
        assert [train_epoch(alone, batches(), own, precision) for _ in range(2)] == [losses[at] for losses in found]
        ours, theirs = together[at].state_dict(), alone.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(together[0].act7.weight, FNeuron.like("Tanh").weight)


def test_what_is_frozen_runs_once_a_batch():
    nets = [network(maker) for maker, _ in MAKERS.values()]
    seen = []
    for net in nets:
        net.conv2.register_forward_hook(lambda *_: seen.append("conv2"))
        net.fc8.register_forward_hook(lambda *_: seen.append("fc8"))
    lockstep = Lockstep.of(nets, next(batches())[0])
    seen.clear()
    lockstep.train_epoch(nets, batches(), [make_optimizers(net) for net in nets])
    assert (seen.count("conv2"), seen.count("fc8")) == (3, 9)


def test_networks_with_nothing_in_common_do_not_go_lockstep():
    tanh = MAKERS["F-Neuron as Tanh"][0]
    one, other = network(tanh), network(tanh)
    x_BCHW, _ = next(batches())
    assert Lockstep.of([one, other], x_BCHW) is not None
    with torch.no_grad():
        other.conv1.bias[0] += 1e-6
    assert Lockstep.of([one, other], x_BCHW) is None
    relu, _ = replace_activations(build("KerasNet", (3, 32, 32), 10, "ReLU", "ReLU"), {"act7": tanh()})
    relu.load_state_dict(one.state_dict())
    assert Lockstep.of([one, relu], x_BCHW) is None
    everywhere, _ = replace_activations(one, {"act1": AHAF.like("SiLU")})
    assert Lockstep.of([one, everywhere], x_BCHW) is None


FC = {"cnn": "ReLU", "fc": "F-Neuron as Tanh", "train": "activations", "p24sl": False}
RANDOM = {**FC, "fc": "F-Neuron random", "optimizer": "rmsprop", "knots": 10}
LEAF_FC = {**FC, "fc": "LEAF as Tanh", "p24sl": True, "sharing": "neuron"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    job = base_job(tmp_path_factory.mktemp("base"), epochs=1)
    execute(job)
    return job


def jobs_of(base, folder):
    made = {"tanh": FC, "random": RANDOM, "leaf": LEAF_FC}
    jobs = [child_job(base, name, **{**settings, "epochs": 3}) for name, settings in made.items()]
    return [job.model_copy(update={"folder": folder / job.config.name / "seed42"}) for job in jobs]


@pytest.mark.parametrize(
    ("settings", "goes_along"),
    [
        (RANDOM, True),
        (LEAF_FC, True),
        ({**FC, "interval": (-2.0, 2.0), "lr": 0.1, "name": "other", "stage": "4"}, True),
        ({**FC, "epochs": 3}, False),
        ({**FC, "precision": "bf16"}, False),
        ({**FC, "augment": False}, False),
        ({**FC, "train": "all"}, False),
        ({**FC, "cnn": "SiLU"}, False),
        ({**FC, "cnn": "LEAF as ReLU"}, False),
        ({**FC, "method": "gauss-newton"}, False),
    ],
)
def test_who_goes_with_whom(base, settings, goes_along):
    settings = {"name": "child", **settings}
    one, other = child_job(base, **FC), child_job(base, **settings)
    assert lockstep_group(one) is not None
    assert (lockstep_group(other) == lockstep_group(one)) == goes_along


def test_neither_another_seed_nor_another_base_nor_a_base_goes_along(base):
    one = child_job(base, **FC)
    assert lockstep_group(base) is None
    assert lockstep_group(one.model_copy(update={"seed": 43})) != lockstep_group(one)
    assert lockstep_group(one.model_copy(update={"parent_hash": "another"})) != lockstep_group(one)


def suite_with(base, folder):
    """A suite of the jobs in a folder, where its base is done already."""
    shutil.copytree(base.folder, folder / "s" / "base" / "seed42")
    return Suite(name="s", runs=tuple(job.config for job in (base, *jobs_of(base, folder))))


def assert_same_results(base, folder, ours):
    for alone in jobs_of(base, folder / "alone"):
        execute(alone)
        together = ours / alone.config.name / "seed42"
        for name in ("network.safetensors", "activations.safetensors"):
            assert (alone.folder / name).read_bytes() == (together / name).read_bytes()
        assert untimed_rows(alone.folder) == untimed_rows(together)
        assert not (together / "state.pt").exists()


def test_a_stop_between_two_of_them(base, tmp_path, monkeypatch):
    """One has saved its second epoch, the others have not: they catch up, and all are bit-identical to single runs."""
    jobs = jobs_of(base, tmp_path / "in lockstep")
    save = run_folder.save_state

    class Stopped(BaseException):
        pass

    def save_once(path, state):
        save(path, state)
        if state["epoch"] == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_state", save_once)
        with pytest.raises(Stopped):
            execute(*jobs)
    execute(*jobs)
    assert_same_results(base, tmp_path, tmp_path / "in lockstep")
    # Nothing is left to do.
    execute(*jobs)


def test_a_suite_puts_them_in_one_process(base, tmp_path):
    suite = suite_with(base, tmp_path)
    summary = run_suite(suite, tmp_path, LocalEngine("cpu", 2), console=Console(file=io.StringIO()))
    assert summary.ok, [outcome.message for outcome in summary.runs]
    assert_same_results(base, tmp_path, tmp_path / "s")
    for run in suite.runs[1:]:
        folder = tmp_path / "s" / run.name / "seed42"
        assert read_json(folder / "config.json")["run"]["name"] == run.name
        assert (folder / "log.txt").read_text().count("train loss") == 3


def test_one_that_fails_does_not_take_the_others_along(base, tmp_path):
    suite = suite_with(base, tmp_path)
    with locked(tmp_path / "s" / "random" / "seed42"):
        summary = run_suite(suite, tmp_path, LocalEngine("cpu", 2), console=Console(file=io.StringIO()))
    ended = {outcome.job.config.name: str(outcome.status) for outcome in summary.runs}
    assert ended == {"base": "already done", "tanh": "done", "random": "failed", "leaf": "done"}
    assert "Another process is running" in summary.runs[2].message


def test_of_several_jobs_a_bad_one_is_named(base, tmp_path):
    jobs = jobs_of(base, tmp_path)
    with locked(jobs[1].folder), pytest.raises(UserError, match="random"):
        execute(*jobs)


def test_one_that_diverges_leaves_the_others_as_they_are_alone(base, tmp_path):
    diverging, random = (
        child_job(base, name, **{**settings, "epochs": 2})
        for name, settings in {
            "tanh": {**LEAF_FC, "sharing": "layer", "lr": 1e38, "p24sl": False},
            "random": RANDOM,
        }.items()
    )
    jobs = [
        job.model_copy(update={"folder": tmp_path / "both" / job.config.name / "seed42"}) for job in (diverging, random)
    ]
    alone = random.model_copy(update={"folder": tmp_path / "alone" / "random" / "seed42"})
    for job in (*jobs, alone):
        job.folder.mkdir(parents=True)
    with pytest.raises(UserError, match="diverged"):
        execute(*jobs)
    assert read_json(jobs[0].folder / "done.json")["result"]["diverged"] is not None
    execute(alone)
    assert untimed_rows(jobs[1].folder) == untimed_rows(alone.folder)
    names = ["network.safetensors", "activations.safetensors"]
    assert [(jobs[1].folder / name).read_bytes() for name in names] == [
        (alone.folder / name).read_bytes() for name in names
    ]
