"""Progress on a terminal, in a notebook and in a log, and what Ctrl-C keeps."""

import io
import logging
import os
import pty
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import aafit
from aafit.progress import progress

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from torch import nn
import aafit
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)).eval()
x = torch.randn(200, 4)
net, _ = aafit.replace_activations(base, {"SiLU": aafit.AHAF.like("ReLU")})
aafit.identify(net, [(x, base(x).argmax(1))], base=base, steps=2, verbose=VERBOSE)
aafit.tune(net, [(x, base(x).argmax(1))], epochs=3, verbose=VERBOSE)
aafit.study(base, [(x, base(x).argmax(1))], steps=1, verbose=VERBOSE)
"""


@pytest.fixture
def bare() -> Iterator[logging.Logger]:
    """Without any handler, as in a program that has not set up logging."""
    root, log = logging.getLogger(), logging.getLogger("aafit")
    handlers, root.handlers = root.handlers, []
    yield log
    root.handlers = handlers


@pytest.fixture
def data() -> tuple[nn.Module, nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)).eval()
    net, _ = aafit.replace_activations(base, {"SiLU": aafit.LEAF.like("Tanh")})
    x = torch.randn(200, 4)
    return base, net, [(x, base(x).argmax(1))]


@pytest.mark.parametrize("verbose", [True, False])
def test_a_script_writes_lines_to_stderr_unless_verbose_is_off(verbose: bool) -> None:
    command = [sys.executable, "-c", SCRIPT.replace("VERBOSE", str(verbose))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    if not verbose:
        assert done.stderr == ""
        return
    lines = done.stderr.splitlines()
    assert lines[0].split()[:2] == ["step", "phase"]
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch")] == [
        f"epoch {number} of 3" for number in (1, 2, 3)
    ]
    assert [line.split()[-1] for line in lines if line.strip()[0].isdigit() and " s  " in line][-2:] == [
        "families",
        "done",
    ]


def test_a_terminal_shows_a_bar_and_no_lines() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT.replace("VERBOSE", "True")]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux reports the end of a terminal so
        pass
    assert process.wait(timeout=60) == 0, shown.decode()
    text = shown.decode()
    assert "━" in text
    assert "epoch 3 of 3; loss of epoch 3" in text
    assert "study" in text
    assert "held-out loss" not in text


def test_a_notebook_shows_a_bar_that_is_updated(monkeypatch: pytest.MonkeyPatch, bare: logging.Logger) -> None:
    shown = []
    handle = types.SimpleNamespace(update=lambda content, raw: shown.append(content))

    def display(content: dict[str, str], raw: bool, display_id: bool) -> types.SimpleNamespace:
        shown.append(content)
        return handle

    ipython = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=object()), display=types.SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    cell, file = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", cell)
    for stream in (cell, file):
        bare.addHandler(logging.StreamHandler(stream))
    bare.setLevel(logging.INFO)
    try:
        with progress("tune", 3) as show:
            show(3, "epoch 3 <of> 3")
            bare.info("a line")
            bare.warning("a warning")
    finally:
        bare.handlers = []
        bare.setLevel(logging.NOTSET)
    assert 'value="3" max="3"' in shown[-1]["text/html"]
    assert "epoch 3 &lt;of&gt; 3" in shown[-1]["text/html"]
    assert shown[-1]["text/plain"].endswith("epoch 3 <of> 3")
    assert cell.getvalue() == "a warning\n"
    assert file.getvalue() == "a line\na warning\n"


def test_a_program_with_logging_gets_the_lines_by_its_own_rules(capsys, caplog, data) -> None:
    _, net, batches = data
    with caplog.at_level("WARNING", logger="aafit"):
        aafit.tune(net, batches, epochs=1)
    assert not caplog.messages
    with caplog.at_level("INFO", logger="aafit"):
        aafit.tune(net, batches, epochs=1)
    assert caplog.messages[0].startswith("epoch 1 of 1: loss ")
    assert capsys.readouterr().err == ""


def test_after_ctrl_c_an_identification_resumes_bit_identically(data) -> None:
    base, net, batches = data

    def interrupt(state: aafit.identification.State) -> None:
        if state.steps[-1].number == 1:
            raise KeyboardInterrupt

    full_net, _ = aafit.replace_activations(base, {"SiLU": aafit.LEAF.like("Tanh")})
    full = aafit.identify(full_net, batches, base=base)
    assert len(full.steps) > 3
    with pytest.raises(aafit.Stopped, match=r"after step 1: .* state=error\.state resumes") as stopped:
        aafit.identify(net, batches, base=base, after_step=interrupt)
    assert stopped.value.state.steps[-1].number == 1
    kept = {name: parameter.item() for name, parameter in aafit.adaptive_parameters(net).items()}
    assert kept != {name: parameter.item() for name, parameter in aafit.adaptive_parameters(full_net).items()}
    resumed = aafit.identify(net, batches, base=base, state=stopped.value.state)
    assert resumed.values == full.values


def test_after_ctrl_c_tuned_parameters_stay(data) -> None:
    _, net, batches = data
    calls = []

    def interrupt(epoch: int, loss: float) -> None:
        calls.append([parameter.detach().clone() for parameter in aafit.adaptive_parameters(net).values()])
        if epoch == 1:
            raise KeyboardInterrupt

    net.train()
    with pytest.raises(aafit.Stopped, match=r"after 2 of 5 epochs: .* epochs=3") as stopped:
        aafit.tune(net, batches, epochs=5, after_epoch=interrupt)
    assert stopped.value.state is None
    assert net.training
    now = aafit.adaptive_parameters(net).values()
    assert all(torch.equal(one, other) for one, other in zip(now, calls[-1], strict=True))


def test_after_ctrl_c_a_study_says_where_it_resumes(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, batches = data

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aafit.studies.study.importance", interrupt)
    with pytest.raises(aafit.Stopped, match="nothing was saved"):
        aafit.study(base, batches, steps=1)
    with pytest.raises(aafit.Stopped, match=r"resumes from .*study\.parts"):
        aafit.study(base, batches, steps=1, report=tmp_path / "study.html")
    monkeypatch.undo()
    assert aafit.study(base, batches, steps=1, report=tmp_path / "study.html").page.exists()
