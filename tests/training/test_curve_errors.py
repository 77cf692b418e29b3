"""An activation against the function it stands for, in every type."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF, FNeuron, SiLU, from_text
from aafit.activations.compiled import compiled_loops
from aafit.training.curve_errors import curve_errors

DTYPES = ("float16", "bfloat16", "float32", "float64")
# The spacing of each type's numbers below 1, to which outputs of a bounded function are rounded.
SPACING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@pytest.mark.parametrize(
    ("text", "function", "interval", "least", "most"),
    [
        # The difference of the two as functions; rounding comes on top.
        ("LEAF as Tanh", torch.tanh, (-8.0, 8.0), 0.0, 0.0),
        ("LEAF as Sigmoid", torch.sigmoid, (-8.0, 8.0), 0.0, 0.0),
        ("F-Neuron as Tanh", torch.tanh, (-8.0, 8.0), 0.0191, 0.0192),
        ("F-Neuron as Sigmoid", torch.sigmoid, (-4.0, 4.0), 0.0026, 0.0027),
        ("F-Neuron as HardTanh", nn.Hardtanh(), (-8.0, 8.0), 0.11, 0.1112),
        ("F-Neuron constant", torch.tanh, (0.0, 8.0), 1.0, 1.0),
    ],
)
def test_curve_errors_in_every_type(
    text: str, function: Callable[[Tensor], Tensor], interval: tuple[float, float], least: float, most: float
) -> None:
    errors = curve_errors(from_text(text), function, interval)
    assert [error.dtype for error in errors] == list(DTYPES)
    for error in errors:
        # A float32 parameter, as F-Neuron's weights, is never nearer than its own type.
        rounding = 2 * max(SPACING[error.dtype], SPACING["float32"] if text.startswith("F") else 0)
        assert least - rounding <= error.max <= most + 2 * rounding
        assert 0 <= error.mean_squared <= error.max**2
        assert error.interval == interval


def test_leaf_as_tanh_is_the_tangent_within_rounding() -> None:
    (error,) = curve_errors(LEAF.like("Tanh"), torch.tanh, dtypes=[torch.float64])
    assert 0 < error.max < 1e-15


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU"])
def test_as_relu_the_difference_is_small_in_every_type(text: str) -> None:
    # The two differ most where |u| is 2e-5, and not at all from |u| = 0.002 on in float32.
    errors = curve_errors(from_text(text), torch.relu, (-1e-4, 1e-4))
    assert [error.dtype for error in errors] == list(DTYPES)
    assert all(4.2e-6 < error.max < 4.3e-6 for error in errors)


@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as SiLU"])
def test_as_silu_there_is_no_difference_but_rounding(text: str) -> None:
    for error in curve_errors(from_text(text), SiLU()):
        # Outputs reach 8, where numbers lie 8 to 16 times as far apart as below 1.
        assert error.max <= 16 * SPACING[error.dtype]


def test_maximum_and_mean_square_by_hand() -> None:
    for error in curve_errors(nn.Identity(), lambda u: u + 0.5, (-2.0, 2.0)):
        assert (error.max, error.mean_squared) == pytest.approx((0.5, 0.25), rel=1e-12)
    (error,) = curve_errors(nn.Identity(), torch.zeros_like, (-3.0, 1.0), [torch.float64])
    assert error.max == 3.0
    # The mean of u^2 over [-3, 1] is (1 + 27) / 12.
    assert error.mean_squared == pytest.approx(28 / 12, rel=1e-3)


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("text", ["LEAF as Tanh", "F-Neuron as Tanh"])
def test_parameters_of_any_sharing(text: str, shape: tuple[int, ...]) -> None:
    shared, several = (curve_errors(from_text(text, of), torch.tanh, dtypes=[torch.float64])[0] for of in ((1,), shape))
    assert (several.max, several.interval) == (shared.max, shared.interval)
    assert several.mean_squared == pytest.approx(shared.mean_squared, rel=1e-6)


def test_every_neuron_counts() -> None:
    net = LEAF.like("Tanh", (2, 3, 1))
    with torch.no_grad():
        net.p4[1, 2, 0] += 0.25
    (error,) = curve_errors(net, torch.tanh, dtypes=[torch.float64])
    assert error.max == pytest.approx(0.25, rel=1e-12)
    assert error.mean_squared == pytest.approx(0.25**2 / 6, rel=1e-9)


def test_a_layer_of_many_neurons() -> None:
    # Fewer points for each, but still the bound of the function.
    with compiled_loops(False):
        (error,) = curve_errors(FNeuron.like("Tanh", (16, 16, 16)), torch.tanh, dtypes=[torch.float32])
    assert 0.0189 < error.max < 0.0192


def test_a_type_that_cannot_be_computed_in_is_left_out() -> None:
    errors = curve_errors(nn.PReLU(init=0.0), torch.relu)
    assert [(error.dtype, error.max) for error in errors] == [("float32", 0.0)]
