"""Adaptive activations made fixed: which function, which table, how far from what they were, and plain ONNX."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from foreign import changed, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError
from aafit.networks.freeze import FittedFunction, freeze_activations
from aafit.networks.kinds import KNOWN
from aafit.networks.knot_table import Table


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


@pytest.mark.parametrize("as_", ["function", "table"])
def test_the_error_is_that_on_the_inputs_of_the_sample(as_: str) -> None:
    random = FNeuron.random(generator=torch.Generator().manual_seed(2))
    net, x = network(LEAF(1.2, 0.0, 1.0, 0.0), random), inputs()
    frozen, report = freeze_activations(net, as_, sample=x, tolerance=math.inf)
    row = report.rows[0]
    with torch.no_grad():
        u = net[0](x)
        y = net[1].double()(u.double())
        error = frozen[1](u.double()) - y
    assert row.rms == pytest.approx((error.square().mean().sqrt() / y.std(correction=0)).item(), rel=1e-3, abs=1e-9)
    assert row.max_abs == pytest.approx(error.abs().max().item(), rel=1e-3, abs=1e-6)
    assert (row.inputs, row.least, row.largest) == (96, u.min().item(), u.max().item())
    assert "in the sample" in str(report)


def test_a_function_is_scaled_and_shifted() -> None:
    net = network(LEAF(6.3, 0.0, 2.0**16, 0.0), AHAF(0.7, 2.0))
    frozen, report = freeze_activations(net, sample=inputs())
    assert report.rows[0].new.startswith("6.3 * ReLU(1 * u + ")
    assert report.rows[1].new.startswith("2.857 * SiLU(0.7 * u + ")
    assert all(row.rms < 0.01 for row in report.rows)
    assert isinstance(frozen[1], FittedFunction)
    assert torch.allclose(frozen(inputs()), net(inputs()), atol=0.05)


def test_a_function_that_is_not_near_is_refused() -> None:
    zigzag = FNeuron(torch.tensor([[0.0, 1.0] * 9]))
    with pytest.raises(
        UserError, match=r"No function is near '1' .* relative RMS error of \d+.*as a \"table\", or allow"
    ):
        freeze_activations(network(zigzag), sample=inputs())
    per_channel = LEAF.like("ReLU", (3,))
    with torch.no_grad():
        per_channel.p1.copy_(torch.tensor([1.0, -2.0, 5.0]))
    with pytest.raises(UserError, match="No function is near"):
        freeze_activations(network(per_channel), sample=inputs())
    _, report = freeze_activations(network(per_channel), sample=inputs(), tolerance=math.inf)
    assert report.rows[0].rms > 0.1


def test_outliers_do_not_make_a_table_coarse() -> None:
    base, x = nn.Sequential(nn.Linear(8, 64), LEAF.like("SiLU"), nn.Linear(64, 3)), torch.randn(512, 8)
    x[0] *= 200
    frozen, report = freeze_activations(base, "table", sample=x)
    assert (frozen(x[1:]) - base(x[1:])).norm() < 1e-3 * base(x[1:]).norm()
    (row,) = report.rows
    assert 0 < row.outside < 1 / 500
    assert row.largest > 50
    error = (frozen[1](base[0](x)) - base[1](base[0](x))).abs().max().item()
    assert row.max_abs == pytest.approx(error, rel=0.01)


def test_the_largest_error_is_over_all_inputs() -> None:
    net, u = nn.Sequential(nn.Identity(), LEAF.like("SiLU")), torch.randn(2**19 + 1, 1)
    u[7], u[9] = 60.0, -30.0
    frozen, report = freeze_activations(net, "table", sample=u)
    assert report.rows[0].inputs == 2**19 + 1
    assert (frozen(u) - net(u)).abs().max().item() <= 1.05 * report.rows[0].max_abs + 1e-6


class Clipped(AdaptiveActivation):
    family = "Clipped"
    starts: ClassVar = {"Wide": (-1.3, 2.1)}

    @staticmethod
    def formula(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(u, low), high)


def test_a_table_has_knots_at_kinks_and_is_finer_where_inputs_are() -> None:
    u = torch.cat([torch.randn(5000, 1) * 0.1, torch.randn(500, 1) * 3])
    frozen, report = freeze_activations(nn.Sequential(Clipped.like("Wide")), "table", sample=u, size=33)
    assert report.rows[0].max_abs < 0.01
    table = frozen[0]
    left, right = table.limits.tolist()
    knots = left + table.knots * (right - left) / len(table.segments)
    assert (knots[:, None] - torch.tensor([-1.3, 2.1])).abs().amin(0).max() < 0.05
    assert ((knots.abs() < 0.3).sum() > 5).item()


def test_size_and_limits_of_a_table() -> None:
    net = network(LEAF.like("SiLU"))
    sizes = [len(freeze_activations(net, "table", size=size)[0][1].knots) for size in (9, 129)]
    assert 9 <= sizes[0] < 9 + 20
    assert 129 <= sizes[1] < 129 + 20 or sizes[1] > 100
    (_, table, *_), report = freeze_activations(net, "table", sample=inputs(), limits=(-1.0, 1.0))
    assert table.limits.tolist() == pytest.approx([-1, 1], abs=0.01)
    assert report.rows[0].outside > 0.1


def test_a_state_dict_holds_all_of_a_table_and_of_a_scaled_function() -> None:
    net = network(LEAF(1.3, 0.1, 0.9, 0.0))
    for as_ in ("table", "function"):
        one, two = (freeze_activations(net, as_, sample=inputs() * factor)[0] for factor in (1, 3))
        same = all(x.shape == two.state_dict()[name].shape for name, x in one.state_dict().items())
        with nullcontext() if same else pytest.raises(RuntimeError, match="size mismatch"):
            two.load_state_dict(one.state_dict())
        assert torch.equal(two(inputs()), one(inputs())) == same


def test_a_mask_of_minus_infinity_does_not_count() -> None:
    net, x = nn.Sequential(LEAF.like("ReLU")), inputs()
    x[3, 1] = -math.inf
    frozen, report = freeze_activations(net, "table", sample=x)
    assert report.rows[0].inputs == x.numel() - 1
    assert frozen(x)[3, 1].abs() < 1e-3


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
        (network(LEAF.like("ReLU")), {"limits": (2, 1)}, r"The limits \(2, 1\) are not valid"),
        (network(LEAF.like("ReLU")), {"limits": (0, math.nan)}, r"The limits \(0, nan\) are not valid"),
        (network(LEAF.like("ReLU")), {"limits": 3}, "The limits 3 are not valid"),
        (network(LEAF.like("ReLU")), {"limits": ("a", 1)}, r"The limits \('a', 1\) are not valid"),
        (network(LEAF.like("ReLU")), {"limits": (50, 60), "sample": inputs()}, r"No input is in \[50, 60\]"),
        (network(LEAF.like("ReLU")), {"size": 1}, "at least 2; got 1"),
        (network(LEAF.like("ReLU")), {"tolerance": 0}, "tolerance must be a number above 0; got 0"),
        (network(LEAF.like("ReLU")), {"sample": torch.ones(2, 5)}, "failed"),
        (network(LEAF.like("ReLU")), {"sample": torch.full((2, 4), math.nan)}, "receives NaN or infinity"),
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
