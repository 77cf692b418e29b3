"""Starts for any function: exact where the family has it, else the least squares on the inputs of the layer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aafit.activations import AHAF, LEAF, FNeuron, Histogram
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError


@pytest.fixture(scope="module")
def normal() -> Histogram:
    return Histogram.of(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))


def values(activation: torch.nn.Module) -> list[float]:
    return [parameter.item() for parameter in activation.parameters()]


@pytest.mark.parametrize(
    ("family", "name"),
    [(LEAF, "SiLU"), (LEAF, "Tanh"), (LEAF, "Sigmoid"), (LEAF, "ReLU"), (AHAF, "SiLU"), (AHAF, "ReLU")],
)
def test_what_a_family_contains_is_that_start(family: type[LEAF | AHAF], name: str, normal: Histogram) -> None:
    function = {"SiLU": F.silu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "ReLU": torch.relu}[name]
    for given in (name, function):
        fitted = family.fit(given, normal)
        assert fitted.text == f"{family.family} as {name}"
        assert values(fitted) == values(family.like(name))
        assert fitted.residual.rms <= 1e-6


@pytest.mark.parametrize(
    ("family", "function", "expected"),
    [
        (LEAF, lambda u: 3 * torch.tanh(0.7 * u) + 1, [0, 6, 1.4, -2]),
        (LEAF, lambda u: 0.5 * u * torch.sigmoid(3 * u) - 2, [0.5, 0, 3, -2]),
        (LEAF, lambda u: 2 * torch.relu(u), [2, 0, None, 0]),
        (LEAF, lambda u: (2 * u - 1) * torch.sigmoid(-1.5 * u), [2, -1, -1.5, 0]),
        (AHAF, lambda u: -2 * u * torch.sigmoid(0.3 * u), [0.3, -2]),
        (AHAF, lambda u: u.clamp(max=0), [None, 1]),
    ],
)
def test_scaled_and_shifted_ones_are_found(family, function, expected: list[float | None], normal: Histogram) -> None:
    fitted = family.fit(function, normal)
    assert fitted.residual.rms < 1e-6
    for value, wanted in zip(values(fitted), expected, strict=True):
        assert wanted is None or value == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("fit", "rms", "largest"),
    [
        (lambda h: LEAF.fit(F.gelu, h), 0.0075, 0.09),
        (lambda h: AHAF.fit(F.gelu, h), 0.0115, 0.025),
        (lambda h: FNeuron.fit(F.gelu, h, knots=18), 0.006, 0.4),
        (lambda h: FNeuron.fit(F.gelu, h, knots=34), 0.002, 0.1),
        (lambda h: FNeuron.fit(F.gelu, h, knots=18, outside="linear"), 0.0035, 0.1),
        (lambda h: FNeuron.fit(F.gelu, h, knots=34, outside="linear"), 0.001, 0.05),
        (lambda h: FNeuron.fit(F.relu, h, outside="linear"), 1e-5, 1e-4),
    ],
)
def test_what_is_left_of_a_function_that_a_family_has_not(fit, rms: float, largest: float, normal: Histogram) -> None:
    fitted = fit(normal)
    u, share = normal.points()
    y = F.relu(u) if fitted.start == "relu" else F.gelu(u)
    error = fitted(u.float()).double() - y
    spread = (share * (y - (share * y).sum()) ** 2).sum().sqrt()
    assert fitted.residual.rms == pytest.approx(((share * error**2).sum().sqrt() / spread).item(), rel=1e-2, abs=1e-6)
    assert fitted.residual.rms < rms
    assert fitted.residual.largest < largest
    assert fitted.residual.largest == pytest.approx(error.abs().max().item(), rel=1e-2, abs=2e-6)


def test_the_weights_follow_the_inputs() -> None:
    """Two histograms over one range: each fit is the better one on its own inputs."""
    edges = torch.linspace(-4, 4, 801)
    middles = (edges[:-1] + edges[1:]) / 2
    low, high = (Histogram(edges, torch.exp(-8 * (middles - at) ** 2) + 1e-9) for at in (-1.5, 1.5))
    for family in (AHAF, LEAF):
        fits = [family.fit(torch.sin, h) for h in (low, high)]
        for here, own, other in ((low, *fits), (high, *fits[::-1])):
            u, share = here.points()
            errors = [(share * (one(u) - u.sin()) ** 2).sum() for one in (own, other)]
            assert errors[0] < 0.1 * errors[1]


def test_fneuron_weights_are_least_squares_on_a_given_interval(normal: Histogram) -> None:
    fitted = FNeuron.fit(torch.sin, normal, interval=(-2.0, 2.0), knots=5)
    assert fitted.interval == (-2.0, 2.0)
    u, share = normal.points()
    columns = torch.stack([FNeuron(torch.eye(5)[i][None], (-2.0, 2.0)).double()(u) for i in range(5)], 1)
    root = share.sqrt()[:, None]
    expected = torch.linalg.lstsq(columns * root, u.sin()[:, None] * root).solution[:, 0]
    torch.testing.assert_close(fitted.weight[0].double(), expected, rtol=0, atol=1e-4)


def test_fneuron_keeps_the_functions_values_where_there_are_no_inputs() -> None:
    histogram = Histogram(torch.linspace(-1, 1, 101), torch.ones(100))
    fitted = FNeuron.fit(torch.tanh, histogram, interval=(-4.0, 4.0))
    torch.testing.assert_close(fitted.weight[0, [0, 1, 2, -1]], fitted.knot_positions[[0, 1, 2, -1]].tanh().float())


def test_shapes_and_names(normal: Histogram) -> None:
    for fitted in (LEAF.fit(F.gelu, normal, (3, 1, 1)), FNeuron.fit(F.gelu, normal, (3, 1, 1))):
        assert fitted.shape == (3, 1, 1)
        assert fitted.text.endswith(" as gelu")
        assert fitted(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
        assert all((p == p[:1]).all() for p in fitted.parameters())


@pytest.mark.parametrize("family", [LEAF, AHAF, FNeuron])
@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("Relu", "Did you mean 'ReLU'"),
        (3, "the name of a function or to a function; got 3"),
        (torch.log, "function that is finite; log"),
        (lambda u: u[:3], "elementwise"),
        (lambda u: 1.0, "elementwise"),
        (lambda u, v: u, "a function of a tensor; <lambda> fails: .* missing 1 required"),
        (lambda u: u @ u[:3], "a function of a tensor; <lambda> fails: "),
    ],
)
def test_refused(family, function, says: str, normal: Histogram) -> None:
    with pytest.raises(UserError, match=says):
        family.fit(function, normal)


@pytest.mark.parametrize("family", [LEAF, AHAF, FNeuron])
@pytest.mark.parametrize("inputs", [torch.randn(9), None, 3])
def test_inputs_that_are_no_histogram(family, inputs) -> None:
    what = f"fitted over a histogram of inputs, not a {type(inputs).__name__}: give aafit.Histogram.of"
    with pytest.raises(UserError, match=what):
        family.fit(F.gelu, inputs)


@pytest.mark.parametrize("family", [LEAF, AHAF, FNeuron])
def test_outliers_leave_the_fit_to_the_bulk_and_are_reported(family) -> None:
    u = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    usual = family.fit(F.gelu, Histogram.of(u))
    fitted = family.fit(F.gelu, Histogram.of(torch.cat([u, torch.full((100,), 1e4)])))
    error = (fitted(u) - F.gelu(u)).square().mean().sqrt()
    assert error < 1.5 * (usual(u) - F.gelu(u)).square().mean().sqrt() + 1e-3
    residual = fitted.residual
    assert residual.rms < 0.02
    assert residual.outliers == pytest.approx(100 / 20_100, rel=1e-3)
    assert residual.worst == max(residual.rms, residual.rms_all)
    assert usual.residual.outliers == 0
    if family is FNeuron:
        assert fitted.interval[1] < 10
        assert residual.rms_all > 0.9
        assert residual.largest > 9000


@pytest.mark.parametrize("family", [LEAF, AHAF, FNeuron])
def test_inputs_that_are_all_equal(family) -> None:
    with pytest.raises(UserError, match=r"All inputs are 0\.25: .* at least two different inputs"):
        family.fit(F.gelu, Histogram.of(torch.full((5,), 0.25)))


@pytest.mark.parametrize("function", [F.gelu, torch.tanh, nn.ReLU()])
def test_a_family_that_starts_as_a_name_says_how_to_come_near_a_function(function) -> None:
    with pytest.raises(UserError, match=r"LEAF starts as a name \(ReLU, .*, not as .* LEAF.fit\(function, histogram\)"):
        LEAF.like(function)


class TestLinearOutside:
    def test_the_first_and_last_lines_go_on(self) -> None:
        weight = torch.tensor([[1.0, 0.0, 2.0]])
        activation = FNeuron(weight, (-1.0, 1.0), outside="linear")
        assert activation(torch.tensor([-3.0, -1.0, 0.5, 1.0, 4.0])).tolist() == [3.0, 1.0, 1.0, 2.0, 8.0]
        assert FNeuron(weight, (-1.0, 1.0))(torch.tensor([-3.0, 4.0])).tolist() == [1.0, 2.0]

    @pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (3, 4)])
    def test_gradients(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(*shape, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        sizes = (5, 3, 4) if shape == (3, 4) else (5, 3, 4, 2)
        u = (torch.randn(sizes, generator=generator, dtype=torch.float64) * 3).requires_grad_()

        def call(u: Tensor, weight: Tensor) -> Tensor:
            activation = FNeuron(weight.detach(), (-1.0, 2.0), outside="linear")
            return torch.func.functional_call(activation, {"weight": weight}, u)

        assert (u.abs() > 2).any()
        assert torch.autograd.gradcheck(call, (u, weight))
        assert torch.autograd.gradgradcheck(call, (u, weight), fast_mode=True)
        by_func = torch.func.jacrev(call, (0, 1))(u.detach(), weight.detach())
        by_forward = torch.func.jacfwd(call, (0, 1))(u.detach(), weight.detach())
        torch.testing.assert_close(by_func, by_forward)
        torch.testing.assert_close(by_func, torch.autograd.functional.jacobian(call, (u, weight)))

    def test_compiled_agrees_with_plain(self) -> None:
        activation = FNeuron.random((8, 1, 1), torch.Generator().manual_seed(0), (-1.0, 1.0), knots=8, outside="linear")
        u = (torch.randn(6, 8, 30, 30, generator=torch.Generator().manual_seed(1)) * 2).requires_grad_()
        inputs, given = (u, activation.weight), []
        for on in (True, False):
            with compiled_loops(on):
                y = activation(u)
                given.append([y.detach(), *torch.autograd.grad(y.square().sum(), inputs)])
        torch.testing.assert_close(given[0], given[1], rtol=1e-5, atol=1e-4)

    def test_nan_stays(self) -> None:
        y = FNeuron.like("ReLU", outside="linear")(torch.tensor([torch.nan, 1e30]))
        assert y[0].isnan()
        assert y[1] > 1e29


@pytest.mark.parametrize("make", [FNeuron.like, FNeuron.random, FNeuron.ramp, FNeuron.constant])
def test_the_number_of_knots(make) -> None:
    function = ("Tanh",) if make == FNeuron.like else ()
    assert make(*function).knots == 18
    assert make(*function, knots=5).knots == make(*function, knots=5).weight.shape[-1] == 5
    with pytest.raises(UserError, match=r"write knots=18 instead of pieces=16"):
        make(*function, pieces=16)
    with pytest.raises(UserError, match=r"knots of F-Neuron must be an integer of at least 3; got 2"):
        make(*function, knots=2)
    with pytest.raises(UserError, match="Unknown outside 'lines'"):
        make(*function, outside="lines")
