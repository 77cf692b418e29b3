"""Calls of activations as modules of their own, whatever way they are written.

A network may call an activation as a function (F.relu(x)), or one module at several places. Here every such call gets
a module: a child of the module whose forward makes the call, its owner. The owner goes on with its own program; while
that runs, a `Watch` sees the calls of torch functions and hands each of these to the module that stands for it. After
that every activation of the network is a module at a path, and can be replaced like any other.

A call is known by its place in the program: the function it stands in and the offset of its instruction, and the same
of the calls that lead there from the owner's forward, so that a helper called for each of six layers is six places.
Inside torch.compile no places can be seen: there the calls of an owner are told apart by their order, as it was in the
forward of the sample.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from aafit.errors import UserError
from aafit.networks.kinds import CalledFunction, called_kind
from aafit.networks.places import CallSites, Site, calling_frames, site_at, through_checkpoint
from aafit.networks.probe import probe_of


def call_sites(net: nn.Module) -> dict[str, CallSites]:
    """The calls in `net` that have modules of their own, by the path of their owner."""
    return {path: module._call_sites for path, module in net.named_modules() if isinstance(module, _Watched)}


def open_call_sites(net: nn.Module, calls: Mapping[str, CallSites]) -> None:
    """Give calls of `net` modules of their own, in place, that do what the calls did.

    Raises:
        UserError: the network lacks one of the owners or of the modules that are called.
    """
    for path, opened in calls.items():
        owner = _module_at(net, path)
        if "forward" in vars(owner):
            raise UserError(
                f"The forward of {path or 'the network'!r} was put onto the object, over that of its class: take away "
                "what did that (a wrapper of a training library), then replace."
            )
        for site in opened.sites:
            made: nn.Module = CalledFunction(site.call, site.options, site.kind)
            if site.of_module:
                called = _module_at(net, site.call)
                if not isinstance(called, Doorway):
                    net.set_submodule(site.call, Doorway(called))
                made = deepcopy(called.original if isinstance(called, Doorway) else called)
            owner.add_module(site.name, made.train(owner.training))
        before = owner._call_sites.sites if isinstance(owner, _Watched) else ()
        if not isinstance(owner, _Watched):
            before_class: Any = type(owner)
            owner.__class__ = _watched(before_class)
        assert isinstance(owner, _Watched)
        owner._call_sites = CallSites((*before, *opened.sites), opened.order)


def close_call_sites(net: nn.Module, calls: Mapping[str, CallSites]) -> None:
    """Undo `open_call_sites`, in place: the network calls what it called before."""
    for path, opened in calls.items():
        owner = _module_at(net, path)
        if not isinstance(owner, _Watched):
            continue
        names = {site.name for site in opened.sites}
        for site in opened.sites:
            delattr(owner, site.name)
            called = _module_at(net, site.call) if site.of_module else None
            if isinstance(called, Doorway):
                net.set_submodule(site.call, called.original)
        left = tuple(site for site in owner._call_sites.sites if site.name not in names)
        owner._call_sites = CallSites(left)
        if not left:
            owner.__class__ = type(owner).__mro__[2]
            del owner._call_sites


def show_unnamed_calls(net: nn.Module, observer: TorchFunctionMode) -> None:
    """Let `observer` see the calls of the owners of `net`, which is changed in place, that have no modules."""
    for owner in net.modules():
        if isinstance(owner, _Watched):
            vars(owner)["_observer"] = observer


def learn_order(net: nn.Module, forward: Callable[[nn.Module], Any], silent: Mapping[str, nn.Module]) -> None:
    """Note the order of the calls of every owner, in place, as it is in `forward` of a copy of the network.

    In the copy the modules `silent` stand at their paths, and what they call themselves does not count.
    """
    probe = probe_of(net)
    for path, module in silent.items():
        probe.set_submodule(path, _Silent(module))
    for owner in probe.modules():
        if isinstance(owner, _Watched):
            owner._orders = []
    forward(probe)
    for path, owner in probe.named_modules():
        if isinstance(owner, _Watched):
            orders = set(owner._orders)
            own = net.get_submodule(path)
            assert isinstance(own, _Watched)
            own._call_sites = replace(owner._call_sites, order=orders.pop() if len(orders) == 1 else None)


class _Silent(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, u: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            result: Tensor = self.module(u)
        return result


class Doorway(nn.Module):
    """Stands where a module stood that is called at several places, and lets the owner's `Watch` see each call."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, u: Tensor) -> Tensor:
        """What the call's own module gives, or the original where the call has none."""
        result: Tensor = through_doorway(u, self.original)
        return result


