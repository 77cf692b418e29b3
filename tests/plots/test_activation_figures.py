"""Figures of activations, and the look that all figures share."""

import re
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fake_runs import write_suite
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn

from aafit.activations import FIXED, LEAF, FNeuron, Rational
from aafit.errors import UserError
from aafit.plots.activations import plot_activations
from aafit.plots.panels import Drawn, draw_activations, draw_saved, number
from aafit.plots.style import line, spread


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_labels_keep_order_and_distance_and_stay_inside_where_there_is_room(
    wanted: list[float], distance: float
) -> None:
    placed = spread(sorted(wanted), distance)
    assert len(placed) == len(wanted)
    assert all(upper - lower >= distance - 1e-9 for lower, upper in pairwise(placed))
    if wanted and (len(wanted) - 1) * distance <= 1:
        assert min(placed) >= -1e-9
        assert max(placed) <= 1 + 1e-9
    if all(upper - lower >= distance for lower, upper in pairwise(sorted(wanted))):
        assert placed == pytest.approx(sorted(wanted))


def curve(figure: Figure, axes: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    line = next(line for line in figure.axes[axes].lines if line.get_label() == label)
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_many_lines_are_told_apart() -> None:
    drawn = [(one.color, one.marker) for one in map(line, range(40))]
    assert len(set(drawn)) == len(drawn)
    assert len({color for color, _ in drawn[:8]}) == 8


def test_plot_activations_draws_each_activation_beside_what_it_started_as() -> None:
    leaf = LEAF.like("Tanh")
    net = nn.Sequential(nn.Linear(3, 4), leaf, nn.Linear(4, 4), FNeuron.like("ReLU", interval=(-2, 2), knots=5))
    with torch.no_grad():
        leaf.p4.add_(0.25)
    before = dict(matplotlib.rcParams)
    figure = plot_activations(net, title="shapes")
    assert dict(matplotlib.rcParams) == before
    assert isinstance(figure, Figure)
    x, y = curve(figure, 0, "tuned")
    assert (x[0], x[-1]) == (-6, 6)
    assert y == pytest.approx(np.tanh(x) + 0.25, abs=1e-6)
    assert curve(figure, 0, "initial")[1] == pytest.approx(np.tanh(x))
    assert "p4 = -0.75" in figure.axes[0].get_title(loc="left")
    x, _ = curve(figure, 1, "tuned")
    assert x[0] < -2
    assert x[-1] > 2
    assert curve(figure, 1, "knots")[1] == pytest.approx([0, 0, 0, 1, 2])


@pytest.mark.parametrize(("shape", "size"), [((3, 1, 1), 3), ((3, 4, 4), 48)])
def test_parameters_of_many_channels_or_neurons_are_a_median_and_a_band(shape: tuple[int, ...], size: int) -> None:
    activation = LEAF.random(shape, torch.Generator().manual_seed(0))
    figure = plot_activations(activation)
    x, y = curve(figure, 0, "tuned")
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
    assert "inputs" in [text.get_text() for text in figure.legends[0].get_texts()]
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


def test_fixed_functions_drawn_as_replaced_are_the_real_ones(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "small")
    figure = draw_saved(suite / "relu-leaf-tanh" / "seed42" / "activations.safetensors", "")
    x, replaced = curve(figure, 4, "original")
    assert replaced == pytest.approx(FIXED["ReLU"]()(torch.tensor(x)).numpy())
    start = next(line for line in figure.axes[4].lines if line.get_label() == "initial")
    assert np.asarray(start.get_ydata()) == pytest.approx(np.tanh(x), abs=1e-6)
    assert start.is_dashed()
    assert re.search(r"p1 = -?0\.\d+ \(from 0\)", figure.axes[4].get_title(loc="left"))


def test_a_long_line_about_a_parameter_is_broken() -> None:
    start = Rational.like("GELU")
    tuned = deepcopy(start)
    with torch.no_grad():
        tuned.denominator += 12.3456
    figure = draw_activations([Drawn("act1", tuned, start, "GELU")], "")
    lines = figure.axes[0].get_title(loc="left").split("\n")
    at = lines.index("denominator: 4 values")
    assert lines[at + 1] == "changed by 12.35 on average, 12.35 at most"
    assert max(map(len, lines)) <= 63
