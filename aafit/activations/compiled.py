"""One pass over an array: a compiled loop, or the same operations block by block where there is no compiler.

torch's compiler, Inductor, makes one loop of a function's elementwise operations and of its sums (C++ on a CPU, Triton
on a GPU) and keeps it in a cache on disk that processes share. On a CPU the loop is called as Inductor gives it: the
checks of torch.compile at every call take longer than the loop over a small array. The environment variable
AAFIT_COMPILE=0 switches all compiling off.
"""

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Smaller arrays are not worth the start of the compiler, which takes seconds in every process.
SMALLEST_COMPILED = 1 << 15
# So many failures in a row, and there is no compiler in this process. A single one may be due to where a call was made.
GIVEN_UP = 3
# Elements a thread has in hand where nothing is compiled: few enough to stay in its cache from operation to operation.
BLOCK = 1 << 16

Pass = Callable[..., tuple[Tensor | None, ...]]


def one_pass(run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool = False) -> tuple[Any, ...]:
    """run(*rows, *whole) in one pass over the rows.

    Args:
        run: A function of arrays that gives (an array of the last one's shape and dtype or None, sums over rows...).
        rows: Contiguous arrays of one shape.
        whole: What every row needs besides: tensors and numbers.
        serial: Whether several threads would make the order of the sums depend on their timing.
    """
    u = rows[-1]
    compiles = u.numel() >= SMALLEST_COMPILED and os.environ.get("AAFIT_COMPILE") != "0"
    # What a GPU's threads add to one place, only torch's own operations can be told to add in a fixed order.
    # A mode that watches torch's functions is for the network's own program, and stops the compiler.
    with torch._C.DisableTorchFunction():
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
        self._failed, self._warned = 0, False
        self._compiled: dict[Hashable, Pass] = {}

    def run(self, run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool) -> tuple[Any, ...] | None:
        """run(*rows, *whole), compiled anew for each kind of arguments; None where that does not work."""
        if self._failed >= GIVEN_UP:
            return None
        u = rows[-1]
        # The number of threads is part of a loop's code.
        key = run, u.dtype, u.ndim, serial, torch.get_num_threads()
        try:
            compiled = self._compiled.get(key)
            if compiled is None:
                compiled = self._compiled[key] = self._new(run, rows, whole, serial)
            result = compiled(*rows, *whole)
        # Of whatever kind: where the fault is not the compiler's, the same operations run next and raise it again.
        except Exception as error:
            self._failed += 1
            if not self._warned:
                self._warned = True
                said = (line.strip() for line in str(error).splitlines())
                reason = next((line for line in said if line and not line.endswith("raised:")), type(error).__name__)
                log.warning("No compiled activations on %s, they run slower: %s", self.device, reason)
            return None
        self._failed = 0
        return result

    def _new(self, run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool) -> Pass:
        if self.device == "cpu":
            try:
                return _unguarded(run, rows, whole, serial)
            # Of whatever kind: that way is not promised to work in every version of torch.
            except Exception as error:
                log.debug("Compiled activations are called through torch.compile: %s", error)
        return _guarded(run, serial)


@cache
def _compiler(device: str) -> _Compiler:
    return _Compiler(device)


def _unguarded(run: Pass, rows: Sequence[Tensor], whole: Sequence[Any], serial: bool) -> Pass:
    """A loop for all sizes of these arguments, called without a check that they are what it was compiled for.

    That they are is known: dtype and rank are those of the key, the sizes match and nothing depends on them. Every
    array has a dimension of at least 2, except for the number of rows, with which no other size is ever compared.
    """
    from torch._inductor import compile as compile_graph
    from torch.fx.experimental import _config
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        examples = [*(x.new_empty(max(2, len(x)), *x.shape[1:]) for x in rows), *_as_tensors(whole)]
        # Sizes that are equal by chance stay sizes of their own.
        with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            graph = make_fx(run, tracing_mode="symbolic")(*examples)
        inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        fixed = [size for x in inputs for size in x.shape if is_concrete_int(size) and size != 1]
        if fixed:
            raise ValueError(f"The loop would be for the sizes {fixed} alone.")
        compiled: Pass = compile_graph(graph, inputs, _options(serial))
    if all(isinstance(x, Tensor) for x in whole):
        return compiled
    return lambda *arguments: compiled(*arguments[: len(rows)], *_as_tensors(arguments[len(rows) :]))


def _as_tensors(whole: Sequence[Any]) -> list[Tensor]:
    """Numbers become tensors of the first one's dtype: they would be constants of the loop."""
    return [x if isinstance(x, Tensor) else whole[0].new_full((1,), x) for x in whole]


def _guarded(run: Pass, serial: bool) -> Pass:
    assert isinstance(run, FunctionType)
    # torch.compile keeps its variants, at most eight, by code object, which all closures of one function share.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
    compiled = torch.compile(own, fullgraph=True, dynamic=True, options=_options(serial))
    # A view would be compiled for the shape and the memory format of what it is a view of: `data` is none.
    return lambda *arguments: compiled(*(x.data if isinstance(x, Tensor) else x for x in arguments))


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
