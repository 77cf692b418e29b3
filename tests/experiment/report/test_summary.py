"""The results table, the sentences and the picture at the top of the page, on runs with made-up values."""

import csv
import io
import json
import re
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from fake_runs import write_run
from rich.console import Console

from aafit.experiment.report.runs import read_suite
from aafit.experiment.report.summary import ACCURACIES, csv_rows, duration, results_table, strips, summarise, verdict
from aafit.experiment.runs.documents import load_json, save_json


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "done.json").read_text())["result"]
    return read


def csv_table(suite: Path) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader(io.StringIO(csv_rows(summarise(read_suite(suite)))))}


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
    done = load_json(folder / "done.json")
    done["result"]["last_accuracy"] = (base + 0.6) / 2
    save_json(folder / "done.json", done)
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
    assert results_table(read_suite(tmp_path)).notes[-1] == "Not started: run (seed3)."


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
    assert any("silu-ahaf-relu, from base-silu, unfinished: epoch 7 of 10 |" in line for line in table)
    assert any(line.startswith("Drop recovered: (last epoch - before tuning)") for line in lines)


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (725, "0:12:05"), (3725, "1:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_cell_of_the_csv_is_not_a_formula(tmp_path: Path) -> None:
    write_run(tmp_path, "run", "ReLU", epochs=1, stage="=HYPERLINK(1)")
    assert csv_table(tmp_path)["run"]["stage"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("replaced", "sentences"),
    [
        (
            (0.75, 0.75),
            ["In 2 of the 2 runs with replaced activations the replacement alone cost less than"],
        ),
        (
            (0.25, 0.5),
            [
                "lowered the test accuracy by 25.00 to 50.00 points, and tuning only the activation parameters",
                "The largest drop is that of run0: base network 75.00%, before tuning 25.00%, after tuning",
            ],
        ),
        ((0.25, 0.75), ["In 1 of the 2 runs", "by 50.00 points", "differs from the base network's by +"]),
    ],
)
def test_the_verdict_reports_the_drop_and_its_recovery(
    tmp_path: Path, replaced: tuple[float, float], sentences: list[str]
) -> None:
    write_run(tmp_path, "base", "ReLU", epochs=2)
    options: dict[str, Any] = {"parent": "base", "start": 2, "epochs": 2}
    for at, accuracy in enumerate(replaced):
        write_run(tmp_path, f"run{at}", "LEAF as ReLU", accuracy=(0.75, accuracy, 0.8), **options)
    found = read_suite(tmp_path)
    text = " ".join(verdict(found, summarise(found)))
    assert "3 of 3 runs are finished." in text
    assert [sentence for sentence in sentences if sentence not in text] == []


def test_each_run_has_its_accuracies_in_their_places(suite: Path) -> None:
    rows = summarise(read_suite(suite))
    found = strips(rows, {"base-relu": "base-relu-seed42"})
    assert [strip["name"] for strip in found["rows"]] == [row.settings.name for row in rows]
    # One scale for all: places are as far apart as accuracies.
    (one, left), (other, right) = found["scale"][0], found["scale"][-1]
    point = (right - left) / (float(other[:-1]) - float(one[:-1]))
    for strip, row in zip(found["rows"], rows, strict=True):
        values = [value for value in (row.means[name] for name in ACCURACIES.values()) if value is not None]
        places = [place for _, place in strip["marks"]]
        assert [left + point * (100 * value.mean - float(one[:-1])) for value in values] == pytest.approx(
            places, abs=0.02
        )
        assert re.findall(r"(\d+\.\d\d)%", strip["text"]) == [f"{100 * value.mean:.2f}" for value in values]
        assert all(0 <= place <= 100 for place in places)
    assert [strip["fragment"] for strip in found["rows"]] == ["base-relu-seed42", "", "", "", "", ""]
    trained, tuned = found["rows"][0], found["rows"][2]
    assert (trained["span"], [kind for kind, _ in trained["marks"]]) == (None, ["tuned"])
    assert "trained" in trained["text"]
    assert [kind for kind, _ in tuned["marks"]] == ["base", "replaced", "tuned"]
    assert tuned["span"] is not None


def test_a_suite_without_an_accuracy_has_no_picture(tmp_path: Path) -> None:
    (write_run(tmp_path, "run", "ReLU", epochs=1, until=0) / "metrics.csv").write_text("")
    assert strips(summarise(read_suite(tmp_path)), {})["rows"] == []


def test_of_many_runs_the_first_are_shown(suite: Path) -> None:
    rows = summarise(read_suite(suite))
    found = strips(rows * 20, {})
    assert (len(found["rows"]), found["more"]) == (60, 20 * len(rows) - 60)
