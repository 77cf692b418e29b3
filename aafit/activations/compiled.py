"""One pass over an array: by a compiled loop, or by torch operations block by block where no compiler is available.

torch's compiler, Inductor, fuses a function's elementwise operations and sums into one loop (C++ on a CPU, Triton on a
GPU), and caches it on disk across processes. `compiled_loops(False)` turns it off. `one_pass` is the entry point,
`Layout` how it reads any input as a dense array of one to three dimensions, so that few loops serve every layer.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Size, Tensor

log = logging.getLogger(__name__)

SMALLEST_COMPILED = 1 << 15
"""Elements from which a loop is compiled: starting the compiler takes seconds in every process."""
GIVEN_UP = 3
"""After this many failures in a row nothing is compiled any more, after this many of one kind no loop of that kind."""
BLOCK = 1 << 16
"""Elements per thread of a block that is not compiled, so that it stays in the cache between operations."""

Pass = Callable[..., tuple[Tensor | None, ...]]
Built = TypeVar("Built")


@dataclass(frozen=True)
class Layout:
    """How an input and its parameters are read in the order of the input's memory, for any rank and memory format.

    Attributes:
        order: The input's dimensions, outermost in memory first.
        sizes: Their sizes, in that order.
        array: Shape of the input as an array: (elements,) for one parameter set, (rows, sets), or
            (rows, sets, elements) if a set applies to several adjacent elements.
        shape: Shape of one parameter.
        varying: `sizes` for the dimensions along which the parameters vary, 1 for the others; None for one set.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    array: tuple[int, ...]
    shape: tuple[int, ...]
    varying: tuple[int, ...] | None

    @staticmethod
    def of(u: Tensor, shape: tuple[int, ...]) -> "Layout":
        """Return the layout of an input, for parameters whose shape broadcasts against it."""
        return _layout(u.shape, u.stride(), tuple(shape))

    def read(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape as a contiguous array, a view if it has the input's memory format."""
        ordered = x.permute(self.order) if self._permuted else x
        return ordered.reshape(self.array).contiguous()

    def restore(self, x: Tensor) -> Tensor:
        """Return an array as a tensor with the input's shape and memory format."""
        full = x.view(self.sizes)
        # Not a view to autograd: the next layer may work in place.
        return (full.permute(self._inverse) if self._permuted else full).data

    def read_parameter(self, parameter: Tensor) -> Tensor:
        """Return a parameter of shape (*shape, *own) as (*sets, *own), where `sets` broadcasts against the array.

        A single set is returned as `own`, or (1,).
        """
        if self.varying is None and parameter.ndim == 1:
            return parameter
        own = parameter.shape[len(self.shape) :]
        if self.varying is None:
            return parameter.reshape(own or (1,))
        permuted = parameter.reshape(self._full_shape + own).permute(*self.order, *self._axes(own))
        sets = permuted.expand(self.varying + own).reshape(-1, *own)
        return sets.unsqueeze(1) if len(self.array) == 3 else sets

    def restore_parameter(self, sums: Tensor, parameter: Tensor) -> Tensor:
        """Return sums over each set, (*sets, *own), in the parameter's own shape."""
        if self.varying is None:
            return sums.reshape(parameter.shape)
        own = parameter.shape[len(self.shape) :]
        restored = sums.reshape(self.varying + own).permute(*self._inverse, *self._axes(own))
        return restored.sum_to_size(self._full_shape + own).reshape(parameter.shape)

    @property
    def _full_shape(self) -> tuple[int, ...]:
        return (1,) * (len(self.order) - len(self.shape)) + self.shape

    @cached_property
    def _permuted(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    @cached_property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.order)), key=self.order.__getitem__))

    def _axes(self, own: Size) -> range:
        return range(len(self.order), len(self.order) + len(own))


