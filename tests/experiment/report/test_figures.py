"""Figures that compare runs."""

from pathlib import Path

import numpy as np
import torch
from fake_runs import write_run

from aafit.experiment.report.figures import draw_seeds
from aafit.experiment.report.runs import read_suite
from aafit.networks.saving import read_activations
from aafit.plots.curves import curves_of


def test_the_mean_over_seeds(suite: Path) -> None:
    runs = read_suite(suite).by_name()["relu-leaf-tanh"]
    figure = draw_seeds(runs)
    assert figure is not None
    saved = [read_activations(run.folder / "activations.safetensors") for run in runs]
    for axes, layers in zip(figure.axes, zip(*saved, strict=True), strict=False):
        drawn = next(line for line in axes.lines if line.get_label() == "tuned, mean over the seeds")
        u = np.asarray(drawn.get_xdata())
        expected = np.mean([curves_of(layer.tuned, None, None, torch.tensor(u)).tuned_U for layer in layers], axis=0)
        assert np.allclose(np.asarray(drawn.get_ydata()), expected)
    assert draw_seeds(runs[:1]) is None


def test_a_title_has_room_over_a_single_panel(tmp_path: Path) -> None:
    for seed in (42, 100):
        write_run(tmp_path, "fneuron-with-a-long-name", "ReLU", "F-Neuron random", seed=seed)
    figure = draw_seeds(read_suite(tmp_path).runs)
    assert figure is not None
    figure.draw_without_rendering()
    title = next(text for text in figure.texts if "with-a-long-name" in text.get_text())
    assert title.get_window_extent().x1 < figure.bbox.x1
