"""Every family that is no activation of the paper: its formula, gradients, dtypes, tails, names, and life in a network.

Each has an independent reference in numpy's float64, one input at a time.
"""

import copy
import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import problem
from torch import Tensor, nn
from torch.nn import functional as F

import aafit
from aafit.activations import AdaptiveActivation, Histogram, check_text, fit_from_text, from_settings, from_text
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError
from aafit.networks.knot_table import Table

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SHAPES = [(1,), (3, 1, 1), (3, 4, 2)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def xielu(u: float, values: dict[str, list[float]]) -> float:
    (p,), (n,) = values["alpha_p"], values["alpha_n"]
    a_p, a_n = math.log1p(math.exp(p)), 0.5 + math.log1p(math.exp(n))
    return a_p * u * u + 0.5 * u if u > 0 else a_n * (math.exp(min(u, -1e-6)) - 1 - u) + 0.5 * u


def polynomial(u: float, values: dict[str, list[float]]) -> float:
    """On [-3, 5]."""
    return float(np.polynomial.Chebyshev(values["coefficients"], domain=[-3, 5])(u))


def rational(u: float, values: dict[str, list[float]]) -> float:
    """On [-3, 5]: z = u / 5."""
    above = np.polynomial.polynomial.polyval(u / 5, values["numerator"])
    below = np.polynomial.polynomial.polyval(u / 5, [0.0, *values["denominator"]])
    return float(above / (1 + abs(below)))


KNOTS = (-3.0, -1.25, 0.0, 0.75, 5.0)


def piecewise_linear(u: float, values: dict[str, list[float]]) -> float:
    """np.interp between the knots, and numpy's lines through the two outermost knots on either side beyond them."""
    v = values["values"]
    for side, beyond in ((slice(0, 2), u < KNOTS[0]), (slice(-2, None), u > KNOTS[-1])):
        if beyond:
            return float(np.polynomial.Polynomial.fit(KNOTS[side], v[side], 1)(u))
    return float(np.interp(u, KNOTS, v))


def repeated(values: list[float], shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(values).expand(*shape, -1)


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        make: An activation with parameters of a shape; its values differ from those of any start.
        reference: (u, values of one parameter set by name) -> output.
        fitted: The largest relative RMS error of a fit to GELU on standard normal inputs.
        texts: Some text forms.
    """

    make: Callable[[tuple[int, ...]], AdaptiveActivation]
    reference: Callable[[float, Any], float]
    fitted: float
    texts: tuple[str, ...]


CASES = {
    "XIELU": Case(
        lambda shape: aafit.XIELU(torch.full(shape, 0.3), torch.full(shape, -0.4)),
        xielu,
        0.13,
        ("XIELU as ReLU", "XIELU as SiLU", "XIELU as GELU", "XIELU initial"),
    ),
    "Polynomial": Case(
        lambda shape: aafit.Polynomial(repeated([1.0, 2.0, 0.7, -0.3, 0.2], shape), (-3.0, 5.0)),
        polynomial,
        0.02,
        ("Polynomial as ReLU", "Polynomial as GELU", "Polynomial as Tanh"),
    ),
    "Rational": Case(
        lambda shape: aafit.Rational(
            repeated([0.3, 1.0, 0.5, 2.0], shape), repeated([0.4, -1.5, 0.6], shape), (-3.0, 5.0)
        ),
        rational,
        0.002,
        ("Rational as ReLU", "Rational as SiLU", "Rational as HardSigmoid"),
    ),
    "PiecewiseLinear": Case(
        lambda shape: aafit.PiecewiseLinear(repeated([1.0, -0.5, 0.5, 2.0, 1.0], shape), KNOTS),
        piecewise_linear,
        0.01,
        ("PiecewiseLinear as ReLU", "PiecewiseLinear as SiLU"),
    ),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TEXTS = [text for case in CASES.values() for text in case.texts]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def varied(case: Case, shape: tuple[int, ...]) -> AdaptiveActivation:
    """Return an activation whose parameter sets differ, in float64."""
    made = case.make(shape).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=seeded(1), dtype=torch.float64))
    return made


def expected(case: Case, activation: AdaptiveActivation, u: Tensor) -> Tensor:
    own = activation._own_dims
    full = (*u.shape,)
    sets = {
        name: p.detach().double().expand(*full, *p.shape[p.ndim - own :]).reshape(u.numel(), -1).tolist()
        for name, p in activation.named_parameters()
    }
    values = [
        case.reference(x, {name: rows[at] for name, rows in sets.items()}) for at, x in enumerate(u.flatten().tolist())
    ]
    return torch.tensor(values, dtype=torch.float64).reshape(full)


def functional(activation: AdaptiveActivation) -> Callable[..., Tensor]:
    names = [name for name, _ in activation.named_parameters()]

    def call(u: Tensor, *values: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(activation, dict(zip(names, values, strict=True)), (u,))
        return made

    return call


@ALL
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_formula(case: Case, shape: tuple[int, ...]) -> None:
    activation = varied(case, shape)
    u = torch.randn(5, 3, 4, 2, generator=seeded(2), dtype=torch.float64) * 3
    torch.testing.assert_close(activation(u), expected(case, activation, u), rtol=1e-11, atol=1e-12)


@ALL
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_and_their_gradients(case: Case, shape: tuple[int, ...]) -> None:
    activation = varied(case, shape)
    u = torch.randn(2, 3, 4, 2, generator=seeded(2), dtype=torch.float64).mul_(2).requires_grad_()
    inputs = (u, *activation.parameters())
    with compiled_loops(False):
        assert torch.autograd.gradcheck(functional(activation), inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(functional(activation), inputs, fast_mode=True)
    call, values = functional(activation), tuple(p.detach() for p in activation.parameters())
    which = tuple(range(len(values) + 1))
    backward = torch.func.jacrev(call, which)(u.detach(), *values)
    torch.testing.assert_close(backward, torch.func.jacfwd(call, which)(u.detach(), *values))
    torch.testing.assert_close(backward, torch.autograd.functional.jacobian(call, (u.detach(), *values)))


@ALL
def test_compiled_agrees_with_plain(case: Case) -> None:
    activation = varied(case, (8, 1, 1)).float()
    u = (torch.randn(6, 8, 30, 30, generator=seeded(1)) * 2).requires_grad_()
    inputs, given = (u, *activation.parameters()), []
    for on in (True, False):
        with compiled_loops(on):
            y = activation(u)
            given.append([y.detach(), *torch.autograd.grad(y.sum(), inputs)])
    torch.testing.assert_close(given[0], given[1], rtol=1e-4, atol=1e-3)


@ALL
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_arithmetic_is_in_float32_at_least(case: Case, dtype: torch.dtype) -> None:
    activation = case.make((1,))
    u = (torch.randn(4000, generator=seeded(1)) * 3).to(dtype)
    y = activation(u)
    assert y.dtype == dtype
    assert torch.equal(y, activation(u.to(torch.promote_types(dtype, torch.float32))).to(dtype))
    near = expected(case, activation, u[:200])
    # The parameters are in float32.
    limit = 1e-5 + torch.finfo(dtype).eps
    assert ((y[:200].double() - near).abs() <= limit * near.abs().clamp(min=1)).all()


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    activation = case.make((1,))
    half = copy.deepcopy(activation).to(dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    u = torch.linspace(-3, 3, 101, requires_grad=True)
    y = half(u)
    assert (y - activation(u)).abs().max() < 40 * torch.finfo(dtype).eps * activation(u).abs().max()
    gradients = torch.autograd.grad(half(u.to(dtype)).sum(), (u, *half.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 1, 1)])
def test_text_settings_state_and_copies_round_trip(text: str, shape: tuple[int, ...]) -> None:
    made = from_text(text, shape, interval=(-3.0, 5.0))
    assert isinstance(made, AdaptiveActivation)
    assert (made.text, made.shape) == (text, shape)
    again = from_settings(json.loads(json.dumps(made.settings())))
    assert all(parameter.isnan().all() for parameter in again.parameters())
    again.load_state_dict(made.state_dict())
    assert again.settings() == made.settings()
    u = torch.randn(2, 3, 4, 5, generator=seeded()) * 2
    # The network of a run is rebuilt from the text, and its file holds the parameters alone.
    rebuilt = from_text(text, shape, interval=(-3.0, 5.0))
    rebuilt.load_state_dict({name: p.detach().clone() for name, p in made.named_parameters()})
    for same in (again, rebuilt, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(same(u), made(u))
    if shape != (1,):
        shared = from_text(text, interval=(-3.0, 5.0))
        assert isinstance(shared, AdaptiveActivation)
        assert torch.equal(shared.reshaped(shape)(u), made(u))


@ALL
def test_a_fit_reports_its_error(case: Case) -> None:
    family, u = type(case.make((1,))), torch.randn(20_000, generator=seeded())
    fitted = family.fit(F.gelu, Histogram.of(u), shape=(3, 1, 1))
    assert fitted.shape == (3, 1, 1)
    assert fitted.text == f"{family.family} as gelu"
    error = fitted(u.expand(1, 3, 1, -1))[0, 0, 0] - F.gelu(u)
    rms = (error.square().mean().sqrt() / F.gelu(u).std()).item()
    assert fitted.residual is not None
    assert fitted.residual.rms == pytest.approx(rms, rel=0.02, abs=1e-5)
    assert rms < case.fitted
    assert fitted.residual.largest == pytest.approx(error.abs().max().item(), rel=0.02, abs=1e-4)


@ALL
def test_nan_stays_and_minus_zero_is_zero(case: Case) -> None:
    activation = case.make((1,))
    assert activation(torch.tensor([math.nan, 0.0]))[0].isnan()
    assert torch.equal(activation(torch.tensor([0.0])), activation(torch.tensor([-0.0])))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@ALL
def test_onnx_has_plain_operators_and_the_same_values(case: Case, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, file = varied(case, (3, 1, 1)).float().requires_grad_(False).eval(), tmp_path / "activation.onnx"
    u = torch.randn(4, 3, 4, 2, generator=seeded()) * 3
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(module, (u,), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    program.save(str(file))
    assert {node.domain for node in program.model.graph} == {""}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in (2, 7):
        u = torch.randn(batch, 3, 4, 2, generator=seeded(batch)) * 3
        (y,) = session.run(None, {session.get_inputs()[0].name: u.numpy()})
        np.testing.assert_allclose(y, module(u).numpy(), rtol=1e-4, atol=1e-4)


def base() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(12, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return net


@ALL
@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_its_whole_life_in_a_network(case: Case, sharing: Any, tmp_path: Path) -> None:
    batches: Any = problem(count=300)
    x, family = batches[0][0], type(case.make((1,)))
    sample = torch.cat([inputs for inputs, _ in batches])
    net, report = aafit.replace_activations(base(), {"GELU": family}, sharing=sharing, sample=sample)
    assert f"{family.family} as GELU" in str(report)
    assert net[1].shape == ((1,) if sharing == "layer" else (3, 1, 1))
    before = {name: p.detach().clone() for name, p in aafit.adaptive_parameters(net).items()}
    aafit.tune(net, batches[:4], epochs=1)
    assert any((before[name] != p).any() for name, p in aafit.adaptive_parameters(net).items())
    assert len(aafit.audit(net, batches).rows) == len(before)
    assert aafit.plot_activations(net, inputs=[sample]).axes
    found = aafit.identify(net, batches, base=base(), target="logits", errors=False)
    assert found.steps[-1].loss <= found.steps[0].loss

    file = tmp_path / "activations.safetensors"
    aafit.save_activations(net, file, start=before)
    for again in (aafit.load_activations(base(), file), aafit.load_activations(net, file)):
        assert type(again[1]) is family
        assert torch.equal(again(x), net(x))
    frozen, _ = aafit.freeze_activations(net, "table", sample=sample)
    assert isinstance(frozen[1], Table)
    assert (frozen(x) - net(x)).abs().max() < 0.02 * net(x).abs().max()
    assert torch.equal(report.restore(net)(x), base()(x))


@pytest.mark.parametrize(
    ("text", "named", "values", "shown"),
    [
        ("Polynomial(degree=4) as ReLU", "degree", 4, None),
        ("Polynomial(degree=8) as ReLU", "degree", 8, "Polynomial as ReLU"),
        ("Polynomial as ReLU", "degree", 8, None),
        ("Rational(degrees=3,2) as GELU", "degrees", (3, 2), None),
        ("Rational(degrees=5,4) as GELU", "degrees", (5, 4), "Rational as GELU"),
        ("PiecewiseLinear(segments=5) as SiLU", "segments", 5, None),
        ("F-Neuron(knots=34) ramp", "knots", 34, None),
    ],
)
def test_options_in_a_text(text: str, named: str, values: Any, shown: str | None) -> None:
    made = from_text(text, (3,))
    assert isinstance(made, AdaptiveActivation)
    assert (getattr(made, named), made.text, made.shape) == (values, shown or text, (3,))
    assert torch.equal(from_text(made.text, (3,))(torch.zeros(1, 3)), made(torch.zeros(1, 3)))
    assert fit_from_text(text) is None
    # Without the start, the family is fitted.
    family = text.split()[0]
    net, _ = aafit.replace_activations(
        nn.Sequential(nn.Linear(2, 3), nn.SiLU()), {"SiLU": family}, "channel", torch.randn(50, 2)
    )
    assert (getattr(net[1], named), type(net[1]), net[1].shape) == (values, type(made), (3,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Polynomial(degree=0) as ReLU", "an integer from 1 to 64. Did you mean 'Polynomial(degree=1) as ReLU'?"),
        ("Polynomial(degree=65)", "Did you mean 'Polynomial(degree=64)'?"),
        ("Polynomial(degree=-3) as GELU", "Did you mean 'Polynomial(degree=1) as GELU'?"),
        ("Polynomial(degree=4.5) as GELU", "Did you mean 'Polynomial(degree=4) as GELU'?"),
        ("Polynomial(degre=4) as ReLU", "takes the option degree, an integer"),
        ("Polynomial(segments=4) as ReLU", "Did you mean 'Polynomial(degree=4) as ReLU'?"),
        ("Polynomial(4) as ReLU", "Did you mean 'Polynomial(degree=4) as ReLU'?"),
        ("Polynomial() as ReLU", "Did you mean 'Polynomial(degree=8) as ReLU'?"),
        ("Polynomial(degree=4 as ReLU", "Did you mean 'Polynomial(degree=4) as ReLU'?"),
        ("Rational(degrees=5) as GELU", "2 integers from 1 to 16. Did you mean 'Rational(degrees=5,4) as GELU'?"),
        ("Rational(degrees=(5, 4)) as GELU", "Did you mean 'Rational(degrees=5,4) as GELU'?"),
        ("Rational(degrees=5,40)", "Did you mean 'Rational(degrees=5,16)'?"),
        ("PiecewiseLinear(segments=100) as SiLU", "Did you mean 'PiecewiseLinear(segments=64) as SiLU'?"),
        ("F-Neuron(knots=2) as Tanh", "Did you mean 'F-Neuron(knots=3) as Tanh'?"),
        ("LEAF(degree=3) as ReLU", "LEAF takes no option; write 'LEAF as ReLU'."),
        ("Polynomal(degree=4) as ReLU", "Did you mean 'Polynomial'?"),
        ("ReLU(degree=4)", "Unknown activation 'ReLU(degree=4)'"),
        ("Polynomial(degree=4) as Relu", "Did you mean 'Polynomial(degree=4) as ReLU'?"),
        ("Polynomial(degree=4)", "does not say how it starts. Valid: Polynomial(degree=4) as ReLU,"),
    ],
)
def test_wrong_options_in_a_text(text: str, says: str) -> None:
    for use in (check_text, from_text):
        with pytest.raises(UserError, match=re.escape(says)):
            use(text)
