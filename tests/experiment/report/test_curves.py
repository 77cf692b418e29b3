"""Figures of values over the epochs or over time: which runs share one, and that they show the values of the runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run

from aafit.experiment.report.curves import draw_group, draw_times, draw_trajectories, groups
from aafit.experiment.report.page import write_report
from aafit.experiment.report.runs import read_run, read_suite


def test_the_papers_groups_have_their_base_and_the_runs_that_start_as_it(suite: Path) -> None:
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


def test_an_identification_that_ended_earlier_than_another_seeds_counts_in_the_mean_to_the_end(tmp_path: Path) -> None:
    for seed, steps, accuracy in ((42, 3, 0.82), (100, 6, 0.86)):
        write_run(tmp_path, "base", "ReLU", seed=seed, epochs=4, accuracy=(0, 0.1, 0.8))
        options: dict[str, Any] = {"parent": "base", "seed": seed, "start": 4, "method": "gauss-newton"}
        write_run(tmp_path, "found", "LEAF as ReLU", epochs=steps, accuracy=(0.8, 0.8, accuracy), **options)
    (group,) = groups(read_suite(tmp_path))
    last = [run.columns["test_accuracy"][-1] for run in group.tuned["found"]]
    for panel in (draw_group(group).axes[0], draw_group(group).axes[2]):
        drawn = [line for line in panel.lines if np.asarray(line.get_xdata())[-1] == 10]
        assert [np.asarray(line.get_ydata())[-1] for line in drawn] == [pytest.approx(100 * np.mean(last))]


@pytest.mark.parametrize("loss", ["nan", "0.0"])
def test_a_diverged_run_is_drawn(tmp_path: Path, loss: str) -> None:
    folder = write_run(tmp_path, "run", "ReLU", epochs=3)
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    body = [",".join([cells[0], loss, *cells[2:]]) for cells in lines[1:]]
    (folder / "metrics.csv").write_text("\n".join([",".join(lines[0]), *body]) + "\n")
    assert [path.suffix for path in write_report(tmp_path).figures] == [".svg", ".png"]


def test_time_is_that_of_tuning(suite: Path) -> None:
    run = read_run(suite / "relu-leaf-tanh" / "seed42")
    figure = draw_times({"a run": run})
    (drawn,) = [line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) > 2]
    assert np.asarray(drawn.get_xdata())[-1] == pytest.approx(np.nansum(run.columns["seconds"]))
    assert np.asarray(drawn.get_ydata())[-1] == pytest.approx(100 * run.columns["test_accuracy"][-1])


def test_trajectories_begin_at_zero_and_a_parameter_without_values_has_no_panel(suite: Path) -> None:
    run = read_run(suite / "relu-leaf-tanh" / "seed42")
    figure = draw_trajectories(run)
    assert figure is not None
    shown = [panel for panel in figure.axes if panel.axison]
    assert len(shown) == 4
    assert all(np.asarray(drawn.get_ydata())[0] == 0 for panel in shown for drawn in panel.lines)
    run.columns["act1.p1"][:] = np.nan
    missing = draw_trajectories(run)
    assert missing is not None
    assert sum(len(panel.lines) for panel in missing.axes) == sum(len(panel.lines) for panel in shown) - 1
    assert draw_trajectories(read_run(suite / "base-relu" / "seed42")) is None


def test_an_element_is_named_by_its_knot_only_in_an_f_neuron(tmp_path: Path) -> None:
    options: dict[str, Any] = {"parent": "base-relu", "start": 4, "epochs": 2, "accuracy": (0.8, 0.5, 0.7)}
    shown = []
    for name, text in {"polynomial": "Polynomial(degree=4) as ReLU", "fneuron": "F-Neuron as Tanh"}.items():
        write_run(tmp_path, name, "ReLU", text, **options)
        figure = draw_trajectories(read_run(tmp_path / name / "seed42"))
        assert figure is not None
        shown.append({text.get_text() for panel in figure.axes for text in panel.texts})
    assert {f"[{index}]" for index in range(5)} <= shown[0]
    assert "[0] at -4.00" in shown[1]
    assert not any(" at " in text for text in shown[0])
