"""Replace the activations of any torch network by others, and restore them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError, check_name
from aafit.networks.find import (
    activation_name,
    find_module,
    is_activation,
    is_elementwise,
    match_activations,
)
from aafit.networks.observe import Observation, Seen, observe
from aafit.tables import table

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
    family: str = ""
    """The class of the new module."""


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
    trained: Mapping[str, bool] = field(default_factory=dict, repr=False, compare=False)
    """requires_grad of each parameter of the base network."""
    hooks: Mapping[str, int] = field(default_factory=dict)
    """How many hooks of a replaced module were carried over to what took its place, by path."""
    sampled: bool = True

    def restore(self, net: nn.Module) -> nn.Module:
        """The same as `restore_activations(net, self)`."""
        return restore_activations(net, self)

    def __str__(self) -> str:
        replaced = [
            (row.path, row.old, row.new, "not counted" if row.calls is None else str(row.calls), str(row.shape))
            for row in self.rows
        ]
        text = table(("replaced", "old", "new", "calls", "parameter shape"), replaced, numbers=False)
        if self.kept:
            kept = [(row.path, row.name, row.reason) for row in self.kept]
            text += "\n\n" + table(("not replaced", "class", "why"), kept, numbers=False)
        for path, count in self.hooks.items():
            text += f"\n\n{count} hook(s) of {path!r} were carried over to what took its place."
        if not self.sampled:
            text += (
                "\n\nNo sample was given: activations called as functions (F.relu), and modules called more than once, "
                "were not looked for."
            )
        return text


def replace_activations(
    model: nn.Module,
    replacements: Mapping[str, Replacement],
    sharing: Sharing = "layer",
    sample: Tensor | tuple[Tensor, ...] | None = None,
    channel_axis: int | None = None,
) -> tuple[nn.Module, Swap]:
    """A copy of `model` with other activations, and the report of what was replaced, what was not, and why.

    `model` itself is left as it was. Only activations that are modules are replaced: one that `forward` calls as a
    function (`F.relu(x)`) stays, and the report lists it, with its line, where a sample is given.

    Args:
        model: any network.
        replacements: what to replace by what. A key is a class name ("ReLU"), the path of a module ("act7",
            "layer1.0.relu"), or a pattern of paths ("features.*", where `*` also spans dots) that sees elementwise
            activations only. A value is an adaptive activation (each layer gets its own copy, with parameters of the
            shape that `sharing` asks for), another module (copied), or a function that is called as
            `make(shape=...)` for each layer in the order of the model, for starts that are drawn at random.
        sharing: what has parameters of its own: the whole "layer" (shape (1,)), each "channel" ((C, 1, 1) in
            (B, C, H, W), or (C,) in (B, H, W, C), (B, T, C) and (B, C)), or each "neuron" (the layer's input without
            its batch axis).
        sample: an input of the model (a tuple where it takes several). One forward of a copy in eval mode counts the
            calls and sees the shapes: needed to share by channel or neuron, to notice a module called twice, and to
            list the activations that are called as functions.
        channel_axis: where the channels are in what the activations receive, the batch being axis 0; -1 is the last.
            By default that of the layer before each: 1 after a convolution, the last after a linear layer.

    Raises:
        UserError: a key that matches nothing; a module matched by two keys, or that is not an elementwise activation;
            one module object at several paths, or called several times; a forward of the sample that fails; sharing
            by channel or neuron without a sample; a channel axis that cannot be told, or is not there; a network that
            is scripted.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            "The network is a ScriptModule, whose program is fixed: give the network that it was made from."
        )
    check_name("sharing", sharing, SHARINGS)
    if sharing != "layer" and sample is None:
        raise UserError(f"Sharing by {sharing} needs the layers' shapes: give an input of the network as sample=.")
    key_of = match_activations(model, replacements)
    watched = observe(model, sample, key_of) if sample is not None else Observation()
    seen = watched.modules
    net = deepcopy(model)
    rows: list[Replaced] = []
    originals: dict[str, nn.Module] = {}
    hooks: dict[str, int] = {}
    for path, key in key_of.items():
        look = seen.get(path)
        if look and look.calls > 1:
            raise UserError(
                f"{path!r} ({activation_name(model.get_submodule(path))}) is called {look.calls} times in one forward: "
                "each call needs an activation of its own, so give the network a module for each."
            )
        shape = _parameter_shape(path, sharing, look, channel_axis)
        new = _make(key, replacements[key], shape)
        old = originals[path] = put_activation(net, path, new, look)
        if carried := _carry_hooks(old, net.get_submodule(path)):
            hooks[path] = carried
        calls = None if sample is None else look.calls if look else 0
        rows.append(Replaced(path, activation_name(old), activation_name(new), calls, shape, type(new).__name__))
    kept = [
        Kept(path, activation_name(module), "no key matches it" if is_elementwise(module) else "not elementwise")
        for path, module in model.named_modules(remove_duplicate=False)
        if is_activation(module) and path not in key_of
    ]
    kept += [
        Kept(call.path, call.kind, f"called as a function {call.calls} time(s) in one forward, {call.line}")
        for call in watched.functions
    ]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return net, Swap(tuple(rows), tuple(kept), originals, trained, hooks, sample is not None)


