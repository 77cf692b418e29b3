"""bf16 is spoken of where the processor has it, and what is said comes from timing both arithmetics."""

from io import StringIO

import pytest
from rich.console import Console

from aafit import devices
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.bf16 import time_bf16
from aafit.experiment.scheduling.options import RunOptions
from aafit.experiment.scheduling.plan import estimate

WITH, WITHOUT = "flags\t\t: fpu avx512f avx512_bf16\n", "model name\t: X\nflags\t\t: fpu avx512f avx512_bitalg\n"
BASE = RunConfig(name="base", epochs=100)
CHILD = RunConfig(
    name="child", parent="base", start_epoch=100, epochs=400, cnn="AHAF as ReLU", fc="AHAF as ReLU", train="activations"
)


@pytest.fixture
def processor(tmp_path, monkeypatch):
    def made(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(devices, "PROCESSORS", tmp_path / "cpuinfo")

    return made


def measure(run, device, lockstep):
    return 60.0 if run.precision == "float32" else 36.0


@pytest.mark.parametrize(
    ("text", "known"),
    [(WITH, True), ("flags : amx_bf16 amx_tile\n", True), (WITHOUT, False), ("", False), ("Features : bf16\n", False)],
)
def test_the_flags_of_the_processor_tell(processor, text, known):
    processor(text)
    assert devices.has_bf16_arithmetic() is known


def printed(runs_dir):
    console = Console(file=StringIO(), width=300)
    suite = Suite(name="mine", runs=(BASE, CHILD))
    console.print(estimate(suite, runs_dir, RunOptions(jobs=1, device="cpu"), measure=measure))
    return console.file.getvalue()


def test_the_plan_says_what_bf16_saves_where_the_processor_has_it(processor, tmp_path):
    processor(WITH)
    output = printed(tmp_path)
    assert "an epoch of base takes 36.00 s so instead of 60.00 s (timed now), by --precision bf16" in output
    # 500 epochs and the comparison of the child with its base, 0.4 of a minute saved in each
    assert "save about 3 h 20 min of the 8 h 21 min" in output
    processor(WITHOUT)
    assert "bf16" not in printed(tmp_path)


@pytest.mark.parametrize(
    ("run", "device", "seconds"),
    [
        (BASE.model_copy(update={"precision": "bf16"}), "cpu", 1.0),
        (BASE.model_copy(update={"epochs": 0, "train": "none"}), "cpu", 1.0),
        (BASE, "cuda", 1.0),
        (BASE, "cpu", 61.0),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_save(processor, run, device, seconds):
    processor(WITH)
    assert time_bf16([run], device, lambda run, *_: 60.0 if run.precision == "float32" else seconds) is None
