"""The activations as modules: formulas, gradients, starts and what they imitate, names, dtypes, errors."""

import copy
import json
import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aafit.activations import (
    AHAF,
    FIXED,
    FUNCTIONS,
    LEAF,
    AdaptiveActivation,
    FNeuron,
    SiLU,
    check_text,
    from_settings,
    from_text,
    is_adaptive,
)
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1,), (3, 1, 1), (3, 4, 2)]
ADAPTIVE_TEXTS = [
    *(f"AHAF {start}" for start in ("as ReLU", "as SiLU", "random")),
    *(f"LEAF {start}" for start in ("as ReLU", "as SiLU", "as Tanh", "as Sigmoid", "random")),
    *(f"F-Neuron as {name}" for name in ("ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid")),
    *(f"F-Neuron {start}" for start in ("random", "ramp", "constant")),
]


def ahaf(u: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return beta * u / (1 + torch.exp(-gamma * u))


def leaf(u: Tensor, p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> Tensor:
    return (p1 * u + p2) / (1 + torch.exp(-p3 * u)) + p4


def membership_sum(u: Tensor, weight: Tensor, left: float = -4.0, right: float = 4.0) -> Tensor:
    """F-Neuron as the paper defines it: every membership function in turn."""
    last = weight.shape[-1] - 1
    radius = (right - left) / last
    total = torch.zeros_like(u)
    for i in range(last + 1):
        distance = (u - (left + i * radius)) / radius
        membership = (1 - distance.abs()).clamp(min=0)
        if i == 0:
            membership = torch.where(distance < 0, 1.0, membership)
        if i == last:
            membership = torch.where(distance > 0, 1.0, membership)
        total = total + weight[..., i] * membership
    return total


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """test_elementwise.py shows that compiled loops agree; here the compiler's start would be most of the time."""
    with compiled_loops(False):
        yield


REFERENCES = {"AHAF": ahaf, "LEAF": leaf, "F-Neuron": membership_sum}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_activation(family: str, shape: tuple[int, ...], seed: int = 0) -> AdaptiveActivation:
    """With every parameter away from 0, so that no gradient vanishes by accident."""
    made = from_text(f"{family} random", shape, seeded(seed)).double()
    assert isinstance(made, AdaptiveActivation)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=seeded(seed + 1), dtype=torch.float64))
    return made


def functional(activation: AdaptiveActivation):
    names = [name for name, _ in activation.named_parameters()]
    return lambda u, *values: torch.func.functional_call(activation, dict(zip(names, values, strict=True)), (u,))


