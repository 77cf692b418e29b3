"""F-Neuron's own loops for CPUs that can look a table up in their registers (AVX2, AVX-512), in look_up.cpp.

torch's compiler builds and caches that file. The loops are bit-identical to compiled ones, in a fraction of the time.
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

from aafit.activations.compiled import Loop, first_line, rebuild_if_truncated

log = logging.getLogger(__name__)

MOST_KNOTS = 64
"""The most knots that fit in the registers, as in look_up.cpp."""
SHORTEST = 32
"""Adjacent elements of a parameter set below which loading its table costs more than it saves."""


@cache
def value_loop(extrapolates: bool) -> Loop:
    """Return the loop (u, weight, rises, left, scale) -> (y,), on arrays as `Layout` reads them."""

    def call(u: Tensor, *line: Any) -> tuple[Tensor]:
        y = torch.empty_like(u)
        loops = library()
        assert loops is not None
        loops.interpolate(*_addresses(u, y), *_table(u, *line), extrapolates, torch.get_num_threads())
        return (y,)

    return Loop(call, lambda u, weight, *_: _fits(weight, u))


@cache
def gradient_loop(extrapolates: bool, wanted: tuple[bool, ...]) -> Loop:
    """Return the loop (grad, u, weight, rises, left, scale) -> (gradient by u, gradient by the weight).

    The gradient by u is None if it is not wanted; that by the weight is in float64, and left out if not wanted.
    """

    def call(grad: Tensor, u: Tensor, weight: Tensor, *line: Any) -> tuple[Tensor | None, ...]:
        by_u = torch.empty_like(u) if wanted[0] else None
        by_weight = torch.empty(weight.shape, dtype=torch.float64) if wanted[1] else None
        loops = library()
        assert loops is not None
        arrays, table = _addresses(u, grad, by_u, by_weight), _table(u, weight, *line)
        loops.gradients(*arrays, *table, extrapolates, torch.get_num_threads())
        return (by_u,) if by_weight is None else (by_u, by_weight)

    return Loop(call, lambda grad, u, weight, *_: _fits(weight, u, grad))


def _fits(weight: Tensor, *rows: Tensor) -> bool:
    """Return whether the loops are available and worthwhile for these arrays."""
    u = rows[0]
    return (
        weight.is_cpu
        and weight.is_contiguous()
        and weight.dtype == torch.float32
        and weight.shape[-1] <= MOST_KNOTS
        and all(x.is_cpu and x.dtype == u.dtype for x in rows)
        and u.dtype in (torch.float32, torch.bfloat16)
        and (u.ndim == 1 or (u.ndim == 3 and u.shape[2] >= SHORTEST))
        and library() is not None
    )


def _addresses(u: Tensor, *others: Tensor | None) -> tuple[bool | int | None, ...]:
    """Return whether the arrays are in bfloat16, and their addresses."""
    return u.dtype == torch.bfloat16, u.data_ptr(), *(None if x is None else x.data_ptr() for x in others)


def _table(u: Tensor, weight: Tensor, rises: Tensor, left: float, scale: float) -> tuple[int | float, ...]:
    """Return the sizes (rows, sets, elements), the addresses of the tables, the number of knots, and their position."""
    rows, sets, elements = u.shape if u.ndim == 3 else (1, 1, u.numel())
    knots = weight.shape[-1]
    assert weight.numel() == sets * knots == rises.numel() + 1
    return rows, sets, elements, weight.data_ptr(), rises.data_ptr(), knots, left, scale


@cache
def library() -> CDLL | None:
    """Build and return look_up.cpp; None if that fails, or if the processor has no such registers."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32":
        return None
    try:
        source = files("aafit.activations").joinpath("look_up.cpp").read_text(encoding="utf-8")
        built = rebuild_if_truncated(partial(build, source))
    # Any exception: compiled loops serve instead.
    except Exception as error:
        log.warning("F-Neuron runs slower because its own loops could not be built: %s", first_line(error))
        return None
    return built if built.register_width() else None


def build(source: str) -> CDLL:
    """Build a C++ source by torch's compiler, and return the library with its argument types set."""
    # Imported here, because it takes a second.
    from torch._dynamo.convert_frame import compile_lock
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    # As for compiled loops, trust the instruction sets that the processor reports.
    with compile_lock, config.patch({"cpp.vec_isa_ok": True}):
        built: CDLL = CppCodeCache.load(source)
    if built.register_width():
        assert built.most_points() == MOST_KNOTS
        table: list[Any] = [*[c_int64] * 3, c_void_p, c_void_p, c_int, c_float, c_float, c_bool, c_int]
        built.interpolate.argtypes = [c_bool, *[c_void_p] * 2, *table]
        built.gradients.argtypes = [c_bool, *[c_void_p] * 4, *table]
        built.interpolate.restype = built.gradients.restype = None
    return built
