"""F-Neuron's own loops: the bits of the operations that they stand for, and what happens where there are none."""

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from functools import cache
from importlib.resources import files
from typing import Any

import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aafit.activations import LEAF, FNeuron, look_up
from aafit.activations import compiled as compiling
from aafit.activations.compiled import compiled_loops
from aafit.activations.look_up import MOST_POINTS, SHORTEST, gradient_loop, value_loop
from aafit.activations.look_up import _built as build
from aafit.activations.piecewise_linear import _gradient_pass, _tables, _value_pass

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32", reason="there are none here"
    ),
]

# What the processor of the test has, and what it would do without.
WITHOUT = {"widest": (), "AVX2": ("__AVX512F__",), "none": ("__AVX512F__", "__AVX2__")}


@cache
def library(instructions: str) -> CDLL:
    source = files("aafit.activations").joinpath("look_up.cpp").read_text()
    return build("".join(f"#undef {macro}\n" for macro in WITHOUT[instructions]) + source)


@contextmanager
def only(instructions: str) -> Iterator[None]:
    built = library(instructions)
    if not built.register_width():
        pytest.skip("this processor has no such registers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look_up, "_library", lambda: built)
        yield


@pytest.fixture(params=["widest", "AVX2"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def inputs(seed: int, shape: tuple[int, ...], points: int) -> tuple[Tensor, Tensor, Any]:
    """Gradient, input, and the line, as the loops take them; inputs on points, between them, and beyond the ends."""
    generator = torch.Generator().manual_seed(seed)
    left, scale = -1.5, (points - 1) / 4.0
    u = torch.randn(shape, generator=generator) * 3
    flat = u.view(-1)
    special = [left, left + 4, left + 1 / scale, -0.0, float("inf"), -float("inf"), float("nan"), 1e30]
    flat[torch.randint(len(flat), (len(special),), generator=generator)] = torch.tensor(special)
    weight = torch.randn((shape[1], 1, points) if len(shape) == 3 else (points,), generator=generator)
    return torch.randn(shape, generator=generator), u, (*_tables(weight), left, scale)


def assert_same_bits(ours: Tensor | None, theirs: Tensor | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}[ours.dtype]
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    nan = ours.isnan()
    assert torch.equal(nan, theirs.isnan())
    assert torch.equal(ours.view(integers)[~nan], theirs.view(integers)[~nan])


WANTED = [(True, True), (True, False), (False, True)]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9000)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(SHORTEST, 100)),
)


@pytest.mark.parametrize("instructions", ["widest", "AVX2"])
@settings(deadline=None, max_examples=40)
@given(
    SHAPES,
    st.integers(2, MOST_POINTS),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.sampled_from(WANTED),
    st.integers(0, 1000),
    st.integers(1, 2),
)
def test_they_give_the_bits_of_torchs_operations(
    instructions: str,
    shape: tuple[int, ...],
    points: int,
    dtype: torch.dtype,
    extended: bool,
    wanted: tuple[bool, bool],
    seed: int,
    number: int,
) -> None:
    grad, u, line = inputs(seed, shape, points)
    grad, u = grad.to(dtype), u.to(dtype)
    forward, backward = value_loop(extended), gradient_loop(extended, wanted)
    with only(instructions), threads(number):
        assert forward.fits(u, *line)
        assert backward.fits(grad, u, *line)
        (y,), found = forward.call(u, *line), backward.call(grad, u, *line)
    assert_same_bits(y, _value_pass(torch.float32, extended)(u, *line)[0])
    expected = _gradient_pass(torch.float32, wanted, extended)(grad, u, *line)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("wanted", WANTED)
def test_chunks_and_threads_do_not_change_the_bits(instructions: str, wanted: tuple[bool, bool]) -> None:
    grad, u, line = inputs(3, (50_001,), 18)
    with threads(2):
        (y,), found = value_loop(False).call(u, *line), gradient_loop(False, wanted).call(grad, u, *line)
    assert_same_bits(y, _value_pass(torch.float32, False)(u, *line)[0])
    for ours, theirs in zip(found, _gradient_pass(torch.float32, wanted, False)(grad, u, *line), strict=True):
        assert_same_bits(ours, theirs)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> compiling._Compiler:
    """A compiler that has made nothing yet."""
    one = compiling._Compiler("cpu")
    monkeypatch.setattr(compiling, "_compiler", lambda device: one)
    return one