@pytest.mark.parametrize("family", REFERENCES)
@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstTheFormula:
    def test_values_and_gradients(self, family: str, shape: tuple[int, ...]) -> None:
        activation = random_activation(family, shape)
        u = (torch.randn(5, 3, 4, 2, generator=seeded(2), dtype=torch.float64) * 3).requires_grad_()
        grad = torch.randn(u.shape, generator=seeded(3), dtype=torch.float64)
        inputs = (u, *activation.parameters())
        expected = REFERENCES[family](*inputs)
        torch.testing.assert_close(activation(u), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(activation(u), inputs, grad),
            torch.autograd.grad(expected, inputs, grad),
            rtol=1e-11,
            atol=1e-11,
        )

    def test_gradients_of_gradients(self, family: str, shape: tuple[int, ...]) -> None:
        activation = random_activation(family, shape)
        u = torch.randn(2, 3, 4, 2, generator=seeded(2), dtype=torch.float64, requires_grad=True)
        inputs = (u, *activation.parameters())
        assert torch.autograd.gradcheck(functional(activation), inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(functional(activation), inputs, fast_mode=True)


@given(
    family=st.sampled_from(sorted(REFERENCES)),
    sizes=st.lists(st.integers(1, 4), max_size=4),
    kind=st.integers(0, 3),
    seed=st.integers(0, 1000),
    transposed=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_any_input_shape_and_sharing(family: str, sizes: list[int], kind: int, seed: int, transposed: bool) -> None:
    shape = {0: (1,), 1: tuple(sizes[-1:]), 2: tuple(sizes[1:]), 3: (*sizes[1:2], *[1] * len(sizes[2:]))}[kind] or (1,)
    activation = random_activation(family, shape, seed)
    u = torch.randn(sizes, generator=seeded(seed), dtype=torch.float64) * 3
    if transposed:
        u = (
            torch.randn(sizes[::-1], generator=seeded(seed), dtype=torch.float64).permute(
                tuple(range(len(sizes)))[::-1]
            )
            * 3
        )
    u = u.requires_grad_()
    own = 1 if family == "F-Neuron" else 0
    parameters = [p.reshape(p.shape[1:]) if shape == (1,) and p.ndim == 1 + own else p for p in activation.parameters()]
    expected = REFERENCES[family](u, *parameters)
    y = activation(u)
    assert y.shape == u.shape
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    inputs = (u, *activation.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("family", REFERENCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_is_the_formula_in_float32_rounded_once(family: str, dtype: torch.dtype) -> None:
    activation = from_text(f"{family} random", generator=seeded())
    u = (torch.randn(4000, generator=seeded(1)) * 3).to(dtype)
    y = activation(u)
    assert y.dtype == dtype
    inner = torch.promote_types(dtype, torch.float32)
    assert torch.equal(y, activation(u.to(inner)).to(dtype))


# Start, fixed function, and the largest difference over all finite inputs for parameters in float32, by input dtype.
IMITATIONS = [
    ("AHAF as ReLU", "ReLU", {torch.bfloat16: 4.3e-6, None: 4.25e-6}),
    ("LEAF as ReLU", "ReLU", {torch.bfloat16: 4.3e-6, None: 4.25e-6}),
    ("LEAF as Tanh", "Tanh", {torch.float16: 2.5e-4, torch.bfloat16: 2e-3, torch.float32: 2e-7, torch.float64: 4e-16}),
    ("LEAF as Sigmoid", "Sigmoid", {None: 0.0}),
    ("F-Neuron as Tanh", "Tanh", {torch.float64: 0.0192, torch.float32: 0.0192, None: 0.0197}),
    ("F-Neuron as Sigmoid", "Sigmoid", {torch.float64: 0.018, torch.float32: 0.018, None: 0.02}),
    ("F-Neuron as HardTanh", "HardTanh", {None: 0.111}),
    ("F-Neuron as HardSigmoid", "HardSigmoid", {torch.bfloat16: 0.0087, torch.float16: 0.0088, None: 0.0086}),
]


def dense(dtype: torch.dtype) -> Tensor:
    magnitudes = torch.logspace(-9, 4, 60_000, dtype=torch.float64)
    near = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    return torch.cat([near, magnitudes, -magnitudes, torch.linspace(-1e-3, 1e-3, 60_001, dtype=torch.float64)]).to(
        dtype
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("text", "name", "bounds"), IMITATIONS, ids=[case[0] for case in IMITATIONS])
def test_imitations_keep_their_documented_bound(
    text: str, name: str, bounds: dict[torch.dtype | None, float], dtype: torch.dtype
) -> None:
    u = dense(dtype)
    difference = (from_text(text)(u).double() - FUNCTIONS[name](u).double()).abs().max().item()
    assert difference <= bounds.get(dtype, bounds.get(None, 0.0))


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU"])
@pytest.mark.parametrize(("dtype", "beyond"), [(torch.float32, 0.0014), (torch.float64, 0.011)])
def test_as_relu_is_relu_away_from_zero(text: str, dtype: torch.dtype, beyond: float) -> None:
    u = dense(dtype)
    u = u[u.abs() > beyond]
    assert torch.equal(from_text(text)(u), u.relu())


@pytest.mark.parametrize(("name", "bound"), [("ReLU", 0.118), ("SiLU", 0.0138), ("Sigmoid", 0.0027)])
def test_fneuron_inside_its_interval(name: str, bound: float) -> None:
    u = torch.linspace(-4, 4, 100_001)
    assert (FNeuron.like(name)(u) - FUNCTIONS[name](u)).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as SiLU"])
def test_as_silu_is_the_fixed_silu_to_the_last_bit(text: str, dtype: torch.dtype) -> None:
    u = dense(dtype).requires_grad_()
    grad = torch.randn(u.shape, generator=seeded()).to(dtype)
    fixed, adaptive = SiLU()(u), from_text(text)(u)
    assert torch.equal(fixed, adaptive)
    assert torch.equal(torch.autograd.grad(fixed, u, grad)[0], torch.autograd.grad(adaptive, u, grad)[0])


@pytest.mark.parametrize(
    ("name", "inside"), [("HardTanh", lambda c: c.clamp(-1, 1)), ("Tanh", torch.tanh), ("Sigmoid", torch.sigmoid)]
)
def test_fneuron_starts_as_the_function_at_its_knots(name: str, inside) -> None:
    activation = FNeuron.like(name, interval=(-2.0, 6.0), knots=9)
    knots = torch.tensor([-2.0 + i for i in range(9)], dtype=torch.float64)
    assert torch.equal(activation.knot_positions, knots)
    torch.testing.assert_close(activation.weight, inside(knots).float()[None])
    torch.testing.assert_close(activation(knots.float()), inside(knots).float())


def test_fneuron_like_any_function() -> None:
    activation = FNeuron.like(torch.sin, interval=(-math.pi, math.pi), knots=102)
    u = torch.linspace(-3, 3, 1000)
    assert (activation(u) - u.sin()).abs().max() < 6e-4
    assert activation.start == "sin"


def test_fneuron_other_starts() -> None:
    assert torch.equal(FNeuron.ramp(knots=5).weight, torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]]))
    assert torch.equal(FNeuron.constant(shape=(2,), knots=3).weight, torch.ones(2, 3))


def test_fneuron_is_flat_outside_and_keeps_nan() -> None:
    activation = FNeuron.like("ReLU", interval=(-1.0, 2.0))
    u = torch.tensor([-1e30, -math.inf, 5.0, math.inf, math.nan, -1.0, 2.0], requires_grad=True)
    y = activation(u)
    torch.testing.assert_close(y[[0, 1, 2, 3, 5, 6]], torch.tensor([0.0, 0.0, 2.0, 2.0, 0.0, 2.0]))
    assert y[4].isnan()
    (by_u,) = torch.autograd.grad(y[[0, 1, 2, 3, 5, 6]].sum(), u)
    assert torch.equal(by_u, torch.zeros(7))


def test_fneuron_memory_does_not_grow_with_the_number_of_knots() -> None:
    sizes = []
    for knots in (6, 402):
        saved: list[Tensor] = []
        activation = FNeuron.like("Tanh", knots=knots)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            activation(torch.randn(64, 32, requires_grad=True))
        sizes.append(sum(tensor.numel() for tensor in saved) - activation.weight.numel())
    assert sizes == [64 * 32, 64 * 32]


def test_a_state_dict_sets_the_interval_and_what_is_outside() -> None:
    one = FNeuron.like("ReLU", interval=(-1.0, 2.0), knots=5, outside="linear")
    other = FNeuron.like("Tanh", knots=5)
    u = torch.linspace(-6, 6, 101)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(u), one(u))
    assert (other.interval, other.outside) == ((-1.0, 2.0), "linear")
    # The weights alone leave the settings as they are.
    third = FNeuron.like("Tanh", interval=(-1.0, 2.0), knots=5, outside="linear")
    third.load_state_dict({"weight": one.weight})
    assert torch.equal(third(u), one(u))
    with pytest.raises(RuntimeError, match="size mismatch"):
        FNeuron.like("Tanh").load_state_dict(one.state_dict())
    with pytest.raises(UserError, match="left < right"):
        other.load_state_dict({"weight": one.weight, "_extra_state": torch.zeros(3)})


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU", "AHAF as SiLU", "LEAF as Tanh"])
def test_minus_infinity_is_an_input_like_others(text: str) -> None:
    u = torch.tensor([-math.inf, -1.0, 2.0], requires_grad=True)
    activation = from_text(text)
    y = activation(u)
    assert y[0] == (-1 if text == "LEAF as Tanh" else 0)
    gradients = torch.autograd.grad(y.sum(), (u, *activation.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert activation(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize("text", ADAPTIVE_TEXTS)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 1, 1)])
