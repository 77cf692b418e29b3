"""The files of a report and its page, on runs with made-up values."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import browser, check_page, show
from fake_runs import write_run
from matplotlib.text import Text
from selenium.webdriver.common.by import By

from aafit.errors import UserError
from aafit.experiment.report import figures, page
from aafit.experiment.report.page import Report, draw_activations, write_report
from aafit.experiment.report.runs import read_suite
from aafit.experiment.report.summary import summarise


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
    monkeypatch.setattr(page, "MOST_SECTIONS", 4)
    monkeypatch.setattr(figures, "MOST_SEEDS", 2)
    made = write_report(tmp_path / "many")
    text = made.page.read_text()
    assert re.findall(r'<section class="run" id="([^"]*)"', text) == ["base-seed3", "child-seed3"]
    assert set(re.findall(r'href="#([a-z]+-seed\d)"', text)) == {"base-seed3", "child-seed3"}
    assert "of the other 4 runs" in text
    assert {re.sub(r".*(seed\d|seeds).*", r"\1", path.name) for path in made.figures if "seed" in path.name} == {
        "seed3",
        "seeds",
    }
    figure = figures.draw_seeds(read_suite(tmp_path / "many").by_name()["child"])
    assert figure is not None
    assert any("the first 2 of 3 seeds" in text.get_text() for text in figure.findobj(Text))
    assert [row.seeds for row in summarise(read_suite(tmp_path / "many"))] == [(3, 4, 5), (3, 4, 5)]


def test_the_page_needs_nothing_else_and_escapes(report: Report) -> None:
    page = report.page.read_text()
    assert not re.findall(r"<script src|<link|@import|url\(|src=\"(?!data:image/svg)|href=\"(?!#)", page)
    assert page.count("<img") == len(report.figures) / 2
    for text in ("Some &lt;CPU&gt; &amp; Co", "unfinished: epoch 7 of 10", "7 of 8 runs are finished"):
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
