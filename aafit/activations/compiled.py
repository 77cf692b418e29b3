"""One pass over an array: a compiled loop, or the same operations block by block where there is no compiler.

torch's compiler, Inductor, makes one loop of a function's elementwise operations and of its sums (C++ on a CPU, Triton
on a GPU) and keeps it in a cache on disk that processes share. A block `with compiled_loops(False):` does without it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from aafit.activations.loop import Loop, built_anew, compiled_loop, first_line

log = logging.getLogger(__name__)

# Smaller arrays are not worth the start of the compiler, which takes seconds in every process.
SMALLEST_COMPILED = 1 << 15
# So many failures in a row, and there is no compiler in this process; so many of one kind, and that kind has no loop.
# A single one may be due to where a call was made.
GIVEN_UP = 3
# Elements a thread has in hand where nothing is compiled: few enough to stay in its cache from operation to operation.
BLOCK = 1 << 16

Pass = Callable[..., tuple[Tensor | None, ...]]

# Of the process, not of a thread: torch computes gradients in threads of its own.
_on = True


@contextmanager
def compiled_loops(on: bool) -> Iterator[None]:
    """Within this block large arrays go through compiled loops only if `on`, in all threads. Without a block they do.

    The command line does all of its work in such a block, with `on` false where the environment variable AAFIT_COMPILE
    is 0. The library does not read that variable: a program that uses it opens a block of its own.
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def one_pass(
    run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool = False, own_loop: Loop | None = None
) -> tuple[Any, ...]:
    """run(*rows, *whole) in one pass over the rows.

    Args:
        run: A function of arrays that gives (an array of the last one's shape and dtype or None, sums over rows...).
        rows: Contiguous arrays of one shape.
        whole: What every row needs besides: tensors and numbers.
        serial: Whether several threads would make the order of the sums depend on their timing.
        own_loop: A loop for `run` that takes the compiler's place wherever it fits.
    """
    u = rows[-1]
    compiles = _on and u.numel() >= SMALLEST_COMPILED
    # What a GPU's threads add to one place, only torch's own operations can be told to add in a fixed order.
    # A mode that watches torch's functions is for the network's own program, and stops the compiler.
    with torch._C.DisableTorchFunction():
        if compiles and own_loop is not None and own_loop.fits(*rows, *whole):
            return own_loop.call(*rows, *whole)
        if compiles and not (serial and u.device.type != "cpu"):
            result = _compiler(u.device.type).run(run, rows, whole, serial)
            if result is not None:
                return result
        return _in_blocks(run, rows, whole)


def _in_blocks(run: Pass, rows: Sequence[Tensor], whole: Sequence[Any]) -> tuple[Any, ...]:
    u = rows[-1]
    block = BLOCK * torch.get_num_threads() if u.device.type == "cpu" else u.numel()
    step = max(1, block // max(1, u[:1].numel()))
    if len(u) <= step:
        return run(*rows, *whole)
    blocks = zip(*(x.split(step) for x in rows), strict=True)
    result: Tensor | None = None
    totals: list[Any] = []
    for at, parts in enumerate(blocks):
        array, *sums = run(*parts, *whole)
        if array is not None:
            result = torch.empty_like(u) if result is None else result
            result[at * step : at * step + len(array)] = array
        totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
    return result, *totals


class _Compiler:
    """Inductor on one kind of device. A call where it fails gets none; after some failures in a row no call does."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._loops: dict[Hashable, list[Loop]] = {}
        self._in_a_row, self._failures, self._warned = 0, Counter[Hashable](), False

    def run(self, run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool) -> tuple[Any, ...] | None:
        """run(*rows, *whole) by a loop that fits, made where there is none yet; None where that does not work."""
        arrays = [*rows, *_as_tensors(whole)]
        # All that a loop's code depends on, but for the sizes.
        settings = run, serial, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        key = *settings, *(x.device for x in arrays), *(x.dtype for x in arrays), *(x.ndim for x in arrays)
        if max(self._in_a_row, self._failures[key]) >= GIVEN_UP:
            return None
        loops = self._loops.setdefault(key, [])
        known = None
        try:
            known = next((loop for loop in loops if loop.fits(*arrays)), None)
            loop = known or self._new(run, arrays, serial)
            with torch.no_grad():
                result = loop.call(*arrays)
        except torch.OutOfMemoryError:
            return None
        # Of whatever kind: where the fault is not the compiler's, the same operations run next and raise it again.
        except Exception as error:
            self._count(key, error)
            if known is not None:
                loops.remove(known)
            return None
        if known is None:
            loops.append(loop)
        self._in_a_row = 0
        return result

    def _count(self, key: Hashable, error: Exception) -> None:
        self._in_a_row += 1
        self._failures[key] += 1
        if not self._warned:
            self._warned = True
            log.warning("No compiled activations on %s, they run slower: %s", self.device, first_line(error))

    def _new(self, run: Pass, arrays: Sequence[Tensor], serial: bool) -> Loop:
        return built_anew(partial(compiled_loop, run, arrays, _options(serial)))


@cache
def _compiler(device: str) -> _Compiler:
    return _Compiler(device)


def _as_tensors(whole: Sequence[Any]) -> list[Tensor]:
    """Numbers become tensors of the first one's dtype: they would be constants of the loop."""
    return [x.contiguous() if isinstance(x, Tensor) else whole[0].new_full((1,), x) for x in whole]


def _options(serial: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        # No pool of worker processes for a handful of small loops.
        "compile_threads": 1,
        # The instructions the processor says it has are trusted: trying each out costs every process 2 seconds.
        "cpp.vec_isa_ok": True,
        # Indices are clamped where they are made.
        "assert_indirect_indexing": False,
    }
    if serial:
        options["cpp.threads"] = 1
    return options
