"""The kernels behind the activations: compiled loops against plain operations, and every way to differentiate them."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron, SiLU, elementwise, from_text, look_up
from aafit.activations import compiled as compiling
from aafit.activations.compiled import compiled_loops

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FAMILIES = ["AHAF", "LEAF", "F-Neuron"]
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def compiled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing fell back to plain operations."""
    with caplog.at_level(logging.DEBUG, "aafit"):
        yield
    assert not [record for record in caplog.records if record.name.startswith("aafit")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_activation(family: str, shape: tuple[int, ...] = (1,)) -> AdaptiveActivation:
    made = from_text(f"{family} random", shape, seeded())
    assert isinstance(made, AdaptiveActivation)
    return made


def batch(
    sizes: tuple[int, ...], dtype: torch.dtype = torch.float32, fmt: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """An input, mostly within [-4, 4] but not all, and a gradient for the output."""
    u = (torch.randn(sizes, generator=seeded(1)) * 2).to(dtype).to(memory_format=fmt)
    grad = torch.randn(sizes, generator=seeded(2)).to(dtype).to(memory_format=fmt)
    return u.requires_grad_(), grad


def results(activation: torch.nn.Module, u: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients by the input and by every parameter."""
    y = activation(u)
    assert y.shape == u.shape
    assert y.dtype == u.dtype
    return [y.detach(), *torch.autograd.grad(y, (u, *activation.parameters()), grad)]


def loops() -> int:
    """How many loops were compiled so far."""
    return sum(map(len, compiling._compiler("cpu")._loops.values()))


def assert_sums_close(given: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Sums of `terms` numbers of size 1 or so, in whatever order."""
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * math.sqrt(terms))


@needs_compiler
@pytest.mark.usefixtures("compiled")
class TestCompiled:
    """The compiler's loops. F-Neuron's own, which go before them, are in test_look_up.py."""

    @pytest.fixture(autouse=True)
    def _no_own_loops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(look_up, "_library", lambda: None)

    @pytest.mark.parametrize(
        ("family", "dtype", "shape"),
        [
            ("AHAF", torch.float32, (1,)),
            ("LEAF", torch.float32, (1,)),
            ("LEAF", torch.bfloat16, (1,)),
            ("LEAF", torch.float32, (8, 1, 1)),
            ("F-Neuron", torch.float32, (1,)),
        ],
    )
    def test_agrees_with_plain_operations(self, family: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        activation = random_activation(family, shape)
        u, grad = batch((17, 8, 32, 31), dtype)
        fast = results(activation, u, grad)
        again = results(activation, u, grad)
        assert all(torch.equal(one, other) for one, other in zip(fast, again, strict=True))
        made = loops()
        assert made > 0
        with compiled_loops(False):
            plain = results(activation, u, grad)
        assert loops() == made
        rounding = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(fast[:2], plain[:2], rtol=rounding, atol=rounding)
        assert_sums_close(fast[2:], plain[2:], u.numel())

    def test_few_loops_serve_all_layers(self) -> None:
        activation = random_activation("LEAF")
        results(activation, *batch((4, 8, 40, 40)))
        made = loops()
        for sizes in ((5, 8, 40, 40), (128, 512), (64, 600), (40000,), (3, 2, 3, 50, 50)):
            results(activation, *batch(sizes))
        for sizes in ((4, 16, 30, 30), (3, 8, 50, 40), (1, 64, 30, 30)):
            results(activation, *batch(sizes, fmt=torch.channels_last))
        assert loops() == made

    @pytest.mark.parametrize(
        "all_sizes",
        [
            [(256, 256), (5000, 64), (64, 1024, 32), (130, 255), (1, 40000)],
            [(18, 18, 18, 18), (5, 17, 24, 24), (1, 16, 60, 40), (400, 15, 3, 3)],
        ],
    )
    @pytest.mark.parametrize("family", ["LEAF", "F-Neuron"])
    def test_a_loop_is_right_for_every_size(
        self,
        family: str,
        all_sizes: list[tuple[int, ...]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also where sizes are 1, or equal by chance, when it is made or used."""
        for order in (all_sizes, all_sizes[::-1]):
            monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
            made = set()
            for sizes in order:
                activation = random_activation(family, (sizes[1], 1, 1) if len(sizes) == 4 else sizes[-1:])
                u, grad = batch(sizes)
                fast = results(activation, u, grad)
                made.add(loops())
                with compiled_loops(False):
                    plain = results(activation, u, grad)
                torch.testing.assert_close(fast[:2], plain[:2], rtol=1e-6, atol=1e-6)
                assert_sums_close(fast[2:], plain[2:], u.numel())
            # One forward and one backward, each for a single row and for more of them.
            assert made == {2, 4}

    def test_silu_bits_are_the_same_for_all(self) -> None:
        u, grad = batch((32, 8, 32, 32))
        with torch.no_grad():
            u.view(-1)[:3] = torch.tensor([0.0, -0.0, 1e30])
        expected, by_u = results(SiLU(), u, grad)
        for text in ("AHAF as SiLU", "LEAF as SiLU"):
            y, mine, *_ = results(from_text(text), u, grad)
            assert torch.equal(y, expected)
            assert torch.equal(mine, by_u)

    def test_a_steep_sigmoid_never_gives_nan(self) -> None:
        u, grad = batch((8, 8, 32, 32))
        with torch.no_grad():
            u.view(-1)[:6] = torch.tensor([0.0, -0.0, 1e-6, -1e-6, 3e38, -3e38])
        y, by_u, *_ = results(LEAF.like("ReLU"), u, grad)
        assert (y - u.relu()).abs().max() <= 4.25e-6
        assert by_u.isfinite().all()

    def test_nan_and_infinity_through_fneuron(self) -> None:
        u, grad = batch((8, 8, 32, 32))
        with torch.no_grad():
            u.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        activation = FNeuron.like("Tanh")
        y, by_u, by_weight = results(activation, u, grad)
        assert y.view(-1)[0].isnan()
        assert torch.equal(y.view(-1)[1:3], activation.weight[0, [-1, 0]])
        assert torch.equal(by_u.view(-1)[1:3], torch.zeros(2))
        assert y.view(-1)[1:].isfinite().all()
        assert by_weight[0, 2:].isfinite().all()

    def test_bf16_autocast_changes_nothing(self) -> None:
        activation = random_activation("LEAF")
        u, grad = batch((8, 8, 32, 32), torch.bfloat16)
        outside = results(activation, u, grad)
        with torch.autocast("cpu", torch.bfloat16):
            y = activation(u)
        inside = [y, *torch.autograd.grad(y, (u, *activation.parameters()), grad)]
        assert y.dtype == torch.bfloat16
        assert all(torch.equal(one, other) for one, other in zip(outside, inside, strict=True))
        assert inside[2].dtype == torch.float32


@needs_compiler
def test_sizes_that_no_loop_fits_get_another(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One row is a case of its own; what serves three serves any number."""
    monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
    activation = random_activation("AHAF", (40_000,))
    there = []
    for rows in (3, 1, 1, 3, 5):
        u, grad = batch((rows, 40_000))
        given = results(activation, u, grad)
        exact = results(deepcopy(activation).double(), u.detach().double().requires_grad_(), grad.double())
        for one, other in zip(given, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
        there.append(loops())
    # One forward and one backward, and two more in float64.
    assert there == [4, 8, 8, 8, 8]
    assert not [record for record in caplog.records if record.name.startswith("aafit")]


def test_without_a_compiler_it_says_so_once_and_goes_on(
    tmp_path: Path,
) -> None:
    """In a process of its own, since a process finds out only once; with a cache that has nothing compiled yet."""
    code = """
import logging, sys, torch
from aafit.activations import LEAF
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
leaf = LEAF.like("Tanh")
u = torch.linspace(-3, 3, 100_000, requires_grad=True)
for _ in range(2):
    leaf(u).sum().backward()
assert (leaf(u) - u.tanh()).abs().max() < 1e-6
"""
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert line.startswith("WARNING aafit.activations.compiled No compiled activations on cpu, they run slower: ")
    assert "/no/such/compiler" in line


@needs_compiler
def test_half_a_library_of_a_killed_process_is_built_anew(tmp_path: Path) -> None:
    """In processes of their own, with a cache of their own: a library that is loaded cannot be broken safely."""
    code = """
import logging, sys, torch
from aafit.activations import LEAF, FNeuron
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
with torch.no_grad():
    for activation in LEAF.like("Tanh"), FNeuron.like("Tanh"):
        activation(torch.linspace(-3, 3, 100_000))
"""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    def built() -> dict[Path, int]:
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250)
        assert run.returncode == 0, run.stderr
        assert not run.stdout
        return {path: path.stat().st_size for path in tmp_path.rglob("*.main.so")}

    whole = built()
    assert whole
    # A linker writes the head of a file last.
    for number, path in enumerate(whole):
        path.write_bytes(bytes(1000 * (number % 2)))
    assert built() == whole


class TestPlainBlocks:
    """Without a compiler, large inputs go through in blocks."""

    @pytest.fixture(autouse=True)
    def _uncompiled(self) -> Iterator[None]:
        with compiled_loops(False):
            yield

    @pytest.mark.parametrize("fmt", FORMATS)
    @pytest.mark.parametrize("shape", [(1,), (8, 1, 1), (8, 33, 31), (8, 1, 31)])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_agree_with_the_whole_in_float64(
        self, family: str, shape: tuple[int, ...], fmt: torch.memory_format
    ) -> None:
        u, grad = batch((41, 8, 33, 31), fmt=fmt)
        activation = random_activation(family, shape)
        parts = results(activation, u, grad)
        assert parts[0].stride() == u.stride()
        whole = results(activation.double(), u.detach().double().requires_grad_(), grad.double())
        torch.testing.assert_close(parts[0].double(), whole[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts[1].double(), whole[1], rtol=1e-5, atol=1e-5)
        assert_sums_close([part.double() for part in parts[2:]], whole[2:], u.numel())

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_format_of_the_gradient_does_not_matter(self, family: str) -> None:
        activation = random_activation(family)
        u, grad = batch((9, 8, 33, 31), fmt=torch.channels_last)
        usual = results(activation, u, grad)
        for other in (grad.contiguous(), grad.transpose(2, 3).contiguous().transpose(2, 3)):
            assert all(torch.equal(a, b) for a, b in zip(usual, results(activation, u, other), strict=True))
        y = activation(u)
        y.sum().backward()
        assert u.grad is not None
        assert u.grad.shape == u.shape

    @pytest.mark.parametrize("family", FAMILIES)
    def test_inputs_with_gaps_and_none_at_all(self, family: str) -> None:
        activation = random_activation(family)
        whole, _ = batch((6, 10, 7))
        part = whole.detach()[::2, 1:9, :5]
        assert torch.equal(activation(part), activation(part.contiguous()))
        empty = torch.empty(0, 5, requires_grad=True)
        activation(empty).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in activation.parameters())

    def test_large_sums_lose_little(self) -> None:
        u, grad = batch((100, 8, 33, 31))
        for family in FAMILIES:
            activation = random_activation(family)
            *_, last = results(activation, u, grad.abs())
            *_, exact = results(activation.double(), u.detach().double().requires_grad_(), grad.abs().double())
            torch.testing.assert_close(last.double(), exact, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_input_and_the_parameters_are_saved(family: str) -> None:
    activation = random_activation(family)
    u, _ = batch((4, 3, 5, 5))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        activation(u)
    expected = {u.data_ptr(), *(p.data_ptr() for p in activation.parameters())}
    assert {tensor.data_ptr() for tensor in saved} == expected
    assert len(saved) == len(expected)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_may_work_in_place(family: str, fmt: torch.memory_format) -> None:
    activation = random_activation(family)
    u, grad = batch((4, 3, 5, 5), fmt=fmt)
    (expected,) = torch.autograd.grad(activation(u) * 2 + 1, u, grad)
    (given,) = torch.autograd.grad(activation(u).mul_(2).add_(1), u, grad)
    assert torch.equal(given, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_without_data(family: str) -> None:
    activation = random_activation(family)
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = activation(torch.empty(64, 1024, requires_grad=True))
        y.sum().backward()
    assert isinstance(y, FakeTensor)
    assert y.shape == (64, 1024)


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_mode(family: str) -> None:
    activation = random_activation(family)
    u, _ = batch((4, 3, 5, 5))
    with torch.inference_mode():
        y = activation(u)
    assert torch.equal(y, activation(u))


@pytest.mark.parametrize("shape", [(1,), (2, 1, 1), (2, 2, 3)])
@pytest.mark.parametrize("family", FAMILIES)
class TestTransforms:
    """torch.func, forward mode and batched gradients all see the same derivatives."""

    def functions(self, family: str, shape: tuple[int, ...]):
        activation = random_activation(family, shape).double()
        names, values = zip(*activation.named_parameters(), strict=True)

        def call(u: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(activation, dict(zip(names, parameters, strict=True)), (u,))

        u = torch.randn(2, 2, 2, 3, generator=seeded(5), dtype=torch.float64)
        return call, (u, *(value.detach() for value in values))

    def test_jacobians(self, family: str, shape: tuple[int, ...]) -> None:
        call, inputs = self.functions(family, shape)
        for at in range(len(inputs)):
            expected = torch.autograd.functional.jacobian(
                lambda x, at=at: call(*inputs[:at], x, *inputs[at + 1 :]), inputs[at]
            )
            batched = torch.autograd.functional.jacobian(
                lambda x, at=at: call(*inputs[:at], x, *inputs[at + 1 :]), inputs[at], vectorize=True
            )
            for jacobian in (torch.func.jacrev(call, at)(*inputs), torch.func.jacfwd(call, at)(*inputs), batched):
                torch.testing.assert_close(jacobian, expected)

    def test_directional_derivatives_and_hessians(self, family: str, shape: tuple[int, ...]) -> None:
        call, inputs = self.functions(family, shape)
        tangents = tuple(torch.randn_like(x) for x in inputs)
        y, forward = torch.func.jvp(call, inputs, tangents)
        torch.testing.assert_close(y, call(*inputs))
        _, double_backward = torch.autograd.functional.jvp(call, inputs, tangents)
        torch.testing.assert_close(forward, double_backward)
        argnums = tuple(range(1, len(inputs)))
        by_func = torch.func.hessian(lambda *x: call(*x).square().sum(), argnums)(*inputs)
        by_autograd = torch.autograd.functional.hessian(lambda *x: call(inputs[0], *x).square().sum(), inputs[1:])
        torch.testing.assert_close(by_func, by_autograd)

    def test_per_sample_gradients(self, family: str, shape: tuple[int, ...]) -> None:
        call, (u, *values) = self.functions(family, shape)

        def loss(sample: Tensor, *parameters: Tensor) -> Tensor:
            return call(sample[None], *parameters).square().sum()

        per_sample = torch.func.vmap(torch.func.grad(loss, 1), in_dims=(0, *[None] * len(values)))(u, *values)
        for sample, gradient in zip(u, per_sample, strict=True):
            torch.testing.assert_close(gradient, torch.func.grad(loss, 1)(sample, *values))


@needs_compiler
def test_inside_a_callers_compiled_network() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), LEAF.like("Tanh"), torch.nn.Linear(5, 4), FNeuron.like("Tanh"))
    x = torch.randn(7, 6, generator=seeded())
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    compiled_network = torch.compile(network, backend="aot_eager", fullgraph=True)
    given = torch.autograd.grad(compiled_network(x).square().sum(), list(network.parameters()))
    torch.testing.assert_close(given, expected)


def test_modules_can_be_exported() -> None:
    exported = torch.export.export(AHAF.like("SiLU"), (torch.randn(2, 3),))
    u = torch.randn(2, 3)
    torch.testing.assert_close(exported.module()(u), torch.nn.functional.silu(u))


@needs_compiler
def test_a_call_that_cannot_be_compiled_does_not_switch_the_compiler_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two failures, each with plain operations for that call alone and one warning for both; then loops again."""
    make = compiling._Compiler._new
    failures = iter([True, True])

    def fails_twice(self: compiling._Compiler, *args: object) -> object:
        if next(failures, False):
            raise RuntimeError("not here")
        return make(self, *args)

    monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
    monkeypatch.setattr(compiling._Compiler, "_new", fails_twice)
    leaf, u = LEAF.like("Tanh"), torch.linspace(-3, 3, 40_000)
    for expected in (0, 0, 1):
        torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=2e-7)
        assert loops() == expected
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "No compiled activations on cpu, they run slower: not here"
    ]


def test_a_failing_compiler_is_given_up_after_some_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(*args: object) -> None:
        tried.append(args)
        raise RuntimeError("never")

    monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
    monkeypatch.setattr(compiling._Compiler, "_new", fails)
    for _ in range(10):
        LEAF.like("Tanh")(torch.zeros(40_000))
    assert len(tried) == compiling.GIVEN_UP


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("text", ["LEAF as Tanh", "F-Neuron as Tanh"])
def test_tracing_records_plain_operations_and_is_no_failure(text: str, caplog: pytest.LogCaptureFixture) -> None:
    module, u = from_text(text), torch.linspace(-3, 3, 40_000)
    traced = torch.jit.trace(module, u)
    assert torch.allclose(traced(2 * u), module(2 * u), rtol=0, atol=1e-6)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_torch_without_its_private_functions_computes_by_plain_operations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elementwise, "_in_transform", cache(elementwise._in_transform.__wrapped__))
    monkeypatch.delattr(torch._C._functorch, "is_legacy_batchedtensor")
    for _ in range(2):
        u, grad = batch((4, 7))
        y, by_u, *_ = results(LEAF.like("Tanh"), u, grad)
        torch.testing.assert_close(y, u.detach().tanh(), rtol=0, atol=1e-6)
        torch.testing.assert_close(by_u, grad * (1 - u.detach().tanh() ** 2), rtol=1e-5, atol=1e-5)
    assert len([record for record in caplog.records if "version of torch" in record.getMessage()]) == 1
