"""Where in a network's program a call stands: what the frames of Python say of it.

A place is the function that the call stands in with the offset of its instruction, and the same of the calls that lead
there from the forward of its owner. A site is a call that was given a module of its own.
"""

import hashlib
import linecache
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from inspect import unwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
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


@dataclass(frozen=True)
class CallSites:
    """The sites of one owner.

    Attributes:
        order: For every call in turn, the name of its module, or None where it has none. None instead of a tuple where
            the order is not known, or not the same each time.
    """

    sites: tuple[Site, ...] = ()
    order: tuple[str | None, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "CallSites":
        """What `as_dict` gave."""
        sites = (Site(**{**site, "place": tuple(Step(**step) for step in site["place"])}) for site in content["sites"])
        return cls(tuple(sites), None if content["order"] is None else tuple(content["order"]))


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
    return tuple(Step(frame.f_code.co_qualname, frame.f_lasti, digest(frame.f_code)) for frame in frames)


def site_at(sites: tuple[Site, ...], frames: list[FrameType]) -> str | None:
    """The name of the site whose call these frames are making; None where it is none of `sites`."""
    code, offset = frames[0].f_code, frames[0].f_lasti
    there = [site for site in sites if site.place[0].function == code.co_qualname]
    here = [site for site in there if site.place[0].offset == offset]
    # The hash of a program takes long; all sites of one function are of one program, but "<lambda>" is no name of one.
    if code.co_name.startswith("<"):
        here = [site for site in here if site.place[0].digest == digest(code)]
    elif there:
        check_same_program((here or there)[0].place[0], code)
    if not here:
        return None
    place = place_of(frames)
    return next((site.name for site in here if site.place == place[: len(site.place)]), None)


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
