"""The report: what it reads and refuses, its tables and its page, on run folders with made-up numbers."""

import csv
import io
import json
import re
from pathlib import Path
from statistics import stdev
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import browser, check_page, show
from fake_runs import write_run, write_suite
from matplotlib.text import Text
from rich.console import Console
from selenium.webdriver.common.by import By

from aafit.errors import UserError
from aafit.experiment.report import page, seeds
from aafit.experiment.report.page import Report, draw_activations, write_report
from aafit.experiment.report.runs import read_run, read_suite
from aafit.experiment.report.tables import csv_rows, duration, results_table


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def report(suite: Path) -> Report:
    return write_report(suite)


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "done.json").read_text())["result"]
    return read


def csv_table(suite: Path) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader(io.StringIO(csv_rows(read_suite(suite))))}


# Tables


def test_csv_has_the_raw_numbers_and_over_seeds_their_mean_and_sample_deviation(suite: Path) -> None:
    table = csv_table(suite)
    order = ["base-relu", "base-silu", "relu-leaf-relu", "relu-fneuron", "relu-leaf-tanh", "silu-ahaf-relu"]
    assert list(table) == order
    two = [result(suite / "relu-leaf-tanh" / f"seed{seed}") for seed in (42, 100)]
    row = table["relu-leaf-tanh"]
    for column, key in (
        ("base_accuracy", "base_accuracy"),
        ("last_accuracy", "last_accuracy"),
        ("heldout_selected_accuracy", "heldout_selected_accuracy"),
        ("best_test_accuracy_selected_on_test", "best_test_accuracy"),
    ):
        values = [one[key] for one in two]
        assert float(row[column]) == pytest.approx(sum(values) / 2, rel=1e-14)
        assert float(row[f"{column}_std"]) == pytest.approx(stdev(values), rel=1e-12)
    shares = [(one["last_accuracy"] - 0.6) / (one["base_accuracy"] - 0.6) for one in two]
    assert float(row["share_of_drop_recovered"]) == pytest.approx(sum(shares) / 2)
    assert (row["seeds"], row["cnn"], row["fc"]) == ("42 100", "LEAF as ReLU", "LEAF as Tanh")
    expected = ("base-relu", "finished", "20", "15.0")
    assert (row["parent"], row["status"], row["tuned_parameters"], row["seconds"]) == expected
    assert table["base-relu"]["base_accuracy"] == table["base-relu"]["share_of_drop_recovered"] == ""
    assert table["relu-leaf-relu"]["last_accuracy_std"] == ""


@pytest.mark.parametrize(("base", "recovered"), [(0.8, 0.5), (0.6049, None), (0.6051, 0.5), (0.59, None)])
def test_a_share_is_recovered_where_half_a_point_was_lost(tmp_path: Path, base: float, recovered: float | None) -> None:
    folder = write_run(tmp_path, "child", "AHAF as ReLU", parent="base", accuracy=(base, 0.6, 0.7), epochs=1)
    done = json.loads((folder / "done.json").read_text())
    done["result"]["last_accuracy"] = (base + 0.6) / 2
    (folder / "done.json").write_text(json.dumps(done))
    share = csv_table(tmp_path)["child"]["share_of_drop_recovered"]
    assert share == "" if recovered is None else float(share) == pytest.approx(recovered)


def test_an_unfinished_run_is_shown_with_what_is_known_and_how_far_it_is(suite: Path) -> None:
    row = csv_table(suite)["silu-ahaf-relu"]
    assert row["status"] == "unfinished: epoch 7 of 10"
    assert (row["base_accuracy"], row["replaced_accuracy"], row["best_test_epoch"]) == ("0.82", "0.4", "")
    assert 0.4 < float(row["last_accuracy"]) < 0.7


def test_only_finished_seeds_count_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path, "run", "ReLU", seed=1, epochs=2, accuracy=(0, 0.1, 0.5))
    write_run(tmp_path, "run", "ReLU", seed=2, epochs=2, accuracy=(0, 0.1, 0.9), until=1)
    (tmp_path / "run" / "seed3").mkdir()
    row = csv_table(tmp_path)["run"]
    assert (row["seeds"], row["status"]) == ("1", "seed 2 unfinished: epoch 1 of 2")
    assert float(row["last_accuracy"]) == result(tmp_path / "run" / "seed1")["last_accuracy"]
    assert results_table(read_suite(tmp_path)).notes[-1] == "Not begun: run (seed3)."


