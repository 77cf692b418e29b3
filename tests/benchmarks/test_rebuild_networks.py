"""Networks rebuilt from an archive of runs that left them out."""

import shutil

import pytest
from click.testing import CliRunner
from small_runs import base_job, child_job, read_json

from aafit.experiment.runs.documents import check_finished
from aafit.experiment.runs.execute import execute
from benchmarks import rebuild_networks


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A base, a run that tuned its activations, and one that went on from that."""
    runs = tmp_path_factory.mktemp("runs")
    base = base_job(runs / "tiny", epochs=1)
    child = child_job(base, epochs=1, lr=0.05)
    for job in (base, child, child_job(child, "grandchild", epochs=1)):
        execute(job)
    return runs


@pytest.fixture
def archived(finished, tmp_path):
    """The same without optimizers' states, and without the networks of all but the base."""
    runs = shutil.copytree(finished, tmp_path / "runs")
    for folder in runs.glob("tiny/*/seed42"):
        (folder / "optimizer.pt").unlink()
        if folder.parent.name != "base":
            (folder / "network.safetensors").unlink()
    return runs


def rebuilt(runs):
    return CliRunner().invoke(rebuild_networks.main, ["--runs-dir", str(runs), "--suite", "tiny"])


def test_they_have_the_bytes_that_they_had(finished, archived):
    done = rebuilt(archived)
    assert done.exit_code == 0, done.output
    result = [line.split("/")[-3:] for line in done.output.splitlines()]
    assert [name for name, _, what in result if "rebuilt" in what] == ["child", "grandchild"]
    assert [name for name, _, what in result if "done.json" in what] == ["base", "child", "grandchild"]
    for name in ("base", "child", "grandchild"):
        before, after = (runs / "tiny" / name / "seed42" for runs in (finished, archived))
        check_finished(after)
        assert (after / "network.safetensors").read_bytes() == (before / "network.safetensors").read_bytes()
        there = read_json(before / "done.json")["sha256"]
        assert read_json(after / "done.json")["sha256"] == {k: v for k, v in there.items() if k != "optimizer.pt"}
    assert rebuilt(archived).output == ""


def _no_activations(runs):
    (runs / "tiny/child/seed42/activations.safetensors").unlink()


def _no_base(runs):
    (runs / "tiny/base/seed42/network.safetensors").unlink()


def _others_activations(runs):
    shutil.copy(*(runs / f"tiny/{name}/seed42/activations.safetensors" for name in ("grandchild", "child")))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_no_activations, "child/seed42/activations.safetensors is missing, truncated or was altered"),
        (_no_base, "base/seed42 has no network.safetensors, and no base"),
        (_no_base, "base/seed42/network.safetensors is missing"),
        (_others_activations, "child/seed42/activations.safetensors is missing, truncated or was altered"),
    ],
)
def test_what_is_not_the_runs_network_is_refused(archived, fault, said):
    fault(archived)
    done = rebuilt(archived)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not [path.name for path in (archived / "tiny/child/seed42").glob("network*")]
