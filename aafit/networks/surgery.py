"""Replace the activations of any torch network by others, and restore them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError, check_name
from aafit.networks.find import (
    Seen,
    activation_name,
    find_module,
    is_activation,
    is_elementwise,
    match_activations,
    observe,
)

Sharing = Literal["layer", "channel", "neuron"]
SHARINGS: tuple[Sharing, ...] = ("layer", "channel", "neuron")
Replacement = nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True)
class Replaced:
    """An activation that was replaced; `calls` in one forward of the sample, None where no sample was given."""

    path: str
    old: str
    new: str
    calls: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """A module that looks like an activation and was left as it was."""

    path: str
    name: str
    reason: str


@dataclass(frozen=True)
class Swap:
    """What `replace_activations` did: prints as a table, and leads back."""

    rows: tuple[Replaced, ...]
    kept: tuple[Kept, ...]
    originals: Mapping[str, nn.Module] = field(repr=False, compare=False)

    def restore(self, net: nn.Module) -> nn.Module:
        """The same as `restore_activations(net, self)`."""
        return restore_activations(net, self)

    def __str__(self) -> str:
        replaced = [
            (row.path, row.old, row.new, "not counted" if row.calls is None else str(row.calls), str(row.shape))
            for row in self.rows
        ]
        text = _table(("replaced", "old", "new", "calls", "parameter shape"), replaced)
        if self.kept:
            kept = [(row.path, row.name, row.reason) for row in self.kept]
            text += "\n\n" + _table(("not replaced", "class", "why"), kept)
        return text


def replace_activations(
    model: nn.Module,
    replacements: Mapping[str, Replacement],
    sharing: Sharing = "layer",
    sample: Tensor | tuple[Tensor, ...] | None = None,
) -> tuple[nn.Module, Swap]:
    """A copy of `model` with other activations, and the report of what was replaced, what was not, and why.

    `model` itself is left as it was. Only activations that are modules can be found: one that `forward` calls as a
    function (`F.relu(x)`) is invisible, and is neither among the replaced nor among the kept.

    Args:
        model: any network.
        replacements: what to replace by what. A key is a class name ("ReLU"), the path of a module ("act7",
            "layer1.0.relu"), or a pattern of paths ("features.*", where `*` also spans dots) that sees elementwise
            activations only. A value is an adaptive activation (each layer gets its own copy, with parameters of the
            shape that `sharing` asks for), another module (copied), or a function that is called as
            `make(shape=...)` for each layer in the order of the model, for starts that are drawn at random.
        sharing: what has parameters of its own: the whole "layer" (shape (1,)), each "channel" ((C, 1, 1), or (F,)
            after a fully connected layer), or each "neuron" (the layer's input without its batch axis).
        sample: an input of the model (a tuple where it takes several). One forward of a copy in eval mode counts the
            calls and sees the shapes: needed to share by channel or neuron, and to notice a module called twice.

    Raises:
        UserError: a key that matches nothing; a module matched by two keys, or that is not an elementwise activation;
            one module object at several paths, or called several times; a forward of the sample that fails; sharing
            by channel or neuron without a sample.
    """
    check_name("sharing", sharing, SHARINGS)
    if sharing != "layer" and sample is None:
        raise UserError(f"Sharing by {sharing} needs the layers' shapes: give an input of the network as sample=.")
    key_of = match_activations(model, replacements)
    seen = observe(model, sample, key_of) if sample is not None else {}
    net = deepcopy(model)
    rows: list[Replaced] = []
    originals: dict[str, nn.Module] = {}
    for path, key in key_of.items():
        look = seen.get(path)
        if look and look.calls > 1:
            raise UserError(
                f"{path!r} ({activation_name(model.get_submodule(path))}) is called {look.calls} times in one forward: "
                "each call needs an activation of its own, so give the network a module for each."
            )
        shape = _parameter_shape(path, sharing, look)
        new = _make(key, replacements[key], shape)
        old = originals[path] = put_activation(net, path, new, look)
        calls = None if sample is None else look.calls if look else 0
        rows.append(Replaced(path, activation_name(old), activation_name(new), calls, shape))
    kept = [
        Kept(path, activation_name(module), "no key matches it" if is_elementwise(module) else "not elementwise")
        for path, module in model.named_modules(remove_duplicate=False)
        if is_activation(module) and path not in key_of
    ]
    return net, Swap(tuple(rows), tuple(kept), originals)


def restore_activations(net: nn.Module, swap: Swap) -> nn.Module:
    """A copy of `net` with the activations that `swap` had replaced, as they were, bit for bit.

    Raises:
        UserError: `net` has no module at one of the paths.
    """
    restored = deepcopy(net)
    for path, original in swap.originals.items():
        find_module(restored, path)
        put_activation(restored, path, deepcopy(original))
    return restored


def put_activation(net: nn.Module, path: str, new: nn.Module, like: Seen | None = None) -> nn.Module:
    """Put `new` at `path` of `net`, in place, and return what was there.

    Its training flag becomes that of the old module; its device and dtype those of `like`, or else of the first
    floating-point tensor of the old module or of the nearest module around it that has one.
    """
    old = net.get_submodule(path)
    device, dtype = (like.device, like.dtype) if like else _device_and_dtype(net, path)
    net.set_submodule(path, new.to(device=device, dtype=dtype).train(old.training))
    return old


def _make(key: str, replacement: Replacement, shape: tuple[int, ...]) -> nn.Module:
    if isinstance(replacement, AdaptiveActivation):
        return replacement.reshaped(shape)
    if isinstance(replacement, nn.Module):
        return deepcopy(replacement)
    if isinstance(replacement, type) or not callable(replacement):
        raise UserError(
            f"{key!r} is to be replaced by {replacement!r}: give a module, as LEAF.like('ReLU') or nn.SiLU(), "
            "or a function that is called as make(shape=...)."
        )
    made = replacement(shape=shape)
    if not isinstance(made, nn.Module):
        raise UserError(f"The function given for {key!r} returned {made!r} for shape={shape}: let it return a module.")
    return made


def _parameter_shape(path: str, sharing: Sharing, look: Seen | None) -> tuple[int, ...]:
    if sharing == "layer":
        return (1,)
    if look is None:
        raise UserError(f"The forward of the sample does not call {path!r}, so its shape is unknown: share by layer.")
    rank = len(look.shape)
    if rank < 2:
        raise UserError(f"{path!r} receives a tensor of shape {look.shape}: give a sample with a batch axis.")
    if sharing == "neuron":
        return look.shape[1:]
    if rank == 3:
        raise UserError(
            f"{path!r} receives a tensor of shape {look.shape}, where the channels may be the second axis or the last: "
            "share by layer or by neuron."
        )
    return (look.shape[1], *[1] * (rank - 2))


def _device_and_dtype(net: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    while True:
        around = net.get_submodule(path)
        for tensor in (*around.parameters(), *around.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        if not path:
            return None, None
        path = path.rpartition(".")[0]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
