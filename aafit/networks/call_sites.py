"""Give every activation call of a network a module, however the call is written.

A network may call an activation as a function (F.relu(x)), or one module at several places. `install_interceptors` adds
a module for each such call as a child of the module whose forward makes it, the owner. While the owner's forward runs,
an `Interceptor` passes the call to that child. Read `ActivationCall` first, which identifies a call.
"""

import dis
import hashlib
import json
import linecache
import logging
import sys
from abc import ABCMeta
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, wraps
from inspect import unwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.fx.proxy import Proxy, TracerBase
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily, handle_torch_function

from aafit.errors import UserError
from aafit.networks.kinds import CalledFunction, called_kind, full_options, function_name, is_plain

log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_TORCH = f"{Path(torch.__file__).parent}/"
_TORCH_MODULES = f"{_TORCH}nn/modules/"
_NOT_OF_A_NETWORK = tuple(f"{_TORCH_MODULES}{name}.py" for name in ("module", "activation"))
_CALLS_FORWARDS = (f"{_TORCH_MODULES}module.py", str(_FOLDER / "call_sites.py"))
# Frames of these folders belong to the interceptor, not to the network's program.
_OURS = (f"{_FOLDER}/", f"{_FOLDER.with_name('activations')}/")


@dataclass(frozen=True)
class Frame:
    """One frame of a call path: a function's qualified name, the offset of an instruction in it, its code's digest."""

    function: str
    offset: int
    digest: str


CallPath = tuple[Frame, ...]
"""The frame that calls an activation, then the frames that lead there, outwards to the owner's forward."""


@dataclass(frozen=True)
class ActivationCall:
    """A call of an activation in a network's program.

    Attributes:
        owner: Path of the module whose forward makes the call.
        called: Name of the function, or path of the module, that is called.
        of_module: Whether a module is called.
        kind: Kind of the activation, as "ReLU".
        path: Its call path; the innermost frame alone if the sample reaches that by one path only.
        options: Arguments of the function beside its input.
        name: Name of the owner's child that takes the call; "" if it has none.
    """

    owner: str
    called: str
    of_module: bool
    kind: str
    path: CallPath
    options: Mapping[str, Any]
    name: str = ""

    @property
    def module_path(self) -> str:
        """Path of the child module that takes the call."""
        return join_path(self.owner, self.name)

    def matches(self, called: str, options: Mapping[str, Any], of_module: bool = False) -> bool:
        """Return whether this is a call of the same function with the same options, or of the same module."""
        if (called, of_module) != (self.called, self.of_module):
            return False
        return full_options(called, options) == full_options(called, self.options)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ActivationCall":
        """Rebuild a call from `dataclasses.asdict`."""
        return cls(**{**content, "path": tuple(Frame(**frame) for frame in content["path"])})


def join_path(path: str, name: str) -> str:
    """Return the path of the child `name` of the module at `path`."""
    return f"{path}.{name}" if path else name


