"""Calls of activations as modules of their own, whatever way they are written.

A network may call an activation as a function (F.relu(x)), or one module at several places. Here every such call gets
a module: a child of the module whose forward makes the call, its owner. The owner goes on with its own program; while
that runs, a `Watch` sees the calls of torch functions and hands each of these to the module that stands for it. After
that every activation of the network is a module at a path, and can be replaced like any other.

A call is known by its function with its options, and by its place in the program: the function it stands in and the
offset of its instruction, and the same of the calls that lead there from the owner's forward, so that a helper called
for each of six layers is six places.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from aafit.errors import UserError
from aafit.networks.kinds import CalledFunction, called_kind, function_name
from aafit.networks.places import CallSites, Site, calling_frames, compiled_site_at, site_at, through_checkpoint

log = logging.getLogger(__name__)


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
        if isinstance(owner, torch.fx.GraphModule):
            what = repr(path) if path else "The network"
            raise UserError(
                f"{what} is a GraphModule of torch.fx, in which calls of functions cannot be replaced: give the "
                "network that it was made from, or replace its modules only."
            )
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
                    net.set_submodule(site.call, Doorway(called, site.call))
                made = deepcopy(called.original if isinstance(called, Doorway) else called)
            owner.add_module(site.name, made.train(owner.training))
        before = owner._call_sites.sites if isinstance(owner, _Watched) else ()
        if not isinstance(owner, _Watched):
            before_class: Any = type(owner)
            owner.__class__ = _watched(before_class)
        assert isinstance(owner, _Watched)
        owner._set_sites((*before, *opened.sites))


def close_call_sites(net: nn.Module, calls: Mapping[str, CallSites]) -> None:
    """Undo `open_call_sites`, in place: the network calls what it called before."""
    for path, opened in calls.items():
        owner = _module_at(net, path)
        if not isinstance(owner, _Watched):
            continue
        names = {site.name for site in opened.sites}
        for site in opened.sites:
            delattr(owner, site.name)
        left = tuple(site for site in owner._call_sites.sites if site.name not in names)
        owner._set_sites(left)
        if not left:
            owner.__class__ = type(owner).__mro__[2]
            del owner._call_sites, owner._described
    in_use = {site.call for _, site in sites_of(call_sites(net)) if site.of_module}
    for path, module in list(net.named_modules()):
        if isinstance(module, Doorway) and module.path not in in_use:
            net.set_submodule(path, module.original)


def show_unnamed_calls(net: nn.Module, observer: TorchFunctionMode) -> None:
    """Let `observer` see the calls of the owners of `net`, which is changed in place, that have no modules."""
    for owner in net.modules():
        if isinstance(owner, _Watched):
            vars(owner)["_observer"] = observer


class Doorway(nn.Module):
    """Stands where a module stood that is called at several places, and lets the owner's `Watch` see each call."""

    def __init__(self, original: nn.Module, path: str) -> None:
        super().__init__()
        self.original, self.path = original, path

    def forward(self, u: Tensor) -> Tensor:
        """What the call's own module gives, or the original where the call has none."""
        result: Tensor = through_doorway(u, self.original, self.path)
        return result


def through_doorway(u: Tensor, original: nn.Module, path: str) -> Any:
    """A call of a module as a call of a function, which a `Watch` can see."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(through_doorway, (u,), u, original, path)
    return original(u)


def called_with(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """The name of a function and what it is called with beside its input; of a module its path; whether it is one."""
    if function is through_doorway:
        return args[2], {}, True
    options = {str(at): value for at, value in enumerate(args[1:], 1)}
    options |= {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
    return function_name(function), options, False


class Watch(TorchFunctionMode):
    """Sees the calls of torch functions in one forward of an owner, and hands those of its sites to their modules."""

    def __init__(self, owner: "_Watched") -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not through_doorway and called_kind(func, args, kwargs) is None:
            return func(*args, **kwargs)
        name = self._name_of(*called_with(func, args, kwargs))
        u = args[0] if args else kwargs["input"]
        if name is None and not isinstance(u, Tensor):
            return func(*args, **kwargs)
        # Owners around this one are not to see the call again, nor what the module computes.
        with torch._C.DisableTorchFunction():
            if name is not None:
                return self.owner.get_submodule(name)(u)
            if "_observer" in vars(self.owner):
                return self.owner._observer.__torch_function__(func, types, args, kwargs)
            return func(*args, **kwargs)

    def _name_of(self, call: str, options: dict[str, Any], of_module: bool) -> str | None:
        """The name of the module that stands for this call; None where it has none."""
        if not all(value is None or isinstance(value, (bool, int, float, str)) for value in options.values()):
            return None
        if torch.compiler.is_dynamo_compiling():
            return compiled_site_at(self.owner._described, call, options, of_module)
        frames = calling_frames(self.owner)
        name = site_at(self.owner._call_sites.sites, frames, call, options, of_module) if frames else None
        if name is not None and through_checkpoint(frames):
            raise UserError(
                f"The call of {name!r} in {type(self.owner).__name__} is recomputed in the backward pass by "
                "torch.utils.checkpoint, outside of the forward in which it is replaced: checkpoint modules as a whole "
                "(checkpoint(self.block, x)), or make the activation a module of its own."
            )
        return name


class _Watched(nn.Module):
    """What an owner's class is derived from, beside the one it had."""

    _call_sites: CallSites
    _described: str
    _observer: TorchFunctionMode

    def _set_sites(self, sites: tuple[Site, ...]) -> None:
        self._call_sites = CallSites(sites)
        self._described = json.dumps(self._call_sites.as_dict())

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
        with Watch(self):
            return _run(base, self, args, kwargs)

    names = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (_Watched, base), names)


def _run(base: Any, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return base.forward(owner, *args, **kwargs)


# A forward is compiled as a whole, as a part of what calls it, or not at all: where the compiler gives up on it, it
# would go on with pieces of it, in which places are others.
try:
    _compiler = torch._C._dynamo.eval_frame
    _compiler.set_code_exec_strategy(
        _run.__code__, _compiler._FrameExecStrategy(_compiler._FrameAction.SKIP, _compiler._FrameAction.SKIP)
    )
# torch does not promise that every version has them.
except AttributeError as error:
    log.warning(
        "With this version of torch, a forward that torch.compile breaks into pieces may keep some of its old "
        "activations there: compile with fullgraph=True (%s)",
        error,
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
