"""What the modules of a network receive and give, seen while a block runs: hooks that are removed at its end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def watched(net: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call see(path, input, output) at each call of the modules at `paths`, with the first tensor that each receives.

    `see` is called after the module: one that works in place has changed its input by then.
    """

    def hook_at(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            see(path, _first(args, kwargs), output)

        return hook

    handles = [net.get_submodule(path).register_forward_hook(hook_at(path), with_kwargs=True) for path in paths]
    with _until_the_end(handles):
        yield


@contextmanager
def receiving(net: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call see(path, input) before each call of the modules at `paths`: before one that works in place changes it."""

    def hook_at(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(path, _first(args, kwargs))

        return hook

    handles = [net.get_submodule(path).register_forward_pre_hook(hook_at(path), with_kwargs=True) for path in paths]
    with _until_the_end(handles):
        yield


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


@contextmanager
def _until_the_end(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