@lru_cache(maxsize=1024)
def _layout(sizes: Size, strides: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
    order = tuple(sorted(range(len(sizes)), key=lambda dim: -strides[dim]))
    ordered = tuple(sizes[dim] for dim in order)
    if prod(shape) == 1:
        return Layout(order, ordered, (prod(ordered),), shape, None)
    full = (1,) * (len(sizes) - len(shape)) + shape
    at = [place for place, dim in enumerate(order) if full[dim] > 1]
    # The sets span one range of dimensions; a parameter is repeated along those within it that it does not have.
    first, last = at[0], at[-1] + 1
    rows, sets, elements = prod(ordered[:first]), prod(ordered[first:last]), prod(ordered[last:])
    array = (rows, sets) if elements == 1 else (rows, sets, elements)
    varying = tuple(size if first <= place < last else 1 for place, size in enumerate(ordered))
    return Layout(order, ordered, array, shape, varying)


@dataclass(frozen=True)
class Loop:
    """A compiled function of contiguous arrays.

    Attributes:
        call: The function.
        fits: Returns whether the sizes of given arrays are valid for it. Everything else must equal the conditions of
            the compilation: the number of arrays, their ranks, dtypes and devices, torch's number of threads and its
            deterministic mode.
    """

    call: Callable[..., tuple[Any, ...]]
    fits: Callable[..., bool]


def compiled_loop(run: Callable[..., Any], arrays: Sequence[Tensor], options: dict[str, Any]) -> Loop:
    """Compile a function for arrays of many sizes; the loop records no gradient.

    The function is traced once with symbolic sizes. Every assumption that the tracing and the compiler make about sizes
    (one is 1, two are equal) becomes a condition of the loop. torch.compile also checks at each call that the Python
    program is unchanged, which would take longer than a small layer; the functions here never change.

    Args:
        run: A function of arrays that returns a tuple of arrays or None. Anything else it reads must be constant.
        arrays: Contiguous arrays to compile for; their values are not read.
        options: Inductor's options.

    Raises:
        Exception: The compilation fails, for any reason.
    """
    # The compiler takes a second to import, and small networks never need it.
    from torch._dynamo.convert_frame import compile_lock
    from torch._dynamo.source import ConstantSource
    from torch._inductor import compile as inductor
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        SYMPY_INTERP,
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
        is_concrete_int,
    )
    from torch.utils._python_dispatch import _disable_current_modes

    # Sizes that happen to be equal must not share a symbol.
    sizes = ShapeEnv(duck_shape=False)
    fake = FakeTensorMode(shape_env=sizes)
    sources = [ConstantSource(f"t{at}") for at in range(len(arrays))]
    with ExitStack() as block:
        # torch's own lock, because tracing patches functions process-wide.
        block.enter_context(compile_lock)
        # The caller's modes must not become part of the loop.
        block.enter_context(_disable_current_modes())
        block.enter_context(torch.inference_mode(False))
        block.enter_context(torch.no_grad())
        block.enter_context(torch.autocast(arrays[0].device.type, enabled=False))
        examples: list[Any] = [
            fake.from_tensor(
                # `data` is not a view; a view would be traced together with its base.
                array.data,
                source=source,
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * array.ndim),
            )
            for source, array in zip(sources, arrays, strict=True)
        ]
        traced = make_fx(run, tracing_mode="symbolic")(*examples)
        # The FX graph cache drops conditions on sizes that are not arguments. The C++ code has its own cache.
        call = inductor(traced, examples, options={**options, "fx_graph_cache": False})
    conditions = [f"({condition})" for condition in sizes.produce_guards(examples, sources, ignore_static=True)]
    # Guards leave out the sizes that became constants.
    conditions += [
        f"t{at}.size()[{dim}] == {int(size)}"
        for at, example in enumerate(examples)
        for dim, size in enumerate(example.shape)
        if is_concrete_int(size)
    ]
    names = ", ".join(f"t{at}" for at in range(len(arrays)))
    fits: Callable[..., bool] = eval(f"lambda {names}: {' and '.join(conditions) or True}", dict(SYMPY_INTERP))
    assert fits(*arrays)
    return Loop(call, fits)


def rebuild_if_truncated(build: Callable[[], Built]) -> Built:
    """Return `build()`, retried without a truncated library that it finds in the compiler's cache.

    A process that is killed while it compiles leaves such a file, and every later process would fail on it. It is
    recognised by the messages of Linux's loader.
    """
    # A third attempt, because another process that found the same file may remove the new one.
    for _ in range(2):
        try:
            return build()
        except Exception as error:
            broken = _broken_library(str(error))
            if broken is None:
                raise
            broken.unlink(missing_ok=True)
    return build()


def _broken_library(message: str) -> Path | None:
    """Return the library in torch's cache that a message such as "/cache/ab/c.so: file too short" names."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    named = re.search(r"(/.*\.so): (?:file too short|invalid ELF header|cannot read file data)", message)
    path = Path(named[1]) if named else None
    return path if path is not None and Path(cache_dir()) in path.parents else None


def first_line(error: Exception) -> str:
    """Return the first line of a compiler error that states the problem, without commands and their output."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


# Process-wide, because torch computes gradients in threads of its own.
_on = True


