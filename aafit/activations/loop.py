"""A function of arrays as one compiled loop for arrays of many sizes, by torch's compiler, Inductor.

The function is traced once, with symbols for sizes. What the tracing and the compiler took for granted of them (one
is 1, two are equal) becomes the loop's conditions. torch.compile does so too, but at every call it also looks at the
Python program around the function. Here nothing of that changes, and the look takes longer than a small layer.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loop:
    """A compiled function of contiguous arrays.

    Attributes:
        call: the function.
        fits: whether it may be called with these arrays, as far as their sizes go. The number of arrays, their
            dimensions, dtypes and devices, and torch's number of threads must be those that it was made for.
    """

    call: Callable[..., tuple[Any, ...]]
    fits: Callable[..., bool]


def compiled_loop(run: Callable[..., Any], arrays: Sequence[Tensor], options: dict[str, Any]) -> Loop:
    """`run` compiled for arrays like these; it records no gradient.

    Args:
        run: A function of arrays that gives a tuple of arrays and None. Whatever else it reads must never change.
        arrays: Contiguous arrays to call it with; their values are not read.
        options: Of Inductor.

    Raises:
        Exception: the compiler cannot do it, for whatever reason.
    """
    # Imported here: a process without large arrays does without the compiler, which takes a second to import.
    from torch._dynamo.source import ConstantSource
    from torch._inductor import compile as inductor
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    # Sizes that are equal by chance must not share a symbol.
    sizes = ShapeEnv(duck_shape=False)
    fake = FakeTensorMode(shape_env=sizes)
    with ExitStack() as block:
        # However the caller computes, it becomes no part of the loop.
        block.enter_context(torch.inference_mode(False))
        block.enter_context(torch.no_grad())
        block.enter_context(torch.autocast(arrays[0].device.type, enabled=False))
        examples: list[Any] = [
            fake.from_tensor(
                torch.empty_like(array),
                source=ConstantSource(f"t{at}"),
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * array.ndim),
            )
            for at, array in enumerate(arrays)
        ]
        call = inductor(make_fx(run, tracing_mode="symbolic")(*examples), examples, options=options)
    loop = Loop(call, _fits(examples, sizes.produce_guards_expression(examples)))
    assert loop.fits(*arrays)
    return loop


def _fits(examples: Sequence[Tensor], torchs: str | None) -> Callable[..., bool]:
    """Whether arrays have all sizes that became constants, and meet torch's conditions, of L['t0'], L['t1']..."""
    from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, is_concrete_int

    conditions = [
        f"t{at}.size()[{dim}] == {int(size)}"
        for at, example in enumerate(examples)
        for dim, size in enumerate(example.shape)
        if is_concrete_int(size)
    ]
    names = [f"t{at}" for at in range(len(examples))]
    if torchs is not None:
        for name in names:
            torchs = torchs.replace(f"L['{name}']", name)
        conditions.append(torchs)
    function: Callable[..., bool] = eval(f"lambda {', '.join(names)}: {' and '.join(conditions)}", dict(SYMPY_INTERP))
    return function
