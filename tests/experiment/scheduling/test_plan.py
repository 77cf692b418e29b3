"""Costs and plans: what is measured, what follows from it for order and time, and the dry run."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_runs import write_config, write_done

from aafit.errors import UserError
from aafit.experiment.runs.job import Job, jobs_of
from aafit.experiment.runs.suite import RunConfig, Suite, load_suite
from aafit.experiment.scheduling.plan import (
    COMPARISON_EPOCHS,
    START_SECONDS,
    Costs,
    Key,
    clock,
    critical_paths,
    estimate,
    time_bf16,
    trained_parameters,
    wall_seconds,
)
from aafit.training import precision
from aafit.training.precision import processor_name

HERE = processor_name()
HEADER = "epoch,train_loss,test_loss,test_accuracy,seconds,evaluation_seconds\n"

A, B, C, D = ("a", 1), ("b", 1), ("c", 1), ("d", 1)


def write_run(job: Job, seconds: list[float], done: bool = False, device: str = HERE) -> None:
    job.folder.mkdir(parents=True)
    write_config(job.folder, job.config, job.settings_hash, device)
    rows = [
        f"{job.config.start_epoch},,1,0.5,,1.0",
        *(f"{job.config.start_epoch + k},1,1,0.5,{s},1.0" for k, s in enumerate(seconds, 1)),
    ]
    (job.folder / "metrics.csv").write_text(HEADER + "\n".join(rows) + "\n")
    if done:
        write_done(job.folder, job.settings_hash)


@pytest.mark.parametrize(
    ("seconds", "parents", "expected"),
    [
        ({A: 1.0}, {A: None}, {A: 1.0}),
        ({A: 1.0, B: 2.0, C: 4.0}, {A: None, B: A, C: A}, {A: 5.0, B: 2.0, C: 4.0}),
        ({A: 1.0, B: 2.0, C: 4.0}, {A: None, B: A, C: B}, {A: 7.0, B: 6.0, C: 4.0}),
        ({B: 2.0}, {A: None, B: A}, {B: 2.0}),  # the parent is finished
    ],
)
def test_critical_paths(seconds: dict[Key, float], parents: dict[Key, Key | None], expected: dict[Key, float]) -> None:
    assert critical_paths(seconds, parents) == expected


@pytest.mark.parametrize(
    ("seconds", "parents", "slots", "running", "expected"),
    [
        ({}, {}, 2, [], 0.0),
        ({A: 1.0, B: 2.0, C: 3.0}, {A: None, B: None, C: None}, 1, [], 6.0),
        ({A: 1.0, B: 2.0, C: 3.0}, {A: None, B: None, C: None}, 2, [], 3.0),
        ({A: 1.0, B: 2.0, C: 3.0}, {A: None, B: A, C: B}, 8, [], 6.0),
        ({A: 2.0, B: 2.0, C: 4.0, D: 1.0}, {A: None, B: None, C: B, D: A}, 2, [], 6.0),
        # The long one would go first; that it has to wait for those running costs what is left of the shorter.
        ({A: 1.0, B: 2.0, C: 9.0}, {A: None, B: None, C: None}, 2, [A, B], 10.0),
    ],
)
def test_wall_seconds(
    seconds: dict[Key, float], parents: dict[Key, Key | None], slots: int, running: list[Key], expected: float
) -> None:
    assert wall_seconds(seconds, parents, slots, running) == expected


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 9)), min_size=1, max_size=10), st.integers(1, 4))
def test_wall_seconds_stay_within_what_is_possible(runs: list[tuple[float, int]], slots: int) -> None:
    seconds: dict[Key, float] = {("run", number): length for number, (length, _) in enumerate(runs)}
    parents: dict[Key, Key | None] = {
        ("run", number): ("run", parent) if parent < number else None for number, (_, parent) in enumerate(runs)
    }
    total, longest = sum(seconds.values()), max(critical_paths(seconds, parents).values())
    assert max(longest, total / slots) <= wall_seconds(seconds, parents, slots) * (1 + 1e-9)
    assert wall_seconds(seconds, parents, slots) <= total * (1 + 1e-9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1_250_858),
        ({"train": "none", "epochs": 0}, 0),
        ({"cnn": "AHAF as ReLU", "fc": "AHAF as ReLU", "train": "activations"}, 5 * 2),
        ({"cnn": "LEAF as SiLU", "fc": "LEAF as Tanh", "train": "activations"}, 5 * 4),
        ({"fc": "F-Neuron as Tanh", "train": "activations"}, 18),
        ({"fc": "F-Neuron random", "train": "activations", "knots": 6}, 6),
        ({"fc": "AHAF as ReLU", "train": "activations", "sharing": "neuron"}, 2 * 512),
        ({"cnn": "AHAF as ReLU", "train": "activations", "sharing": "channel"}, 2 * (32 + 32 + 64 + 64)),
        ({"fc": "AHAF as SiLU"}, 1_250_858 + 2),
        ({"network": "LeNet-5", "dataset": "Fashion-MNIST", "cnn": "LEAF as ReLU", "train": "activations"}, 2 * 4),
    ],
    ids=str,
)
def test_trained_parameters(settings: dict[str, object], expected: int) -> None:
    assert trained_parameters(RunConfig.checked({"name": "x", "epochs": 1, **settings})) == expected


def test_costs_are_measured_by_kind(tmp_path: Path) -> None:
    jobs = jobs_of(load_suite("demo"), tmp_path)
    write_run(jobs["base-relu", 42], [1.0, 2.0, 9.0])
    write_run(jobs["relu-leaf-relu", 42], [4.0])
    write_run(jobs["silu-leaf-silu", 42], [60.0], device="a GPU")
    write_run(jobs["relu-ahaf-relu", 42], [])
    costs = Costs.measured(tmp_path, HERE)
    assert costs.of(jobs["base-relu", 42].config) == 3.0  # the median of the epochs, with a second of evaluation each
    assert costs.of(jobs["silu-leaf-relu", 42].config) == 5.0  # LEAF everywhere, whatever the start
    assert costs.of(jobs["relu-ahaf-relu", 42].config) is None
    assert costs.guess(jobs["relu-ahaf-relu", 42].config) == 4.0
    assert Costs.measured(tmp_path, "a GPU").of(jobs["silu-leaf-relu", 42].config) == 61.0
    assert Costs.measured(tmp_path / "gone", HERE).guess(jobs["base-relu", 42].config) is None


def test_damaged_folders_do_not_stop_a_plan(tmp_path: Path) -> None:
    for number, (config, metrics) in enumerate([("{", ""), ("{}", "x"), ('{"run": 3}', "epoch\n")]):
        folder = tmp_path / "other" / "run" / f"seed{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
        (folder / "metrics.csv").write_text(metrics)
    assert Costs.measured(tmp_path, HERE).guess(RunConfig(name="x", epochs=1)) is None


def printed(thing: object, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(thing)
    return console.export_text()


@pytest.fixture
def suite() -> Suite:
    return load_suite("paper").only(["stage2"])


def test_dry_run_with_nothing_measured(suite: Suite, tmp_path: Path) -> None:
    plan = estimate(suite, tmp_path / "runs", jobs=2, device="cpu")
    assert [planned.job.config.name for planned in plan.runs] == ["base-relu", "relu-ahaf-relu", "relu-leaf-relu"]
    assert [planned.epoch_seconds for planned in plan.runs] == [None] * 3
    assert "3 of 3 runs to do" in plan.sentence()
    assert "Not included: 3 runs" in plan.sentence()
    assert not (tmp_path / "runs").exists()


def test_dry_run_with_a_part_done(suite: Suite, tmp_path: Path) -> None:
    jobs = jobs_of(suite, tmp_path)
    base, ahaf, leaf = (jobs[name, 42] for name in ("base-relu", "relu-ahaf-relu", "relu-leaf-relu"))
    write_run(base, [1.0] * base.config.epochs, done=True)
    write_run(ahaf, [9.0])
    timed: list[tuple[str, str, int]] = []

    def measure(run: RunConfig, device: str, lockstep: int) -> float:
        timed.append((run.name, device, lockstep))
        return 100.0

    plan = estimate(suite, tmp_path, jobs=2, device="cpu", measure=measure)
    assert timed == [("relu-leaf-relu", "cpu", 1)]
    assert [planned.epochs_left for planned in plan.runs] == [0, ahaf.config.epochs - 1, leaf.config.epochs]
    assert [planned.source for planned in plan.runs] == ["measured", "measured", "timed now"]
    assert plan.wall_seconds == START_SECONDS + 100.0 * (leaf.config.epochs + COMPARISON_EPOCHS)
    text = printed(plan)
    assert "LEAF as ReLU" in text
    assert "timed now" in text
    assert "2 of 3 runs to do" in text
    again = estimate(suite, tmp_path, jobs=1, device="cpu", fresh=True, measure=measure)
    assert [planned.epochs_left for planned in again.runs] == [job.config.epochs for job in (base, ahaf, leaf)]


def test_dry_run_times_runs_in_lockstep_as_such(tmp_path: Path) -> None:
    timed: list[tuple[str, int]] = []

    def measure(run: RunConfig, device: str, lockstep: int) -> float:
        timed.append((run.name, lockstep))
        return 10.0 / lockstep

    plan = estimate(load_suite("cpu"), tmp_path, jobs=2, device="cpu", measure=measure)
    assert [(name, together) for name, together in timed if "fneuron" in name] == [
        ("relu-fneuron-tanh", 2),
        ("silu-fneuron-tanh", 2),
    ]
    assert {together for name, together in timed if "fneuron" not in name} == {1}
    costs = {planned.job.config.name: planned.epoch_seconds for planned in plan.runs}
    assert (costs["relu-fneuron-random"], costs["relu-leaf-tanh"]) == (5.0, 10.0)


def test_dry_run_refuses_what_the_run_would(suite: Suite, tmp_path: Path) -> None:
    write_run(jobs_of(suite, tmp_path)["base-relu", 42], [1.0])
    with pytest.raises(UserError, match="epochs:"):
        estimate(suite.scaled(2), tmp_path, jobs=1, device="cpu")
    with pytest.raises(UserError, match=r"number of --jobs .* got 0"):
        estimate(suite, tmp_path, jobs=0, device="cpu")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3599, "60 min"), (5400, "1 h 30 min"), (36_300, "10 h 05 min")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


WITH, WITHOUT = "flags\t\t: fpu avx512f avx512_bf16\n", "model name\t: X\nflags\t\t: fpu avx512f avx512_bitalg\n"
BASE = RunConfig(name="base", epochs=100)
CHILD = RunConfig(
    name="child", parent="base", start_epoch=100, epochs=400, cnn="AHAF as ReLU", fc="AHAF as ReLU", train="activations"
)


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the system reports of its processor."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "PROCESSORS", file)
    return lambda text: file.write_text(text)


@pytest.mark.parametrize(
    ("text", "known"),
    [(WITH, True), ("flags : amx_bf16 amx_tile\n", True), (WITHOUT, False), ("", False), ("Features : bf16\n", False)],
)
def test_bf16_arithmetic_is_read_from_the_flags_of_the_processor(
    processor: Callable[[str], None], text: str, known: bool
) -> None:
    processor(text)
    assert precision.has_bf16_arithmetic() is known


def measure(run: RunConfig, device: str, lockstep: int) -> float:
    return 60.0 if run.precision == "float32" else 36.0


def test_the_plan_reports_what_bf16_saves_on_a_processor_that_has_it(
    processor: Callable[[str], None], tmp_path: Path
) -> None:
    def plan() -> str:
        suite = Suite(name="mine", runs=(BASE, CHILD))
        return printed(estimate(suite, tmp_path / "runs", jobs=1, device="cpu", measure=measure), 300)

    processor(WITH)
    assert "with --precision bf16 an epoch of base takes 36.00 s instead of 60.00 s (timed now)" in plan()
    # 500 epochs and the comparison of the child with its base, 0.4 of a minute saved in each
    assert "save about 3 h 20 min of the 8 h 21 min" in plan()
    processor(WITHOUT)
    assert "bf16" not in plan()


@pytest.mark.parametrize(
    ("run", "device", "seconds"),
    [
        (BASE.model_copy(update={"precision": "bf16"}), "cpu", 1.0),
        (BASE.model_copy(update={"epochs": 0, "train": "none"}), "cpu", 1.0),
        (BASE, "cuda", 1.0),
        (BASE, "cpu", 61.0),
    ],
)
def test_bf16_is_not_mentioned_where_it_saves_nothing(
    processor: Callable[[str], None], run: RunConfig, device: str, seconds: float
) -> None:
    processor(WITH)
    assert time_bf16([run], device, lambda run, *_: 60.0 if run.precision == "float32" else seconds) is None
