"""Select the activations that the keys of a replacement match, and the shape that the new parameters have."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from aafit.activations.elementwise import broadcasts
from aafit.errors import UserError, check_name, nearest
from aafit.networks.call_sites import SharedModuleProxy
from aafit.networks.find import NOT_SAMPLED, Found, FoundActivation
from aafit.networks.kinds import FUNCTIONS, cannot_be_elementwise, function_name, is_activation
from aafit.networks.running import forward_of_sample, probe_of, receiving

Sharing = Literal["layer", "channel", "neuron"]
SHARINGS: tuple[Sharing, ...] = ("layer", "channel", "neuron")
Sharings = Sharing | Mapping[Any, Sharing]
"""One sharing for all activations, or one for each key of the replacements; "layer" for a key that is not in it."""

Key = str | type[nn.Module] | Callable[[FoundActivation], bool]
AFTER = "after "
EVERYTHING = "*"
KEYS = (
    'A key is a kind ("ReLU"), a class (nn.ReLU), a path ("act1"), a pattern of paths ("features.*"), the layer before '
    '("after conv"), or a function of a FoundActivation that returns whether it matches.'
)


def sharing_by_key(sharing: Sharings, keys: Iterable[Any]) -> dict[Any, Sharing]:
    """Return the sharing of each key of the replacements.

    Raises:
        UserError: `sharing` has a key that the replacements do not have, or a value that is no sharing.
    """
    keys = list(keys)
    if not isinstance(sharing, Mapping):
        check_name("sharing", sharing, SHARINGS)
        return dict.fromkeys(keys, sharing)
    for key, value in sharing.items():
        if key not in keys:
            raise UserError(
                f"The sharing names {describe_key(key)}, which is no key of the replacements: they have "
                f"{', '.join(map(describe_key, keys))}."
            )
        check_name(f"sharing of {describe_key(key)}:", value, SHARINGS)
    return {key: sharing.get(key, "layer") for key in keys}


def parameter_shape(row: FoundActivation, sharing: Sharing, channel_axis: int | None) -> tuple[int, ...]:
    """Return the shape of a parameter of the activation that replaces `row`, see `replace_activations`.

    Raises:
        UserError: the layer's shape is not known, it has no batch axis, or the axis of its channels is not determined.
    """
    if sharing == "layer":
        return (1,)
    if row.shape is None:
        raise UserError(
            f"The forward of the sample does not call {row.path!r}, so its shape is unknown: share by layer."
        )
    rank, receives = len(row.shape), f"{row.path!r} receives a tensor of shape {row.shape}"
    if rank < 2 or row.channel_axis == 0:
        raise UserError(f"{receives}, which has no batch axis: give a sample with a batch axis.")
    if sharing == "neuron":
        return row.shape[1:]
    axis = channel_axis if row.channel_axis is None else row.channel_axis
    if axis is None:
        raise UserError(
            f"{receives}, and the layer before it does not determine the axis of the channels: give channel_axis=, or "
            "share by layer or by neuron."
        )
    if not (-rank < axis < rank and axis % rank > 0):
        raise UserError(f"{receives}, which has no channel_axis {axis}: give 1 to {rank - 1}, or -1 for the last.")
    return (row.shape[axis], *[1] * (rank - 1 - axis % rank))


def check_inputs_fit(net: nn.Module, sample: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless parameters of these shapes, by path, fit all inputs of each activation for the sample.

    Raises:
        UserError: an activation receives several shapes, as one that is called after layers of different widths does.
    """
    probe = probe_of(net)

    def see(path: str, u: Tensor) -> None:
        if not broadcasts(shapes[path], u):
            raise UserError(
                f"{path!r} receives tensors of several shapes, such as {tuple(u.shape)}, and parameters of shape "
                f"{shapes[path]} do not fit them all: share by layer, or do not replace it."
            )

    forward_of_sample(probe, sample, receiving(probe, shapes, see))


def check_keys(replacements: Any) -> None:
    """Raise unless `replacements` is a mapping with keys that can match.

    Raises:
        UserError: it is no mapping, or one of its keys has another form.
    """
    if not hasattr(replacements, "keys"):
        raise UserError(
            f"The replacements are a {type(replacements).__name__}: give a dictionary from keys to new activations, as "
            '{"ReLU": LEAF.like("ReLU")}.'
        )
    for key in replacements:
        if isinstance(key, str):
            if key.startswith(AFTER) and not key.removeprefix(AFTER).strip():
                raise UserError(f'{key!r} names no layer: write "after conv" or "after linear".')
            continue
        module = isinstance(key, nn.Module) or (isinstance(key, type) and not issubclass(key, nn.Module))
        of_torch = (getattr(key, "__module__", None) or "torch").startswith("torch")
        if kind := FUNCTIONS.get(function_name(key)) if of_torch else None:
            raise UserError(f"The function {function_name(key)} is no key: write its kind, {kind!r}. {KEYS}")
        if module or not callable(key):
            raise UserError(f"{key!r} is no key. {KEYS}")


def named_modules_of(net: nn.Module, keys: Iterable[Key]) -> list[str]:
    """Return the paths of modules that keys name by path or class though they are not known to be activations.

    Raises:
        UserError: one of them cannot be an elementwise activation.
    """
    texts = {key for key in keys if isinstance(key, str)}
    classes = tuple(key for key in keys if isinstance(key, type))
    paths = []
    for path, module in net.named_modules():
        named = isinstance(module, classes) or path in texts or type(module).__name__ in texts
        if named and path and not is_activation(module):
            if cannot_be_elementwise(module):
                raise UserError(
                    f"{path!r} is a {type(module).__name__}, not an elementwise activation: only those can be replaced."
                )
            paths.append(path)
    return paths