def called_with(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """Return the name of a function (or the path of a proxied module), its options, and whether it is a module."""
    if function is call_proxied:
        return args[2], {}, True
    options = {str(at): value for at, value in enumerate(args[1:], 1)}
    options |= {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
    return function_name(function), options, False


# --- frames ---------------------------------------------------------------------------------------------------------


def calling_frames(owner: nn.Module) -> list[FrameType]:
    """Return the frames of the network's program from the innermost to the forward of `owner`.

    Frames of torch's functions and of this package are left out; the list may be empty.
    """
    forward = _forward_code(owner)
    frames: list[FrameType] = []
    for frame in _frames_of_network(sys._getframe(1), "f_back"):
        frames.append(frame)
        if frame.f_code is forward:
            break
    return frames


def _frames_of_network(frame: Any, caller: str) -> Iterator[Any]:
    """Yield the frames of the network's program outwards to the first that a module's call runs.

    Args:
        frame: the innermost frame, of Python or of torch.compile.
        caller: attribute of a frame that is the one around it.
    """
    inside = False
    while frame is not None:
        file = frame.f_code.co_filename
        of_torch = file.startswith(_TORCH) and (not file.startswith(_TORCH_MODULES) or file in _NOT_OF_A_NETWORK)
        if not of_torch and not file.startswith(_OURS):
            inside = True
            yield frame
        elif inside and file in _CALLS_FORWARDS:
            return
        frame = getattr(frame, caller, None)


def _forward_code(owner: nn.Module) -> CodeType | None:
    return getattr(unwrap(type(owner).forward), "__code__", None)


def through_checkpoint(frames: list[FrameType]) -> bool:
    """Return whether torch.utils.checkpoint is between the innermost of these frames and the outermost."""
    frame: FrameType | None = frames[0]
    while frame is not None and frame is not frames[-1]:
        if frame.f_code.co_filename == f"{_TORCH}utils/checkpoint.py":
            return True
        frame = frame.f_back
    return False


def path_of(frames: Iterable[FrameType]) -> CallPath:
    """Return the call path of these frames."""
    return tuple(
        Frame(frame.f_code.co_qualname, _instruction(frame.f_code, frame.f_lasti), digest(frame.f_code))
        for frame in frames
    )


def line_of(frames: list[FrameType]) -> str:
    """Return "file.py:12: x = F.relu(x)", with the lines of outer calls: "file.py:12, called in 7: x = F.relu(x)"."""
    frame, *outer = frames
    file, text = frame.f_code.co_filename, linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    called = "".join(f", called in {one.f_lineno}" for one in outer)
    return f"{Path(file).name}:{frame.f_lineno}{called}" + (f": {text}" if text else "")


def _instruction(code: CodeType, offset: int) -> int:
    """Return the offset of the instruction at `offset`, which may point to one of the cache entries (zeros) behind it.

    Where a calling frame points depends on what is called, and on whether torch.compile is at work.
    """
    program = code.co_code
    while program[offset] == 0:
        offset -= 2
    return offset


@lru_cache(maxsize=4096)
def digest(code: CodeType) -> str:
    """Return 16 digits that identify a program by its instructions, with the names and constants they use.

    Comments and docstrings do not count.
    """
    found = hashlib.sha256()
    for instruction in dis.get_instructions(code):
        value = instruction.argval
        if isinstance(value, CodeType):
            value = digest(value)
        elif isinstance(value, frozenset):
            # Its order changes from process to process.
            value = sorted(map(repr, value))
        found.update(f"{instruction.opname} {value!r}\n".encode())
    return found.hexdigest()[:16]


def check_same_program(frame: Frame, code: CodeType) -> None:
    """Raise unless `code` is the program that the frame was taken from.

    Raises:
        UserError: it is another program.
    """
    if frame.digest != digest(code):
        raise UserError(
            f"The program of {frame.function} ({Path(code.co_filename).name}:{code.co_firstlineno}) has changed since "
            "its activations were replaced, or Python has another version now: replace them again from the base."
        )


def find_compiled_call(described: str, called: str, options: Mapping[str, Any], of_module: bool) -> str | None:
    """Do the same as `find_call` within torch.compile, which follows a program without creating its frames.

    The calls are given as JSON text: the compiler reuses its result wherever the text is the same.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    innermost = InstructionTranslator.current_tx().output.current_tx
    frames = _frames_of_network(innermost, "parent")
    at = [(frame.f_code, frame.current_instruction.offset) for frame in frames]
    return find_call(_calls_from(described), at, called, options, of_module) if at else None


# This is what torch.compiler.assume_constant_result does, without the second that importing the compiler takes.
find_compiled_call._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _calls_from(described: str) -> tuple[ActivationCall, ...]:
    return tuple(map(ActivationCall.from_dict, json.loads(described)))


def find_call(
    calls: Iterable[ActivationCall],
    at: list[tuple[CodeType, int]],
    called: str,
    options: Mapping[str, Any],
    of_module: bool,
) -> str | None:
    """Return the child's name of the call that is being made; None if it is none of `calls`.

    Args:
        calls: the calls.
        at: codes and offsets of the frames that are running, from the innermost to the owner's forward.
        called: name of the function, or path of the module.
        options: arguments of the function.
        of_module: whether a module is called.

    Raises:
        UserError: the frames run another program than that of `calls`.
    """
    (code, offset), *_ = at
    there = [call for call in calls if call.path[0].function == code.co_qualname]
    if not there:
        return None
    offset = _instruction(code, offset)
    here = [call for call in there if call.path[0].offset == offset]
    if code.co_name.startswith("<"):
        # Several lambdas have one name.
        here = [call for call in here if call.path[0].digest == digest(code)]
    else:
        # All calls of one function are of one program; a digest takes long, so one is compared.
        check_same_program((here or there)[0].path[0], code)
    here = [call for call in here if call.matches(called, options, of_module)]
    return next((call.name for call in here if _leads_here(call.path, at)), None)


def _leads_here(path: CallPath, at: list[tuple[CodeType, int]]) -> bool:
    return len(path) <= len(at) and all(
        frame.function == code.co_qualname
        and frame.offset == _instruction(code, offset)
        and frame.digest == digest(code)
        for frame, (code, offset) in zip(path, at, strict=False)
    )


# --- interceptors ---------------------------------------------------------------------------------------------------


def intercepted_calls(net: nn.Module) -> dict[str, tuple[ActivationCall, ...]]:
    """Return the calls in `net` that have modules of their own, by the path of their owner."""
    return {path: module._calls for path, module in net.named_modules() if isinstance(module, _Intercepted)}


def install_interceptors(net: nn.Module, calls: Mapping[str, Sequence[ActivationCall]]) -> None:
    """Add a module for each call of `net`, in place, that computes what the call does.

    Args:
        net: the network.
        calls: by path of the owner. An owner without calls is intercepted too, so that none of its calls is taken for
            one of an owner around it.

    Raises:
        UserError: the network lacks an owner, or a module that is called; a program differs from that of the calls; a
            forward cannot be intercepted.
    """
    for path, added in calls.items():
        owner = _module_at(net, path)
        if isinstance(owner, torch.fx.GraphModule):
            raise UserError(
                f"{repr(path) if path else 'The network'} is a GraphModule of torch.fx, in which calls of functions "
                "cannot be replaced: give the network that it was made from, or replace its modules only."
            )
        if "forward" in vars(owner):
            raise UserError(
                f"The forward of {path or 'the network'!r} was set on the object, in place of that of its class: undo "
                "the wrapper that did that, then replace."
            )
        for call in added:
            _check_programs(owner, call.path)
            child: nn.Module = CalledFunction(call.called, call.options, call.kind)
            if call.of_module:
                called = _module_at(net, call.called)
                if not isinstance(called, SharedModuleProxy):
                    called = SharedModuleProxy(called, call.called)
                    net.set_submodule(call.called, called)
                child = deepcopy(called.original)
            owner.add_module(call.name, child.train(owner.training))
        if not isinstance(owner, _Intercepted):
            _change_class(owner, _intercepting)
        assert isinstance(owner, _Intercepted)
        owner._set_calls((*owner._calls, *added))


def remove_interceptors(net: nn.Module, calls: Mapping[str, Sequence[ActivationCall]]) -> None:
    """Undo `install_interceptors`, in place."""
    for path, removed in calls.items():
        owner = _module_at(net, path)
        if not isinstance(owner, _Intercepted):
            continue
        names = {call.name for call in removed}
        for name in names:
            delattr(owner, name)
        left = tuple(call for call in owner._calls if call.name not in names)
        owner._set_calls(left)
        if not left:
            _change_class(owner, lambda cls: cls._base)
            del owner._calls, owner._described
    in_use = {call.called for own in intercepted_calls(net).values() for call in own if call.of_module}
    for path, module in list(net.named_modules()):
        if isinstance(module, SharedModuleProxy) and module.path not in in_use:
            net.set_submodule(path, module.original)


def observe_other_calls(net: nn.Module, observer: TorchFunctionMode) -> None:
    """Let `observer` see the calls of intercepted owners that have no modules; `net` is changed in place."""
    for owner in net.modules():
        if isinstance(owner, _Intercepted):
            vars(owner)["_observer"] = observer


class SharedModuleProxy(nn.Module):
    """Stands for a module that is called at several places, and shows each call to the owner's `Interceptor`."""

    def __init__(self, original: nn.Module, path: str) -> None:
        super().__init__()
        self.original, self.path = original, path

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the call's own module, or of the original if the call has none."""
        result: Tensor = call_proxied(input, self.original, self.path)
        return result


def call_proxied(u: Tensor, original: nn.Module, path: str) -> Any:
    """Call a module as a torch function, which an `Interceptor` sees."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(call_proxied, (u,), u, original, path)
    return original(u)


class Interceptor(TorchFunctionMode):
    """Sees the torch functions called in one forward of an owner, and passes its activation calls to their modules."""

    def __init__(self, owner: "_Intercepted") -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not call_proxied and called_kind(func, args, kwargs) is None:
            return func(*args, **kwargs)
        name = self._child_of(*called_with(func, args, kwargs))
        u = args[0] if args else kwargs["input"]
        if name is None and not isinstance(u, Tensor):
            return func(*args, **kwargs)
        # Interceptors of owners around this one must see neither the call again nor what the module computes.
        with _without_modes() if isinstance(u, Proxy) else torch._C.DisableTorchFunction():
            if name is not None:
                return self.owner.get_submodule(name)(u)
            if "_observer" in vars(self.owner):
                return self.owner._observer.__torch_function__(func, types, args, kwargs)
            return func(*args, **kwargs)

    def _child_of(self, called: str, options: dict[str, Any], of_module: bool) -> str | None:
        """Return the name of the module that takes this call; None if there is none."""
        if not is_plain(options):
            return None
        if torch.compiler.is_dynamo_compiling():
            return find_compiled_call(self.owner._described, called, options, of_module)
        frames = calling_frames(self.owner)
        at = [(frame.f_code, frame.f_lasti) for frame in frames]
        name = find_call(self.owner._calls, at, called, options, of_module) if at else None
        if name is not None and through_checkpoint(frames):
            raise UserError(
                f"The call of {name!r} in {type(self.owner).__name__} is recomputed in the backward pass by "
                "torch.utils.checkpoint, outside of the forward in which it is replaced: checkpoint modules as a whole "
                "(checkpoint(self.block, x)), or make the activation a module of its own."
            )
        return name


class _Intercepted(nn.Module):
    """First base of an intercepted owner's class; the owner's original class is the second."""

    _base: Any
    _calls: tuple[ActivationCall, ...] = ()
    _described: str = "[]"
    _observer: TorchFunctionMode

    def __init_subclass__(cls) -> None:
        """Call nothing: the class below may register its subclasses."""

    def _set_calls(self, calls: tuple[ActivationCall, ...]) -> None:
        self._calls = calls
        self._described = json.dumps([asdict(call) for call in calls])

    def __prepare_scriptable__(self) -> None:
        raise UserError(
            f"TorchScript cannot compile {self._base.__name__}, in which calls of functions were replaced: freeze the "
            "activations, and give torch.fx.symbolic_trace(net) to torch.jit.script, or use torch.jit.trace."
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so that pickle and copy cannot find it by its name.
        return _new_intercepted, (self._base,), self.__getstate__()


def _new_intercepted(base: Any) -> nn.Module:
    made = _intercepting(base)
    new: nn.Module = made.__new__(made)
    return new


@cache
def _intercepting(base: Any) -> Any:
    """Return a class that intercepts the forward of `base`."""

    @wraps(base.forward)
    def forward(self: _Intercepted, *args: Any, **kwargs: Any) -> Any:
        with Interceptor(self):
            if not torch.compiler.is_compiling() and (tracer := _tracer_of(args, kwargs)) is not None:
                with _method_calls_shown(tracer):
                    return _run(base, self, args, kwargs)
            return _run(base, self, args, kwargs)

    body = {"forward": forward, "_base": base, "__module__": base.__module__, "__qualname__": base.__qualname__}
    # Not the metaclass's own constructor, which may register classes.
    make: Any = ABCMeta.__new__ if isinstance(base, ABCMeta) else type.__new__
    return make(type(base), base.__name__, (_Intercepted, base), body)


def _change_class(owner: nn.Module, change: Any) -> None:
    """Replace the class of `owner` by `change` of it; of a parametrized module, the class below torch's own."""
    cls = type(owner)
    if is_parametrized(owner):
        body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        owner.__class__ = type(cls.__name__, (change(cls.__bases__[0]),), body)
    else:
        owner.__class__ = change(cls)


def _run(base: Any, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return base.forward(owner, *args, **kwargs)


# A forward is compiled as a whole, as a part of what calls it, or not at all: where the compiler gives up on it, it
# would resume with pieces of it, whose instructions have other offsets.
try:
    _compiler = torch._C._dynamo.eval_frame
    _compiler.set_code_exec_strategy(
        _run.__code__, _compiler._FrameExecStrategy(_compiler._FrameAction.SKIP, _compiler._FrameAction.SKIP)
    )
# torch does not promise that every version has them.
except AttributeError as error:
    log.warning(
        "With this version of torch, a forward that torch.compile breaks into pieces may keep some of its original "
        "activations there: compile with fullgraph=True (%s)",
        error,
    )


def _tracer_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TracerBase | None:
    """Return the tracer of torch.fx that a forward is called by, if any."""
    return next((value.tracer for value in (*args, *kwargs.values()) if isinstance(value, Proxy)), None)


@contextmanager
def _method_calls_shown(tracer: TracerBase) -> Iterator[None]:
    """Within the block, let function modes see method calls, x.relu(), that torch.fx traces, as in a forward."""
    if "create_proxy" in vars(tracer):
        # An owner around this one has done so.
        yield
        return
    create = tracer.create_proxy

    def create_proxy(kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        if kind != "call_method" or not torch._C._is_torch_function_mode_enabled():
            return create(kind, target, args, kwargs, *more, **options)

        @wraps(getattr(Tensor, target), updated=())
        def method(*args: Any, **kwargs: Any) -> Any:
            return create(kind, target, args, kwargs, *more, **options)

        return handle_torch_function(method, args[:1], *args, **kwargs)

    vars(tracer)["create_proxy"] = create_proxy
    try:
        yield
    finally:
        del vars(tracer)["create_proxy"]


@contextmanager
def _without_modes() -> Iterator[None]:
    """Within the block, no function mode sees a call, while the proxies of torch.fx still do."""
    with ExitStack() as stack:
        for _ in range(_len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())
        yield


def _check_programs(owner: nn.Module, path: CallPath) -> None:
    """Raise if a function on a call path has another program now; functions that cannot be looked up are skipped."""
    for frame in path:
        code = _forward_code(owner)
        if code is None or code.co_qualname != frame.function:
            code = _code_named(frame.function, type(owner))
        if code is not None and code.co_qualname == frame.function:
            check_same_program(frame, code)


def _code_named(function: str, cls: type) -> CodeType | None:
    """Return the code of a function by its qualified name, from the modules in which a class and its bases are."""
    for module in dict.fromkeys(base.__module__ for base in cls.__mro__):
        found: Any = sys.modules.get(module)
        for name in function.split("."):
            found = getattr(found, name, None)
        code = getattr(unwrap(found), "__code__", None) if callable(found) else None
        if isinstance(code, CodeType):
            return code
    return None


def _module_at(net: nn.Module, path: str) -> nn.Module:
    try:
        return net.get_submodule(path)
    except AttributeError:
        raise UserError(f"The network has no module at {path!r}, whose forward called an activation.") from None
