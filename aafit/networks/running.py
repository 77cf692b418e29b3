"""Run networks: which ones can be run, evaluation mode, what modules receive and return, copies to observe and compare.

What is changed here is a copy, or is undone at the end of a block: a user's network stays as it was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from aafit.activations import AdaptiveActivation, FNeuron
from aafit.activations.interval import IntervalActivation
from aafit.errors import UserError, short_message
from aafit.networks.batches import as_inputs, call
from aafit.networks.call_sites import install_interceptors, intercepted_calls, join_path, remove_interceptors

REPORTED_SHARE = 1e-3
"""Share of inputs outside an interval from which a layer is named."""


def check_network(net: nn.Module) -> None:
    """Raise unless the program of a network can be followed.

    Raises:
        UserError: it is no module, or wrapped, scripted, compiled, exported or quantised; the message says what to give
            instead.
    """
    name = type(net).__name__
    if name == "ExportedProgram":
        raise UserError(_exported("The network"))
    check_module(net)
    if isinstance(net, (nn.DataParallel, DistributedDataParallel)):
        raise UserError(f"The network is wrapped in a {name}: give net.module, and wrap the result.")
    if name == "OptimizedModule":
        raise UserError("The network is compiled by torch.compile: give net._orig_mod, and compile the result.")
    check_not_scripted(net)
    for path, module in net.named_modules():
        what = repr(path) if path else "The network"
        if isinstance(module, GraphModule) and any(isinstance(node.target, OpOverload) for node in module.graph.nodes):
            raise UserError(_exported(what))
        if ".quantized" in type(module).__module__:
            raise UserError(f"{what} is a quantised {type(module).__name__}: give the network before quantisation.")


def check_module(net: Any) -> None:
    """Raise unless a network is a module.

    Raises:
        UserError: it is of another type.
    """
    if isinstance(net, type) and issubclass(net, nn.Module):
        raise UserError(f"The network is the class {net.__name__}: give an object of it, {net.__name__}(...).")
    if not isinstance(net, nn.Module):
        raise UserError(f"The network is a {type(net).__name__}: give a torch.nn.Module.")


def check_not_scripted(net: nn.Module) -> None:
    """Raise if a network or a module in it is scripted.

    Raises:
        UserError: it is, or the network is no module.
    """
    check_module(net)
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = repr(path) if path else "The network"
            raise UserError(f"{what} is a ScriptModule, whose program is fixed: give the module that it was made from.")


def _exported(what: str) -> str:
    return f"{what} is exported by torch.export, and its program is fixed: replace before it is exported."


@contextmanager
def own_modes(*nets: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each module at the end of the block."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Within the block, put the networks into evaluation mode, without gradients and torch.nn's fast path."""
    with own_modes(*nets), torch.no_grad(), without_fast_path():
        for net in nets:
            net.eval()
        yield


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Within the block, let encoders of torch.nn compute as in training.

    Their fast path in evaluation mode calls no activation. It also leaves padding out and returns 0 there. A network
    with replaced activations cannot, so that the zeros would count as a difference.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def disable_fast_path(net: nn.Module, path: str) -> None:
    """Let a TransformerEncoderLayer at `path` call its activation; its fast path in evaluation mode does not.

    The encoder around it then passes padded tensors: only the fast path takes nested ones, which leave padding out.
    """
    layer = net.get_submodule(path)
    if isinstance(layer, nn.TransformerEncoderLayer) and layer.activation_relu_or_gelu:
        vars(layer)["_fused_activation"], layer.activation_relu_or_gelu = layer.activation_relu_or_gelu, 0
        for encoder in _encoders_around(net, path):
            vars(encoder).setdefault("_nested_tensors", encoder.use_nested_tensor)
            encoder.use_nested_tensor = False


def enable_fast_path(net: nn.Module, path: str) -> None:
    """Undo `disable_fast_path`."""
    layer = net.get_submodule(path)
    if isinstance(layer, nn.TransformerEncoderLayer) and "_fused_activation" in vars(layer):
        layer.activation_relu_or_gelu = layer.__dict__.pop("_fused_activation")
        for encoder in _encoders_around(net, path):
            if not any("_fused_activation" in vars(one) for one in encoder.layers):
                encoder.use_nested_tensor = encoder.__dict__.pop("_nested_tensors")


def _encoders_around(net: nn.Module, path: str) -> Iterator[nn.TransformerEncoder]:
    names = path.split(".")
    around = (net.get_submodule(".".join(names[:depth])) for depth in range(len(names)))
    return (module for module in around if isinstance(module, nn.TransformerEncoder))


@contextmanager
def fork_rng(seed: int | None) -> Iterator[None]:
    """Within the block, let torch draw random numbers from a seed (None: from its state); restore its state at the end.

    With one seed for each, networks that draw random numbers in evaluation mode, as a variational one does, can be
    compared.
    """
    # Not torch.manual_seed, which would also seed CUDA where it is not in use yet.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    with torch.random.fork_rng(devices, device_type="cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def watched(net: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call see(path, input, output) after each call of the modules at `paths`.

    The input is the first tensor that a module receives; a module that works in place has changed it by then.
    """

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(path, _first(args, kwargs), output)

    with ExitStack() as hooks:
        for path in paths:
            module = net.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(partial(hook, path), with_kwargs=True))
        yield


@contextmanager
def receiving(net: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call see(path, input) before each call of the modules at `paths`, before one that works in place changes it."""

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(path, _first(args, kwargs))

    with ExitStack() as hooks:
        for path in paths:
            module = net.get_submodule(path)
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, path), with_kwargs=True))
        yield


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


