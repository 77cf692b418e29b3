"""A compiled loop: which arrays it takes, and that it does not depend on how and by whom it was made."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from aafit.activations import LEAF
from aafit.activations import compiled as compiling
from aafit.activations.compiled import Loop, compiled_loop

OPTIONS = {"compile_threads": 1}


def drawn(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[compiling._Compiler]:
    """A compiler that has made nothing yet, and whose loops are used."""
    one = compiling._Compiler("cpu")
    monkeypatch.setattr(compiling, "_compiler", lambda device: one)
    yield one
    assert one._loops
    assert not [record for record in caplog.records if record.name.startswith("aafit")]


def scaled(u: Tensor, scale: Tensor) -> tuple[Tensor, None, Tensor]:
    """By column: the scaled array, nothing, and the sums of its rows."""
    y = (u * scale).exp()
    return y, None, y.sum(1)


@cache
def loop_of(rows: int, columns: int) -> Loop:
    return compiled_loop(scaled, [torch.zeros(rows, columns), torch.zeros(columns)], OPTIONS)


@needs_compiler
@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 40)] * 2), st.sampled_from([(7, 7), (1, 9), (9, 1), (1, 1)]))
def test_it_takes_what_it_is_right_for(sizes: tuple[int, int], made_for: tuple[int, int]) -> None:
    """A size of 1 is a case of its own; two that were equal need not be."""
    loop = loop_of(*made_for)
    u, scale = drawn(*sizes), drawn(sizes[1])
    fits = loop.fits(u, scale)
    assert fits == ([size == 1 for size in sizes] == [size == 1 for size in made_for])
    assert not loop.fits(u, drawn(sizes[1] + 1))
    if fits:
        y, nothing, sums = loop.call(u, scale)
        expected, _, expected_sums = scaled(u, scale)
        assert nothing is None
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=0)


class Watching(TorchDispatchMode):
    """Sees torch's operations, as a counter of them does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(isinstance(arg, FakeTensor) for arg in args)
        return func(*args, **(kwargs or {}))


@needs_compiler
def test_how_its_first_caller_computes_does_not_matter(compiler: compiling._Compiler) -> None:
    """Whether that records gradients, may never have any, computes in bfloat16, or watches torch's operations."""
    u, grad = drawn(64, 600).requires_grad_(), drawn(64, 600)
    found = []
    for mode in (
        nullcontext(),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        Watching(),
    ):
        compiler._loops.clear()
        leaf = LEAF.like("Tanh")
        with mode:
            first = leaf(u)
        y = leaf(u)
        assert torch.equal(first, y)
        found.append([y.detach(), *torch.autograd.grad(y, (u, *leaf.parameters()), grad)])
    assert all(torch.equal(one, other) for these in found[1:] for one, other in zip(found[0], these, strict=True))


@needs_compiler
@pytest.mark.usefixtures("compiler")
def test_threads_that_need_it_at_once() -> None:
    leaf, inputs = LEAF.like("Tanh"), [drawn(100, size) for size in (400, 500, 600, 700)]

    def there_and_back(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.clone().requires_grad_()
        y = leaf(u)
        return y.detach(), torch.autograd.grad(y.sum(), u)[0]

    with ThreadPoolExecutor(len(inputs)) as threads:
        found = list(threads.map(there_and_back, inputs))
    for u, (y, slope) in zip(inputs, found, strict=True):
        torch.testing.assert_close(y, u.tanh(), rtol=0, atol=1e-6)
        torch.testing.assert_close(slope, 1 - u.tanh() ** 2, rtol=0, atol=1e-6)


@needs_compiler
def test_it_is_as_careful_with_what_is_in_the_caches() -> None:
    """Sums of many numbers are made in chunks, which few numbers do not have: a condition of the compiler's own."""

    def total(u: Tensor) -> tuple[Tensor]:
        return (u.sum(),)

    for _ in range(2):
        loop = compiled_loop(total, [torch.zeros(1 << 15)], OPTIONS)
        assert [loop.fits(torch.zeros(size)) for size in (1 << 16, 100, 1)] == [True, False, False]


@needs_compiler
def test_a_loop_that_fails_is_made_anew_and_told_of(
    compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaf, u = LEAF.like("Tanh"), drawn(100, 400)

    def fails(*arrays: Tensor) -> tuple[Tensor]:
        raise RuntimeError("broken")

    leaf(u)
    (loops,) = compiler._loops.values()
    loops[0] = Loop(fails, loops[0].fits)
    torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=1e-6)
    assert loops == []
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aafit")] == [
        "No compiled activations on cpu, they run slower: broken"
    ]
    caplog.clear()
    torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=1e-6)
    assert len(loops) == 1


@needs_compiler
def test_no_memory_is_no_fault_of_the_compiler(compiler: compiling._Compiler) -> None:
    leaf, u = LEAF.like("Tanh"), drawn(100, 400)
    leaf(u)
    (loops,) = compiler._loops.values()
    (loop,) = loops

    def full(*arrays: Tensor) -> tuple[Tensor]:
        raise torch.OutOfMemoryError("full")

    loops[0] = Loop(full, loop.fits)
    for _ in range(2 * compiling.GIVEN_UP):
        torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=1e-6)
    assert len(loops) == 1
    assert not compiler._failures


@needs_compiler
def test_what_can_never_be_compiled_is_given_up_though_the_rest_works(
    compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make, tried = compiler._new, []

    def one_dimension_fails(run: Callable[..., Any], arrays: list[Tensor], serial: bool) -> Loop:
        if arrays[0].ndim == 1:
            tried.append(arrays)
            raise RuntimeError("not this one")
        return make(run, arrays, serial)

    monkeypatch.setattr(compiler, "_new", one_dimension_fails)
    layer, channel, u = LEAF.like("Tanh"), LEAF.like("Tanh", (400,)), drawn(100, 400)
    for _ in range(5):
        layer(u), channel(u)
    assert len(tried) == compiling.GIVEN_UP
    assert compiler._in_a_row == 0
    caplog.clear()
