"""What processes take from their environment where they start: AAFIT_COMPILE."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from small_runs import ROOT, base_job

from aafit.activations import LEAF
from aafit.experiment.cli.main import main


class StudyConfig:
    """Has no compiled loop, and counts how often one is asked for."""

    def __init__(self) -> None:
        self.times = 0

    def run(self, *_: object) -> None:
        self.times += 1


def apply() -> None:
    LEAF.like("Tanh")(torch.zeros(1 << 15))


@pytest.mark.parametrize(("told", "times"), [({}, 1), ({"AAFIT_COMPILE": "1"}, 1), ({"AAFIT_COMPILE": "0"}, 0)])
def test_the_command_line_compiles_as_told(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], times: int) -> None:
    compiler = StudyConfig()
    monkeypatch.setattr("aafit.activations.compiled.loop_cache", lambda device: compiler)
    monkeypatch.delenv("AAFIT_COMPILE", raising=False)
    monkeypatch.setitem(main.commands, "apply", click.Command("apply", callback=apply))
    CliRunner(env=told).invoke(main, ["apply"], catch_exceptions=False)
    assert compiler.times == times
    # The library itself does not look at it.
    monkeypatch.setenv("AAFIT_COMPILE", "0")
    apply()
    assert compiler.times == times + 1


WORKER = """
import sys
import torch
from aafit.activations import LEAF, compiled
from aafit.experiment.scheduling import worker

def execute(*jobs, patience):
    compiled.loop_cache = lambda device: sys.exit("asked for a compiler")
    LEAF.like("Tanh")(torch.zeros(1 << 15))

worker.execute = execute
sys.exit(worker.main())
"""


@pytest.mark.parametrize(("told", "said"), [("1", "asked for a compiler"), ("0", "")])
def test_a_worker_compiles_as_told(tmp_path: Path, told: str, said: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AAFIT_COMPILE": told}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"[{base_job(tmp_path).model_dump_json()}]\n")
        process.stdin.flush()
        assert process.stderr.read().strip() == said