class OutsideShares:
    """Counts the inputs of F-Neurons and other families with an interval that are outside of it.

    Those of a mask, minus infinity, do not count.

    Args:
        net: A network that is run within the block of `counting`.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        with_interval = (FNeuron, IntervalActivation)
        self._neurons = {path: module for path, module in net.named_modules() if isinstance(module, with_interval)}
        self._counts: dict[str, list[int]] = {}

    def counting(self) -> AbstractContextManager[None]:
        """Within the block, count the inputs that these activations receive."""
        return receiving(self._net, self._neurons, self._see)

    def shares(self) -> dict[str, float]:
        """Return the share of the inputs outside the interval, by path, of those that were called."""
        return {path: outside / max(1, finite) for path, (outside, finite) in self._counts.items()}

    def _see(self, path: str, u: Tensor) -> None:
        finite = u.isfinite()
        count = self._counts.setdefault(path, [0, 0])
        count[0] += int((self._neurons[path].is_outside(u) & finite).sum())
        count[1] += int(finite.sum())


def outside_text(shares: Mapping[str, float]) -> str:
    """Return a sentence on the shares of inputs outside the intervals of activations; empty if there is none."""
    named = ", ".join(f"{path} {share:.2%}" for path, share in shares.items() if share >= REPORTED_SHARE)
    if not shares:
        return ""
    return (
        f"Inputs outside the interval of an activation: {named or f'at most {max(shares.values()):.2%} in each layer'}."
    )


def probe_of(net: nn.Module) -> nn.Module:
    """Return a copy of `net` in evaluation mode to observe; it shares the parameters, which a forward only reads.

    Raises:
        UserError: as `copied`.
    """
    shared = {id(parameter): parameter for parameter in net.parameters() if not is_lazy(parameter)}
    return copied(net, shared).eval()


def sharing_copy(net: nn.Module) -> nn.Module:
    """Return a copy of the modules of `net` that shares its parameters and buffers, so that they are held once.

    Raises:
        UserError: as `copied`.
    """
    tensors = (*net.parameters(), *net.buffers())
    return copied(net, {id(tensor): tensor for tensor in tensors if not is_lazy(tensor)})


def with_matching_modules(base: nn.Module, net: nn.Module) -> nn.Module:
    """Return a copy of `base` in which the calls that have modules in `net` have modules too.

    The copy shares the parameters and buffers of `base`. It computes what `base` does, and has an activation at every
    path at which `net`, made from it, has one. If all of them are modules in `base` already, `base` itself is returned.

    Raises:
        UserError: `net` was made from another network.
    """
    own, wanted = intercepted_calls(base), intercepted_calls(net)
    if all(own.get(path) == calls for path, calls in wanted.items()):
        return base
    matching = sharing_copy(base)
    remove_interceptors(matching, own)
    install_interceptors(matching, wanted)
    for path in wanted:
        disable_fast_path(matching, path)
    return matching


def replaced_paths(base: nn.Module, net: nn.Module) -> list[str]:
    """Return the paths at which `net` has another class of module than `base`, or an adaptive activation.

    Raises:
        UserError: the networks differ in more than that.
    """
    before, after = dict(base.named_modules()), dict(net.named_modules())
    replaced = [
        path
        for path, module in after.items()
        if path in before
        and path
        and (type(module) is not type(before[path]) or isinstance(module, AdaptiveActivation))
    ]
    within = tuple(f"{path}." for path in replaced)
    unmatched = sorted(path for path in before.keys() ^ after.keys() if not path.startswith(within))
    if unmatched:
        raise UserError(f"The networks have different modules: only one of them has {', '.join(unmatched[:5])}.")
    return [path for path in replaced if not path.startswith(within)]


def copied(net: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of `net`, with `memo` as for deepcopy.

    Computed tensors that it holds are detached: a weight that a hook computes before each forward (weight_norm,
    spectral_norm, prune), or a kept output.

    Raises:
        UserError: it holds an object that cannot be copied; the message says where.
    """
    check_module(net)
    memo = {} if memo is None else memo
    for module in net.modules():
        for value in tree_leaves([*vars(module).values()]):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return deepcopy(net, memo)
    # The error may be of any type: the objects that a network holds are the user's.
    except Exception as error:
        what = next(filter(None, (_uncopyable(path, module) for path, module in net.named_modules())), "something")
        reason = short_message(error).partition(". ")[0]
        raise UserError(
            f"The network cannot be copied, as it holds {what} ({reason}): remove that attribute, or give its class a "
            "__deepcopy__ method."
        ) from error


def _uncopyable(path: str, module: nn.Module) -> str | None:
    for name, value in vars(module).items():
        if name != "_modules":
            try:
                deepcopy(value)
            except Exception:
                return repr(join_path(path, name))
    return None


def forward_of_sample(net: nn.Module, sample: Any, observer: AbstractContextManager[Any] | None = None) -> Any:
    """Return what `net` returns for the sample, without gradients, within the block of `observer`.

    It draws the same random numbers each time, and torch's random state does not change. torch.nn's fast path is off.

    Raises:
        UserError: the sample has no form that a network takes, or the forward fails; the message says why.
    """
    inputs = as_inputs(sample)
    with fork_rng(0), torch.no_grad(), without_fast_path(), observer or nullcontext():
        return call(net, inputs.cloned(), "sample")
