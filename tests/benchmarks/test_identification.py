"""The benchmarks of identification: their figures on a handful of digits, and what they do with them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from small_runs import SMALL, base_job, child_job, read_json

from aafit.errors import UserError
from aafit.experiment.data.datasets import Split
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import save_json
from aafit.experiment.runs.execute import execute
from aafit.files import sha256_of
from aafit.identification.samples import prepare
from aafit.training.predictor import Predictor
from benchmarks import identification, layers_alone
from benchmarks.harness import Loss, in_markdown
from benchmarks.workload import Halves, heldout_of, setting_of

TINY = {"network": "LeNet-5", "dataset": "MNIST-5k", "train_images": 100, "holdout": 100, "epochs": 1}
STARTS = {"tanh": "F-Neuron as Tanh", "random": "F-Neuron random"}
DATA = {"run": {"name": "r", **SMALL}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base network and two replacements, tuned by the recipe and identified; one of them tuned for longer."""
    folder = tmp_path_factory.mktemp("runs")
    base = base_job(folder / "cpu", **TINY)
    execute(base)
    for suite in ("identify", "longer"):
        shutil.copytree(folder / "cpu" / "base", folder / suite / "base")
    for suite, settings in {
        "cpu": {"epochs": 1},
        "longer": {"epochs": 2},
        "identify": {"method": "gauss-newton", "epochs": 4},
    }.items():
        parent = base.model_copy(update={"folder": folder / suite / "base" / "seed42"})
        for name, text in STARTS.items():
            if (suite, name) != ("longer", "random"):
                options = {"cnn": "ReLU", "fc": text, "p24sl": False, "stage": "4", **settings}
                execute(child_job(parent, name, **options))
    return folder


