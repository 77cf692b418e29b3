"""A function of arrays as one compiled loop for arrays of many sizes, by torch's compiler, Inductor.

The function is traced once, with symbols for sizes. What the tracing and the compiler took for granted of them (one
is 1, two are equal) becomes the loop's conditions. torch.compile does so too, but at every call it also checks that
the Python program around the function is what it was. The functions here never change, and that check takes longer
than a small layer.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

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
