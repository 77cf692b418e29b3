"""Engines of other machines: two Ray nodes on this one, and submitit's local executor in the place of Slurm."""

import io
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_suite import SUITE, WORKER, Fake, alive, run, statuses
from rich.console import Console

import aafit.experiment.scheduling.schedule
from aafit.experiment.runs.documents import ACTIVATIONS, METRICS, NETWORK, STATE, check_finished
from aafit.experiment.runs.job import Job, jobs_of
from aafit.experiment.runs.metrics import read_rows
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines import process, remote
from aafit.experiment.scheduling.engines.engine import Engine
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.schedule import Summary, run_suite

MISSING = [name for name in ("ray", "submitit") if find_spec(name) is None]

# Ray opens sockets and files that it leaves to the collector.
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "include_log_monitor": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
    cluster.small = small
    cluster.second = cluster.add_node(**small)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(aafit.experiment.scheduling.schedule, "POLL_SECONDS", 0.02)
    return Fake(tmp_path)


def on_ray(fake: Fake, cluster: object) -> Engine:
    from aafit.experiment.scheduling.engines.ray import RayEngine

    return RayEngine(cluster.address, "cpu", command=WORKER)


def on_slurm(fake: Fake, cluster: object) -> Engine:
    from aafit.experiment.scheduling.engines.slurm import SlurmEngine

    return SlurmEngine("cpu", 2, WORKER, cluster="local")


@pytest.fixture(params=[on_ray])
def engine(request: pytest.FixtureRequest, fake: Fake) -> Iterator[Engine]:
    opened = request.param(fake, request.getfixturevalue("cluster") if request.param is on_ray else None)
    opened.slot.environment["FAKE"] = str(fake.folder)
    opened.check = lambda jobs: None  # reading the data takes longer than all the rest
    yield opened
    opened.close()


@pytest.mark.parametrize("engine", [on_ray, on_slurm], indirect=True)
def test_all_runs_each_after_its_parent(engine: Engine, fake: Fake) -> None:
    assert statuses(fake(engine=engine)) == dict.fromkeys(["base", "other", "child", "grandchild", "long"], "done")
    starts, ends = fake.events("start"), fake.events("end")
    for name, parent in (("child", "base"), ("grandchild", "child"), ("long", "base")):
        assert starts[name][0] > ends[parent][0]
    log = (fake.runs / "fake/base/seed42/log.txt").read_text()
    assert "hello from base threads 1 1\nGPUs \n" in log, "a single thread, and no GPU"


