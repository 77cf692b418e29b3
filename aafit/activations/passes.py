"""One pass over an array: a compiled loop, or the same operations block by block where there is no compiler.

torch.compile makes one loop of a function's elementwise operations and of its sums (C++ on a CPU, Triton on a GPU) and
keeps it in a cache on disk that processes share. The environment variable AAFIT_COMPILE=0 switches it off.
"""

import logging
import os
from collections.abc import Callable, Hashable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Smaller arrays are not worth the start of the compiler, which takes seconds in every process.
SMALLEST_COMPILED = 1 << 15
# Elements a thread has in hand where nothing is compiled: few enough to stay in its cache from operation to operation.
BLOCK = 1 << 16

Pass = Callable[..., tuple[Tensor | None, ...]]


def one_pass(run: Pass, rows: tuple[Tensor, ...], whole: tuple[Any, ...], serial: bool = False) -> tuple[Any, ...]:
    """run(*rows, *whole) in one pass over the rows.

    Args:
        run: A function of arrays that gives (an array of the last one's shape and dtype or None, sums over rows...).
        rows: Arrays of one shape.
        whole: What every row needs besides: tensors and numbers.
        serial: Whether several threads would make the order of the sums depend on their timing.
    """
    u = rows[-1]
    compiles = u.numel() >= SMALLEST_COMPILED and os.environ.get("AAFIT_COMPILE") != "0"
    # What a GPU's threads add to one place, only torch's own operations can be told to add in a fixed order.
    if compiles and not (serial and u.device.type != "cpu"):
        result = _compiler(u.device.type).run(run, (*rows, *whole), (u.dtype, u.ndim), serial)
        if result is not None:
            return result
    return _in_blocks(run, rows, whole)


def _in_blocks(run: Pass, rows: tuple[Tensor, ...], whole: tuple[Any, ...]) -> tuple[Any, ...]:
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
    """torch.compile on one kind of device, until it fails there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.works = True
        self._compiled: dict[Hashable, Pass] = {}

    def run(self, run: Pass, arguments: tuple[Any, ...], kind: Hashable, serial: bool) -> tuple[Any, ...] | None:
        """run(*arguments), compiled anew for each kind of arguments; None where that does not work."""
        key = run, kind, serial
        # A view would be compiled for the shape and the memory format of what it is a view of: `data` is none.
        arguments = tuple(x.data if isinstance(x, Tensor) else x for x in arguments)
        try:
            if self.works and key not in self._compiled:
                self._compiled[key] = _compiled(run, serial)
            return self._compiled[key](*arguments) if self.works else None
        # Of whatever kind: where the fault is not the compiler's, the same operations run next and raise it again.
        except Exception as error:
            self.works = False
            said = (line.strip() for line in str(error).splitlines())
            reason = next((line for line in said if line and not line.endswith("raised:")), type(error).__name__)
            log.warning("No compiled activations on %s, they run slower: %s", self.device, reason)
            return None


@cache
def _compiler(device: str) -> _Compiler:
    return _Compiler(device)


def _compiled(run: Pass, serial: bool) -> Pass:
    assert isinstance(run, FunctionType)
    # torch.compile keeps its variants, at most eight, by code object, which all closures of one function share.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
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
    return torch.compile(own, fullgraph=True, dynamic=True, options=options)
