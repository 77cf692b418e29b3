"""The check of a machine of a cluster, and the reports with which no job is started there."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_suite import SUITE

from aafit.errors import UserError
from aafit.experiment.runs.job import Job, jobs_of
from aafit.experiment.scheduling.engines.node import NodeReport, check_report, inspect_node, node_request, versions
from aafit.experiment.scheduling.schedule import open_engine

AAFIT, TORCH = versions()
FIT = NodeReport(aafit=AAFIT, torch=TORCH, sees_runs=True, missing="", device="a processor", token=False)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return list(jobs_of(SUITE, tmp_path / "runs").values())


def test_this_machine_is_fit(jobs: list[Job], tmp_path: Path) -> None:
    with node_request(jobs, "cpu") as request:
        node = inspect_node(request)
    assert check_report("here", (0, node.model_dump_json(), ""), tmp_path) == node
    assert node.sees_runs
    assert not list((tmp_path / "runs").iterdir()), "the request leaves nothing behind"


def test_a_runs_folder_that_is_not_there_or_another_of_the_same_name(jobs: list[Job]) -> None:
    with node_request(jobs, "cpu") as request:
        assert not inspect_node(request.model_copy(update={"content": "of another folder"})).sees_runs
    assert not inspect_node(request).sees_runs


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"aafit": "0.0.9"}, r"^node-1 has aafit 0\.0\.9, this machine .*: install the same version on both\.$"),
        ({"torch": "1.13"}, r"^node-1 has torch 1\.13, this machine .*: install the same version on both\.$"),
        (
            {"sees_runs": False},
            "^node-1 cannot read or write /runs: give a folder that all machines share",
        ),
        ({"missing": "CIFAR-10 is not there."}, r"^On node-1: CIFAR-10 is not there\.$"),
    ],
)
def test_a_machine_that_is_not_fit(changed: dict[str, object], sentence: str) -> None:
    answered = FIT.model_copy(update=changed).model_dump_json()
    with pytest.raises(UserError, match=sentence):
        check_report("node-1", (0, answered, ""), Path("/runs"))


def test_a_machine_without_the_package() -> None:
    complaint = "Traceback ...\nModuleNotFoundError: No module named 'aafit'"
    with pytest.raises(UserError, match=r"cannot be run on node-1 \(ModuleNotFoundError: No module named 'aafit'\)"):
        check_report("node-1", (1, "", complaint), Path("/runs"))


@pytest.mark.parametrize(
    ("engine", "address", "device", "sentence"),
    [
        ("rai", None, "cpu", "Unknown engine 'rai'. Did you mean 'ray'"),
        ("local", "10.0.0.1:6379", "cpu", "--address 10.0.0.1:6379 names a Ray cluster"),
        ("ray", "127.0.0.1:1", "cpu", "There is no Ray cluster at 127.0.0.1:1"),
        ("ray", "nonsense", "cpu", "There is no Ray cluster at nonsense"),
        ("ray", None, "cuda:1", "--device cuda:1 is not valid with --engine ray"),
        ("slurm", None, "cuda:1", "--device cuda:1 is not valid with --engine slurm"),
        ("slurm", None, "cpu", "There is no Slurm here: sbatch is not found"),
    ],
)
def test_an_engine_that_cannot_be_used(
    engine: str, address: str | None, device: str, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=sentence):
        open_engine(engine, device, address=address)


@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_disks_of_their_own_are_for_ray(engine: str) -> None:
    with pytest.raises(UserError, match="--own-disks is for the nodes of a Ray cluster"):
        open_engine(engine, own_disks=True)


def test_a_node_with_a_disk_of_its_own_is_fit() -> None:
    blind = FIT.model_copy(update={"sees_runs": False})
    assert check_report("node-1", (0, blind.model_dump_json(), ""), Path("/runs"), own_disks=True) == blind


def test_a_node_without_the_checkpoint_to_begin_from(jobs: list[Job], tmp_path: Path) -> None:
    with node_request(jobs, "cpu") as request:
        node = inspect_node(request.model_copy(update={"checkpoints": (tmp_path / "base.bin",)}))
    with pytest.raises(UserError, match=r"On node-1: The checkpoint .*base\.bin cannot be read\."):
        check_report("node-1", (0, node.model_dump_json(), ""), tmp_path)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_package_is_not_installed(engine: str, package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from aafit.experiment.scheduling.schedule import open_engine\n"
        "from aafit.errors import UserError\n"
        f"try: open_engine({engine!r})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"--engine {engine} needs the package {package}: pip install 'aafit[{engine}]'.\n", (
        done.stderr
    )
