"""The command `aafit study`: on a program of one's own, on a finished run, and what a user can do wrong."""

import pytest
from click.testing import CliRunner
from small_runs import base_job

from aafit.experiment.cli.main import main
from aafit.experiment.runs.execute import execute

PROGRAM = """
import torch
from study_helpers import base, batches
def network(): return base()
def fit(): return batches(512)
def more(): return batches(768)
number = 3
class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = base()
    def forward(self, x):
        return {"scores": self.net(x)}
def scores(out): return out["scores"]
"""


def study(*arguments):
    return CliRunner().invoke(main, ["study", *map(str, arguments)])


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "own_program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_program_of_ones_own(program):
    options = ["--replace", "act1=LEAF as ReLU", "--replace", "act2=AHAF as SiLU", "--steps", "1", "--samples", "32"]
    done = study(
        "own_program:network",
        "own_program:fit",
        "--heldout",
        "own_program:more",
        *options,
        "--report",
        "a.html",
        "--figure",
        "forms.pdf",
    )
    assert done.exit_code == 0, done.output
    assert "\n2 activations (ReLU) were replaced by" in done.output
    assert done.output.splitlines()[-2:] == ["a.html", "forms.pdf"]
    assert (program / "forms.pdf").read_bytes().startswith(b"%PDF")
    assert "256 samples are fitted, 256 are held out" in done.output
    assert (program / "a.html").exists()


def test_a_program_as_a_file(tmp_path, monkeypatch):
    """It is found from any folder, and imports the files next to it."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "in_a_file.py").write_text("import next_to_it\n" + PROGRAM)
    (folder / "next_to_it.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = "../program/in_a_file.py"
    done = study(
        f"{file}:network",
        f"{file}:fit",
        "--replace",
        "act2=AHAF as SiLU",
        "--steps",
        "0",
        "--samples",
        "32",
        "--report",
        "new/a.html",
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere/new/a.html").exists()


def test_a_network_that_returns_more_than_a_tensor(program):
    options = ["--replace", "net.act2=AHAF as SiLU", "--steps", "1", "--samples", "32", "--report", "a.html"]
    done = study("own_program:Wrapped", "own_program:fit", "--output", "own_program:scores", *options)
    assert done.exit_code == 0, done.output
    assert "256 samples are fitted, 0 are held out" in done.output


def test_a_finished_run(tmp_path):
    job = base_job(tmp_path, epochs=1, holdout=60)
    execute(job)
    page = tmp_path / "run.html"
    done = study(job.folder, "--replace", "act3=AHAF as SiLU", "--steps", "1", "--samples", "32", "--report", page)
    assert done.exit_code == 0, done.output
    assert "60 samples are fitted, 1000 are held out" in done.output
    assert page.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["own_program"], "own_program is not the folder of a run, so batches are needed"),
        (["own_program", "own_program:fit"], "own_program is neither the folder of a run nor module:function."),
        (["absent:network", "own_program:fit"], "There is no module 'absent'"),
        (["own_program:netwrok", "own_program:fit"], "Did you mean 'network'?"),
        (["own_program:number", "own_program:fit"], "own_program:number returns a int"),
        (["own_program:network", "own_program:number"], "own_program:number returns a int: it must return batches"),
        (["own_program:network", "own_program:fit", "--replace", "ReLU"], "is not of the form WHAT=BY"),
        (["own_program:network", "own_program:fit", "--replace", "ReLU=LEAF as Relu"], "Did you mean 'LEAF as ReLU'?"),
        (
            ["own_program:network", "own_program:fit", "--replace", "ReLU=Polynomial(degree=0)"],
            "Did you mean 'Polynomial(degree=1)'?",
        ),
        (
            ["own_program:network", "own_program:fit", "--families", "PiecewiseLinear(segments=0)"],
            "Did you mean 'PiecewiseLinear(segments=1)'?",
        ),
        (["own_program:network", "own_program:fit", "--output", "own_program:number"], "must be a function"),
        (["own_program:network", "own_program:fit", "--figure", "a.gif"], "Unknown kind of figure 'gif'"),
        (["own_program.py:netwrok", "own_program:fit"], "Did you mean 'network'?"),
        (
            ["json:dumps", "own_program:fit"],
            "json:dumps cannot be called without arguments",
        ),
        (["a" * 300, "own_program:fit"], "File name too long"),
        (["absent.py:network", "own_program:fit"], "There is no file absent.py."),
        ([".", "own_program:fit"], "which has its own batches: leave own_program:fit out"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(program, arguments, sentence):
    done = study(*arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split()).replace("│ ", "")


def test_families_are_compared(program):
    (program / "own_family.py").write_text("from small import Quotient\n")
    options = ["--replace", "act1=AHAF as SiLU", "--steps", "0", "--samples", "32", "--heldout", "own_program:more"]
    options += ["--replace", "act2=Polynomial(degree=4)"]
    wanted = ["--families", "LEAF", "--families", "own_family:Quotient", "--families", "Polynomial(degree=3)"]
    done = study("own_program:network", "own_program:fit", *options, *wanted)
    assert done.exit_code == 0, done.output
    assert "act2" in done.output
    assert {"LEAF", "Quotient", "Polynomial(degree=3)"} <= {
        word for line in done.output.splitlines() for word in line.split()[1:2]
    }
    done = study("own_program:network", "own_program:fit", *options, "--families", "LEAFF")
    assert done.exit_code == 2
    assert "Unknown family 'LEAFF'. Did you mean 'LEAF'" in done.output