@contextmanager
def compiled_loops(on: bool) -> Iterator[None]:
    """Turn compiled loops on or off within this block, in all threads. They are on by default.

    The environment variable AAFIT_COMPILE=0 turns them off for the command line; the library does not read it.

    Example:
        >>> with compiled_loops(False):
        ...     y = aafit.LEAF.like("ReLU")(torch.zeros(100_000))
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def one_pass(
    run: Pass, rows: Sequence[Tensor], shared: Sequence[Any], serial: bool = False, own_loop: Loop | None = None
) -> tuple[Any, ...]:
    """Return run(*rows, *shared), computed in one pass over the rows.

    Args:
        run: A function that returns (an array of the last row argument's shape and dtype or None, sums over rows...).
        rows: Contiguous arrays of one shape.
        shared: Further tensors and numbers, used for every row.
        serial: Whether the order of the sums would depend on the timing of several threads.
        own_loop: A hand-written loop for `run`, used instead of a compiled one wherever it fits.
    """
    u = rows[-1]
    compiles = _on and u.numel() >= SMALLEST_COMPILED
    # A TorchFunctionMode is meant for the network's own program, and would stop the compiler.
    with torch._C.DisableTorchFunction():
        if compiles and own_loop is not None and own_loop.fits(*rows, *shared):
            return own_loop.call(*rows, *shared)
        # Compiled scatter-adds on a GPU are non-deterministic; torch's own can be made deterministic.
        if compiles and not (serial and u.device.type != "cpu"):
            result = loop_cache(u.device.type).run(run, rows, shared, serial)
            if result is not None:
                return result
        return _in_blocks(run, rows, shared)


def _in_blocks(run: Pass, rows: Sequence[Tensor], shared: Sequence[Any]) -> tuple[Any, ...]:
    u = rows[-1]
    block = BLOCK * torch.get_num_threads() if u.device.type == "cpu" else u.numel()
    step = max(1, block // max(1, u[:1].numel()))
    if len(u) <= step:
        return run(*rows, *shared)
    blocks = zip(*(x.split(step) for x in rows), strict=True)
    result: Tensor | None = None
    totals: list[Any] = []
    for at, parts in enumerate(blocks):
        array, *sums = run(*parts, *shared)
        if array is not None:
            result = torch.empty_like(u) if result is None else result
            result[at * step : at * step + len(array)] = array
        totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
    return result, *totals


class LoopCache:
    """The loops of one device type, with fallback: a call that fails to compile runs as torch operations."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.loops: dict[Hashable, list[Loop]] = {}
        self._in_a_row, self._failures, self._warned = 0, Counter[Hashable](), False

    def run(self, run: Pass, rows: Sequence[Tensor], shared: Sequence[Any], serial: bool) -> tuple[Any, ...] | None:
        """Return run(*rows, *shared), computed by a loop that fits; None if none can be compiled."""
        arrays = [*rows, *_as_tensors(shared)]
        # Everything that a loop's code depends on, except for the sizes.
        settings = run, serial, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        key = *settings, *(x.device for x in arrays), *(x.dtype for x in arrays), *(x.ndim for x in arrays)
        if max(self._in_a_row, self._failures[key]) >= GIVEN_UP:
            return None
        loops = self.loops.setdefault(key, [])
        known = None
        try:
            known = next((loop for loop in loops if loop.fits(*arrays)), None)
            loop = known or rebuild_if_truncated(partial(compiled_loop, run, arrays, _options(serial)))
            with torch.no_grad():
                result = loop.call(*arrays)
        except torch.OutOfMemoryError:
            return None
        # Any exception: if the operations themselves are at fault, they raise it again when they run uncompiled.
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
            log.warning("Activations on %s are not compiled and run slower: %s", self.device, first_line(error))


@cache
def loop_cache(device: str) -> LoopCache:
    """Return the loops of this process for a device type."""
    return LoopCache(device)


def _as_tensors(shared: Sequence[Any]) -> list[Tensor]:
    # A number would become a constant of the loop.
    return [x.contiguous() if isinstance(x, Tensor) else shared[0].new_full((1,), x) for x in shared]


def _options(serial: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        # A handful of small loops needs no pool of worker processes.
        "compile_threads": 1,
        # Trust the instruction sets that the processor reports: testing them takes 2 seconds in every process.
        "cpp.vec_isa_ok": True,
        # Indices are clamped where they are made.
        "assert_indirect_indexing": False,
    }
    if serial:
        options["cpp.threads"] = 1
    return options