CASES = {
    # name: (input's shape, parameters' shape, input's dtype, weight's dtype, knots, whether a loop of ours takes it)
    "one set": ((64, 600), (1,), torch.float32, torch.float32, 18, True),
    "bfloat16": ((64, 600), (1,), torch.bfloat16, torch.float32, 18, True),
    "as many points as a table holds": ((64, 600), (1,), torch.float32, torch.float32, MOST_POINTS, True),
    "one more": ((64, 600), (1,), torch.float32, torch.float32, MOST_POINTS + 1, False),
    "far too many": ((64, 600), (1,), torch.float32, torch.float32, 3002, False),
    "a set for each map": ((8, 5, 40, 40), (5, 1, 1), torch.float32, torch.float32, 18, True),
    "a set for few elements": ((400, 5, 5, 5), (5, 1, 1), torch.float32, torch.float32, 18, False),
    "a set for each column": ((64, 600), (600,), torch.float32, torch.float32, 6, False),
    "float64": ((64, 600), (1,), torch.float64, torch.float64, 18, False),
    "float64 weight": ((64, 600), (1,), torch.float32, torch.float64, 18, False),
    "float16": ((64, 600), (1,), torch.float16, torch.float32, 18, False),
}


def made_by(case: str, compiler: compiling._Compiler) -> int:
    """How many loops the compiler makes for a case, which gives the bits of torch's operations."""
    shape, sets, dtype, weights, knots, _ = CASES[case]
    net = FNeuron.random(sets, torch.Generator().manual_seed(1), knots=knots).to(weights)
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = sum(map(len, compiler._loops.values()))
    with torch.no_grad():
        y = net(u)
        with compiled_loops(False):
            assert torch.equal(y, net(u))
    assert not compiler._failures
    return sum(map(len, compiler._loops.values())) - before


@pytest.mark.parametrize("case", CASES)
def test_which_arrays_they_take(case: str, compiler: compiling._Compiler) -> None:
    with only("widest"):
        assert made_by(case, compiler) == (not CASES[case][-1])


def test_what_was_called_before_does_not_matter(compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of the compiler fits arrays of any size: it must not take what ours are for."""
    with only("widest"):
        assert made_by("far too many", compiler) == made_by("a set for few elements", compiler) == 1
        monkeypatch.setattr(compiler, "run", lambda *arguments: pytest.fail("a loop of the compiler was used"))
        assert made_by("one set", compiler) == made_by("a set for each map", compiler) == 0


@pytest.mark.parametrize("why", ["no registers", "not built", "no source"])
def test_without_them_the_compilers_loops_serve(
    why: str, compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def built(source: str) -> CDLL:
        if why == "not built":
            raise RuntimeError("C++ compile error\n\nCommand:\ng++ and all its words")
        return library("none")

    def no_files(package: str) -> Any:
        raise FileNotFoundError("no look_up.cpp")

    monkeypatch.setattr(look_up, "_built", built)
    if why == "no source":
        monkeypatch.setattr(look_up, "files", no_files)
    u = torch.randn(64, 600, generator=torch.Generator().manual_seed(0), requires_grad=True)
    look_up._library.cache_clear()
    try:
        for net in FNeuron.like("SiLU"), LEAF.like("SiLU"):
            net(u).sum().backward()
            ours, u.grad = u.grad, None
            with compiled_loops(False):
                net(u).sum().backward()
            torch.testing.assert_close(ours, u.grad)
            u.grad = None
    finally:
        look_up._library.cache_clear()
    assert [len(loops) for loops in compiler._loops.values()] == [1, 1, 1, 1]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    reason = {"no registers": None, "not built": "C++ compile error", "no source": "no look_up.cpp"}[why]
    assert said == ([] if reason is None else [f"F-Neuron runs slower, its own loops could not be built: {reason}"])


def test_a_weight_on_another_device_is_not_read(instructions: str) -> None:
    """To read it where it is not would end the process."""
    grad, u, (weight, rises, left, scale) = inputs(0, (40_000,), 18)
    line = weight.to("meta"), rises.to("meta"), left, scale
    assert not value_loop(False).fits(u, *line)
    assert not gradient_loop(False, (True, True)).fits(grad, u, *line)
    assert not value_loop(False).fits(u.to("meta"), weight, rises, left, scale)
    with pytest.raises(RuntimeError, match="meta"), torch.no_grad():
        FNeuron.like("SiLU").to("meta")(u)