def tables_of(command: click.Command, tmp_path: Path, options: Sequence[str]) -> dict[str, Any]:
    """What the command wrote down."""
    files = tmp_path / "result.json", tmp_path / "result.md"
    both = ["--json", str(files[0]), "--markdown", str(files[1])]
    result = CliRunner().invoke(command, [*options, *both], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = read_json(files[0])
    text = files[1].read_text()
    assert all(f"**{title}**" in text for title in content["tables"])
    assert all(f"- {note}" in text for note in content["notes"])
    return content


def test_identification(runs: Path, tmp_path: Path) -> None:
    content = tables_of(identification.main, tmp_path, ["--runs-dir", str(runs)])
    tables = content["tables"]
    assert all([row["replacement"] for row in rows] == ["random", "tanh"] for rows in list(tables.values())[:6])
    of = {title: rows[1] for title, rows in tables.items() if len(rows) > 1}

    done = {suite: read_json(runs / suite / "tanh" / "seed42" / "done.json") for suite in ("cpu", "longer", "identify")}
    accuracy = of["Test accuracy, %"]
    assert accuracy["base"] == 100 * done["identify"]["result"]["base_accuracy"]
    assert accuracy["replaced"] == 100 * done["cpu"]["result"]["replaced_accuracy"]
    for suite, column in {"cpu": "recipe", "longer": "longer", "identify": "identified"}.items():
        assert accuracy[column] == 100 * done[suite]["result"]["last_accuracy"]
        assert of["Test loss"][column] == done[suite]["result"]["last_loss"]
    assert tables["Test loss"][0]["longer"] is None

    heldout = of["Loss on held-out images not fitted"]
    steps = read_json(runs / "identify" / "tanh" / "seed42" / "identification.json")["steps"]
    assert heldout["replaced"] == pytest.approx(steps[0]["heldout_loss"], abs=1e-5)
    assert heldout["identified"] == pytest.approx(steps[-1]["heldout_loss"], abs=1e-5)

    costs = of["Cost of training and of identification"]
    assert costs["epochs"] == 1
    assert "Longer, tanh: 2 epochs" in content["notes"]
    assert costs["recipe, s"] == costs["fastest, s"] == pytest.approx(done["cpu"]["seconds"])
    assert costs["identified, s"] == done["identify"]["seconds"]
    assert costs["in epochs"] == pytest.approx(costs["identified, s"] / costs["recipe, s"])

    verdict = of["What was to be reached"]
    assert verdict["within 0.5"] == (accuracy["identified"] >= accuracy["base"] - 0.5)
    assert verdict["no worse"] == (heldout["identified"] <= heldout["recipe"])
    assert verdict["at most a tenth"] == (costs["of fastest"] <= 0.1)
    (starts,) = next(rows for title, rows in tables.items() if title.startswith("F-Neuron"))
    assert starts["random - as Tanh"] == "random - tanh"
    tests = [row["identified"] for row in tables["Test loss"]]
    assert starts["test images"] == pytest.approx(tests[0] - tests[1])
    assert any("minutes from the first start to the last end" in note for note in content["notes"])


def test_what_is_not_finished_is_named(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    (copy / "identify" / "random" / "seed42" / "done.json").unlink()
    shutil.rmtree(copy / "longer")
    content = tables_of(identification.main, tmp_path, ["--runs-dir", str(copy)])
    assert [row["replacement"] for row in content["tables"]["Test loss"]] == ["tanh"]
    assert content["notes"][-1].endswith("not counted: random")


def test_a_recipe_that_was_not_run_is_called_that(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    shutil.rmtree(copy / "cpu" / "tanh")
    shutil.rmtree(copy / "longer")
    tables = tables_of(identification.main, tmp_path, ["--runs-dir", str(copy)])["tables"]
    for title in ("Test accuracy, %", "Test loss", "Loss on held-out images not fitted"):
        recipe = {row["replacement"]: row["recipe"] for row in tables[title]}
        assert recipe["tanh"] == "not run" != recipe["random"]
    costs = {row["replacement"]: row for row in tables["Cost of training and of identification"]}
    assert costs["tanh"]["recipe, s"] == "not run"
    assert costs["tanh"]["in epochs"] is None
    assert costs["random"]["in epochs"] > 0


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("parent_hash", "another", "different base networks"),
        ("data", {"sha256": "another", "in_shape": [1, 28, 28], "classes": 10}, "another copy of MNIST-5k"),
    ],
)
def test_what_cannot_be_compared(runs: Path, tmp_path: Path, key: str, value: Any, says: str) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    file = copy / "identify" / "tanh" / "seed42" / "config.json"
    save_json(
        file, {name: own for name, own in read_json(file).items() if name not in ("format", "checksum")} | {key: value}
    )
    done = {
        name: own for name, own in read_json(file.parent / "done.json").items() if name not in ("format", "checksum")
    }
    save_json(file.parent / "done.json", done | {"sha256": done["sha256"] | {file.name: sha256_of(file)}})
    result = CliRunner().invoke(identification.main, ["--runs-dir", str(copy)])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_layers_alone(runs: Path, tmp_path: Path) -> None:
    base = str(runs / "cpu" / "base" / "seed42")
    content = tables_of(
        layers_alone.main, tmp_path, ["--base", base, "--replacement", "LEAF as ReLU", "--images", "60"]
    )
    ((title, rows),) = content["tables"].items()
    assert "48 images fitted, 12 held out" in title
    assert {row["adapted"] for row in rows} == {"act1", "act2", "act3", "all together"}
    assert rows[-1]["adapted"] == "all together"
    assert [row["rank, predicted"] for row in rows[:-1]] == [1, 2, 3]
    assert sum("Rank correlation" in note for note in content["notes"]) == 2


def test_the_halves_are_those_of_an_identification(runs: Path) -> None:
    setting = setting_of(runs / "cpu" / "base" / "seed42", None, "F-Neuron random", None)
    net = setting.net.eval()
    parts = prepare(Predictor(net), setting.batches(), None, None, 0.2, 1 << 30, setting.seed)
    assert (len(parts.fitted), len(parts.heldout)) == (80, 20)
    fitted = torch.cat([x for x, _ in setting.halves.batches(setting.halves.fitted)])
    assert torch.equal(fitted, parts.raw.first)
    assert torch.equal(setting.halves.rest.labels_B, parts.heldout.target)
    # The start is that of the suite's run, whose first row is the network before any step.
    steps = read_json(runs / "identify" / "random" / "seed42" / "identification.json")["steps"]
    assert setting.halves.on_rest(net).loss == pytest.approx(steps[0]["heldout_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([3.0, 2.0, 1.0], [30.0, 20.0, 10.0], 1),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], -1),
        # Spearman's rho by hand, with d = rank differences: 1 - 6 * sum(d^2) / (n (n^2 - 1)) = 1 - 6 * 4 / 60.
        ([4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 1.0, 2.0], 0.6),
        # With ties, as scipy.stats.spearmanr has it.
        ([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 0.9486832980505138),
        ([1.0, 1.0], [1.0, 2.0], None),
    ],
)
def test_rank_correlation(first: list[float], second: list[float], expected: float | None) -> None:
    found = layers_alone.rank_correlation(first, second)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_markdown() -> None:
    content = {
        "command": "./run_experiment.sh benchmarks/x.py",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "P", "gpu": None},
        "versions": {"torch": "1"},
        "tables": {"T": [{"name": "a", "loss": Loss(0.123456), "good": True, "none": None}]},
        "notes": ["All is well."],
    }
    assert in_markdown(content).splitlines() == [
        "`./run_experiment.sh benchmarks/x.py`",
        "",
        "2026-01-02; processor P, torch 1",
        "",
        "**T**",
        "",
        "| name | loss | good | none |",
        "| --- | --: | --- | --: |",
        "| a | 0.1235 | yes | - |",
        "",
        "- All is well.",
    ]
    assert json.dumps({"loss": Loss(0.123456)}) == '{"loss": 0.123456}'


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (identification.main, ["--runs-dir", "{runs}", "--recipe", "nothing"], "no run folders"),
        (
            identification.main,
            ["--runs-dir", "{runs}", "--recipe", "longer", "--identified", "empty"],
            "has no replacement",
        ),
        (layers_alone.main, ["--base", "{base}", "--replacement", "LEAF random"], "does not start as a fixed function"),
        (layers_alone.main, ["--base", "{runs}"], "not finished"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(
    runs: Path, command: click.Command, options: list[str], says: str
) -> None:
    if not (runs / "empty").exists():
        shutil.copytree(runs / "cpu" / "base", runs / "empty" / "base")
    places = {"runs": runs, "base": runs / "cpu" / "base" / "seed42"}
    result = CliRunner().invoke(command, [option.format(**places) for option in options])
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


def test_images_must_have_been_held_out() -> None:
    with pytest.raises(UserError, match="held no images out"):
        heldout_of(RunConfig.checked(DATA["run"]), "", None)


def test_halves() -> None:
    split = Split(torch.zeros(10, 2, 2, 1, dtype=torch.uint8), torch.arange(10))
    halves = Halves.of(split, 2, 7, "float32")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(7))
    assert torch.equal(halves.rest.labels_B, order[:2])
    assert torch.equal(halves.fitted.labels_B, order[2:])
