"""Straight lines between learnt values by loops of our own, where a processor can look a table up in its registers.

The loops are in look_up.cpp, which torch's compiler, Inductor, builds and keeps as it does those that it makes itself.
They give the same bits as those, in a fraction of the time.
"""

import logging
import platform
import sys
from ctypes import CDLL, c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache, partial
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from aafit.activations.compiled import Loop, built_anew, first_line

log = logging.getLogger(__name__)

# In a table, as in look_up.cpp. The time grows with their number, slowly.
MOST_POINTS = 64
# Elements of a set that lie side by side: for fewer, to put the table in place costs more than it saves.
SHORTEST = 32


@cache
def value_loop(extended: bool) -> Loop:
    """From (u, weight, rises, left, scale) to (y,); arrays as `memory_layout.Layout` reads them."""

    def call(u: Tensor, *line: Any) -> tuple[Tensor]:
        y = torch.empty_like(u)
        library = _library()
        assert library is not None
        library.interpolate(*_addresses(u, y), *_table(u, *line), extended, torch.get_num_threads())
        return (y,)

    return Loop(call, lambda u, weight, *_: _fits(weight, u))


@cache
def gradient_loop(extended: bool, wanted: tuple[bool, bool]) -> Loop:
    """From (grad, u, weight, rises, left, scale) to (gradient by u, gradient by the weight).

    Where that by u is not wanted, it is None; that by the weight is in float64, and left out where it is not wanted.
    """

    def call(grad: Tensor, u: Tensor, weight: Tensor, *line: Any) -> tuple[Tensor | None, ...]:
        by_u = torch.empty_like(u) if wanted[0] else None
        by_weight = torch.empty(weight.shape, dtype=torch.float64) if wanted[1] else None
        library = _library()
        assert library is not None
        arrays, table = _addresses(u, grad, by_u, by_weight), _table(u, weight, *line)
        library.gradients(*arrays, *table, extended, torch.get_num_threads())
        return (by_u,) if by_weight is None else (by_u, by_weight)

    return Loop(call, lambda grad, u, weight, *_: _fits(weight, u, grad))


def _fits(weight: Tensor, *rows: Tensor) -> bool:
    """Whether a set's values fit in a table, enough elements of a set lie side by side, and there are such loops."""
    u = rows[0]
    return (
        weight.is_cpu
        and weight.is_contiguous()
        and weight.dtype == torch.float32
        and weight.shape[-1] <= MOST_POINTS
        and all(x.is_cpu and x.dtype == u.dtype for x in rows)
        and u.dtype in (torch.float32, torch.bfloat16)
        and (u.ndim == 1 or (u.ndim == 3 and u.shape[2] >= SHORTEST))
        and _library() is not None
    )


def _addresses(u: Tensor, *others: Tensor | None) -> tuple[bool | int | None, ...]:
    """Whether they are in bfloat16, and where each begins."""
    return u.dtype == torch.bfloat16, u.data_ptr(), *(None if x is None else x.data_ptr() for x in others)


def _table(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> tuple[int | float, ...]:
    """The sizes (rows, sets, elements), where the tables begin, how many points each has, and where they lie."""
    rows, sets, elements = u.shape if u.ndim == 3 else (1, 1, u.numel())
    points = weight.shape[-1]
    assert weight.numel() == sets * points == rises.numel() + 1
    return rows, sets, elements, weight.data_ptr(), rises.data_ptr(), points, left, scale


@cache
def _library() -> CDLL | None:
    """look_up.cpp, built; None where it cannot be, or where the processor has no such registers."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32":
        return None
    try:
        source = files("aafit.activations").joinpath("look_up.cpp").read_text(encoding="utf-8")
        library = built_anew(partial(_built, source))
    # Of whatever kind: there are the loops that the compiler makes by itself.
    except Exception as error:
        log.warning("F-Neuron runs slower, its own loops could not be built: %s", first_line(error))
        return None
    return library if library.register_width() else None


def _built(source: str) -> CDLL:
    # Imported here, as in loop.py.
    from torch._dynamo.convert_frame import compile_lock
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    # As for the compiler's own loops, the instructions that the processor says it has are trusted.
    with compile_lock, config.patch({"cpp.vec_isa_ok": True}):
        library: CDLL = CppCodeCache.load(source)
    if library.register_width():
        assert library.most_points() == MOST_POINTS
        table: list[Any] = [*[c_int64] * 3, c_void_p, c_void_p, c_int, c_float, c_float, c_bool, c_int]
        library.interpolate.argtypes = [c_bool, *[c_void_p] * 2, *table]
        library.gradients.argtypes = [c_bool, *[c_void_p] * 4, *table]
        library.interpolate.restype = library.gradients.restype = None
    return library
