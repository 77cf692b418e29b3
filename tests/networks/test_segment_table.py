"""Tables of few segments in integers: their entries, their error, plain ONNX, and wrong values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF, FNeuron, Histogram, PiecewiseLinear
from aafit.errors import UserError
from aafit.networks.freeze import freeze_activations
from aafit.networks.segment_table import SegmentTable, segment_table


def network(act: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), act, nn.Linear(3, 2)).eval()


def inputs(rows: int = 200) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)) * 3


KNOTS = (-4.0, -1.3, -0.1, 0.7, 2.0, 5.0)
VALUES = torch.tensor([[0.3, -0.2, 0.0, 0.9, 1.7, 9.0]])


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_entries_are_integers_times_powers_of_two(bits: int, shape: tuple[int, ...]) -> None:
    act = PiecewiseLinear(VALUES, KNOTS).reshaped(shape)
    frozen, report = freeze_activations(network(act), "table", sample=inputs(), segments=5, bits=bits)
    made = frozen[1]
    assert isinstance(made, SegmentTable)
    assert report.rows[0].new == f"Table of 5 segments in {bits} bits"
    assert (made.segments, made.shape) == (5, shape)
    assert made.nbytes == math.ceil((4 + 10 * math.prod(shape)) * bits / 8)
    for table in (made.knots, made.slopes, made.offsets):
        assert table.dtype == (torch.int8 if bits <= 8 else torch.int16)
        assert table.long().abs().max() < 2 ** (bits - 1)
    assert all(math.frexp(step)[0] == 0.5 for step in made.steps.tolist())
    # The table by hand: the segment of an input is the number of knots up to it.
    u = torch.linspace(-9, 9, 4001).reshape(-1, 1).expand(-1, 3)
    place = np.searchsorted(made.knots.numpy() * made.steps[0].item(), u.numpy(), side="right")
    columns = np.zeros(3, int) if shape == (1,) else np.arange(3)
    slope, offset = made.slopes.numpy()[columns[None], place], made.offsets.numpy()[columns[None], place]
    expected = slope * made.steps[1].item() * u.double().numpy() + offset * made.steps[2].item()
    np.testing.assert_allclose(made(u).numpy(), expected, atol=1e-5)
    # Half a step of each kind of entry is the size of the error.
    assert (made(u) - act(u)).abs().max() < 60 * 2.0**-bits


def test_it_is_continuous_up_to_the_rounding_of_the_offsets() -> None:
    frozen, _ = freeze_activations(network(PiecewiseLinear(VALUES, KNOTS)), "table", sample=inputs(), segments=8)
    made = frozen[1].double()
    at = made.knots.double() * made.steps[0].double()
    jumps = made(at) - made(at - 1e-9)
    assert jumps.abs().max() <= made.steps[2] + 1e-6


@pytest.mark.parametrize("act", [LEAF.like("SiLU"), LEAF.like("SiLU", (3,)), FNeuron.like("SiLU", interval=(-9, 9))])
def test_knots_are_placed_where_an_activation_has_more(act: nn.Module) -> None:
    frozen, report = freeze_activations(network(act), "table", sample=inputs(), segments=8)
    assert frozen[1].segments == 8
    assert report.rows[0].rms < 0.02
    assert report.rows[0].rms > 1e-4


def test_an_f_neuron_of_few_knots_keeps_them() -> None:
    act = FNeuron.like("GELU", interval=(-4, 4), knots=9, outside="linear")
    frozen, report = freeze_activations(network(act), "table", sample=inputs(), segments=8)
    assert (frozen[1].knots * frozen[1].steps[0]).tolist() == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert report.rows[0].rms < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_and_tails(dtype: torch.dtype) -> None:
    histogram = Histogram.of(torch.randn(1000))
    made = segment_table(PiecewiseLinear(VALUES, KNOTS).double(), histogram, "act", 5, 16)
    u = torch.linspace(-6, 6, 101).to(dtype)
    expected = made(u.float()).to(dtype)
    assert torch.equal(made.to(dtype)(u), expected) or dtype == torch.float64
    y = made(torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float32))
    assert y[:2].isfinite().all()
    assert y[2].isnan()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_has_plain_operators_and_the_same_values(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frozen, _ = freeze_activations(network(LEAF.like("SiLU", (3,))), "table", sample=inputs(), segments=8)
    program = torch.onnx.export(frozen, (inputs(4),), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model.graph} == {""}
    program.save(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: inputs(4).numpy()})
    np.testing.assert_allclose(y, frozen(inputs(4)).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"segments": 0}, "number of segments must be an integer of at least 1; got 0"),
        ({"segments": 65}, "at most 64 segments; got 65"),
        ({"segments": 8, "bits": 3}, "number of bits must be an integer of at least 4; got 3"),
        ({"segments": 8, "bits": 17}, "at most 16 bits; got 17"),
        ({"bits": 8}, r"bits=8 is for tables of few segments: give segments= too"),
        ({"as_": "function", "segments": 8}, r'segments=8 is for tables: give as_="table" too'),
        (
            {"segments": 64, "bits": 4},
            "4 bits do not distinguish the knots .* of '1': give more bits",
        ),
    ],
)
def test_wrong_values(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        freeze_activations(network(LEAF.like("SiLU")), **{"as_": "table", "sample": inputs(), **options})
