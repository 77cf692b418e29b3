"""Compiled loops agree with plain operations for every size, and a compiler that fails is reported once."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from activation_helpers import assert_sums_close, batch, needs_compiler, random_activation, results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aafit.activations import LEAF, FNeuron, SiLU, compiled, from_text, look_up
from aafit.activations.compiled import GIVEN_UP, Loop, compiled_loops, loop_cache


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Loop]]:
    """The loops that are compiled during a test, which starts with none. F-Neuron's own loops are off."""
    made: list[Loop] = []
    build = compiled.compiled_loop

    def recorded(*arguments: Any) -> Loop:
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(compiled, "compiled_loop", recorded)
    monkeypatch.setattr(look_up, "library", lambda: None)
    loop_cache.cache_clear()
    yield made
    loop_cache.cache_clear()


@pytest.fixture
def no_fallback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not warnings_in(caplog)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@needs_compiler
@pytest.mark.usefixtures("no_fallback")
class TestCompiled:
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
    def test_agrees_with_plain_operations(
        self, family: str, dtype: torch.dtype, shape: tuple[int, ...], loops: list[Loop]
    ) -> None:
        activation = random_activation(family, shape)
        u, grad = batch((17, 8, 32, 31), dtype)
        fast = results(activation, u, grad)
        again = results(activation, u, grad)
        assert all(torch.equal(one, other) for one, other in zip(fast, again, strict=True))
        assert len(loops) == 2
        with compiled_loops(False):
            plain = results(activation, u, grad)
        assert len(loops) == 2
        rounding = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(fast[:2], plain[:2], rtol=rounding, atol=rounding)
        assert_sums_close(fast[2:], plain[2:], u.numel())

    def test_few_loops_serve_all_layers(self, loops: list[Loop]) -> None:
        activation = random_activation("LEAF")
        for sizes in ((4, 8, 40, 40), (5, 8, 40, 40), (128, 512), (64, 600), (40000,), (3, 2, 3, 50, 50)):
            results(activation, *batch(sizes))
        for sizes in ((4, 16, 30, 30), (3, 8, 50, 40), (1, 64, 30, 30)):
            results(activation, *batch(sizes, fmt=torch.channels_last))
        assert len(loops) == 2

    @pytest.mark.parametrize(
        "all_sizes",
        [
            [(256, 256), (5000, 64), (64, 1024, 32), (130, 255), (1, 40000), (3, 40000)],
            [(18, 18, 18, 18), (5, 17, 24, 24), (1, 16, 60, 40), (400, 15, 3, 3)],
        ],
    )
    @pytest.mark.parametrize("family", ["LEAF", "F-Neuron"])
    def test_a_loop_is_right_for_every_size(
        self, family: str, all_sizes: list[tuple[int, ...]], loops: list[Loop]
    ) -> None:
        """Also for sizes that are 1, or happen to be equal, when the loop is compiled or used."""
        for order in (all_sizes, all_sizes[::-1]):
            loop_cache.cache_clear()
            loops.clear()
            made = set()
            for sizes in order:
                activation = random_activation(family, (sizes[1], 1, 1) if len(sizes) == 4 else sizes[-1:])
                u, grad = batch(sizes)
                fast = results(activation, u, grad)
                made.add(len(loops))
                with compiled_loops(False):
                    plain = results(activation, u, grad)
                torch.testing.assert_close(fast[:2], plain[:2], rtol=1e-6, atol=1e-6)
                assert_sums_close(fast[2:], plain[2:], u.numel())
            # One forward and one backward loop for a single row, and one of each for more rows.
            assert made == {2, 4}

    def test_silu_is_bit_identical_for_all(self) -> None:
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

    def test_how_the_first_caller_computes_does_not_matter(self) -> None:
        class Intercepting(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return func(*args, **(kwargs or {}))

        u, grad = batch((64, 600))
        found = []
        for mode in (
            nullcontext(),
            torch.no_grad(),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            Intercepting(),
        ):
            loop_cache.cache_clear()
            leaf = LEAF.like("Tanh")
            with mode:
                first = leaf(u)
            found.append(results(leaf, u, grad))
            assert torch.equal(first, found[-1][0])
        assert all(torch.equal(one, other) for these in found[1:] for one, other in zip(found[0], these, strict=True))

    def test_threads_that_compile_at_once(self) -> None:
        loop_cache.cache_clear()
        leaf = LEAF.like("Tanh")

        def there_and_back(columns: int) -> None:
            u, grad = batch((100, columns))
            y, by_u, *_ = results(leaf, u, grad)
            torch.testing.assert_close(y, u.detach().tanh(), rtol=0, atol=1e-6)
            torch.testing.assert_close(by_u, grad * (1 - u.detach().tanh() ** 2), rtol=0, atol=1e-5)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(there_and_back, (400, 500, 600, 700)))


# A compiler that fails


