"""A copy of a network to look at, and one forward of a sample in it.

How networks compute for a while: in evaluation mode, without the fused steps of torch.nn, from one seed.

What the modules of a network receive and give, seen while a block runs: hooks that are removed at its end.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from aafit.errors import UserError
from aafit.networks.batches import as_inputs


@contextmanager
def own_modes(*nets: nn.Module) -> Iterator[None]:
    """At the end of the block, put each module back into the mode that it had, training or evaluation."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Within the block: no gradients, and the networks without dropout and with fixed statistics; then as they were.

    They compute step by step, see `without_fast_path`.
    """
    with own_modes(*nets), torch.no_grad(), without_fast_path():
        for net in nets:
            net.eval()
        yield


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Within the block encoders of torch.nn compute as in training.

    In evaluation mode they take a fused step, which calls no activation. They also leave padding out then, and give
    0 there. A network with replaced activations cannot, so that the zeros would count as a difference.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def fork_rng(seed: int | None) -> Iterator[None]:
    """Within the block torch draws random numbers from a seed on (None: the next ones); then it goes on as before it.

    So networks that draw some in evaluation mode, as a variational one does, can be held against each other: each draws
    the same for a batch.
    """
    # Not torch.manual_seed: where CUDA is not in use yet, that would seed it for later.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    with torch.random.fork_rng(devices, device_type="cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
        yield


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


def probe_of(net: nn.Module) -> nn.Module:
    """A copy of `net` in evaluation mode, to look at its forward; with the same parameters, which that only reads.

    Raises:
        UserError: as `copied`.
    """
    shared = {id(parameter): parameter for parameter in net.parameters() if not is_lazy(parameter)}
    return copied(net, shared).eval()


def copied(net: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of `net`, `memo` as for deepcopy.

    Raises:
        UserError: it holds something that cannot be copied; the message says where.
    """
    try:
        return deepcopy(net, memo)
    # Of whatever kind: what a network holds is not ours.
    except Exception as error:
        what = next(filter(None, (_uncopyable(path, module) for path, module in net.named_modules())), "something")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UserError(
            f"The network cannot be copied, as it holds {what} ({reason}): take that away "
            "(torch.nn.utils.remove_weight_norm, remove_spectral_norm and prune.remove do; a kept tensor needs detach)."
        ) from error


def _uncopyable(path: str, module: nn.Module) -> str | None:
    for name, value in vars(module).items():
        if name != "_modules":
            try:
                deepcopy(value)
            except Exception:
                return repr(f"{path}.{name}" if path else name)
    return None


def forward_of_sample(net: nn.Module, sample: Any, watch: AbstractContextManager[Any] | None = None) -> Any:
    """What `net` returns for the sample, without gradients, within the block of `watch`.

    The random numbers it draws are the same each time, and torch's own go on afterwards as if it had drawn none. It
    computes step by step, see `without_fast_path`.

    Raises:
        UserError: the sample has no form that a network takes, or the forward fails; the message says why.
    """
    inputs = as_inputs(sample)
    tensors = [value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, Tensor)]
    with fork_rng(0), torch.no_grad(), without_fast_path(), watch or nullcontext():
        own = inputs.cloned()
        try:
            return net(*own.args, **own.kwargs)
        except UserError:
            raise
        # Of whatever kind: the network's program is not ours.
        except Exception as error:
            given = ", ".join(f"{tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}" for tensor in tensors)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"The network's forward of the sample ({given}) failed: {reason}") from error
