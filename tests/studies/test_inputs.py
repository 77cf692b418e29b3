"""The distribution of an activation's inputs."""

import pytest
import torch
from torch import nn

from aafit.errors import UserError
from aafit.networks.batches import Batch
from aafit.studies.inputs import input_distributions


def distribution(*batches):
    (row,) = input_distributions(nn.Sequential(nn.ReLU()), ["0"], [Batch((x,), {}) for x in batches])
    return row


def test_it_counts_what_the_layer_receives():
    u = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).double()
    row = distribution(*u)
    assert (row.low, row.high, row.elements) == (u.min().item(), u.max().item(), 15000)
    assert row.mean == pytest.approx(u.mean().item())
    assert row.std == pytest.approx(u.std(correction=0).item())
    inside = (u >= row.edges[0]) & (u <= row.edges[-1])
    assert row.counts.sum() == pytest.approx(inside.sum().item(), abs=3)
    # Between the quantiles 0.0005 and 0.9995.
    assert inside.double().mean() > 0.998
    expected, _ = torch.histogram(u, row.edges)
    assert (row.counts - expected).abs().sum() < 0.01 * expected.sum()


def test_one_far_input_does_not_widen_the_histogram():
    u = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)).double()
    u[0, 0] = 1e4
    row = distribution(u)
    assert row.high == 1e4
    assert row.edges[-1] < 100


def test_inputs_that_are_all_one_number():
    row = distribution(torch.full((1, 7), 2.0))
    assert row.edges[0] <= 2.0 <= row.edges[-1]
    assert row.counts.sum() == 7


def test_a_batch_of_equal_inputs_stays_narrow():
    u = torch.linspace(-2, 2, 4001).double()[None]
    row = distribution(u, torch.full((1, 1000), 0.25).double())
    at = int((row.edges <= 0.25).sum()) - 1
    assert row.counts[at] + row.counts[at - 1] + row.counts[at + 1] >= 1000


def test_layers_are_in_the_order_of_their_calls():
    net = nn.ModuleDict({"second": nn.ReLU(), "first": nn.ReLU()})
    net.forward = lambda x: net["second"](net["first"](x))
    rows = input_distributions(net, ["second", "first"], [Batch((torch.randn(2, 3),), {})])
    assert [row.path for row in rows] == ["first", "second"]


def test_a_layer_that_is_not_called_is_left_out():
    net = nn.ModuleDict({"used": nn.ReLU(), "idle": nn.ReLU()})
    net.forward = lambda x: net["used"](x)
    rows = input_distributions(net, ["used", "idle"], [Batch((torch.randn(2, 3),), {})])
    assert [row.path for row in rows] == ["used"]


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="'0' are not all finite"):
        distribution(torch.tensor([[1.0, float("nan")]]))