def test_the_terminal_table_fits_120_columns_with_every_word_whole(suite: Path) -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(results_table(read_suite(suite)).terminal())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 120
    words = ("relu-leaf-tanh", "FC LEAF as Tanh", "FC F-Neuron random", "unfinished:", "epoch 7 of 10", "on test")
    assert [word for word in words if word not in text] == []
    last = [100 * result(suite / "relu-leaf-tanh" / f"seed{seed}")["last_accuracy"] for seed in (42, 100)]
    assert f" {sum(last) / 2:.2f} " in text
    assert f"±{stdev(last):.2f}" in text


def test_markdown_has_one_cell_a_column(suite: Path) -> None:
    lines = results_table(read_suite(suite)).markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert len({line.count("|") for line in table}) == 1
    assert "best, selected on test" in table[0]
    assert any(line.startswith("Drop recovered: (last epoch - just replaced)") for line in lines)


def test_latex_and_markdown_escape_what_a_stage_may_be_called(tmp_path: Path) -> None:
    write_run(tmp_path, "run_1", "ReLU", epochs=1, stage=r"a_b & 50% | $x$ {~^} \end")
    table = results_table(read_suite(tmp_path))
    assert r"a_b & 50% \| $x$" in table.markdown()
    escaped = r"a\_b \& 50\% | \$x\$ \{\textasciitilde{}\textasciicircum{}\} \textbackslash{}end"
    assert rf"{escaped} & run\_1 & ReLU" in table.latex()


def test_every_latex_row_has_all_columns_and_only_booktabs_is_needed(suite: Path) -> None:
    table = results_table(read_suite(suite))
    text = table.latex()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns) - 1}
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert text.isascii()


def test_several_networks_get_a_column(tmp_path: Path) -> None:
    write_run(tmp_path, "one", "ReLU", epochs=1)
    assert "| network" not in results_table(read_suite(tmp_path)).markdown()
    write_run(tmp_path, "other", "ReLU", epochs=1, network="LeNet-5", dataset="Fashion-MNIST")
    assert "| LeNet-5, Fashion-MNIST |" in results_table(read_suite(tmp_path)).markdown()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (3725, "1:02:05")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# The page and its files


def test_the_report_is_complete(suite: Path, report: Report) -> None:
    names = {path.relative_to(suite / "report").as_posix() for path in (report.page, *report.tables, *report.figures)}
    stems = [
        "curves-relu-to-tanh-relu",
        "curves-silu-to-relu",
        "differences",
        "seeds-relu-leaf-tanh",
        "trajectories-silu-ahaf-relu-seed42",
    ]
    for run in ("relu-leaf-relu-seed42", "relu-fneuron-seed42", "relu-leaf-tanh-seed42", "relu-leaf-tanh-seed100"):
        stems += [f"activations-{run}", f"trajectories-{run}"]
    expected = {"report.html", "results.md", "results.csv", "results.tex"}
    expected |= {f"figures/{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert names == expected
    assert {path.relative_to(suite / "report").as_posix() for path in (suite / "report").rglob("*.*")} == expected
    for path in report.figures:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_of_very_many_runs_the_page_shows_the_first_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (3, 4, 5):
        write_run(tmp_path / "many", "base", "ReLU", seed=seed, epochs=2)
        options: dict[str, Any] = {"parent": "base", "seed": seed, "start": 2, "epochs": 2}
        write_run(tmp_path / "many", "child", "LEAF as ReLU", stage="2", accuracy=(0.8, 0.7, 0.75), **options)
    monkeypatch.setattr(page, "SHOWN", 4)
    monkeypatch.setattr(seeds, "MOST", 2)
    made = write_report(tmp_path / "many")
    text = made.page.read_text()
    assert re.findall(r'<section class="run" id="([^"]*)"', text) == ["base-seed3", "child-seed3"]
    assert set(re.findall(r'href="#([a-z]+-seed\d)"', text)) == {"base-seed3", "child-seed3"}
    assert "The other 4 runs have no pictures here" in text
    assert {re.sub(r".*(seed\d|seeds).*", r"\1", path.name) for path in made.figures if "seed" in path.name} == {
        "seed3",
        "seeds",
    }
    figure = seeds.draw_seeds(read_suite(tmp_path / "many").by_name()["child"])
    assert figure is not None
    assert any("the first 2 of 3 seeds" in text.get_text() for text in figure.findobj(Text))
    assert [row["seeds"] for row in csv_table(tmp_path / "many").values()] == ["3 4 5", "3 4 5"]


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        ((0.75, 0.75), "The replacement alone left the test accuracy as it was; after tuning 2 of 2 are above"),
        ((0.25, 0.25), "The replacement alone changed the test accuracy by -50.00 points; after tuning"),
        ((0.25, 0.75), "The replacement alone changed the test accuracy by -50.00 to +0.00 points; after tuning"),
    ],
)
def test_the_verdict_says_what_replacing_cost(tmp_path: Path, replaced: tuple[float, float], says: str) -> None:
    write_run(tmp_path / "two", "base", "ReLU", epochs=2)
    for at, accuracy in enumerate(replaced):
        write_run(
            tmp_path / "two",
            f"run{at}",
            "LEAF as ReLU",
            parent="base",
            start=2,
            epochs=2,
            accuracy=(0.75, accuracy, 0.8),
        )
    assert says in write_report(tmp_path / "two").page.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else_and_escapes(report: Report) -> None:
    page = report.page.read_text()
    assert not re.findall(r"<script src|<link|@import|url\(|src=\"(?!data:image/svg)|href=\"(?!#)", page)
    assert page.count("<img") == len(report.figures) / 2
    for text in ("Some &lt;CPU&gt; &amp; Co", "unfinished: epoch 7 of 10", "7 of 8 finished"):
        assert text in page
    for run in ("base-relu", "relu-leaf-relu", "relu-fneuron", "relu-leaf-tanh", "base-silu", "silu-ahaf-relu"):
        assert f'id="{run}-seed42"' in page