def failing_when(fails: Callable[[list[Tensor]], bool], error: Exception) -> Callable[..., Loop]:
    build = compiled.compiled_loop

    def compiled_loop(run: Any, arrays: list[Tensor], options: Any) -> Loop:
        if fails(arrays):
            raise error
        return build(run, arrays, options)

    return compiled_loop


@needs_compiler
def test_a_failure_is_reported_once_and_does_not_turn_the_compiler_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loops: list[Loop]
) -> None:
    failures = iter([True, True])
    failing = failing_when(lambda arrays: next(failures, False), RuntimeError("not here"))
    monkeypatch.setattr(compiled, "compiled_loop", failing)
    leaf, u = LEAF.like("Tanh"), torch.linspace(-3, 3, 40_000)
    for expected in (0, 0, 1):
        torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=2e-7)
        assert len(loops) == expected
    assert warnings_in(caplog) == ["Activations on cpu are not compiled and run slower: not here"]


@pytest.mark.usefixtures("loops")
def test_a_failing_compiler_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    failing = failing_when(lambda arrays: tried.append(arrays) or True, RuntimeError("never"))
    monkeypatch.setattr(compiled, "compiled_loop", failing)
    for _ in range(10):
        LEAF.like("Tanh")(torch.zeros(40_000))
    assert len(tried) == GIVEN_UP


@needs_compiler
@pytest.mark.usefixtures("loops")
def test_what_can_never_be_compiled_is_given_up_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    failing = failing_when(lambda arrays: tried.append(arrays[0].ndim) or tried[-1] == 1, RuntimeError("not this one"))
    monkeypatch.setattr(compiled, "compiled_loop", failing)
    layer, channel, u = LEAF.like("Tanh"), LEAF.like("Tanh", (400,)), batch((100, 400))[0].detach()
    for _ in range(5):
        layer(u), channel(u)
    assert tried.count(1) == GIVEN_UP
    assert tried.count(2) == 1


@needs_compiler
@pytest.mark.parametrize(
    ("error", "compiled_again", "messages"),
    [
        (RuntimeError("broken"), 1, ["Activations on cpu are not compiled and run slower: broken"]),
        # Not the compiler's fault: the loop stays.
        (torch.OutOfMemoryError("full"), 0, []),
    ],
)
def test_a_loop_that_fails_when_called(
    error: Exception, compiled_again: int, messages: list[str], loops: list[Loop], caplog: pytest.LogCaptureFixture
) -> None:
    leaf, u = LEAF.like("Tanh"), batch((100, 400))[0].detach()

    def fails(*arrays: Tensor) -> tuple[Tensor]:
        raise error

    leaf(u)
    (cached,) = loop_cache("cpu").loops.values()
    loop = cached[0]
    cached[0] = Loop(fails, loop.fits)
    torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=1e-6)
    torch.testing.assert_close(leaf(u), u.tanh(), rtol=0, atol=1e-6)
    assert len(loops) == 1 + compiled_again
    assert warnings_in(caplog) == messages


def run_alone(code: str, **environment: str) -> str:
    """The output of a program in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


LOGGED = """
import logging, sys, torch
from aafit.activations import LEAF, FNeuron
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
"""


def test_without_a_compiler_one_warning_is_logged(tmp_path: Path) -> None:
    code = (
        LOGGED
        + """
leaf = LEAF.like("Tanh")
u = torch.linspace(-3, 3, 100_000, requires_grad=True)
for _ in range(2):
    leaf(u).sum().backward()
assert (leaf(u) - u.tanh()).abs().max() < 1e-6
"""
    )
    (line,) = run_alone(code, CXX="/no/such/compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).splitlines()
    assert line.startswith("WARNING aafit.activations.compiled Activations on cpu are not compiled and run slower: ")
    assert "/no/such/compiler" in line


@needs_compiler
def test_a_truncated_library_of_a_killed_process_is_rebuilt(tmp_path: Path) -> None:
    code = (
        LOGGED
        + """
with torch.no_grad():
    for activation in LEAF.like("Tanh"), FNeuron.like("Tanh"):
        activation(torch.linspace(-3, 3, 100_000))
"""
    )

    def built() -> dict[Path, int]:
        assert not run_alone(code, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
        return {path: path.stat().st_size for path in tmp_path.rglob("*.main.so")}

    complete = built()
    assert complete
    # A linker writes the head of a file last.
    for number, path in enumerate(complete):
        path.write_bytes(bytes(1000 * (number % 2)))
    assert built() == complete


@needs_compiler
def test_float64_agrees_with_compiled_float32() -> None:
    activation = random_activation("AHAF", (40_000,))
    for rows in (3, 1, 5):
        u, grad = batch((rows, 40_000))
        given = results(activation, u, grad)
        exact = results(deepcopy(activation).double(), u.detach().double().requires_grad_(), grad.double())
        for one, other in zip(given, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