def select(net: nn.Module, found: Found, keys: Iterable[Key]) -> dict[str, Key]:
    """Return the key of each activation to replace, by its path, in the order of `found`.

    If several keys match one, its own path comes before all others, and "*" after all.

    Raises:
        UserError: there is no key, a key matches nothing, two keys match one activation, or an activation that matches
            cannot be replaced.
    """
    wanted = list(keys)
    paths, names = ({key for row in found for key in own(row)} for own in (_paths_of, _names_of))
    # A text that is only a path matches that row alone: it is looked up, so that thousands of paths stay fast.
    general = [key for key in wanted if not isinstance(key, str) or key not in paths or key in names]
    texts = {key for key in wanted if isinstance(key, str)}
    keys_of: dict[str, list[Key]] = {}
    used: set[Key] = set()
    for row in found:
        own = dict.fromkeys([key for key in _paths_of(row) if key in texts] + general)
        matching = [key for key in own if (not row.gate or _reaches_gates(key, row)) and _matches(key, row, net)]
        used.update(matching)
        first = min((_order(key, row) for key in matching), default=0)
        if matching:
            keys_of[row.path] = sorted((key for key in matching if _order(key, row) == first), key=wanted.index)
    unused = [key for key in wanted if key not in used]
    if unused or not wanted:
        what = (
            f"{_capitalized(describe_key(unused[0]))} matches no activation of the network."
            if unused
            else "Nothing to replace was given."
        )
        raise UserError(f"{what} {_what_there_is(net, found, unused)}")
    for path, own_keys in keys_of.items():
        row = found[path]
        if len(own_keys) > 1:
            raise UserError(
                f"{path!r} is matched by {' and by '.join(map(describe_key, own_keys))}: let only one key match it."
            )
        if row.refused:
            raise UserError(f"{path!r} is a {row.kind}, {row.refused}: it cannot be replaced.")
    if "" in keys_of:
        raise UserError(
            f"The network itself is a {type(net).__name__}: put it into an nn.Sequential, so that it can be replaced."
        )
    return {path: own_keys[0] for path, own_keys in keys_of.items()}


def why_skipped(row: FoundActivation) -> str:
    """Return why an activation was found and not replaced."""
    if row.refused:
        return row.refused
    return f"{row.gate}; name its path to replace it" if row.gate else "no key matches it"


def describe_key(key: Any) -> str:
    """Return a key's name in messages."""
    if isinstance(key, str):
        return repr(key)
    what = "the class" if isinstance(key, type) else "the function"
    return f"{what} {getattr(key, '__name__', 'given')}"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _paths_of(row: FoundActivation) -> tuple[str, ...]:
    return row.path, *row.aliases


def _names_of(row: FoundActivation) -> tuple[str, ...]:
    return row.kind, row.class_name


def _order(key: Key, row: FoundActivation) -> int:
    return 0 if key in _paths_of(row) else 2 if key == EVERYTHING else 1


def _reaches_gates(key: Key, row: FoundActivation) -> bool:
    return key in _paths_of(row) or not isinstance(key, (str, type))


def _matches(key: Key, row: FoundActivation, net: nn.Module) -> bool:
    """Return whether a key matches an activation, a gate or not."""
    if isinstance(key, type):
        # A class of torch matches functions too: F.relu computes what nn.ReLU does.
        of_torch = key.__module__.startswith("torch.nn.")
        return isinstance(_module_of(row, net), key) or (of_torch and key.__name__ == row.kind)
    if not isinstance(key, str):
        return not row.refused and _call_key(key, row)
    if key in _paths_of(row):
        return True
    if any(character in key for character in "*?["):
        return fnmatchcase(row.path, key) and not row.refused
    if key.startswith(AFTER):
        before = row.after[0] if row.after is not None else ""
        return not row.refused and before.lower().startswith(key.removeprefix(AFTER).lower())
    return key in _names_of(row)


def _module_of(row: FoundActivation, net: nn.Module) -> nn.Module | None:
    """Return the module that the network calls there; None if it calls a function."""
    if not row.needs_module:
        return net.get_submodule(row.path)
    assert row.call is not None
    called = net.get_submodule(row.call.called) if row.call.of_module else None
    return called.original if isinstance(called, SharedModuleProxy) else called


def _call_key(key: Callable[[FoundActivation], bool], row: FoundActivation) -> bool:
    try:
        return bool(key(row))
    # The error may be of any type: the function is the user's, and may not take a FoundActivation.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"As a key, {describe_key(key)} failed for {row.path!r} ({what}). {KEYS}") from error


def _what_there_is(net: nn.Module, found: Found, unused: list[Key]) -> str:
    listed = ", ".join(f"{row.path} ({row.kind}{', by its path only' if row.gate else ''})" for row in found)
    hint = ""
    if unused:
        gates = [row for row in found if row.gate and _matches(unused[0], row, net)]
        layers = dict.fromkeys(f"{AFTER}{row.after[0]}" for row in found if row.after is not None)
        words = dict.fromkeys(word for row in found for word in (row.kind, row.path))
        if gates:
            hint = f"It leaves {gates[0].path!r} out ({gates[0].gate}): name its path to replace it. "
        elif isinstance(unused[0], str) and words:
            hint, _, _ = nearest(unused[0], layers if unused[0].startswith(AFTER) else words).rpartition("Valid:")
    sampled = "" if found.sampled else f" {NOT_SAMPLED}"
    return f"{hint}It has: {listed or 'none'}.{sampled}"
