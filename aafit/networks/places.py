"""Where in a network's program a call stands: what the frames of Python say of it.

A place is the function that the call stands in with the offset of its instruction, and the same of the calls that lead
there from the forward of its owner. A site is a call that was given a module of its own: at its place, of its function
with its options. A place at which a program calls now one function and now another is as many sites.
"""

import hashlib
import json
import linecache
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from inspect import unwrap
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aafit.errors import UserError

_OWN_FOLDER = Path(__file__).parent
_TORCH = f"{Path(torch.__file__).parent}/"
_ITS_NETWORKS = f"{_TORCH}nn/modules/"
_NO_NETWORKS = tuple(f"{_ITS_NETWORKS}{name}.py" for name in ("module", "activation"))
_CALLS_FORWARDS = (f"{_ITS_NETWORKS}module.py", str(_OWN_FOLDER / "call_sites.py"))
_OURS = (
    *(str(_OWN_FOLDER / name) for name in ("places.py", "call_sites.py", "observe.py", "probe.py", "frozen_prefix.py")),
    f"{_OWN_FOLDER.with_name('activations')}/",
)


@dataclass(frozen=True)
class Step:
    """Where a call stands: the name of its function in the program, the instruction's offset, and the code's digest."""

    function: str
    offset: int
    digest: str


Place = tuple[Step, ...]
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
    place: Place
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
        sites = (Site(**{**site, "place": tuple(Step(**step) for step in site["place"])}) for site in content["sites"])
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


def place_of(frames: Iterable[FrameType]) -> Place:
    """The place of the call that these frames are making."""
    return tuple(
        Step(frame.f_code.co_qualname, _instruction(frame.f_code, frame.f_lasti)[0], digest(frame.f_code))
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


def _leads_here(place: Place, at: list[tuple[CodeType, int]]) -> bool:
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


def check_same_program(step: Step, code: CodeType) -> None:
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
