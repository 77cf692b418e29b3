"""What the documents show runs as it stands; their links lead somewhere, and they build into a site."""

import dataclasses
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

import aafit
from aafit.experiment.cli.main import main
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.suite import load_suite

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def blocks_of(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


WITH_CODE = [page for page in PAGES if blocks_of(page)]


# Names that a page uses without defining them.
GIVEN = {
    "docs/identification/README.md": """
from types import SimpleNamespace
import torch
from torch import nn
import aafit
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)
    def forward(self, x):
        return SimpleNamespace(last_hidden_state=self.two(self.act(self.one(x))))
base, x = Encoder().eval(), torch.randn(64, 4)
net, _ = aafit.replace_activations(base, {"GELU": aafit.AHAF.like("SiLU")}, sample=x)
batches = [(x, None)]
""",
}


@pytest.fixture
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages get half of the 5,000 digits: their code is tested, not their figures."""
    whole = load_dataset("MNIST-5k")
    train, test = whole.train.at(torch.arange(2500)), whole.test.at(torch.arange(500))
    few = dataclasses.replace(whole, train=train, test=test)
    monkeypatch.setattr("aafit.experiment.data.datasets.load_dataset", lambda name: few)


@pytest.mark.usefixtures("fewer_digits")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in [GIVEN.get(page, ""), *blocks_of(page)]:
        exec(compile(block, page, "exec"), names)


BENCHMARK = "./run_experiment.sh benchmarks/"


def shell_lines_of(page: str) -> list[str]:
    """The lines of a page that a reader may run: in its blocks of shell, and in the text between backticks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"^```shell\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return lines + [line for line in re.findall(r"`([^`\n]+)`", text) if line.startswith(("./", "aafit "))]


@pytest.mark.parametrize("line", sorted({x for page in PAGES for x in shell_lines_of(page) if x.startswith(BENCHMARK)}))
def test_the_options_of_a_benchmark_are_those_it_has(line: str) -> None:
    script, *words = shlex.split(line.removeprefix(BENCHMARK), comments=True)
    module = importlib.import_module(f"benchmarks.{script.removesuffix('.py').replace('/', '.')}")
    known = {name for option in module.main.params for name in (*option.opts, *option.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


COMMANDS = {
    "./run_experiment_all.sh": ["run"],
    "./show_aaf_all.sh": ["show"],
    "./run_experiment.sh experiments/train_individual.py": ["train"],
    "aafit": [],
}


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """The commands of this program in a page, as words for its command line."""
    found = []
    for line in shell_lines_of(page):
        for start, words in COMMANDS.items():
            if line.startswith(f"{start} ") or line == start:
                rest = shlex.split(line[len(start) :], comments=True)
                # A folder that a page calls RUN_FOLDER stands for one that exists.
                found.append((line, [*words, *("." if word.endswith("_FOLDER") else word for word in rest)]))
    return found


@pytest.mark.parametrize(("line", "words"), [command for page in PAGES for command in commands_of(page)])
def test_the_commands_of_a_page_are_understood(line: str, words: list[str], monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    if len(words) == 1 or "|" in words:
        assert {*words} - {"|"} <= {*main.list_commands(click.Context(main))}, line
        return
    try:
        command = main.get_command(click.Context(main), words[0])
        context = command.make_context(words[0], words[1:])
    except click.exceptions.Exit:
        assert "--help" in words
        return
    suite = context.params.get("suite_name")
    if suite not in (None, "my.toml"):
        load_suite(suite)


def test_the_notebook_runs_and_brings_the_network_back(tmp_path: Path, monkeypatch) -> None:
    tutorial = ROOT / "docs" / "tutorial"
    notebook = json.loads((tutorial / "own-network.ipynb").read_text(encoding="utf-8"))
    stored = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(tutorial / "run.py"))["execute"](notebook["cells"])
    made = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [len(outputs) for outputs in made] == [len(outputs) for outputs in stored]
    scores = names["study"].scores
    assert scores.initial.accuracy < scores.base.accuracy - 0.1
    assert scores.tuned.accuracy > scores.base.accuracy - 0.01
    assert scores.loss_gain.value < -2 * scores.loss_gain.error
    assert {"study.html", "leaf.safetensors", "activations.svg"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_the_files_that_contributing_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+\.(?:py|html|md|toml|txt|sh))`", text))
    folders = ("aafit", "benchmarks", "docs", "tests")
    files = [path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [path.as_posix() for path in ROOT.iterdir()]
    assert [name for name in sorted(named) if not any(file.endswith(f"/{name.lstrip('./')}") for file in files)] == []


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_program() -> None:
    text = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "aafit").rglob("*.py")))
    # Strings that the source has in parts are joined.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    quoted = re.findall(r'"([^"\n]+)"', "".join(re.findall(r"\*\*.*?\*\*", text)))
    assert len(quoted) > 8
    parts = [part for message in quoted for part in message.split("...")]
    assert [part for part in parts if part.strip() not in source] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = (tmp_path / "site" / "reference").glob("*.html")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    names = set(aafit.__all__) - {"__version__"}
    assert {name for name in names if f'id="aafit.{name}"' not in text} == set()
    entries = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert [entry["location"] for entry in entries if "ONNX" in entry["title"]]