class TestNames:
    def test_text_settings_and_state_round_trip(self, text: str, shape: tuple[int, ...]) -> None:
        made = from_text(text, shape, seeded(3), interval=(-3.0, 5.0), knots=8)
        assert isinstance(made, AdaptiveActivation)
        assert made.text == text.replace("F-Neuron", "F-Neuron(knots=8)")
        assert made.shape == shape
        assert is_adaptive(text)
        again = from_settings(json.loads(json.dumps(made.settings())))
        assert all(parameter.isnan().all() for parameter in again.parameters())
        again.load_state_dict(made.state_dict())
        assert again.settings() == made.settings()
        u = torch.randn(2, 3, 4, 5)
        assert torch.equal(again(u), made(u))

    def test_random_starts_follow_the_generator(self, text: str, shape: tuple[int, ...]) -> None:
        one, same, other = (from_text(text, shape, seeded(seed)) for seed in (1, 1, 2))
        values = [torch.cat([p.flatten() for p in made.parameters()]) for made in (one, same, other)]
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2]) == (not text.endswith("random"))


def test_random_starts_have_the_papers_ranges() -> None:
    gamma, beta = AHAF.random((2000,), seeded()).parameters()
    p1, p2, p3, p4 = LEAF.random((2000,), seeded()).parameters()
    for uniform in (gamma, beta, p1, p3):
        assert 0 <= uniform.min() < 0.01
        assert 0.99 < uniform.max() < 1
    assert not p2.any()
    assert not p4.any()
    weight = FNeuron.random((200,), seeded()).weight
    assert -1 <= weight.min() < -0.99
    assert 0.99 < weight.max() < 1
    # One draw after the other: parameters are not copies of each other.
    assert not torch.equal(gamma, beta)
    assert not torch.equal(p1, p3)


