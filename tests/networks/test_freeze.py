"""Adaptive activations made fixed: which function, which table, how far from what they were, and plain ONNX."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import changed, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError
from aafit.networks.freeze import Table, freeze_activations
from aafit.networks.kinds import KNOWN


def network(act: nn.Module, other: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), act, nn.Linear(3, 2), nn.Identity() if other is None else other)


def inputs(rows: int = 32) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize(
    ("act", "name", "error"),
    [
        (LEAF.like("ReLU"), "ReLU", 1e-3),
        (LEAF.like("SiLU"), "SiLU", 1e-6),
        (LEAF.like("Tanh"), "Tanh", 1e-6),
        (AHAF.like("SiLU"), "SiLU", 1e-6),
        (FNeuron.like(nn.GELU(), interval=(-8, 8), knots=257), "GELU", 1e-3),
        (FNeuron.like(nn.Mish(), interval=(-8, 8), knots=257), "Mish", 1e-3),
        (FNeuron.like(lambda u: u, interval=(-8, 8)), "Identity", 1e-6),
    ],
)
@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_the_nearest_function(act: AdaptiveActivation, name: str, error: float, shape: tuple[int, ...]) -> None:
    net = network(act if shape == (1,) else act.reshaped(shape))
    before = snapshot(net)
    frozen, report = freeze_activations(net)
    (row,) = report.rows
    assert (row.path, row.new) == ("1", name)
    assert row.rms <= row.max_abs < error
    assert type(frozen[1]) is type(KNOWN[name])
    assert not changed(net, before)
    assert isinstance(net[1], AdaptiveActivation)
    assert frozen[1] is not KNOWN[name]
    assert torch.allclose(frozen(inputs() / 4), net(inputs() / 4), atol=error)
    assert name in str(report)
    assert "even grid" in str(report)


def test_the_error_is_that_on_the_inputs_of_the_sample() -> None:
    net, x = network(LEAF(1.2, 0.0, 1.0, 0.0), FNeuron.random(generator=torch.Generator().manual_seed(2))), inputs()
    frozen, report = freeze_activations(net, sample=x)
    with torch.no_grad():
        u = net[0](x)
        expected = frozen[1](u.double()) - net[1].double()(u.double())
    row = report.rows[0]
    assert row.rms == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-6)
    assert row.max_abs == pytest.approx(expected.abs().max().item(), rel=1e-6)
    assert (row.inputs, row.least, row.largest) == (96, u.min().item(), u.max().item())
    assert "in the sample" in str(report)


FAMILIES = [LEAF.like("SiLU"), AHAF(torch.tensor(1.3), torch.tensor(0.7)), FNeuron.like("Tanh")]


@settings(max_examples=6, deadline=None)
@given(
    which=st.sampled_from(FAMILIES), shape=st.sampled_from([(1,), (3,), (3, 1, 1), (3, 2, 2)]), sampled=st.booleans()
)
def test_a_table_is_near_whatever_is_shared(which: AdaptiveActivation, shape: tuple[int, ...], sampled: bool) -> None:
    act = which if shape == (1,) else which.reshaped(shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) * 0.2 + 0.9)
    u = torch.randn(5, *(shape if len(shape) == 3 else (3,)), generator=generator) * 3
    u = u.expand(5, 3, 2, 2) if shape == (3, 1, 1) else u
    net = nn.Sequential(act)
    frozen, report = freeze_activations(net, "table", sample=u if sampled else None)
    table = frozen[0]
    assert isinstance(table, Table)
    assert not list(frozen.parameters())
    wanted = act(u).detach()
    near = u.abs() < 8
    assert (table(u) - wanted)[near].abs().max() < 2e-3
    assert report.rows[0].max_abs < 2e-3
    if isinstance(act, FNeuron):
        assert torch.allclose(table(u * 3), act(u * 3), atol=1e-6)


def test_beyond_its_ends_a_table_goes_on_straight_and_nan_stays() -> None:
    (table,), _ = freeze_activations(nn.Sequential(LEAF.like("SiLU")), "table")
    y = table(torch.tensor([-30.0, 30.0, math.nan, math.inf]))
    assert y[:2].tolist() == pytest.approx([0, 30], abs=0.1)
    assert y[2].isnan()
    assert table(torch.tensor([[2.0]], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_one_activation_at_two_places_stays_one() -> None:
    act = LEAF.like("SiLU")
    frozen, report = freeze_activations(network(act, act), "table")
    assert frozen[1] is frozen[3]
    assert [row.path for row in report.rows] == ["1", "3"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_takes_the_type_of_what_surrounds_it_and_its_mode(dtype: torch.dtype) -> None:
    net = network(LEAF.like("SiLU")).to(dtype).eval()
    frozen, _ = freeze_activations(net, "table")
    assert frozen(inputs().to(dtype)).dtype == frozen[1].values.dtype == dtype
    assert not frozen[1].training


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        (network(nn.ReLU()), {}, "nothing to freeze: the network has no adaptive"),
        (LEAF.like("ReLU"), {}, "network itself is an adaptive"),
        (network(LEAF.like("ReLU")), {"as_": "tables"}, "Unknown way to freeze 'tables'. Did you mean 'table'"),
        (network(LEAF.like("ReLU")), {"as_": ["1"]}, 'as_= is "function" or "table", not a list: an input is given as'),
        (network(LEAF.like("ReLU")), {"as_": inputs()}, "not a Tensor: an input is given as sample="),
        (network(LEAF.like("ReLU")), {"interval": (2, 1)}, r"The interval \(2, 1\) cannot be used"),
        (network(LEAF.like("ReLU")), {"interval": 3}, "The interval 3 cannot be used"),
        (network(LEAF.like("ReLU")), {"interval": ("a", 1)}, r"The interval \('a', 1\) cannot be used"),
        (network(LEAF.like("ReLU")), {"sample": torch.ones(2, 5)}, "failed"),
        (network(LEAF.like("ReLU")), {"sample": torch.full((2, 4), math.nan)}, "receives or gives NaN"),
    ],
)
def test_what_cannot_be_frozen(net: nn.Module, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        freeze_activations(net, **options)


@pytest.mark.filterwarnings("ignore")
def test_frozen_activations_are_plain_onnx(tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    net = network(LEAF.like("SiLU"), AHAF.like("ReLU").reshaped((2,))).eval()
    tables, _ = freeze_activations(net, "table", sample=inputs())
    functions, _ = freeze_activations(net, "function", sample=inputs())
    frozen, path = nn.Sequential(tables, nn.Linear(2, 4), functions).eval(), tmp_path / "net.onnx"
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.onnx.export(frozen, (inputs(),), path, dynamo=True, dynamic_shapes=({0: rows},), verbose=False)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (32, 7):
        (y,) = session.run(None, {session.get_inputs()[0].name: inputs(count).numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(y), frozen(inputs(count)), atol=1e-5)
