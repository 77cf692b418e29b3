"""A compiled loop: which arrays it takes, and that it does not depend on how and by whom it was made."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aafit.activations import LEAF
from aafit.activations import compiled as compiling
from aafit.activations.loop import Loop, compiled_loop

OPTIONS = {"compile_threads": 1}


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
    u, scale = torch.randn(sizes), torch.randn(sizes[1])
    fits = loop.fits(u, scale)
    assert fits == ([size == 1 for size in sizes] == [size == 1 for size in made_for])
    assert not loop.fits(u, torch.randn(sizes[1] + 1))
    if fits:
        y, nothing, sums = loop.call(u, scale)
        expected, _, expected_sums = scaled(u, scale)
        assert nothing is None
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=0)


@needs_compiler
def test_how_its_first_caller_computes_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that records gradients, may never have any, or computes in bfloat16."""
    u, grad = torch.randn(64, 600, requires_grad=True), torch.randn(64, 600)
    found = []
    for modes in ([], [torch.no_grad()], [torch.inference_mode()], [torch.autocast("cpu", torch.bfloat16)]):
        monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
        leaf = LEAF.like("Tanh")
        with ExitStack() as block:
            for mode in modes:
                block.enter_context(mode)
            first = leaf(u)
        y = leaf(u)
        assert torch.equal(first, y)
        found.append([y.detach(), *torch.autograd.grad(y, (u, *leaf.parameters()), grad)])
    assert all(torch.equal(one, other) for these in found[1:] for one, other in zip(found[0], these, strict=True))


@needs_compiler
def test_threads_that_need_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_compiler", cache(compiling._Compiler))
    leaf, inputs = LEAF.like("Tanh"), [torch.randn(100, size) for size in (400, 500, 600, 700)]

    def there_and_back(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.clone().requires_grad_()
        y = leaf(u)
        return y.detach(), torch.autograd.grad(y.sum(), u)[0]

    with ThreadPoolExecutor(len(inputs)) as threads:
        found = list(threads.map(there_and_back, inputs))
    for u, (y, slope) in zip(inputs, found, strict=True):
        torch.testing.assert_close(y, u.tanh(), rtol=0, atol=1e-6)
        torch.testing.assert_close(slope, 1 - u.tanh() ** 2, rtol=0, atol=1e-6)
