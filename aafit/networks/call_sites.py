"""Calls of activations as modules of their own, whatever way they are written.

A network may call an activation as a function (F.relu(x)), or one module at several places. Here every such call gets
a module: a child of the module whose forward makes the call, its owner. The owner goes on with its own program; while
that runs, a `Interceptor` sees the calls of torch functions and hands each of these to the module that stands for it.
After
that every activation of the network is a module at a path, and can be replaced like any other.

A call is known by its function with its options, and by its place in the program: the function it stands in and the
offset of its instruction, and the same of the calls that lead there from the owner's forward, so that a helper called
for each of six layers is six places.

Where in a network's program a call stands: what the frames of Python say of it.

A place is the function that the call stands in with the offset of its instruction, and the same of the calls that lead
there from the forward of its owner. A site is a call that was given a module of its own: at its place, of its function
with its options. A place at which a program calls now one function and now another is as many sites.
"""

import hashlib
import json
import linecache
import logging
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, wraps
from inspect import unwrap
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from aafit.errors import UserError
from aafit.networks.kinds import CalledFunction, called_kind, function_name

_OWN_FOLDER = Path(__file__).parent
_TORCH = f"{Path(torch.__file__).parent}/"
_ITS_NETWORKS = f"{_TORCH}nn/modules/"
_NO_NETWORKS = tuple(f"{_ITS_NETWORKS}{name}.py" for name in ("module", "activation"))
_CALLS_FORWARDS = (f"{_ITS_NETWORKS}module.py", str(_OWN_FOLDER / "call_sites.py"))
# Frames of these folders are the interceptor's, not the network's program.
_OURS = (f"{_OWN_FOLDER}/", f"{_OWN_FOLDER.with_name('activations')}/")


@dataclass(frozen=True)
class Frame:
    """Where a call stands: the name of its function in the program, the instruction's offset, and the code's digest."""

    function: str
    offset: int
    digest: str


CallPath = tuple[Frame, ...]
"""The call of an activation, and the calls that lead there, outwards to the forward of the owner."""


@dataclass(frozen=True)
class Site:
    """One call of an activation that has a module of its own.

    Attributes:
        name: Of that module, a child of the owner.
        place: Where the call stands; only the innermost step where no other way leads there.
        kind: Of the activation, as "ReLU".
        call: The name of the function, or the path of the module, that the program calls.
        options: What the function is called with beside its input.
        of_module: Whether the program calls a module.
    """

    name: str
    place: CallPath
    kind: str
    call: str
    options: Mapping[str, Any]
    of_module: bool = False

    def is_call(self, call: str, options: Mapping[str, Any], of_module: bool = False) -> bool:
        """Whether this function is what the site calls, with these options; or this module."""
        if (call, of_module) != (self.call, self.of_module):
            return False
        return in_full(call, options) == in_full(call, self.options)


