"""Errors that a user can cause: each is one clear sentence."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, with which value, and what to do.

    A ValueError, so that library users need not know this class; the command line prints the message without a
    traceback and exits with code 2.
    """


def nearest(value: str, valid: Iterable[str]) -> str:
    """A hint for a name that is not valid: "Did you mean 'X'?" where one is near, and the list of those there are."""
    names = list(valid)
    if not names:
        return "There is none to choose from."
    close = get_close_matches(str(value).lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    meant = next((name for name in names if close and name.lower() == close[0]), None)
    listed = f"Valid: {', '.join(names)}."
    return f"Did you mean {meant!r}? {listed}" if meant else listed


def check_name(what: str, value: str, valid: Iterable[str]) -> str:
    """`value` if it is one of `valid`.

    Raises:
        UserError: it is not; the message names the nearest valid one.
    """
    names = list(valid)
    if value not in names:
        raise UserError(f"Unknown {what} {value!r}. {nearest(value, names)}")
    return value


def check_count(what: str, value: int, least: int = 1) -> int:
    """`value` if it is a whole number that is not below `least`.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"The {what} must be a whole number of at least {least}; got {value!r}.")
    return value


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Say of imports that fail within it which extra of the package installs what is missing.

    Raises:
        ImportError: a package is missing; the message names it, and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise ImportError(f"{what} needs the package {missing}: pip install 'aafit[{extra}]'.", name=missing) from error
