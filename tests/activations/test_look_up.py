"""F-Neuron's own loops are bit-identical to the operations that they replace, and compiled loops serve without them."""

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
from activation_helpers import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aafit.activations import LEAF, FNeuron, compiled, look_up
from aafit.activations.compiled import SMALLEST_COMPILED, compiled_loops, loop_cache
from aafit.activations.look_up import MOST_KNOTS, SHORTEST, build

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32", reason="there are none here"
    ),
]

# The instruction sets of this processor that the source must not use.
WITHOUT = {"widest": (), "AVX2": ("__AVX512F__",), "none": ("__AVX512F__", "__AVX2__")}


@cache
def library(instructions: str) -> CDLL:
    source = files("aafit.activations").joinpath("look_up.cpp").read_text()
    return build("".join(f"#undef {macro}\n" for macro in WITHOUT[instructions]) + source)


@contextmanager
def only(instructions: str) -> Iterator[None]:
    """Use the loops for these instructions; a compiled loop is an error."""
    built = library(instructions)
    if not built.register_width():
        pytest.skip("this processor has no such registers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look_up, "library", lambda: built)
        patch.setattr(compiled, "loop_cache", lambda device: pytest.fail("a compiled loop was used"))
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def results(activation: FNeuron, u: Tensor, grad: Tensor, wanted: tuple[bool, bool]) -> list[Tensor]:
    u = u.clone().requires_grad_(wanted[0])
    activation.weight.requires_grad_(wanted[1])
    y = activation(u)
    inputs = [x for x, want in zip((u, activation.weight), wanted, strict=True) if want]
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def assert_bit_identical(ours: Tensor, theirs: Tensor) -> None:
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[ours.dtype]
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    nan = ours.isnan()
    assert torch.equal(nan, theirs.isnan())
    assert torch.equal(ours.view(integers)[~nan], theirs.view(integers)[~nan])


SHAPES = st.one_of(
    st.tuples(st.integers(SMALLEST_COMPILED, 2 * SMALLEST_COMPILED)),
    st.tuples(st.integers(7, 9), st.integers(3, 5), st.integers(50, 60), st.integers(SHORTEST, 60)).filter(
        lambda sizes: sizes[0] * sizes[1] * sizes[2] * sizes[3] >= SMALLEST_COMPILED
    ),
)


@pytest.mark.parametrize("instructions", ["widest", "AVX2"])
@settings(deadline=None, max_examples=40)
@given(
    SHAPES,
    st.integers(3, MOST_KNOTS),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(["flat", "linear"]),
    st.sampled_from([(True, True), (True, False), (False, True)]),
    st.integers(0, 1000),
    st.integers(1, 2),
)
def test_they_are_bit_identical_to_torchs_operations(
    instructions: str,
    shape: tuple[int, ...],
    knots: int,
    dtype: torch.dtype,
    outside: str,
    wanted: tuple[bool, bool],
    seed: int,
    number: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sets = (shape[1], 1, 1) if len(shape) == 4 else (1,)
    activation = FNeuron.random(sets, generator, (-1.5, 2.5), knots=knots, outside=outside)
    u, grad = (torch.randn(shape, generator=generator) * 3 for _ in range(2))
    special = [-1.5, 2.5, -1.5 + 4 / (knots - 1), -0.0, float("inf"), -float("inf"), float("nan"), 1e30]
    u.view(-1)[torch.randint(u.numel(), (len(special),), generator=generator)] = torch.tensor(special)
    u, grad = u.to(dtype), grad.to(dtype)
    with threads(number):
        with only(instructions):
            ours = results(activation, u, grad, wanted)
        # In one block: the sums of several blocks would be rounded in another order.
        with compiled_loops(False), pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "BLOCK", u.numel())
            theirs = results(activation, u, grad, wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert_bit_identical(one, other)


CASES = {
    # name: (input's shape, parameters' shape, input's dtype, weight's dtype, knots, whether a hand-written loop serves)
    "one set": ((64, 600), (1,), torch.float32, torch.float32, 18, True),
    "bfloat16": ((64, 600), (1,), torch.bfloat16, torch.float32, 18, True),
    "as many knots as fit": ((64, 600), (1,), torch.float32, torch.float32, MOST_KNOTS, True),
    "one more": ((64, 600), (1,), torch.float32, torch.float32, MOST_KNOTS + 1, False),
    "a set for each channel": ((8, 5, 40, 40), (5, 1, 1), torch.float32, torch.float32, 18, True),
    "a set for few elements": ((400, 5, 5, 5), (5, 1, 1), torch.float32, torch.float32, 18, False),
    "a set for each column": ((64, 600), (600,), torch.float32, torch.float32, 6, False),
    "float64": ((64, 600), (1,), torch.float64, torch.float64, 18, False),
    "float64 weight": ((64, 600), (1,), torch.float32, torch.float64, 18, False),
    "float16": ((64, 600), (1,), torch.float16, torch.float32, 18, False),
}


@pytest.mark.parametrize("case", CASES)
def test_which_arrays_they_take(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, sets, dtype, weights, knots, own = CASES[case]
    monkeypatch.setattr(look_up, "library", lambda: library("widest"))
    activation = FNeuron.random(sets, torch.Generator().manual_seed(1), knots=knots).to(weights)
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    loop_cache.cache_clear()
    with torch.no_grad():
        y = activation(u)
        with compiled_loops(False):
            assert torch.equal(y, activation(u))
    assert (not loop_cache("cpu").loops) == own


def test_a_compiled_loop_does_not_take_their_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled loop fits arrays of any size."""
    monkeypatch.setattr(look_up, "library", lambda: library("widest"))
    activation = FNeuron.like("Tanh")
    with torch.no_grad():
        activation.double()(torch.zeros(40_000))
        activation.float()
    with only("widest"), torch.no_grad():
        activation(torch.zeros(40_000))


@pytest.mark.parametrize(
    ("why", "message"),
    [("no registers", None), ("not built", "C++ compile error"), ("no source", "no look_up.cpp")],
)
def test_without_them_compiled_loops_serve(
    why: str, message: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def built(source: str) -> CDLL:
        if why == "not built":
            raise RuntimeError("C++ compile error\n\nCommand:\ng++ and all its words")
        return library("none")

    def no_files(package: str) -> Any:
        raise FileNotFoundError("no look_up.cpp")

    monkeypatch.setattr(look_up, "build", built)
    if why == "no source":
        monkeypatch.setattr(look_up, "files", no_files)
    u = torch.randn(64, 600, generator=torch.Generator().manual_seed(0))
    look_up.library.cache_clear()
    loop_cache.cache_clear()
    try:
        for activation in FNeuron.like("SiLU"), LEAF.like("SiLU"):
            y = activation(u)
            with compiled_loops(False):
                torch.testing.assert_close(y, activation(u))
    finally:
        look_up.library.cache_clear()
    assert len(loop_cache("cpu").loops) == 2
    reason = f"F-Neuron runs slower because its own loops could not be built: {message}"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("aafit")]
    assert ours == ([reason] if message else [])


def test_a_weight_on_another_device_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading its address would end the process."""
    monkeypatch.setattr(look_up, "library", lambda: library("widest"))
    activation, u = FNeuron.like("SiLU").to("meta"), torch.zeros(40_000)
    with pytest.raises(RuntimeError, match="meta"), torch.no_grad():
        activation(u)
