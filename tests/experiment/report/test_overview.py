"""The picture of a suite's first screen says what the table says."""

import re
from pathlib import Path

import pytest
from fake_runs import write_run, write_suite

from aafit.experiment.report.overview import strips
from aafit.experiment.report.runs import read_suite
from aafit.experiment.report.summary import summarise


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("runs") / "small")


def test_each_run_has_its_accuracies_in_their_places(suite: Path) -> None:
    rows = summarise(read_suite(suite))
    found = strips(rows, {"base-relu": "base-relu-seed42"})
    assert [strip.name for strip in found.rows] == [row.settings.name for row in rows]
    # One scale for all: places are as far apart as accuracies.
    (one, left), (other, right) = found.scale[0], found.scale[-1]
    point = (right - left) / (float(other[:-1]) - float(one[:-1]))
    for strip, row in zip(found.rows, rows, strict=True):
        values = [spread for spread in (row.base, row.replaced, row.last) if spread is not None]
        places = [place for _, place in strip.marks]
        assert [left + point * (100 * value.mean - float(one[:-1])) for value in values] == pytest.approx(
            places, abs=0.02
        )
        assert re.findall(r"(\d+\.\d\d)%", strip.text) == [f"{100 * value.mean:.2f}" for value in values]
        assert all(0 <= place <= 100 for place in places)
    assert [strip.fragment for strip in found.rows] == ["base-relu-seed42", "", "", "", "", ""]
    trained, tuned = found.rows[0], found.rows[2]
    assert (trained.span, [kind for kind, _ in trained.marks]) == (None, ["tuned"])
    assert "trained" in trained.text
    assert [kind for kind, _ in tuned.marks] == ["base", "replaced", "tuned"]
    assert tuned.span is not None


def test_a_suite_without_an_accuracy_has_no_picture(tmp_path: Path) -> None:
    (write_run(tmp_path, "run", "ReLU", epochs=1, until=0) / "metrics.csv").write_text("")
    assert strips(summarise(read_suite(tmp_path)), {}).rows == ()


def test_of_many_runs_the_first_are_shown(suite: Path) -> None:
    rows = summarise(read_suite(suite))
    found = strips(rows * 20, {})
    assert (len(found.rows), found.more) == (60, 20 * len(rows) - 60)