@dataclass(frozen=True)
class CallSites:
    """The sites of one owner."""

    sites: tuple[Site, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "CallSites":
        """What `as_dict` gave."""
        sites = (Site(**{**site, "place": tuple(Frame(**step) for step in site["place"])}) for site in content["sites"])
        return cls(tuple(sites))


def in_full(call: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names, with the defaults, for a function of torch.nn.functional; others as they are.

    `inplace` is left out: it does not change what is computed.
    """
    defaults = _defaults(call)
    full = dict(defaults)
    for name, value in options.items():
        at = int(name) - 1 if name.isdecimal() else len(defaults)
        full[defaults[at][0] if at < len(defaults) else name] = value
    full.pop("inplace", None)
    return full


def _defaults(call: str) -> tuple[tuple[str, Any], ...]:
    """The names and defaults of what a function takes beside its input; none where they cannot be known."""
    function = getattr(F, call, None)
    if not isinstance(function, FunctionType):
        return ()
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    return tuple(zip(names, (*[None] * (len(names) - len(defaults)), *defaults), strict=True))


def calling_frames(owner: nn.Module) -> list[FrameType]:
    """The frames of a network's own program from the innermost to the forward of `owner`.

    Frames of torch's functions are left out, and of what watches them; there may be none.
    """
    forward = getattr(unwrap(type(owner).forward), "__code__", None)
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not _is_of_torch(file) and not file.startswith(_OURS):
            frames.append(frame)
            if frame.f_code is forward:
                break
        elif frames and file in _CALLS_FORWARDS:
            break
        frame = frame.f_back
    return frames


def _is_of_torch(file: str) -> bool:
    return file.startswith(_TORCH) and (not file.startswith(_ITS_NETWORKS) or file in _NO_NETWORKS)


def through_checkpoint(frames: list[FrameType]) -> bool:
    """Whether torch.utils.checkpoint is between the innermost of these frames and the outermost."""
    frame: FrameType | None = frames[0]
    while frame is not None and frame is not frames[-1]:
        if frame.f_code.co_filename == f"{_TORCH}utils/checkpoint.py":
            return True
        frame = frame.f_back
    return False


def place_of(frames: Iterable[FrameType]) -> CallPath:
    """The place of the call that these frames are making."""
    return tuple(
        Frame(frame.f_code.co_qualname, _instruction(frame.f_code, frame.f_lasti)[0], digest(frame.f_code))
        for frame in frames
    )


def site_at(
    sites: Iterable[Site], frames: list[FrameType], call: str, options: Mapping[str, Any], of_module: bool
) -> str | None:
    """The name of the site whose call these frames are making; None where it is none of `sites`."""
    at = [(frame.f_code, frame.f_lasti) for frame in frames]
    return _site_at(sites, at, call, options, of_module)


def compiled_site_at(described: str, call: str, options: Mapping[str, Any], of_module: bool) -> str | None:
    """As `site_at`, within torch.compile, of the call that it compiles: it follows a program without making its frames.

    Args:
        described: the sites as text, which the compiler sees to be the same wherever what it compiled serves again.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    at = []
    compiled: Any = InstructionTranslator.current_tx().output.current_tx
    while compiled is not None:
        file = compiled.f_code.co_filename
        if not _is_of_torch(file) and not file.startswith(_OURS):
            at.append((compiled.f_code, compiled.current_instruction.offset))
        elif at and file in _CALLS_FORWARDS:
            break
        compiled = getattr(compiled, "parent", None)
    return _site_at(_sites_of(described), at, call, options, of_module) if at else None


# What torch.compiler.assume_constant_result does, without the second that it takes to import the compiler.
compiled_site_at._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _sites_of(described: str) -> tuple[Site, ...]:
    return CallSites.from_dict(json.loads(described)).sites


def _site_at(
    sites: Iterable[Site], at: list[tuple[CodeType, int]], call: str, options: Mapping[str, Any], of_module: bool
) -> str | None:
    (code, offset), *_ = at
    first, last = _instruction(code, offset)
    there = [site for site in sites if site.place[0].function == code.co_qualname]
    here = [site for site in there if first <= site.place[0].offset <= last]
    # The hash of a program takes long; all sites of one function are of one program, but "<lambda>" is no name of one.
    if code.co_name.startswith("<"):
        here = [site for site in here if site.place[0].digest == digest(code)]
    elif there:
        check_same_program((here or there)[0].place[0], code)
    here = [site for site in here if site.is_call(call, options, of_module)]
    return next((site.name for site in here if _leads_here(site.place, at)), None)


def _leads_here(place: CallPath, at: list[tuple[CodeType, int]]) -> bool:
    if len(place) > len(at):
        return False
    for step, (code, offset) in zip(place, at, strict=False):
        first, last = _instruction(code, offset)
        if step.function != code.co_qualname or not first <= step.offset <= last or step.digest != digest(code):
            return False
    return True


def _instruction(code: CodeType, offset: int) -> tuple[int, int]:
    """The first and the last offset of an instruction, which has entries of a cache (zeros) behind it.

    A frame that calls stands at the one or at the other: it depends on what is called, and on whether torch.compile
    is at work.
    """
    program, first, last = code.co_code, offset, offset
    while program[first] == 0:
        first -= 2
    while program[last + 2 : last + 3] == b"\0":
        last += 2
    return first, last


@lru_cache(maxsize=4096)
def digest(code: CodeType) -> str:
    """Tells one program from another: 16 digits."""
    return hashlib.sha256(code.co_code).hexdigest()[:16]


def check_same_program(step: Frame, code: CodeType) -> None:
    """
    Raises:
        UserError: `code` is another program than that in which the step is.
    """
    if step.digest != digest(code):
        raise UserError(
            f"The program of {step.function} ({Path(code.co_filename).name}:{code.co_firstlineno}) is not the one "
            "whose activations were replaced, or Python has another version now: replace them again from the base."
        )


def line_of(frames: list[FrameType]) -> str:
    """ "file.py:12: x = F.relu(x)", with the lines that lead there: "file.py:12, called in 7: x = F.relu(x)"."""
    frame, *around = frames
    file, text = frame.f_code.co_filename, linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    called = "".join(f", called in {outer.f_lineno}" for outer in around)
    return f"{Path(file).name}:{frame.f_lineno}{called}" + (f": {text}" if text else "")


log = logging.getLogger(__name__)


def call_sites(net: nn.Module) -> dict[str, CallSites]:
    """The calls in `net` that have modules of their own, by the path of their owner."""
    return {path: module._call_sites for path, module in net.named_modules() if isinstance(module, _Watched)}


def install_interceptors(net: nn.Module, calls: Mapping[str, CallSites]) -> None:
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
                if not isinstance(called, SharedModuleProxy):
                    net.set_submodule(site.call, SharedModuleProxy(called, site.call))
                made = deepcopy(called.original if isinstance(called, SharedModuleProxy) else called)
            owner.add_module(site.name, made.train(owner.training))
        before = owner._call_sites.sites if isinstance(owner, _Watched) else ()
        if not isinstance(owner, _Watched):
            before_class: Any = type(owner)
            owner.__class__ = _watched(before_class)
        assert isinstance(owner, _Watched)
        owner._set_sites((*before, *opened.sites))


def remove_interceptors(net: nn.Module, calls: Mapping[str, CallSites]) -> None:
    """Undo `install_interceptors`, in place: the network calls what it called before."""
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
        if isinstance(module, SharedModuleProxy) and module.path not in in_use:
            net.set_submodule(path, module.original)


def show_unnamed_calls(net: nn.Module, observer: TorchFunctionMode) -> None:
    """Let `observer` see the calls of the owners of `net`, which is changed in place, that have no modules."""
    for owner in net.modules():
        if isinstance(owner, _Watched):
            vars(owner)["_observer"] = observer


class SharedModuleProxy(nn.Module):
    """Replaces a module that is called at several places, and lets the owner's `Interceptor` see each call."""

    def __init__(self, original: nn.Module, path: str) -> None:
        super().__init__()
        self.original, self.path = original, path

    def forward(self, u: Tensor) -> Tensor:
        """What the call's own module gives, or the original where the call has none."""
        result: Tensor = through_doorway(u, self.original, self.path)
        return result


def through_doorway(u: Tensor, original: nn.Module, path: str) -> Any:
    """A call of a module as a call of a function, which a `Interceptor` can see."""
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


class Interceptor(TorchFunctionMode):
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
        with Interceptor(self):
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
