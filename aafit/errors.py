"""Errors that a user can cause: each is one clear sentence."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

LARGEST = 1 << 53
"""The largest valid count or weight: every integer up to it is exactly a float64."""


class UserError(ValueError):
    """An input that cannot be used; the message says what was wrong, with which value, and what to do.

    It is a ValueError, so that library users need not know this class. The command line prints the message without a
    traceback and exits with code 2.
    """


class Stopped(KeyboardInterrupt):
    """Ctrl-C during `identify`, `tune` or `study`; the message says what was kept and how to resume.

    Attributes:
        state: The last state of an identification, for `identify(..., state=)`; None for the others.

    Example:
        >>> try:  # doctest: +SKIP
        ...     found = aafit.identify(net, batches)
        ... except aafit.Stopped as stopped:
        ...     state = stopped.state
        >>> found = aafit.identify(net, batches, state=state)  # doctest: +SKIP
    """

    def __init__(self, message: str, state: Any = None) -> None:
        super().__init__(message)
        self.state = state


def nearest(value: str, valid: Iterable[str]) -> str:
    """Return a hint for a name that is not valid: "Did you mean 'X'?" if one is similar, and the list of valid ones."""
    names = list(valid)
    if not names:
        return "There is none to choose from."
    close = get_close_matches(str(value).lower()[:200], [name.lower() for name in names], n=1, cutoff=0.5)
    meant = next((name for name in names if close and name.lower() == close[0]), None)
    listed = f"Valid: {', '.join(names)}."
    return f"Did you mean {meant!r}? {listed}" if meant else listed


def short_message(error: Exception) -> str:
    """Return the first line of an error's message, without a final period; the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")


def check_name(what: str, value: str, valid: Iterable[str]) -> str:
    """Return `value` if it is one of `valid`.

    Raises:
        UserError: it is not; the message names the most similar valid one.
    """
    names = list(valid)
    if value not in names:
        shown = repr(value) if len(repr(value)) <= 120 else f"{repr(value)[:100]}..."
        raise UserError(f"Unknown {what} {shown}. {nearest(value, names)}")
    return value


def check_line(value: str) -> str:
    """Return `value` if it is one line of at most 300 printable characters.

    What is printed, written into tables and put into commands must not end a line or control a terminal.

    Raises:
        UserError: it is longer, or has a line break or another control character.
    """
    if len(value) > 300:
        raise UserError(f"{value[:40]!r}... has {len(value):,} characters: use at most 300.")
    bad = next((character for character in value if not character.isprintable()), None)
    if bad is not None:
        raise UserError(f"{value!r} contains the character {bad!r}: use printable characters on one line.")
    return value


def check_count(what: str, value: int, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        most = f" and at most {LARGEST}" if isinstance(value, int) and value > LARGEST else ""
        raise UserError(f"The {what} must be an integer of at least {least}{most}; got {value!r}.")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a finite real number: no bool, and no integer above the range of floats."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def check_seed(value: int) -> int:
    """Return `value` if it is a seed that torch takes.

    Raises:
        UserError: it is not an integer, or has more than 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
        raise UserError(f"The seed must be an integer of at most 64 bits; got {value!r}.")
    return value


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn a failing import in this block into a message that names the extra of the package to install.

    Raises:
        ImportError: a package is missing; the message names it and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise ImportError(f"{what} needs the package {missing}: pip install 'aafit[{extra}]'.", name=missing) from error
