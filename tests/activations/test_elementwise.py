"""Every way to compute and differentiate an activation without compiled loops."""

import logging
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from activation_helpers import assert_sums_close, batch, needs_compiler, random_activation, results, seeded
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from aafit.activations import AHAF, LEAF, FNeuron, elementwise, from_text
from aafit.activations.compiled import compiled_loops

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FAMILIES = ["AHAF", "LEAF", "F-Neuron"]
FORMATS = [torch.contiguous_format, torch.channels_last]


class TestPlainBlocks:
    """Large inputs are computed block by block."""

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


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("text", ["LEAF as Tanh", "F-Neuron as Tanh"])
def test_tracing_records_plain_operations_and_is_no_failure(text: str, caplog: pytest.LogCaptureFixture) -> None:
    module, u = from_text(text), torch.linspace(-3, 3, 40_000)
    traced = torch.jit.trace(module, u)
    assert torch.allclose(traced(2 * u), module(2 * u), rtol=0, atol=1e-6)
    # A torch for CUDA logs that there is none.
    ours = [record for record in caplog.records if record.name.startswith("aafit")]
    assert not [record for record in ours if record.levelno >= logging.WARNING]


def test_a_torch_without_its_private_functions_uses_plain_operations(
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
