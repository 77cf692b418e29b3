"""The report: what it reads, its tables, its figures and its page, on run folders with made-up numbers."""

import csv
import io
import json
import re
from pathlib import Path
from statistics import stdev
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from fake_runs import write_run
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from aafit.activations import FIXED, LEAF, FNeuron
from aafit.errors import UserError
from aafit.report import Report, draw_activations, draw_all, plot_activations, read_suite, results_table, write_report
from aafit.report.curves import draw_group
from aafit.report.groups import groups
from aafit.report.runs import read_run
from aafit.report.shapes import number
from aafit.report.style import spread
from aafit.report.tables import csv_rows, duration


def write_suite(suite: Path) -> Path:
    """Two bases and four runs tuned from them; two seeds of the ReLU base and one child; one run unfinished."""
    for seed, more in ((42, 0.0), (100, 0.01)):
        write_run(suite, "base-relu", "ReLU", seed=seed, epochs=4, accuracy=(0, 0.1, 0.8 + more), holdout=500)
        options: dict[str, Any] = {"parent": "base-relu", "seed": seed, "start": 4, "epochs": 6, "holdout": 500}
        accuracy = (0.8 + more, 0.6, 0.7 + more)
        write_run(suite, "relu-leaf-tanh", "LEAF as ReLU", "LEAF as Tanh", stage="4", accuracy=accuracy, **options)
    options = {"parent": "base-relu", "start": 4, "epochs": 2}
    write_run(suite, "relu-leaf-relu", "LEAF as ReLU", stage="2", accuracy=(0.8, 0.799, 0.81), **options)
    options = {"parent": "base-relu", "start": 4, "epochs": 6, "accuracy": (0.8, 0.1, 0.11)}
    write_run(suite, "relu-fneuron", "ReLU", "F-Neuron random", stage="4", **options)
    write_run(suite, "base-silu", "SiLU", epochs=4, accuracy=(0, 0.1, 0.82))
    options = {"parent": "base-silu", "start": 4, "epochs": 6, "accuracy": (0.82, 0.4, 0.7), "until": 7}
    write_run(suite, "silu-ahaf-relu", "AHAF as ReLU", stage="6", **options)
    return suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def report(suite: Path) -> Report:
    return write_report(suite, "aafit run --suite <small>")


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "done.json").read_text())["result"]
    return read


def csv_table(suite: Path) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader(io.StringIO(csv_rows(read_suite(suite))))}


# Tables


def test_csv_has_the_raw_numbers_and_over_seeds_their_mean_and_sample_deviation(suite: Path) -> None:
    table = csv_table(suite)
    assert list(table) == [
        "base-relu",
        "base-silu",
        "relu-leaf-relu",
        "relu-fneuron",
        "relu-leaf-tanh",
        "silu-ahaf-relu",
    ]
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
    assert float(row["share_of_loss_recovered"]) == pytest.approx(sum(shares) / 2)
    assert (row["seeds"], row["cnn"], row["fc"], row["parent"]) == (
        "42 100",
        "LEAF as ReLU",
        "LEAF as Tanh",
        "base-relu",
    )
    assert (row["status"], row["tuned_parameters"], row["seconds"]) == ("finished", "20", "15.0")
    assert table["base-relu"]["base_accuracy"] == table["base-relu"]["share_of_loss_recovered"] == ""
    assert table["relu-leaf-relu"]["last_accuracy_std"] == ""


@pytest.mark.parametrize(("base", "recovered"), [(0.8, 0.5), (0.6049, None), (0.6051, 0.5), (0.59, None)])
def test_a_share_is_recovered_only_where_half_a_point_was_lost(
    tmp_path: Path, base: float, recovered: float | None
) -> None:
    folder = write_run(tmp_path, "child", "AHAF as ReLU", parent="base", accuracy=(base, 0.6, 0.7), epochs=1)
    done = json.loads((folder / "done.json").read_text())
    done["result"]["last_accuracy"] = (base + 0.6) / 2
    (folder / "done.json").write_text(json.dumps(done))
    share = csv_table(tmp_path)["child"]["share_of_loss_recovered"]
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
    assert [folder.name for folder in read_suite(tmp_path).no_config] == ["seed3"]


def test_the_terminal_table_fits_120_columns_with_every_word_whole(suite: Path) -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(results_table(read_suite(suite)).terminal())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 120
    for whole in (
        "relu-leaf-tanh",
        "FC LEAF as Tanh",
        "FC F-Neuron random",
        "unfinished: epoch 7 of 10",
        "selected",
        "on test",
    ):
        assert whole in text
    last = [100 * result(suite / "relu-leaf-tanh" / f"seed{seed}")["last_accuracy"] for seed in (42, 100)]
    assert f" {sum(last) / 2:.2f} " in text
    assert f"±{stdev(last):.2f}" in text


