"""Which activations the keys of a replacement mean."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from aafit.errors import UserError, nearest
from aafit.networks.found import NOT_SAMPLED, Found, FoundActivation
from aafit.networks.kinds import is_activation

Key = str | Callable[[FoundActivation], bool]
AFTER = "after "


def named_modules_of(net: nn.Module, keys: Iterable[Key]) -> list[str]:
    """The paths of modules that keys name by path or class though they are not known to be activations.

    Raises:
        UserError: one of them cannot be an elementwise activation.
    """
    paths = []
    for path, module in net.named_modules():
        for key in keys:
            if key in (path, type(module).__name__) and path and not is_activation(module):
                if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Identity):
                    raise UserError(
                        f"{path!r} is a {type(module).__name__}, not an elementwise activation: only those can be "
                        "replaced."
                    )
                paths.append(path)
    return paths


def select(net: nn.Module, found: Found, keys: Iterable[Key]) -> dict[str, Key]:
    """The key that matches each activation to replace, by its path, in the order of `found`.

    Raises:
        UserError: no key, a key that matches nothing, an activation matched by two, or one that cannot be replaced.
    """
    wanted = list(keys)
    keys_of: defaultdict[str, list[Key]] = defaultdict(list)
    for row in found:
        for key in wanted:
            if _matches(key, row):
                keys_of[row.path].append(key)
    unused = [key for key in wanted if not any(key in used for used in keys_of.values())]
    if unused or not wanted:
        what = (
            f"{_told(unused[0])} matches no activation of the network." if unused else "Nothing to replace was given."
        )
        raise UserError(f"{what} {_what_there_is(net, found, unused)}")
    for path, used in keys_of.items():
        if len(used) > 1:
            raise UserError(f"{path!r} is matched by {' and by '.join(map(_told, used))}: let only one key match it.")
        row = found[path]
        if row.refused:
            raise UserError(f"{path!r} is a {row.kind}, {row.refused}: it cannot be replaced.")
    if "" in keys_of:
        raise UserError(
            f"The network itself is a {type(net).__name__}: put it into an nn.Sequential, so that it can be replaced."
        )
    return {path: used[0] for path, used in keys_of.items()}


def why_kept(row: FoundActivation) -> str:
    """Why an activation that could be found was left as it was."""
    if row.refused:
        return row.refused
    return f"{row.gate}; name its path to replace it" if row.gate else "no key matches it"


def _matches(key: Key, row: FoundActivation) -> bool:
    if not isinstance(key, str):
        return not row.refused and bool(key(row))
    if key == row.path or key in row.aliases:
        return True
    if any(character in key for character in "*?["):
        return fnmatchcase(row.path, key) and not row.refused and not row.gate
    if row.gate:
        return False
    if key.startswith(AFTER):
        before = row.after[0] if row.after is not None else ""
        return not row.refused and before.lower().startswith(key.removeprefix(AFTER).lower())
    return key in (row.kind, row.class_name)


def _told(key: Key) -> str:
    return repr(key) if isinstance(key, str) else f"the function {getattr(key, '__name__', 'given')}"


def _what_there_is(net: nn.Module, found: Found, unused: list[Key]) -> str:
    listed = ", ".join(f"{row.path} ({row.kind}{', a gate' if row.gate else ''})" for row in found)
    words = dict.fromkeys(word for row in found for word in (row.kind, row.path))
    hint = ""
    if unused and isinstance(unused[0], str) and words:
        hint, _, _ = nearest(unused[0], words).rpartition("Valid:")
    sampled = "" if found.sampled else f" {NOT_SAMPLED}"
    return f"{hint}It has: {listed or 'none'}.{sampled}"
