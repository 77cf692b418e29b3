"""F-Neuron's own loops: the bits of the operations that they stand for, and what happens where there are none."""

import logging
from ctypes import CDLL
from functools import cache
from importlib.resources import files

import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aafit.activations import FNeuron, look_up
from aafit.activations import compiled as compiling
from aafit.activations.compiled import compiled_loops
from aafit.activations.look_up import MOST_VALUES, SHORTEST, gradient_loop, value_loop
from aafit.activations.look_up import _built as build
from aafit.activations.loop import Loop
from aafit.activations.piecewise_linear import _gradient_pass, _tables, _value_pass

# What the processor of the test has, and what it would do without.
WITHOUT = {"widest": (), "AVX2": ("__AVX512F__",), "none": ("__AVX512F__", "__AVX2__")}


@cache
def library(instructions: str) -> CDLL:
    source = files("aafit.activations").joinpath("look_up.cpp").read_text()
    return build("".join(f"#undef {macro}\n" for macro in WITHOUT[instructions]) + source)


@pytest.fixture(params=["widest", "AVX2"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    built = library(request.param)
    if not built.register_width():
        pytest.skip("this processor has no such registers")
    monkeypatch.setattr(look_up, "_library", lambda: built)
    return str(request.param)


def inputs(seed: int, shape: tuple[int, ...], sets: int | None, values: int) -> tuple[Tensor, ...]:
    """Gradient, input, weight, rises, left and scale, as the loops take them; inputs on, between and beyond values."""
    generator = torch.Generator().manual_seed(seed)
    left, scale = -1.5, (values - 1) / 4.0
    u = torch.randn(shape, generator=generator) * 3
    flat = u.view(-1)
    special = [left, left + 4, left + 1 / scale, -0.0, float("inf"), -float("inf"), float("nan"), 1e30]
    at = torch.randint(len(flat), (len(special),), generator=generator)
    flat[at] = torch.tensor(special)
    weight = torch.randn((values,) if sets is None else (sets, 1, values), generator=generator)
    numbers = torch.tensor([left]), torch.tensor([scale])
    return torch.randn(shape, generator=generator), u, *_tables(weight), *numbers


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}[ours.dtype]
    nan = ours.isnan()
    return ours.dtype == theirs.dtype and bool(
        (nan == theirs.isnan()).all() and (ours.view(integers) == theirs.view(integers))[~nan].all()
    )


shapes = st.one_of(
    st.tuples(st.integers(1, 9000)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(SHORTEST, 100)),
)


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(
    shapes,
    st.integers(2, MOST_VALUES),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.sampled_from([(True, True), (True, False), (False, True)]),
    st.integers(0, 1000),
    st.sampled_from(["widest", "AVX2"]),
)
def test_they_give_the_bits_of_torchs_operations(
    shape: tuple[int, ...],
    values: int,
    dtype: torch.dtype,
    extended: bool,
    wanted: tuple[bool, bool],
    seed: int,
    instructions: str,
) -> None:
    built = library(instructions)
    if not built.register_width():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look_up, "_library", lambda: built)
        sets = shape[1] if len(shape) == 3 else None
        grad, u, *whole = inputs(seed, shape, sets, values)
        grad, u = grad.to(dtype), u.to(dtype)
        forward, backward = value_loop([u, *whole], extended), gradient_loop([grad, u, *whole], extended, wanted)
    assert forward is not None
    assert backward is not None
    (y,), (expected,) = forward.call(u, *whole), _value_pass(torch.float32, extended)(u, *whole)
    assert expected is not None
    assert same_bits(y, expected)
    found = backward.call(grad, u, *whole)
    for ours, theirs in zip(found, _gradient_pass(torch.float32, wanted, extended)(grad, u, *whole), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (theirs is not None and ours.shape == theirs.shape and same_bits(ours, theirs))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_bits(instructions: str, threads: int) -> None:
    grad, u, *whole = inputs(3, (50_001,), None, 18)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        forward = value_loop([u, *whole], False)
        backward = gradient_loop([grad, u, *whole], False, (True, True))
    finally:
        torch.set_num_threads(before)
    assert forward is not None
    assert backward is not None
    expected = _value_pass(torch.float32, False)(u, *whole)[0]
    by_u, by_weight = _gradient_pass(torch.float32, (True, True), False)(grad, u, *whole)
    assert expected is not None
    assert by_u is not None
    assert by_weight is not None
    assert same_bits(forward.call(u, *whole)[0], expected)
    ours = backward.call(grad, u, *whole)
    assert same_bits(ours[0], by_u)
    assert same_bits(ours[1], by_weight)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> compiling._Compiler:
    one = compiling._Compiler("cpu")
    monkeypatch.setattr(compiling, "_compiler", lambda device: one)
    return one


CASES = {
    # name: (input's shape, parameters' shape, dtype, pieces, whether there is a loop of our own)
    "one set": ((64, 600), (1,), torch.float32, 16, True),
    "bfloat16": ((64, 600), (1,), torch.bfloat16, 16, True),
    "as many values as a table holds": ((64, 600), (1,), torch.float32, MOST_VALUES - 2, True),
    "one more": ((64, 600), (1,), torch.float32, MOST_VALUES - 1, False),
    "a set for a map of channel": ((8, 5, 40, 40), (5, 1, 1), torch.float32, 16, True),
    "a set for few elements": ((400, 5, 5, 5), (5, 1, 1), torch.float32, 16, False),
    "a set for each column": ((64, 600), (600,), torch.float32, 4, False),
    "float64": ((64, 600), (1,), torch.float64, 16, False),
    "float16": ((64, 600), (1,), torch.float16, 16, False),
}


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_which_arrays_they_take(
    case: str, instructions: str, compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, sets, dtype, pieces, own = CASES[case]
    made: list[Loop | None] = []

    def noted(*args: object, **kwargs: object) -> Loop | None:
        made.append(value_loop(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("aafit.activations.piecewise_linear.value_loop", noted)
    net = FNeuron.random(sets, torch.Generator().manual_seed(1), pieces=pieces).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        y = net(u)
        with compiled_loops(False):
            assert torch.equal(y, net(u))
    assert [loop is not None for loop in made] == [own]


@needs_compiler
@pytest.mark.parametrize("why", ["no registers", "not built"])
def test_without_them_the_compilers_loops_serve(
    why: str, compiler: compiling._Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def built(source: str) -> CDLL:
        if why == "not built":
            raise RuntimeError("a compiler's words")
        return library("none")

    monkeypatch.setattr(look_up, "_built", built)
    look_up._library.cache_clear()
    try:
        net = FNeuron.like("SiLU")
        u = torch.randn(64, 600, generator=torch.Generator().manual_seed(0), requires_grad=True)
        net(u).sum().backward()
    finally:
        look_up._library.cache_clear()
    assert [len(loops) for loops in compiler._loops.values()] == [1, 1]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = "F-Neuron runs slower, its own loops could not be built: a compiler's words"
    assert said == ([expected] if why == "not built" else [])
    assert u.grad is not None
    ours = u.grad.clone()
    u.grad = None
    with compiled_loops(False):
        net(u).sum().backward()
    assert torch.equal(ours, u.grad)