def test_markdown_has_one_cell_a_column(suite: Path) -> None:
    lines = results_table(read_suite(suite)).markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert len({line.count("|") for line in table}) == 1
    assert "best, selected on test" in table[0]
    assert any(line.startswith("Loss recovered: (last epoch - just replaced)") for line in lines)


def test_latex_and_markdown_escape_what_a_stage_may_be_called(tmp_path: Path) -> None:
    write_run(tmp_path, "run_1", "ReLU", epochs=1, stage=r"a_b & 50% | $x$ {~^} \end")
    table = results_table(read_suite(tmp_path))
    assert r"a_b & 50% \| $x$" in table.markdown()
    assert (
        r"a\_b \& 50\% | \$x\$ \{\textasciitilde{}\textasciicircum{}\} \textbackslash{}end & run\_1 & ReLU"
        in table.latex()
    )


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
    assert "| LeNet-5 Fashion-MNIST |" in results_table(read_suite(tmp_path)).markdown()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (3725, "1:02:05")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Groups of curves


def test_the_papers_groups_have_their_base_and_the_like_for_like_runs(suite: Path) -> None:
    found = {group.key: (list(group.bases), list(group.tuned)) for group in groups(read_suite(suite))}
    assert found == {
        "relu-to-tanh-relu": (["base-relu"], ["relu-fneuron", "relu-leaf-tanh", "relu-leaf-relu"]),
        "silu-to-relu": (["base-silu"], ["silu-ahaf-relu"]),
    }


def test_other_runs_are_grouped_by_their_base_or_as_trained_from_scratch(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "ReLU", epochs=1, stage="x")
    write_run(tmp_path, "b", "Tanh", epochs=1, stage="x")
    write_run(tmp_path, "child", "LEAF as ReLU", parent="a", start=1, epochs=1, stage="y")
    write_run(tmp_path, "grandchild", "LEAF as ReLU", parent="child", start=2, epochs=1, stage="z")
    write_run(tmp_path, "orphan", "AHAF as ReLU", parent="gone", start=2, epochs=1, stage="z")
    found = {group.key: (list(group.bases), list(group.tuned)) for group in groups(read_suite(tmp_path))}
    assert found == {
        "from-a": (["a"], ["child", "grandchild"]),
        "from-orphan": ([], ["orphan"]),
        "from-scratch-KerasNet-CIFAR-10": (["a", "b"], []),
    }


def test_curves_are_numbered_through_and_a_collapsed_run_leaves_the_close_up(suite: Path) -> None:
    figure = draw_group(groups(read_suite(suite))[0])
    whole, _, close, _ = figure.axes
    ends = {int(line.get_xdata()[-1]) for line in whole.lines if line.get_linewidth() == 1.5}  # type: ignore[arg-type,index]
    assert ends == {4, 6, 10}
    assert whole.get_ylim() == (0, 100)
    assert close.get_ylim()[0] > 50
    assert any("↓ relu-fneuron ends at" in text.get_text() for text in close.texts)


@pytest.mark.parametrize("loss", ["nan", "inf", "0.0", ""])
def test_a_diverged_run_is_drawn(tmp_path: Path, loss: str) -> None:
    folder = write_run(tmp_path, "run", "ReLU", epochs=3)
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    body = [",".join([cells[0], loss, *cells[2:]]) for cells in lines[1:]]
    (folder / "metrics.csv").write_text("\n".join([",".join(lines[0]), *body]) + "\n")
    assert [path.suffix for path in draw_all(tmp_path, tmp_path / "out")] == [".svg", ".png"]


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_labels_keep_their_order_and_distance_and_stay_inside_where_there_is_room(
    wanted: list[float], distance: float
) -> None:
    placed = spread(sorted(wanted), distance)
    assert len(placed) == len(wanted)
    assert all(upper - lower >= distance - 1e-9 for lower, upper in zip(placed, placed[1:], strict=False))
    if wanted and (len(wanted) - 1) * distance <= 1:
        assert min(placed) >= -1e-9
        assert max(placed) <= 1 + 1e-9
    if all(upper - lower >= distance for lower, upper in zip(sorted(wanted), sorted(wanted)[1:], strict=False)):
        assert placed == pytest.approx(sorted(wanted))


# Shapes


