"""What the modules of a network receive and give."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def watched(net: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call see(path, input, output) at each call of the modules at `paths`, with the first tensor that each receives.

    `see` is called after the module: one that works in place has changed its input by then.
    """

    def hook_at(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            see(path, next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), output)

        return hook

    handles = [net.get_submodule(path).register_forward_hook(hook_at(path), with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