def test_starting_values() -> None:
    def values(activation: AdaptiveActivation) -> list[float]:
        return [p.item() for p in activation.parameters()]

    assert values(AHAF.like("ReLU")) == [65536, 1]
    assert values(AHAF.like("SiLU")) == [1, 1]
    assert values(LEAF.like("ReLU")) == [1, 0, 65536, 0]
    assert values(LEAF.like("SiLU")) == [1, 0, 1, 0]
    assert values(LEAF.like("Tanh")) == [0, 2, 2, -1]
    assert values(LEAF.like("Sigmoid")) == [0, 1, 1, 0]
    assert LEAF.slow_parameters == ("p2", "p4")
    assert AHAF.slow_parameters == FNeuron.slow_parameters == ()


@pytest.mark.parametrize("name", FIXED)
def test_fixed_functions(name: str) -> None:
    made = from_text(name)
    assert type(made) is FIXED[name]
    assert not is_adaptive(name)
    u = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(made(u), FUNCTIONS[name](u))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Relu", "Did you mean 'ReLU'"),
        ("LEAFF as Tanh", "Did you mean 'LEAF'"),
        ("leaf random", "Did you mean 'LEAF'"),
        ("AHAF as Tanh", "Valid: AHAF as ReLU, AHAF as SiLU, AHAF random"),
        ("LEAF as Tan", "Did you mean 'LEAF as Tanh'"),
        ("LEAF as tanh", "Did you mean 'LEAF as Tanh'"),
        ("F-Neuron rampp", "Did you mean 'F-Neuron ramp'"),
        ("F-Neuron  as Tanh", "Did you mean 'F-Neuron as Tanh'"),
        ("LEAF ramp", "Valid: LEAF as ReLU"),
        ("LEAF", "does not say how it starts"),
        ("ReLU random", "takes no start"),
        ("", "Valid: ReLU"),
        (None, "Valid: ReLU"),
    ],
)
def test_unknown_names(text: str, says: str) -> None:
    for use in (check_text, from_text, is_adaptive):
        with pytest.raises(UserError, match=says):
            use(text)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AHAF.like("Tanh"), "start of AHAF 'Tanh'.*Valid: ReLU, SiLU"),
        (lambda: LEAF.like("relu"), "Did you mean 'ReLU'"),
        (lambda: FNeuron.like("Tanhh"), "Did you mean 'Tanh'"),
        (lambda: FNeuron.like(3), "name of a function or as a function; got 3"),
        (lambda: FNeuron.like(lambda u: u.sum()), "elementwise"),
        (lambda: FNeuron.like(torch.log), "function that is finite; log"),
        (lambda: FNeuron.like("Tanh", interval=(1.0, 1.0)), r"left < right; got \(1, 1\)"),
        (lambda: FNeuron.random(interval=(2.0, -2.0)), r"left < right; got \(2, -2\)"),
        (lambda: FNeuron.ramp(interval=(0.0, math.inf)), r"finite.*\(0, inf\)"),
        (lambda: FNeuron.constant(interval=(math.nan, 1.0)), r"finite.*\(nan, 1\)"),
        (lambda: FNeuron.like("Tanh", interval=(1.0, 2.0, 3.0)), r"two numbers.*\(1.0, 2.0, 3.0\)"),
        (lambda: FNeuron.like("Tanh", interval="wide"), "two numbers.*'wide'"),
        (lambda: FNeuron.like("Tanh", knots=0), "at least 3; got 0"),
        (lambda: FNeuron.like("Tanh", knots=-3), "at least 3; got -3"),
        (lambda: FNeuron.random(knots=2.5), "at least 3; got 2.5"),
        (lambda: FNeuron.random(knots=True), "at least 3; got True"),
        (lambda: from_text("F-Neuron random", pieces=4), "write knots=6 instead of pieces=4"),
        (lambda: FNeuron.like("Tanh", knots=10**9), "at most 65,536; got 1,000,000,000"),
        (lambda: FNeuron.like("Tanh", interval=(-1e300, 1e300)), "not usable in float32"),
        (lambda: FNeuron.like("Tanh", interval=(-1e-300, 1e-300)), "not usable in float32"),
        (lambda: FNeuron.like("Tanh", interval=(1e6, 1e6 + 1)), "not usable in float32"),
        (lambda: FNeuron(torch.zeros(18)), r"\(\*shape, knots\).*got \(18,\)"),
        (lambda: FNeuron(torch.zeros(1, 2)), "at least 3 knots"),
        (lambda: AHAF(math.nan, 1.0), "gamma must be finite; got nan"),
        (lambda: LEAF(1.0, 0.0, math.inf, 0.0), "p3 must be finite; got inf"),
        (lambda: AHAF(torch.ones(1, dtype=torch.int64), 1.0), "floating-point"),
        (lambda: AHAF(torch.ones(2), torch.ones(3)), r"one shape; got \(2,\), \(3,\)"),
        (lambda: LEAF(*[torch.ones(2)] * 3, torch.ones(1)), "one shape"),
        (lambda: LEAF.like("ReLU", shape=(0,)), r"positive integers, e.g. \(1,\); got \(0,\)"),
        (lambda: AHAF.random(shape=()), "positive integers"),
        (lambda: FNeuron.ramp(shape=5), "positive integers.*got 5"),
        (lambda: AHAF.like("ReLU", shape=(3,)).reshaped((4,)), r"shared by its layer.*AHAF as ReLU has shape \(3,\)"),
        (lambda: AHAF.like("ReLU").reshaped((2, -1)), r"positive integers.*got \(2, -1\)"),
        (lambda: AHAF.like("ReLU", (3,))(torch.randn(2, 4)), r"shape \(3,\).*input of shape \(2, 4\)"),
        (lambda: FNeuron.ramp((3, 1, 1))(torch.randn(2, 3)), r"shape \(3, 1, 1\).*input of shape \(2, 3\)"),
        (lambda: LEAF.like("Tanh")(torch.arange(3)), "floating-point input, this one is torch.int64"),
        (lambda: SiLU()(torch.arange(3)), "floating-point"),
        (lambda: from_settings({"family": "Leaf", "start": "ReLU", "shape": [1]}), "Did you mean 'LEAF'"),
        (lambda: from_settings({"family": "LEAF", "shape": [1]}), "not the settings"),
        (lambda: from_settings({**FNeuron.like("ReLU").settings(), "shape": [10**9, 10**9]}), "not the settings"),
        (lambda: from_settings({**FNeuron.like("ReLU").settings(), "interval": []}), "not the settings"),
        (lambda: from_settings({"family": "F-Neuron", "start": "ramp", "shape": [1]}), "not the settings"),
    ],
)
def test_wrong_values(make, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF random", "F-Neuron as Tanh"])
@pytest.mark.parametrize("shape", [(4,), (3, 1, 1), (3, 5, 4)])
def test_reshaped_repeats_and_leaves_the_original_alone(text: str, shape: tuple[int, ...]) -> None:
    shared = from_text(text, generator=seeded())
    assert isinstance(shared, AdaptiveActivation)
    next(shared.parameters()).requires_grad_(False)
    before = copy.deepcopy(shared.state_dict())
    reshaped = shared.reshaped(shape)
    assert type(reshaped) is type(shared)
    assert (reshaped.shape, reshaped.start) == (shape, shared.start)
    u = torch.randn(2, 3, 5, 4)
    assert torch.equal(reshaped(u), shared(u))
    for mine, theirs in zip(shared.parameters(), reshaped.parameters(), strict=True):
        assert mine.requires_grad == theirs.requires_grad
        with torch.no_grad():
            theirs.flatten()[0] += 1
            assert theirs.flatten()[0] != theirs.flatten()[-1]
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())