def curve(figure: Figure, axes: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    line = next(line for line in figure.axes[axes].lines if line.get_label() == label)
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_plot_activations_draws_each_activation_beside_what_it_started_as() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), LEAF.like("Tanh"), nn.Linear(4, 4), FNeuron.like("ReLU", interval=(-2, 2), pieces=3)
    )
    with torch.no_grad():
        net[1].p4.add_(0.25)  # type: ignore[union-attr,operator]
    before = dict(matplotlib.rcParams)
    figure = plot_activations(net, title="shapes")
    assert dict(matplotlib.rcParams) == before
    assert isinstance(figure, Figure)
    x, y = curve(figure, 0, "now")
    assert (x[0], x[-1]) == (-6, 6)
    assert y == pytest.approx(np.tanh(x) + 0.25, abs=1e-6)
    assert curve(figure, 0, "start, before tuning")[1] == pytest.approx(np.tanh(x))
    assert "p4 = -0.75" in figure.axes[0].get_title(loc="left")
    x, _ = curve(figure, 1, "now")
    assert x[0] < -2
    assert x[-1] > 2
    assert curve(figure, 1, "knots (weights)")[1] == pytest.approx([0, 0, 0, 1, 2])


@pytest.mark.parametrize(("shape", "size"), [((3, 1, 1), 3), ((3, 4, 4), 48)])
def test_parameters_of_many_channels_or_neurons_are_a_median_and_a_band(shape: tuple[int, ...], size: int) -> None:
    activation = LEAF.random(shape, torch.Generator().manual_seed(0))
    figure = plot_activations(activation)
    x, y = curve(figure, 0, "now: median")
    grid = torch.tensor(x).reshape(-1, 1, 1, 1).expand(-1, *shape)
    expected = np.median(activation(grid).detach().reshape(len(x), -1).numpy(), axis=1)
    assert y == pytest.approx(expected, abs=1e-6)
    assert f"p1: {size} values" in figure.axes[0].get_title(loc="left")


def batches(kind: str) -> Any:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return {"tensor": x, "list": [x, x], "pairs": iter([(x, torch.zeros(8)), (x, torch.zeros(8))])}[kind]


@pytest.mark.parametrize("kind", ["tensor", "list", "pairs"])
def test_inputs_are_shown_and_the_network_is_left_as_it_was(kind: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), LEAF.like("ReLU"))
    net[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    figure = plot_activations(net, inputs=batches(kind))
    assert "inputs of the activation (density)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert [module.training for module in net.modules()] == [True, True, False]
    assert not net[1]._forward_pre_hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "inputs", "says"),
    [(nn.ReLU(), None, "no adaptive activation"), (nn.Sequential(LEAF.like("ReLU")), [], "no batch")],
)
def test_plot_activations_refuses(net: nn.Module, inputs: list[Tensor] | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plot_activations(net, inputs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.123456, "0.1235"), (-2.0, "-2"), (65536.0078, "65536.01"), (65536, "65536"), (1.5e-7, "1.5e-07")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


# The page and its files


def test_the_report_is_complete(suite: Path, report: Report) -> None:
    names = {path.relative_to(suite / "report").as_posix() for path in (report.page, *report.tables, *report.figures)}
    stems = ["curves-relu-to-tanh-relu", "curves-silu-to-relu", "differences", "trajectories-silu-ahaf-relu-seed42"]
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


def test_the_page_needs_nothing_else_and_escapes(report: Report) -> None:
    page = report.page.read_text()
    assert not re.findall(r"<script|<link|@import|url\(|src=\"(?!data:image/svg)|href=\"(?!#)", page)
    assert page.count("<img") == len(report.figures) / 2
    for text in (
        "Some &lt;CPU&gt; &amp; Co",
        "aafit run --suite &lt;small&gt;",
        "unfinished: epoch 7 of 10",
        "7 of 8 finished",
    ):
        assert text in page
    for run in ("base-relu", "relu-leaf-relu", "relu-fneuron", "relu-leaf-tanh", "base-silu", "silu-ahaf-relu"):
        assert f'id="{run}-seed42"' in page


def test_the_same_runs_give_the_same_bytes_and_the_start_is_dashed(suite: Path, report: Report, tmp_path: Path) -> None:
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
        ("done.json", '{"finished": "", "seconds": 1}', "done.json is damaged: result: Field required"),
        ("done.json", b"\xff\xfe", "done.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", '{"seed": 1, "run": {"name": "x"}}', r"config.json is damaged: run.epochs"),
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
    with pytest.raises(UserError, match=r"activations.safetensors cannot be read"):
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


def test_fixed_functions_drawn_as_replaced_are_the_real_ones(suite: Path) -> None:
    from aafit.report.shapes import draw_run

    figure = draw_run(read_run(suite / "relu-leaf-tanh" / "seed42"))
    x, replaced = curve(figure, 4, "replaced function")
    assert replaced == pytest.approx(FIXED["ReLU"]()(torch.tensor(x)).numpy())
    start = next(line for line in figure.axes[4].lines if line.get_label() == "start, before tuning")
    assert np.asarray(start.get_ydata()) == pytest.approx(np.tanh(x), abs=1e-6)
    assert start.is_dashed()
    assert re.search(r"p1 = -?0\.\d+ \(from 0\)", figure.axes[4].get_title(loc="left"))
