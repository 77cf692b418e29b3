"""Affine: a fixed function with scales and shifts, against independent references, and in a network."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_helpers import assert_sums_close, batch, needs_compiler, results
from small import problem
from torch import Tensor, nn
from torch.nn import functional as F

import aafit
from aafit.activations import FIXED, FUNCTIONS, Affine, AffineActivation, Histogram, from_settings, from_text
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

REFERENCES: dict[str, Any] = {
    "ReLU": lambda v: v.clamp(min=0),
    "SiLU": lambda v: v / (1 + torch.exp(-v)),
    "GELU": lambda v: v * torch.special.ndtr(v),
    "Tanh": lambda v: 2 / (1 + torch.exp(-2 * v)) - 1,
    "Sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
    "HardTanh": lambda v: v.clamp(-1, 1),
    "HardSigmoid": lambda v: (v / 6 + 0.5).clamp(0, 1),
}
VALUES = {"a": 1.3, "b": -0.8, "c": 0.4, "d": -0.25}


def made(name: Any, shape: tuple[int, ...] = (1,), offset: bool = True) -> AffineActivation:
    """With different values in each set, away from 0."""
    generator = torch.Generator().manual_seed(0)
    family = Affine(name, offset)
    spread = {own: 1 + 0.3 * torch.rand(shape, generator=generator, dtype=torch.float64) for own in VALUES}
    return family(**{own: VALUES[own] * spread[own] for own in family.parameter_names()})


def reference(activation: AffineActivation, function: Any, u: Tensor) -> Tensor:
    own = dict(activation.named_parameters())
    return own["a"] * function(own.get("b", 1) * u + own["c"]) + own.get("d", 0)


def inputs(sizes: tuple[int, ...]) -> Tensor:
    return (torch.randn(sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3).requires_grad_()


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (3, 4, 2)])
@pytest.mark.parametrize("name", FIXED)
class TestAgainstTheFormula:
    def test_values_and_gradients(self, name: str, shape: tuple[int, ...], offset: bool) -> None:
        activation, u = made(name, shape, offset), inputs((5, 3, 4, 2))
        expected = reference(activation, REFERENCES[name], u)
        grad = torch.randn(u.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        variables = (u, *activation.parameters())
        torch.testing.assert_close(activation(u), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(activation(u), variables, grad),
            torch.autograd.grad(expected, variables, grad),
            rtol=1e-11,
            atol=1e-11,
        )

    def test_gradients_by_differences(self, name: str, shape: tuple[int, ...], offset: bool) -> None:
        activation, u = made(name, shape, offset), inputs((2, 3, 4, 2))
        names = [own for own, _ in activation.named_parameters()]

        def call(u: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(activation, dict(zip(names, values, strict=True)), (u,))

        assert torch.autograd.gradcheck(call, (u, *activation.parameters()), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (u, *activation.parameters()), fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("name", FIXED)
def test_compiled_loops_agree(name: str) -> None:
    activation = made(name, (8, 1, 1)).float()
    u, grad = batch((16, 8, 16, 16))
    with compiled_loops(False):
        expected = results(activation, u, grad)
    assert_sums_close(results(activation, u, grad), expected, 16 * 16 * 16)


@pytest.mark.parametrize("function", [F.relu6, F.softplus, nn.LeakyReLU(0.1)])
def test_any_fixed_function(function: Any) -> None:
    activation, u = made(function), inputs((4, 5))
    torch.testing.assert_close(activation(u), reference(activation, function, u), rtol=1e-12, atol=1e-12)
    plain = Affine(function).like(Affine(function).likes[0])
    assert torch.equal(plain(u.float()), function(u.float()))
    assert torch.equal(plain.function_module()(u), function(u))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FIXED)
def test_as_its_own_function_it_is_that_function(name: str, dtype: torch.dtype) -> None:
    u = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([1e4, -1e4, 0.0])]).to(dtype)
    own = Affine(name).like(name)
    expected = FIXED[name]()(u)
    one = torch.finfo(dtype).eps
    # torch's GELU rounds differently in float32.
    absolute = {"ReLU": 0, "GELU": 8 * one}.get(name, 2 * one)
    torch.testing.assert_close(own(u), expected, rtol=2 * one, atol=absolute)
    # The arithmetic is that of float32, rounded once.
    inner = torch.promote_types(dtype, torch.float32)
    assert torch.equal(own(u), own(u.to(inner)).to(dtype))


@pytest.mark.parametrize(("of", "name"), [("Tanh", "Sigmoid"), ("Sigmoid", "Tanh"), ("HardSigmoid", "HardTanh")])
def test_scales_and_shifts_make_one_function_of_another(of: str, name: str) -> None:
    u = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    torch.testing.assert_close(Affine(of).like(name).double()(u), FUNCTIONS[name](u), rtol=0, atol=2e-7)
    exact = Affine(of).fit(name, Histogram.of(u))
    assert exact.start == name
    assert exact.residual is not None
    assert exact.residual.worst < 1e-6


def test_a_start_as_another_function_is_the_least_squares_fit_on_the_grid() -> None:
    u = torch.linspace(-4, 4, 401, dtype=torch.float64)
    start = Affine("ReLU").like("SiLU").double()
    error = (start(u) - F.silu(u)).square().mean()
    assert error.sqrt() < 0.08
    (gradient,) = torch.autograd.grad(error, [start.d])
    assert abs(gradient.item()) < 1e-3
    # ReLU itself is far from it.
    assert error < 0.3 * (torch.relu(u) - F.silu(u)).square().mean()


def test_minus_infinity_is_an_input_like_others() -> None:
    u = torch.tensor([-torch.inf, -1.0, 2.0], requires_grad=True)
    for name in FIXED:
        activation = Affine(name).like(name)
        y = activation(u)
        torch.testing.assert_close(y, FUNCTIONS[name](u.clamp(min=-1e30)))
        gradients = torch.autograd.grad(y.sum(), (u, *activation.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert activation(torch.tensor(torch.nan)).isnan()


def test_tails_are_those_of_the_function() -> None:
    u = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    y = Affine("ReLU")(2.0, 1.0, -0.5).double()(u)
    assert y.tolist() == [-0.5, 2 * (1e6 + 1) - 0.5]
    y = Affine("HardTanh")(2.0, -3.0, 1.0, -0.5).double()(u)
    assert y.tolist() == [1.5, -2.5]


def test_parameters_that_would_be_redundant_are_left_out() -> None:
    assert Affine("ReLU").parameter_names() == ("a", "c", "d")
    assert Affine("ReLU", offset=False).parameter_names() == ("a", "c")
    assert Affine("SiLU").parameter_names() == ("a", "b", "c", "d")
    assert Affine(nn.LeakyReLU(0.1)).parameter_names() == ("a", "c", "d")
    assert Affine(F.relu6).parameter_names() == ("a", "b", "c", "d")
    # What b would do is done by the others.
    u = torch.linspace(-5, 5, 101, dtype=torch.float64)
    fitted = Affine("ReLU").fit(lambda u: 0.7 * torch.relu(3 * u - 2) + 0.1, Histogram.of(u))
    assert fitted.residual is not None
    assert fitted.residual.worst < 1e-6


@pytest.mark.parametrize("text", ["Affine(ReLU) as SiLU", "Affine(ReLU,d=0) as ReLU", "Affine(Tanh) as Sigmoid"])
@pytest.mark.parametrize("shape", [(1,), (3, 1, 1)])
def test_text_settings_and_copies(text: str, shape: tuple[int, ...]) -> None:
    activation = from_text(text, shape)
    assert isinstance(activation, AffineActivation)
    assert (activation.text, activation.shape) == (text, shape)
    again = from_settings(activation.settings())
    assert again.text == text
    again.load_state_dict(activation.state_dict())
    u = torch.randn(2, 3, 4, 5)
    for same in (again, copy.deepcopy(activation), pickle.loads(pickle.dumps(activation)), from_text(text, shape)):
        assert type(same) is type(activation)
        assert torch.equal(same(u), activation(u))


@pytest.mark.parametrize("function", [F.relu6, nn.LeakyReLU(0.1)])
def test_a_family_of_your_own_function_is_loaded_with_its_class(function: Any, tmp_path: Path) -> None:
    family = Affine(function)
    assert Affine(copy.deepcopy(function)) is family
    assert type(pickle.loads(pickle.dumps(family.like(family.likes[0])))) is family
    x = torch.randn(20, 4)
    base = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    net, _ = aafit.replace_activations(base, {"GELU": family}, sharing="channel", sample=x)
    aafit.save_activations(net, tmp_path / "own.safetensors")
    loaded = aafit.load_activations(base, tmp_path / "own.safetensors", families=[family])
    assert torch.equal(loaded(x), net(x))


def test_names_of_one_function_give_one_family() -> None:
    assert Affine("ReLU") is Affine(F.relu) is Affine(torch.relu) is Affine(nn.ReLU())
    assert Affine(nn.GELU()) is Affine(F.gelu) is Affine("GELU") is not Affine(nn.GELU(approximate="tanh"))
    assert Affine(nn.ReLU(inplace=True)) is Affine("ReLU")
    assert Affine(nn.Hardtanh()) is Affine("HardTanh") is not Affine(nn.Hardtanh(-2, 2))
    assert Affine("ReLU") is not Affine("ReLU", offset=False)
    assert Affine("Tanh").family == "Affine(Tanh)"


def test_its_whole_life_in_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 3))
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.7)
    batches: Any = problem(count=400)
    x = batches[0][0]
    net, report = aafit.replace_activations(base, {"SiLU": Affine("ReLU").like("ReLU")}, "channel", sample=x)
    assert "Affine(ReLU) as ReLU" in str(report)
    assert [tuple(p.shape) for p in aafit.adaptive_parameters(net).values()] == [(3, 1, 1)] * 3
    before = {name: p.detach().clone() for name, p in aafit.adaptive_parameters(net).items()}
    assert len(aafit.audit(net, batches).rows) == 3
    assert aafit.plot_activations(net).axes
    found = aafit.identify(net, batches, base=base, target="logits")
    assert found.gains[0].gain > 5 * found.gains[0].error
    assert "1.c" in str(found)
    aafit.save_activations(net, tmp_path / "affine.safetensors", start=before)
    assert torch.equal(aafit.load_activations(base, tmp_path / "affine.safetensors")(x), net(x))
    frozen, _ = aafit.freeze_activations(net, as_="table", sample=x)
    torch.testing.assert_close(frozen(x), net(x), rtol=0.02, atol=0.02)
    fitted, _ = aafit.replace_activations(base, {"SiLU": Affine("ReLU")}, sample=x)
    as_function, _ = aafit.freeze_activations(fitted, as_="function", sample=x)
    torch.testing.assert_close(as_function(x), fitted(x), rtol=0.01, atol=0.01)
    assert torch.equal(report.restore(net)(x), base(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_has_plain_operators_and_the_same_values(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, file = made("ReLU", (3, 1, 1)).float().requires_grad_(False).eval(), tmp_path / "affine.onnx"
    u = torch.randn(4, 3, 4, 2)
    program = torch.onnx.export(
        module, (u,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    program.save(str(file))
    assert {node.domain for node in program.model.graph} == {""}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: torch.cat([u, u]).numpy()})
    np.testing.assert_allclose(y[:4], module(u).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Affine("Relu"), "Unknown fixed function 'Relu'. Did you mean 'ReLU'"),
        (
            lambda: Affine(nn.ReLU),
            "takes the name of a fixed function.*or a module; got <class",
        ),
        (lambda: Affine(3), "got 3"),
        (lambda: Affine(nn.PReLU()), "takes a fixed function; PReLU.* has parameters"),
        (lambda: Affine("ReLU").like("Relu"), r"start of Affine\(ReLU\) 'Relu'. Did you mean 'ReLU'"),
        (lambda: Affine("SiLU")(1.0, 1.0), "takes a, b, c, d, each once; got 2 values"),
        (lambda: Affine("ReLU", offset=False)(1.0, 1.0, 0.0, 0.0), "takes a, c, each once"),
        (lambda: from_text("Affine(ReLU)"), "does not say how it starts. Valid: Affine.ReLU. as ReLU"),
        (lambda: from_text("Affine(Relu) as ReLU"), r"Did you mean 'Affine\(ReLU\)'"),
        (lambda: from_settings({"family": "Affine(softplus)", "start": "softplus", "shape": [1]}), "give the class"),
    ],
)
def test_mistakes(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