def test_the_page_in_a_browser(report: Report, tmp_path: Path) -> None:
    moved = tmp_path / "moved.html"
    moved.write_bytes(report.page.read_bytes())
    with browser(tmp_path) as opened:
        opened.get(moved.as_uri())
        check_page(opened)
        show(opened, 1200)
        picture = opened.find_element(By.CSS_SELECTOR, ".strips").rect
        assert picture["y"] + picture["height"] < 900
        rows = "#results-table tbody tr:not([hidden])"
        before = [row.text for row in opened.find_elements(By.CSS_SELECTOR, rows)]
        opened.find_elements(By.CSS_SELECTOR, "#results-table th button")[1].click()
        names = [row.find_elements(By.TAG_NAME, "td")[1].text for row in opened.find_elements(By.CSS_SELECTOR, rows)]
        assert names == sorted(names)
        assert len(names) == len(before)
        opened.find_element(By.CSS_SELECTOR, "[data-filters=results-table]").send_keys("base-relu")
        assert len(opened.find_elements(By.CSS_SELECTOR, rows)) < len(before)


def test_the_same_runs_give_the_same_bytes(suite: Path, report: Report, tmp_path: Path) -> None:
    again = draw_activations(suite / "relu-leaf-tanh" / "seed42", tmp_path)
    for path in again:
        assert path.read_bytes() == (suite / "report" / "figures" / path.name).read_bytes()


# Bad input


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", "ReLU", epochs=5)
    whole = (folder / "metrics.csv").read_text()
    for cut in (1, 3, 20):
        (folder / "metrics.csv").write_text(whole[:-cut])
        assert read_run(folder).columns["epoch"].tolist() == [0, 1, 2, 3, 4]
    (folder / "metrics.csv").write_text("epoch,tra")
    assert read_run(folder).last_epoch is None


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("done.json", "{", "done.json is damaged"),
        (
            "done.json",
            '{"hash": "", "sha256": {}, "finished": "", "seconds": 1}',
            "damaged: result: Field",
        ),
        ("done.json", b"\xff\xfe", "done.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", '{"hash": "", "seed": 1, "run": {"name": "x"}}', r"config.json is damaged: run.epochs"),
        ("compare.json", '{"layers": 3}', "compare.json is damaged: layers"),
        ("metrics.csv", "epoch,loss\n1,2\n", "metrics.csv is damaged: its first line has no column 'train_loss'"),
        ("metrics.csv", "epoch,train_loss,test_loss,test_accuracy\n1,2,3,4\n1,2\n", "metrics.csv is damaged: line 3"),
        ("metrics.csv", "epoch,train_loss,test_loss,test_accuracy\n1,2,3,many\n", "metrics.csv is damaged: line 2"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str | bytes, says: str) -> None:
    folder = write_run(tmp_path, "run", "LEAF as ReLU", epochs=1)
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=says):
        read_suite(tmp_path)


def test_damaged_activations_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", "LEAF as ReLU", epochs=1)
    file = folder / "activations.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"activations.safetensors is truncated"):
        draw_activations(folder, tmp_path / "out")


def test_what_is_no_suite_or_run_is_refused(tmp_path: Path, suite: Path) -> None:
    with pytest.raises(UserError, match="has no run folders"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="Give one of the suites in it: small"):
        write_report(suite.parent)
    with pytest.raises(UserError, match="is not a run folder"):
        draw_activations(suite, tmp_path)
    with pytest.raises(UserError, match="not finished, or has no adaptive activation"):
        draw_activations(suite / "base-relu" / "seed42", tmp_path)


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    write_run(tmp_path, "run", "ReLU", epochs=1)
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write"):
        write_report(tmp_path)
    assert (tmp_path / "report").read_text() == "in the way"
