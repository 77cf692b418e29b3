"""One pass over an array: a compiled loop, or the same operations block by block where there is no compiler.

torch's compiler, Inductor, makes one loop of a function's elementwise operations and of its sums (C++ on a CPU, Triton
on a GPU) and keeps it in a cache on disk that processes share. A block `with compiled_loops(False):` does without it.

Any input as a dense array of one, two or three dimensions, so that few compiled loops serve every layer.

A function of arrays as one compiled loop for arrays of many sizes, by torch's compiler, Inductor.

The function is traced once, with symbols for sizes. What the tracing and the compiler took for granted of them (one
is 1, two are equal) becomes the loop's conditions. torch.compile does so too, but at every call it also checks that
the Python program around the function is what it was. The functions here never change, and that check takes longer
than a small layer.
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


@dataclass(frozen=True)
class Layout:
    """How an input and its parameters are read in the order of the input's memory, whatever its rank and format.

    Attributes:
        order: The input's dimensions, outermost in memory first.
        sizes: Their sizes, in that order.
        array: Shape the input is read as: (elements,) where one parameter set serves them all, (rows, sets), or
            (rows, sets, elements) where a set serves several elements that lie side by side.
        shape: Shape of one parameter.
        varying: `sizes` where the parameters vary, else 1, in that order; None where one set serves all.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    array: tuple[int, ...]
    shape: tuple[int, ...]
    varying: tuple[int, ...] | None

    @staticmethod
    def of(u: Tensor, shape: tuple[int, ...]) -> "Layout":
        """The layout of an input whose parameters have a shape that fits it."""
        return _layout(u.shape, u.stride(), tuple(shape))

    def read(self, x: Tensor) -> Tensor:
        """A tensor of the input's shape as a contiguous array; a view where it lies in memory as the input does."""
        ordered = x.permute(self.order) if self._permuted else x
        return ordered.reshape(self.array).contiguous()

    def restore(self, x: Tensor) -> Tensor:
        """An array as a tensor of the input's shape that lies in memory as the input does.

        It is no view to autograd, which would forbid what comes next to work in place on an output.
        """
        whole = x.view(self.sizes)
        return (whole.permute(self._inverse) if self._permuted else whole).data

    def read_parameter(self, parameter: Tensor) -> Tensor:
        """A parameter of shape (*shape, *own) as (*sets, *own), the sets so as to broadcast against the array.

        Where one set serves all, it is of shape `own`, or (1,).
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
        """Sums for each set, of shape (*sets, *own), in a parameter's own shape."""
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
    # The sets must be one range of dimensions: a parameter is repeated over those in between.
    first, last = at[0], at[-1] + 1
    rows, sets, elements = prod(ordered[:first]), prod(ordered[first:last]), prod(ordered[last:])
    array = (rows, sets) if elements == 1 else (rows, sets, elements)
    varying = tuple(size if first <= place < last else 1 for place, size in enumerate(ordered))
    return Layout(order, ordered, array, shape, varying)


Built = TypeVar("Built")


@dataclass(frozen=True)
class Loop:
    """A compiled function of contiguous arrays.

    Attributes:
        call: the function.
        fits: whether it may be called with these arrays, as far as their sizes go. All else must be as it was when the
            loop was made: the number of arrays, their dimensions, dtypes and devices, torch's number of threads, and
            whether it computes deterministically.
    """

    call: Callable[..., tuple[Any, ...]]
    fits: Callable[..., bool]


def compiled_loop(run: Callable[..., Any], arrays: Sequence[Tensor], options: dict[str, Any]) -> Loop:
    """`run` compiled for arrays like these; it records no gradient.

    Args:
        run: A function of arrays that gives a tuple whose members are arrays or None. What else it reads must never
            change.
        arrays: Contiguous arrays to call it with; their values are not read.
        options: Of Inductor.

    Raises:
        Exception: the compiler cannot do it, for whatever reason.
    """
    # Imported here: a process without large arrays does without the compiler, which takes a second to import.
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

    # Sizes that are equal by chance must not share a symbol.
    sizes = ShapeEnv(duck_shape=False)
    fake = FakeTensorMode(shape_env=sizes)
    sources = [ConstantSource(f"t{at}") for at in range(len(arrays))]
    with ExitStack() as block:
        # torch's own lock: tracing replaces functions of the whole process.
        block.enter_context(compile_lock)
        # However the caller computes, it becomes no part of the loop.
        block.enter_context(_disable_current_modes())
        block.enter_context(torch.inference_mode(False))
        block.enter_context(torch.no_grad())
        block.enter_context(torch.autocast(arrays[0].device.type, enabled=False))
        examples: list[Any] = [
            fake.from_tensor(
                # A view would be traced as one, of what it is a view of: `data` is none.
                array.data,
                source=source,
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * array.ndim),
            )
            for source, array in zip(sources, arrays, strict=True)
        ]
        traced = make_fx(run, tracing_mode="symbolic")(*examples)
        # The cache of compiled graphs forgets conditions of sizes that are no arguments. The C++ code has its own.
        call = inductor(traced, examples, options={**options, "fx_graph_cache": False})
    conditions = [f"({condition})" for condition in sizes.produce_guards(examples, sources, ignore_static=True)]
    # Sizes that became constants, which these leave out.
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


def built_anew(build: Callable[[], Built]) -> Built:
    """build(); again, where it finds half a library in the compiler's cache, without that one.

    A process that is killed while it compiles leaves such a file there, and all that come after it would find it. It
    is told by the words of Linux; elsewhere the error stands.
    """
    # Another process that found the same file may remove the new one: a third try.
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
    """The library that a message such as "/cache/ab/c.so: file too short" names, if it is of torch's cache."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    named = re.search(r"(/.*\.so): (?:file too short|invalid ELF header|cannot read file data)", message)
    path = Path(named[1]) if named else None
    return path if path is not None and Path(cache_dir()) in path.parents else None


def first_line(error: Exception) -> str:
    """What an error of the compiler says, without its commands and their output."""
    said = (line.strip() for line in str(error).splitlines())
    return next((line for line in said if line and not line.endswith("raised:")), type(error).__name__)


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