def test_a_given_tensor_is_copied() -> None:
    gamma = torch.ones(1)
    activation = AHAF(gamma, torch.ones(1))
    gamma.zero_()
    assert activation.gamma == 1


class TestFloat16:
    @pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU"])
    @pytest.mark.parametrize(
        "convert", [lambda m: m.half(), lambda m: m.to(torch.float16), lambda m: m.to("cpu").half()]
    )
    def test_too_large_a_parameter_becomes_the_largest_power_of_two(self, text: str, convert) -> None:
        activation = from_text(text)
        with pytest.warns(UserWarning, match=f"{text}: (gamma|p3) = 65536 does not fit torch.float16; 32768 is used"):
            activation = convert(activation)
        u = dense(torch.float16).requires_grad_()
        y = activation(u)
        y.backward(torch.ones_like(y))
        assert (y.double() - u.double().relu()).abs().max() <= 8.6e-6
        assert u.grad is not None
        assert u.grad.isfinite().all()
        assert all(p.dtype == torch.float16 for p in activation.parameters())

    def test_negative_values_keep_their_sign(self) -> None:
        with pytest.warns(UserWarning, match="gamma = -100000"):
            assert AHAF(-1e5, 1.0).half().gamma == -32768

    def test_loading_float32_values_into_float16(self) -> None:
        target = AHAF.like("SiLU").half()
        with pytest.warns(UserWarning, match="gamma = 65536"):
            target.load_state_dict(AHAF.like("ReLU").state_dict())
        assert target.gamma == 32768

    def test_made_in_float16(self) -> None:
        torch.set_default_dtype(torch.float16)
        try:
            with pytest.warns(UserWarning, match="gamma = 65536"):
                activation = AHAF.like("ReLU")
        finally:
            torch.set_default_dtype(torch.float32)
        assert activation.gamma == 32768

    def test_nothing_is_said_where_all_fits(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LEAF.like("Tanh").half()
            AHAF.like("ReLU").bfloat16().double()


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_steep_sigmoid_never_gives_nan(text: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    u = torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1.0, -1.0, 6e4, -6e4, largest, -largest], dtype=dtype, requires_grad=True)
    activation = from_text(text)
    y = activation(u)
    assert torch.equal(y[4:], u[4:].relu())
    gradients = torch.autograd.grad(y[:8], (u, *activation.parameters()), torch.ones(8, dtype=dtype))
    assert all(gradient.isfinite().all() for gradient in gradients)
    (by_u,) = torch.autograd.grad(activation(u).sum(), u)
    assert torch.equal(by_u[4:], (u[4:] > 0).to(dtype))


def test_repr_says_what_it_is() -> None:
    assert repr(AHAF.like("ReLU")) == "AHAF(ReLU, gamma=65536, beta=1)"
    assert repr(LEAF.like("Tanh", (3, 1, 1))) == "LEAF(Tanh, shape=(3, 1, 1))"
    assert repr(FNeuron.ramp(knots=7)) == "FNeuron(ramp, shape=(1,), interval=(-4.0, 4.0), knots=7)"


@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as Tanh", "F-Neuron as Tanh"])
@pytest.mark.parametrize("frozen", ["u", "parameters"])
def test_no_gradient_for_what_is_frozen(text: str, frozen: str) -> None:
    activation = from_text(text)
    activation.requires_grad_(frozen != "parameters")
    u = torch.randn(2, 3, requires_grad=frozen != "u")
    activation(u).sum().backward()
    assert (u.grad is None) == (frozen == "u")
    assert all((p.grad is None) == (frozen == "parameters") for p in activation.parameters())
