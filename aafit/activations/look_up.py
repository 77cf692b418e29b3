"""Straight lines between learnt values by loops of our own, where a processor can look a table up in its registers.

The loops are in look_up.cpp, which torch's compiler, Inductor, builds and keeps as it does those that it makes itself.
They give the same bits as those, in a fraction of the time.
"""

import logging
from collections.abc import Sequence
from ctypes import CDLL, c_bool, c_int, c_int64, c_void_p
from functools import cache, partial
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from aafit.activations.loop import Loop, built_anew

log = logging.getLogger(__name__)

# Values in a table, as in look_up.cpp. The time grows with their number, slowly.
MOST_VALUES = 64
# Elements of a set that lie side by side; with fewer a look-up costs less than to put the table in place.
SHORTEST = 32


def value_loop(arrays: Sequence[Tensor], extended: bool) -> Loop | None:
    """y of (u, weight, rises, left, scale), as `Layout` reads them; None where there is no such loop for them."""
    library = _library_for(arrays[-4:], arrays[:1])
    if library is None:
        return None
    threads = torch.get_num_threads()

    def call(u: Tensor, *rest: Tensor) -> tuple[Tensor]:
        y = torch.empty_like(u)
        library.values(*_addresses(u, y), *_table(u, *rest), extended, threads)
        return (y,)

    return Loop(call, lambda u, weight, *_: _fits(u, weight))


def gradient_loop(arrays: Sequence[Tensor], extended: bool, wanted: tuple[bool, bool]) -> Loop | None:
    """The gradients by u and by the weight, those that are wanted, of (grad, u, weight, rises, left, scale).

    That by the weight is in float64, and left out where it is not wanted. None where there is no such loop.
    """
    library = _library_for(arrays[-4:], arrays[:2])
    if library is None:
        return None
    threads = torch.get_num_threads()

    def call(grad: Tensor, u: Tensor, weight: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        by_u = torch.empty_like(u) if wanted[0] else None
        by_weight = torch.empty_like(weight, dtype=torch.float64) if wanted[1] else None
        library.gradients(*_addresses(grad, u, by_u, by_weight), *_table(u, weight, *rest), extended, threads)
        return by_u, *([] if by_weight is None else [by_weight])

    return Loop(call, lambda grad, u, weight, *_: _fits(u, weight))


def _library_for(whole: Sequence[Tensor], rows: Sequence[Tensor]) -> CDLL | None:
    u = rows[0]
    suits = (
        u.is_cpu
        and u.dtype in (torch.float32, torch.bfloat16)
        and all(x.dtype == u.dtype for x in rows)
        and all(x.dtype == torch.float32 for x in whole)
        and _fits(u, whole[0])
    )
    return _library() if suits else None


def _fits(u: Tensor, weight: Tensor) -> bool:
    """Whether a set's values fit in a table, and enough elements of one set lie side by side."""
    side_by_side = u.ndim == 1 or (u.ndim == 3 and u.shape[2] >= SHORTEST)
    return side_by_side and weight.shape[-1] <= MOST_VALUES


def _addresses(*arrays: Tensor | None) -> tuple[bool | int | None, ...]:
    """Whether the first is in bfloat16, and where each begins."""
    first = arrays[0]
    return first is not None and first.dtype == torch.bfloat16, *(None if x is None else x.data_ptr() for x in arrays)


def _table(u: Tensor, weight: Tensor, rises: Tensor, left: Tensor, scale: Tensor) -> tuple[int, ...]:
    """The sizes (rows, sets, elements), and the table with the number of a set's values."""
    rows, sets, elements = u.shape if u.ndim == 3 else (1, 1, u.numel())
    numbers = weight.shape[-1]
    assert weight.numel() == sets * numbers == rises.numel() + 1
    addresses = weight.data_ptr(), rises.data_ptr(), numbers, left.data_ptr(), scale.data_ptr()
    return rows, sets, elements, *addresses


@cache
def _library() -> CDLL | None:
    """look_up.cpp, built; None where it cannot be, or where the processor has no such registers."""
    source = files("aafit.activations").joinpath("look_up.cpp").read_text(encoding="utf-8")
    try:
        library = built_anew(partial(_built, source))
    # Of whatever kind: there are the loops that the compiler makes by itself.
    except Exception as error:
        log.warning("F-Neuron runs slower, its own loops could not be built: %s", error)
        return None
    return library if library.register_width() else None


def _built(source: str) -> CDLL:
    # Imported here, as in loop.py.
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    # As for the compiler's own loops, the instructions that the processor says it has are trusted.
    with config.patch({"cpp.vec_isa_ok": True}):
        library: CDLL = CppCodeCache.load(source)
    if library.register_width():
        line: list[Any] = [*[c_int64] * 3, c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_bool, c_int]
        library.values.argtypes = [c_bool, *[c_void_p] * 2, *line]
        library.gradients.argtypes = [c_bool, *[c_void_p] * 4, *line]
        library.values.restype = library.gradients.restype = None
    return library