def test_a_machine_that_dies_is_no_fault_of_the_run_and_an_error_is(
    engine: Engine, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_DEATHS", 3)
    behaviour = {"base": "the same once", "other": "fail", "child": "killed", "long": "kills what is under it"}
    summary = fake(engine=engine, **behaviour)
    wanted = {"base": "done", "other": "failed", "child": "failed", "grandchild": "not run", "long": "failed"}
    assert statuses(summary) == wanted
    starts = [name for name, what, *_ in fake.all_events() if what == "start"]
    assert {name: starts.count(name) for name in behaviour} == {"base": 2, "other": 1, "child": 1, "long": 3}
    messages = {state.job.config.name: state.message for state in summary.runs}
    assert messages["other"] == "the reason in one sentence"
    assert messages["child"] == "it was ended by SIGKILL (not enough memory?)."
    assert "its machine died 3 times before an epoch was done" in messages["long"]


def test_a_signal_stops_all_and_the_same_command_resumes(engine: Engine, fake: Fake) -> None:
    def ask() -> None:
        fake.wait_for("long")
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    summary = fake(engine=engine, long="hang")
    asking.join()
    assert summary.stopped
    assert statuses(summary)["long"] == "stopped"
    assert not any(alive(process) for _, process in fake.events().values())
    assert fake(engine=engine).ok


def test_a_node_that_is_lost_and_another_that_comes(cluster: object, fake: Fake) -> None:
    engine = on_ray(fake, cluster)
    engine.slot.environment["FAKE"] = str(fake.folder)
    engine.check = lambda jobs: None

    summaries: list[Summary] = []
    running = threading.Thread(target=lambda: summaries.append(fake(engine=engine, base="waits", other="waits")))
    running.start()
    try:
        fake.wait_for("base", "other")
        cluster.remove_node(cluster.second, allow_graceful=False)
        cluster.second = cluster.add_node(**cluster.small)
    finally:
        (fake.folder / "go").touch()
        running.join()
        engine.close()
    assert summaries[0].ok
    starts = [name for name, what, *_ in fake.all_events() if what == "start"]
    assert starts.count("base") + starts.count("other") == 3, "one of the two was on the lost node"


def test_nodes_with_their_own_disks(cluster: object, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from aafit.experiment.scheduling.engines.ray import RayEngine

    monkeypatch.setattr(process, "SYNC_SECONDS", 0.2)
    engine = RayEngine(cluster.address, "cpu", command=WORKER, own_disks=True)
    engine.slot.environment["FAKE"] = str(fake.folder)
    engine.check = lambda jobs: None
    try:
        summary = fake(engine=engine, long="dies after an epoch", other="fail")
        with locked(fake.runs / "fake/other/seed42"):
            held = fake(engine=engine)
    finally:
        engine.close()
    assert statuses(summary) == {**dict.fromkeys(["base", "child", "grandchild", "long"], "done"), "other": "failed"}
    for job in (state.job for state in summary.runs):
        log = (job.folder / "log.txt").read_text()
        assert f"hello from {job.config.name}" in log
        assert f"in {fake.runs}" not in log, "it is done on the node's own disk"
    long = fake.runs / "fake/long/seed42"
    assert "'state.pt'" in (long / "log.txt").read_text(), "what was brought back is taken along again"
    assert len((long / "metrics.csv").read_text().splitlines()) == 22
    assert not (long / "state.pt").exists()
    places = re.findall(r"in (/\S+)/fake/long/seed42", (long / "log.txt").read_text())
    assert len(places) == 2
    assert not Path(places[-1]).exists(), "nothing is left on the node"
    refused = {state.job.config.name: state.message for state in held.runs}
    assert "Another process is running in" in refused["other"]


SMALL = {"network": "LeNet-5", "train_images": 64}
REAL_BASE = run("base", epochs=40, **SMALL)
REAL = Suite(name="real", runs=(REAL_BASE, run("child", REAL_BASE, epochs=2, **SMALL)))


def kill_what_is_under(mark: str) -> int:
    """kill -9 of the parents of all processes that have this in their environment; how many there were."""
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                os.kill(int((folder / "stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
                killed += 1
    return killed


def result_of(job: Job) -> tuple[list[str | None], list[dict[str, str]]]:
    """The digests of the networks of a finished run, and its metrics without what a clock says."""
    rows = [
        {name: cell for name, cell in row.items() if "seconds" not in name} for row in read_rows(job.folder / METRICS)
    ]
    sha256 = check_finished(job.folder).sha256
    return [sha256.get(name) for name in (NETWORK, ACTIVATIONS)], rows


def test_real_runs_on_their_own_disks_are_bit_identical_to_local_ones(
    cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Ray worker of the first run is killed: the run resumes from the files that were copied back."""
    from aafit.experiment.scheduling.engines.ray import RayEngine

    monkeypatch.setattr(process, "SYNC_SECONDS", 0.2)
    monkeypatch.setenv("AAFIT_COMPILE", "0")  # the compiler takes longer than the runs
    console = Console(file=io.StringIO())
    there, here = jobs_of(REAL, tmp_path / "there"), jobs_of(REAL, tmp_path / "here")
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and not (there["base", 42].folder / STATE).exists():
            time.sleep(0.02)
        killed.append(kill_what_is_under(f"AAFIT_TEST={tmp_path}"))

    engine = RayEngine(cluster.address, "cpu", own_disks=True)
    engine.slot.environment.update(AAFIT_COMPILE="0", AAFIT_TEST=str(tmp_path))
    killing = threading.Thread(target=kill)
    killing.start()
    try:
        on_ray = run_suite(REAL, tmp_path / "there", engine, console=console)
    finally:
        over.set()
        killing.join()
        engine.close()
    assert on_ray.ok, [state.message for state in on_ray.runs]
    assert killed == [1], "it was under way"
    log = (there["base", 42].folder / "log.txt").read_text()
    assert log.count("parameters to train for") == 2
    assert log.count("epoch 0: ") == 1, "the second try does not begin anew"
    assert run_suite(REAL, tmp_path / "here", LocalEngine("cpu", 2), console=console).ok
    for key, job in there.items():
        assert result_of(job) == result_of(here[key]), key


def test_a_cluster_that_is_fit(cluster: object, fake: Fake) -> None:
    from aafit.experiment.scheduling.engines.ray import RayEngine

    fit = RayEngine(cluster.address, "cpu")
    try:
        jobs = list(jobs_of(SUITE, fake.runs).values())
        fit.check(jobs)
        assert fit.slots == 2
    finally:
        fit.close()