def through_doorway(u: Tensor, original: nn.Module) -> Any:
    """A call of a module as a call of a function, which a `Watch` can see."""
    if has_torch_function_unary(u):
        return handle_torch_function(through_doorway, (u,), u, original)
    return original(u)


class Watch(TorchFunctionMode):
    """Sees the calls of torch functions in one forward of an owner, and hands those of its sites to their modules."""

    def __init__(self, owner: "_Watched") -> None:
        super().__init__()
        self.owner, self.seen = owner, 0
        self.order: list[str | None] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not through_doorway and called_kind(func, args, kwargs) is None:
            return func(*args, **kwargs)
        compiling = torch.compiler.is_dynamo_compiling()
        name = self._next() if compiling else self._at(calling_frames(self.owner))
        u = args[0] if args else kwargs["input"]
        if name is None and not isinstance(u, Tensor):
            return func(*args, **kwargs)
        if name is None and not compiling and "_observer" in vars(self.owner):
            return self.owner._observer.__torch_function__(func, types, args, kwargs)
        # Owners around this one are not to see the call again, nor what the module computes.
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs) if name is None else self.owner.get_submodule(name)(u)

    def _at(self, frames: list[FrameType]) -> str | None:
        name = site_at(self.owner._call_sites.sites, frames) if frames else None
        if name is not None and through_checkpoint(frames):
            raise UserError(
                f"The call of {name!r} in {type(self.owner).__name__} is recomputed in the backward pass by "
                "torch.utils.checkpoint, outside of the forward in which it is replaced: checkpoint modules as a whole "
                "(checkpoint(self.block, x)), or make the activation a module of its own."
            )
        if "_orders" in vars(self.owner):
            self.order.append(name)
        return name

    def _next(self) -> str | None:
        order, at = self.owner._call_sites.order, self.seen
        self.seen = at + 1
        if order is None or at >= len(order):
            raise UserError(_OTHER_ORDER)
        return order[at]


class _Watched(nn.Module):
    """What an owner's class is derived from, beside the one it had."""

    _call_sites = CallSites()
    _orders: list[tuple[str | None, ...]]
    _observer: TorchFunctionMode

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made here, so that pickle and copy cannot find it by its name.
        return _new_watched, (type(self).__mro__[2],), self.__getstate__()


def _new_watched(base: Any) -> nn.Module:
    made = _watched(base)
    return made.__new__(made)


@cache
def _watched(base: Any) -> type[_Watched]:
    @wraps(base.forward)
    def forward(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        watch = Watch(self)
        with watch:
            output = base.forward(self, *args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            if watch.seen != len(self._call_sites.order or ()):
                raise UserError(_OTHER_ORDER)
        elif "_orders" in vars(self):
            self._orders.append(tuple(watch.order))
        return output

    names = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (_Watched, base), names)


_OTHER_ORDER = (
    "The network cannot be compiled as one: it calls its activations in another order than for the sample, or not in "
    "the same one each time, and inside torch.compile only the order tells them apart. Compile the parts that always "
    "run alike."
)


def _module_at(net: nn.Module, path: str) -> nn.Module:
    try:
        return net.get_submodule(path)
    except AttributeError:
        raise UserError(f"The network has no module at {path!r}, whose forward called an activation.") from None


def sites_of(calls: Mapping[str, CallSites]) -> Iterable[tuple[str, Site]]:
    """Each call with the path of its module."""
    for owner, opened in calls.items():
        for site in opened.sites:
            yield f"{owner}.{site.name}" if owner else site.name, site
