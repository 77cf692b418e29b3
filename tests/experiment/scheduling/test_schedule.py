"""The schedule, with a worker that writes run folders without training: order, failure, skipping, stopping."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_suite import BASE, CHILD, LONG, OTHER, SUITE, Fake, alive, local, run, statuses
from rich.console import Console
from small_runs import write_config

import aafit.experiment.scheduling.engines.local
import aafit.experiment.scheduling.schedule
from aafit.errors import UserError
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.process import locked
from aafit.experiment.runs.suite import RunConfig, Suite, load_suite
from aafit.experiment.scheduling.plan import Costs
from aafit.experiment.scheduling.progress import LiveTable, RunState, Status, overall
from aafit.experiment.scheduling.schedule import Summary, run_suite
from aafit.training.precision import processor_name


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(aafit.experiment.scheduling.schedule, "POLL_SECONDS", 0.01)
    # Reading it takes longer than all the rest.
    monkeypatch.setattr(aafit.experiment.scheduling.engines.local, "load_dataset", lambda *needs: None)
    return Fake(tmp_path)


def printed(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(summary)
    return console.export_text()


def test_all_runs_each_after_its_parent(fake: Fake) -> None:
    summary = fake()
    assert summary.ok
    assert statuses(summary) == dict.fromkeys(["base", "other", "child", "grandchild", "long"], "done")
    starts, ends = fake.events("start"), fake.events("end")
    for name, parent in (("child", "base"), ("grandchild", "child"), ("long", "base")):
        assert starts[name][0] > ends[parent][0]
    assert len({process for _, process in starts.values()}) == 5
    assert "hello from base threads 1 1" in (fake.runs / "fake/base/seed42/log.txt").read_text()
    lines = fake.output.getvalue().splitlines()
    assert len([line for line in lines if "started; log: " in line]) == 5
    assert len([line for line in lines if "done after" in line and "test accuracy 50.00%" in line]) == 5


def test_the_longest_chain_goes_first(fake: Fake) -> None:
    """A short run that a long one waits for goes before one of middle length, which goes last."""
    one, many = run("one", epochs=1), run("many", epochs=9)
    below = run("below", run("one", epochs=1), epochs=15)
    suite = Suite(name="fake", runs=(one, many, below))
    fake.prepare(suite, {})
    write_costs(fake, one)
    fake(suite, jobs=1)
    assert sorted(fake.events(), key=lambda name: fake.events()[name]) == ["one", "below", "many"]


def test_where_no_cost_is_known_the_chain_of_most_runs_goes_first(fake: Fake) -> None:
    first = run("first")
    second = run("second", first)
    suite = Suite(name="fake", runs=(run("alone"), run("another"), first, second, run("third", second)))
    fake.prepare(suite, {})
    fake(suite, jobs=1)
    assert sorted(fake.events(), key=lambda name: fake.events()[name]) == [
        "first",
        "second",
        "alone",
        "another",
        "third",
    ]


def write_costs(fake: Fake, measured: RunConfig) -> None:
    folder = fake.runs / "earlier" / "run" / "seed1"
    folder.mkdir(parents=True)
    write_config(folder, measured)
    header = "epoch,train_loss,test_loss,test_accuracy,seconds,evaluation_seconds"
    (folder / "metrics.csv").write_text(f"{header}\n1,1,1,0.5,3.0,1.0\n")


def test_runs_go_side_by_side_but_not_more_than_asked(fake: Fake) -> None:
    suite = Suite(name="fake", runs=tuple(run(f"run{number}", epochs=10) for number in range(5)))
    fake(suite, jobs=2)
    starts, ends = fake.events("start"), fake.events("end")
    concurrent = [sum(starts[b][0] <= starts[a][0] < ends[b][0] for b in starts) for a in starts]
    assert max(concurrent) == 2


def test_seeds(fake: Fake) -> None:
    suite = Suite(name="fake", runs=(BASE, CHILD), seeds=(1, 2))
    summary = fake(suite)
    assert [(state.job.config.name, state.job.seed) for state in summary.runs if state.status == "done"] == [
        ("base", 1),
        ("child", 1),
        ("base", 2),
        ("child", 2),
    ]


def test_finished_runs_are_skipped(fake: Fake) -> None:
    fake()
    (fake.folder / "events.txt").unlink()
    (fake.runs / "fake/child/seed42/done.json").unlink()
    assert statuses(fake()) == {
        **dict.fromkeys(["base", "other", "grandchild", "long"], "already done"),
        "child": "done",
    }
    assert set(fake.events()) == {"child"}


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("fail", "the reason in one sentence"),
        ("killed", "it was ended by SIGKILL (not enough memory?)."),
        ("silent", "it ended without a result."),
    ],
)
def test_a_failure_takes_along_only_what_comes_from_it(behaviour: str, why: str, fake: Fake) -> None:
    summary = fake(child=behaviour)
    assert statuses(summary) == {
        **dict.fromkeys(["base", "other", "long"], "done"),
        "child": "failed",
        "grandchild": "not run",
    }
    assert not summary.ok
    messages = {state.job.config.name: state.message for state in summary.runs if state.message}
    assert messages == {"child": why, "grandchild": "child failed."}
    text = printed(summary)
    assert f"child (seed 42) failed: {why} Log: {fake.runs / 'fake/child/seed42/log.txt'}" in text.replace("\n", "")
    assert "grandchild (seed 42) not run: child failed." in text
    assert "the same command runs what is missing" in text
    assert statuses(fake())["grandchild"] == "done"


def test_a_failed_base_is_named_for_all_below(fake: Fake) -> None:
    summary = fake(base="fail")
    messages = {state.job.config.name: state.message for state in summary.runs}
    assert messages["grandchild"] == messages["long"] == "base failed."


def test_a_worker_that_cannot_start(fake: Fake) -> None:
    summary = run_suite(
        Suite(name="fake", runs=(OTHER,)),
        fake.runs,
        local(1, ["/no/such"]),
        console=Console(file=fake.output),
    )
    assert statuses(summary) == {"other": "failed"}
    assert "cannot be started" in summary.runs[0].message


def test_other_settings_are_refused_before_anything_starts(fake: Fake) -> None:
    fake(Suite(name="fake", runs=(BASE, CHILD)))
    (fake.folder / "events.txt").unlink()
    longer = Suite(name="fake", runs=(OTHER, BASE, run("child", BASE, epochs=3)))
    with pytest.raises(UserError, match=r"child/seed42.*epochs: 1 there, 3 here.*--fresh.*--runs-dir"):
        fake(longer)
    assert fake.events() == {}
    assert statuses(fake(longer, fresh=True)) == dict.fromkeys(["other", "base", "child"], "done")
    assert len(list((fake.runs / "fake" / "child").glob("seed42.old-*/done.json"))) == 1


def test_fresh_moves_nothing_while_another_process_works_there(fake: Fake) -> None:
    fake()
    with locked(fake.runs / "fake" / "long" / "seed42"), pytest.raises(UserError, match="Another process"):
        fake(fresh=True)
    assert not list(fake.runs.glob("fake/*/seed42.old-*"))


def test_a_runs_folder_that_cannot_be_written(fake: Fake) -> None:
    fake.runs.write_text("a file in the place of the folder")
    with pytest.raises(UserError, match="Cannot write"):
        fake()
    assert fake.events() == {}


def test_missing_data_is_said_before_anything_starts(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aafit.experiment.scheduling.engines.local, "load_dataset", load_dataset)
    suite = Suite(name="fake", runs=(RunConfig(name="base", epochs=1),))
    with pytest.raises(UserError, match="CIFAR-10"):
        run_suite(suite, fake.runs, local(), data_dir=tmp_path / "gone", console=Console(file=fake.output))


def test_a_runs_folder_whose_name_looks_like_markup(fake: Fake) -> None:
    """Names of folders and runs are printed as they are."""
    fake.runs = fake.folder / "r[/b]"
    summary = fake(base="fail")
    assert str(fake.runs) in printed(summary).replace("\n", "")
    assert str(fake.runs) in fake.output.getvalue()


def in_background(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("behaviour", ["hang", "stubborn"])
def test_a_signal_stops_all_and_the_same_command_resumes(
    number: int, behaviour: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aafit.experiment.scheduling.schedule, "GRACE_SECONDS", 0.5)

    def ask() -> None:
        fake.wait_for("long", "child")
        os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    asking = in_background(ask)
    began = time.monotonic()
    summary = fake(long=behaviour, child=behaviour, other="")
    asking.join()
    assert time.monotonic() - began < 200  # the runs would take 600
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert summary.stopped
    assert statuses(summary)["base"] == "done"
    assert {statuses(summary)[name] for name in ("child", "grandchild", "long")} == {"stopped"}
    assert not any(alive(process) for _, process in fake.events().values())
    assert "The same command resumes" in printed(summary)
    assert fake().ok


def test_no_process_outlives_a_killed_scheduler(fake: Fake) -> None:
    fake.prepare(SUITE, {"base": "stubborn", "other": "stubborn"})
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from fake_suite import SUITE, local, run_suite\n"
        "run_suite(SUITE, pathlib.Path(sys.argv[2]), local())"
    )
    scheduler = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parents[2]), str(fake.runs)],
        stdout=subprocess.DEVNULL,
    )
    try:
        fake.wait_for("base", "other")
    finally:
        scheduler.kill()
        scheduler.wait()
    end = time.monotonic() + 60
    while set(fake.events("orphaned")) != {"base", "other"}:
        assert time.monotonic() < end
        time.sleep(0.02)


def states_of(suite: Suite, runs: Path) -> dict[tuple[str, int], RunState]:
    return {key: RunState(job) for key, job in jobs_of(suite, runs).items()}


def test_live_table(fake: Fake) -> None:
    fake()
    states = states_of(SUITE, fake.runs)
    states["base", 42].status = Status.DONE
    states["child", 42].status = Status.FAILED
    states["long", 42].status = Status.RUNNING
    for state in states.values():
        state.refresh()
    console = Console(file=io.StringIO(), width=100, height=40, record=True)
    console.print(LiveTable(console).table(states, Costs.measured(fake.runs, processor_name()), 2))
    text = console.export_text()
    assert "21/21" in text
    assert "50.00%" in text
    assert "2 waiting, 1 running, 1 done, 1 failed" in text
    assert "left" in text


def test_live_table_of_more_runs_than_the_screen_is_high(fake: Fake) -> None:
    states = states_of(load_suite("paper").with_seeds([1, 2, 3]), fake.runs)
    states["base-silu", 2].status = Status.RUNNING
    console = Console(file=io.StringIO(), width=100, height=30, record=True)
    console.print(LiveTable(console).table(states, Costs(), 2))
    text = console.export_text()
    assert text.count("base-silu") == 1
    assert "47 waiting, 1 running" in text
    assert len(text.splitlines()) < 30


def test_time_left_needs_something_measured(fake: Fake) -> None:
    states = states_of(SUITE, fake.runs)
    costs = Costs()
    assert "left" not in overall(states, costs, 2)
    costs.add(BASE, 10.0)
    assert "left" in overall(states, costs, 2)
    states["long", 42].epoch = LONG.end_epoch - 2
    states["long", 42].status = Status.RUNNING
    assert states["long", 42].seconds_left(costs) == 20.0
    # An identification has a row before its first step, and others.
    states["long", 42].epoch = LONG.end_epoch + 2
    assert states["long", 42].seconds_left(costs) == 0.0
    assert states["long", 42].epochs == f"{LONG.end_epoch + 2}/{LONG.end_epoch + 2}"


def test_a_live_terminal(fake: Fake) -> None:
    console = Console(file=fake.output, force_terminal=True, width=100, height=40)
    summary = run_suite(SUITE, fake.runs, local(), console=console)
    assert summary.ok
    assert "test accuracy" in fake.output.getvalue()