def restore_activations(net: nn.Module, swap: Swap) -> nn.Module:
    """A copy of `net` with the activations that `swap` had replaced, as they were, bit for bit.

    Which parameters require gradients is as it was in the base too.

    Raises:
        UserError: `net` is not the network that `swap` belongs to: it has no module at one of the paths, or another one
            than was put there.
    """
    restored = deepcopy(net)
    put = {row.path: row.family for row in swap.rows}
    for path, original in swap.originals.items():
        there = type(find_module(restored, path)).__name__
        if there != put[path]:
            raise UserError(
                f"{path!r} of this network is a {there}, not the {put[path]} that was put there: give the network that "
                "replace_activations returned together with this report."
            )
        put_activation(restored, path, deepcopy(original))
    for name, parameter in restored.named_parameters():
        parameter.requires_grad_(swap.trained.get(name, parameter.requires_grad))
    return restored


def _carry_hooks(old: nn.Module, new: nn.Module) -> int:
    """Let the hooks of a replaced module see what took its place; how many there were."""
    count = 0
    for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks"):
        own, carried = getattr(new, name), getattr(old, name)
        own.update(carried)
        count += len(carried)
        for flags in (f"{name}_with_kwargs", f"{name}_always_called"):
            if hasattr(old, flags):
                getattr(new, flags).update(getattr(old, flags))
    return count


def put_activation(net: nn.Module, path: str, new: nn.Module, like: Seen | None = None) -> nn.Module:
    """Put `new` at `path` of `net`, in place, and return what was there.

    Its training flag becomes that of the old module; its device and dtype those of `like`, or else of the first
    floating-point tensor of the old module or of the nearest module around it that has one.
    """
    old = net.get_submodule(path)
    device, dtype = (like.device, like.dtype) if like else _device_and_dtype(net, path)
    net.set_submodule(path, new.to(device=device, dtype=dtype).train(old.training))
    if isinstance(new, AdaptiveActivation) and not isinstance(old, AdaptiveActivation):
        new.replaced = activation_name(old)
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


def _parameter_shape(path: str, sharing: Sharing, look: Seen | None, channel_axis: int | None) -> tuple[int, ...]:
    if sharing == "layer":
        return (1,)
    if look is None:
        raise UserError(f"The forward of the sample does not call {path!r}, so its shape is unknown: share by layer.")
    rank, receives = len(look.shape), f"{path!r} receives a tensor of shape {look.shape}"
    if rank < 2 or look.channel_axis == 0:
        raise UserError(f"{receives}, which has no batch axis: give a sample with a batch axis.")
    if sharing == "neuron":
        return look.shape[1:]
    axis = channel_axis if channel_axis is not None else look.channel_axis if rank > 2 else 1
    if axis is None:
        raise UserError(
            f"{receives}, and the layer before it does not tell which axis the channels are: give channel_axis=, or "
            "share by layer or by neuron."
        )
    if not (-rank < axis < rank and axis % rank > 0):
        raise UserError(f"{receives}, which has no channel_axis {axis}: give 1 to {rank - 1}, or -1 for the last.")
    return (look.shape[axis], *[1] * (rank - 1 - axis % rank))


def _device_and_dtype(net: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    while True:
        around = net.get_submodule(path)
        for tensor in (*around.parameters(), *around.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        if not path:
            return None, None
        path = path.rpartition(".")[0]
