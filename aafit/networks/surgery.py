"""Replace the activations of any torch network by others, and restore them."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError, check_name, nearest
from aafit.networks.as_modules import check_same_outputs, take_fused_step, with_modules
from aafit.networks.build import NewActivation, inputs_seen, is_fit, leave_out_what_has_no_fit, make_activation
from aafit.networks.call_sites import CallSites, remove_interceptors
from aafit.networks.find import NOT_SAMPLED, FoundActivation, check_plain, found_in
from aafit.networks.kinds import activation_name
from aafit.networks.running import copied
from aafit.networks.select import (
    SHARINGS,
    Sharing,
    check_inputs_fit,
    check_keys,
    describe_key,
    named_modules_of,
    parameter_shape,
    select,
    why_kept,
)
from aafit.tables import table

POOR = 0.05
"""A fit with a residual above this is named in the report."""


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
class Skipped:
    """An activation that was left as it was."""

    path: str
    name: str
    reason: str


@dataclass(frozen=True)
class Replacement:
    """What `replace_activations` did: prints as a table, and leads back to the base network.

    Attributes:
        rows: what was replaced, in the order of the network's modules.
        kept: activations that were found and left as they were, each with its reason.
        originals: the replaced modules themselves, by path.
        trained: `requires_grad` of each parameter of the base network, by its name.
        hooks: how many hooks of a replaced module were carried over to what took its place, by path.
        sampled: whether a sample was given; without one nothing is known of calls of functions.
        calls: the calls that got modules of their own, by the path of the module whose forward makes them.
        residuals: of what was fitted, by path, the root mean squared error on the sample over the standard deviation of
            the function that stood there.
    """

    rows: tuple[Replaced, ...]
    kept: tuple[Skipped, ...]
    originals: Mapping[str, nn.Module] = field(repr=False, compare=False)
    trained: Mapping[str, bool] = field(default_factory=dict, repr=False, compare=False)
    hooks: Mapping[str, int] = field(default_factory=dict)
    sampled: bool = True
    calls: Mapping[str, CallSites] = field(default_factory=dict, repr=False, compare=False)
    residuals: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

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
            text += "\n\n" + table(("not replaced", "kind", "why"), kept, numbers=False)
        for path, count in self.hooks.items():
            text += f"\n\n{count} hook(s) of {path!r} were carried over to what took its place."
        poor = [f"{path} {rms:.0%}" for path, rms in self.residuals.items() if POOR < rms < float("inf")]
        if poor:
            text += (
                f"\n\nPoor fits, with an error above {POOR:.0%} (root mean square on the sample, over the standard "
                f"deviation of the function that stood there): {', '.join(poor)}."
            )
        if self.sampled:
            return text
        in_place = [path for path, module in self.originals.items() if getattr(module, "inplace", False)]
        if in_place:
            text += (
                f"\n\n{', '.join(in_place)} worked in place: where the network uses the changed input again, it now "
                "gives other outputs, which a sample would show (sample=)."
            )
        return f"{text}\n\n{NOT_SAMPLED}"


def replace_activations(
    model: nn.Module,
    replacements: Mapping[Any, NewActivation],
    sharing: Sharing = "layer",
    sample: Any = None,
    channel_axis: int | None = None,
    share_calls: bool = False,
) -> tuple[nn.Module, Replacement]:
    """A copy of `model` with other activations, and the report of what was replaced, what was not, and why.

    `model` itself is left as it was. With a sample, calls of functions are found as well as modules, see
    `find_activations`: a call without a module of its own gets one, a child of the module whose forward makes it, such
    as "block.relu_1". It is replaced in that forward only: in a method called from outside, as net.encode(x), it stays
    what it was. Without a sample only modules are found. A network that would compute something else with modules in
    place of these calls (one works in place, and the changed input is used again) is refused.

    Args:
        model: any network.
        replacements: what to replace by what. A key is a kind ("ReLU": nn.ReLU, F.relu, x.relu(), x.clamp(min=0), ...)
            or the name of a class; a class (nn.ReLU, which means the kind too); a path ("act7", "layer1.0.relu"); a
            pattern of paths ("features.*", where `*` also spans dots); the layer before ("after conv", "after linear");
            or a function of a `FoundActivation` that says yes or no. Where several match one activation, its own path
            comes first and "*" last; else only one may. A gate, and a function of a parameter, is matched by its path
            or by a function only. A value is an adaptive activation (each layer gets its own copy, with parameters of
            the shape that `sharing` asks for), another module (copied), a function called as `make(shape=...)` for each
            layer in the order of the calls, for starts drawn at random, or something that fits: a class of adaptive
            activations, or a function of (function, histogram) as `LEAF.fit` or
            `functools.partial(FNeuron.fit, knots=34, outside="linear")`, which is given the function that stood there
            and the histogram of its inputs in the sample. Of a PReLU with a slope for each channel that is their mean,
            or by channel that of each channel. What the sample does not reach is not fitted and stays as it is, with
            the reason, unless its own path is the key: that is refused. What receives one value only is left by "*",
            and refused with any other key.
        sharing: what has parameters of its own: the whole "layer" (shape (1,)), each "channel" ((C, 1, 1) in
            (B, C, H, W), or (C,) in (B, H, W, C), (B, T, C) and (B, C)), or each "neuron" (the layer's input without
            its batch axis).
        sample: an input of the model: a tensor, a tuple where it takes several, a mapping of keyword inputs, an
            `aafit.Batch`, or what a tokenizer gives. No activation is fitted to padding, see `aafit.networks.batches`.
        channel_axis: where the channels are in what an activation receives, the batch being axis 0; -1 is the last.
            Used where the layer before does not tell: it is 1 after a convolution or a batch, group or instance norm
            and in an input with two axes, and the last after a linear layer.
        share_calls: let all calls of one module share one activation, instead of each having its own.

    Raises:
        UserError: a key that matches nothing, or something that cannot be replaced; an activation matched by two keys;
            a forward of the sample that fails; sharing by channel or neuron, or a fit, without a sample; a channel axis
            that cannot be describe_key, or is not there; parameters that do not fit all that an activation receives; a
            network
            that is wrapped, scripted, compiled, exported or quantised, or cannot be copied.
    """
    check_name("sharing", sharing, SHARINGS)
    if sharing != "layer" and sample is None:
        raise UserError(f"Sharing by {sharing} needs the layers' shapes: give an input of the network as sample=.")
    if channel_axis is not None and (isinstance(channel_axis, bool) or not isinstance(channel_axis, int)):
        raise UserError(f"channel_axis is the number of an axis, as 1 or -1; got {channel_axis!r}.")
    check_plain(model)
    check_keys(replacements)
    found = found_in(model, sample, named_modules_of(model, replacements), share_calls)
    key_of = select(model, found, replacements)
    unfit = {} if sample is None else leave_out_what_has_no_fit(found, key_of, replacements)
    chosen = [found[path] for path in key_of]
    net, calls = with_modules(model, found, chosen)
    if sample is not None:
        check_same_outputs(model, net, sample, chosen)
    originals = {row.path: net.get_submodule(row.path) for row in chosen}
    histograms = inputs_seen(net, sample, [row.path for row in chosen if is_fit(replacements[key_of[row.path]])])
    rows: list[Replaced] = []
    hooks: dict[str, int] = {}
    shapes = {row.path: parameter_shape(row, sharing, channel_axis) for row in chosen}
    made = {
        row.path: make_activation(
            describe_key(key_of[row.path]),
            replacements[key_of[row.path]],
            row,
            shapes[row.path],
            originals[row.path],
            histograms.get(row.path),
        )
        for row in chosen
    }
    adaptive = {path: new for path, new in made.items() if isinstance(new, AdaptiveActivation)}
    if sharing != "layer":
        check_inputs_fit(net, sample, {path: shapes[path] for path in adaptive})
    residuals = {path: new.residual.rms for path, new in adaptive.items() if path in histograms and new.residual}
    for row in chosen:
        old, new = originals[row.path], made[row.path]
        put_activation(net, row.path, new, row)
        if carried := _carry_hooks(old, new):
            hooks[row.path] = carried
        name = activation_name(new)
        rows.append(Replaced(row.path, activation_name(old), name, row.calls, shapes[row.path], type(new).__name__))
    reasons = {row.path: unfit.get(row.path) or why_kept(row) for row in found if row.path not in key_of}
    kept = [Skipped(row.path, row.kind, reasons[row.path]) for row in found if row.path in reasons]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return net, Replacement(tuple(rows), tuple(kept), originals, trained, hooks, sample is not None, calls, residuals)


def restore_activations(net: nn.Module, swap: Replacement) -> nn.Module:
    """A copy of `net` with the activations that `swap` had replaced, as they were, bit for bit.

    Which parameters require gradients is as it was in the base too.

    Raises:
        UserError: `net` is not the network that `swap` belongs to: it has no module at one of the paths, or another one
            than was put there.
    """
    restored = copied(net)
    for row in swap.rows:
        there = type(find_module(restored, row.path)).__name__
        if there != row.family:
            raise UserError(
                f"{row.path!r} of this network is a {there}, not the {row.family} that was put there: give the network "
                "that replace_activations returned together with this report."
            )
        put_activation(restored, row.path, deepcopy(swap.originals[row.path]))
        take_fused_step(restored, row.path.rpartition(".")[0])
    remove_interceptors(restored, swap.calls)
    for name, parameter in restored.named_parameters():
        parameter.requires_grad_(swap.trained.get(name, parameter.requires_grad))
    return restored


def find_module(net: nn.Module, path: str) -> nn.Module:
    """The module at `path`.

    Raises:
        UserError: there is none; the message names the nearest path of an activation.
    """
    try:
        return net.get_submodule(path)
    except AttributeError:
        there = [row.path for row in found_in(net, None)]
        hint = nearest(path, there) if there else "It has no activation that is a module."
        raise UserError(f"The network has no module at {path!r}. {hint}") from None


def put_activation(net: nn.Module, path: str, new: nn.Module, like: FoundActivation | None = None) -> nn.Module:
    """Put `new` at `path` of `net`, in place, and return what was there.

    Its training flag becomes that of the old module; its device and dtype those of `like`, or else of the first
    floating-point tensor of the old module or of the nearest module around it that has one. An adaptive activation
    takes the more precise of the two dtypes.
    """
    old = net.get_submodule(path)
    device, dtype = _device_and_dtype(net, path)
    if like is not None and like.seen is not None and like.seen.dtype.is_floating_point:
        around, device, dtype = dtype, like.seen.device, like.seen.dtype
        if around is not None and isinstance(new, AdaptiveActivation):
            # Autocast gives bfloat16 to what has parameters in float32; an adaptive activation takes either.
            dtype = torch.promote_types(around, dtype)
    net.set_submodule(path, new.to(device=device, dtype=dtype).train(old.training))
    if isinstance(new, AdaptiveActivation) and not isinstance(old, AdaptiveActivation):
        new.replaced = activation_name(old) if like is None else like.kind
    return old


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


def _device_and_dtype(net: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    while True:
        around = net.get_submodule(path)
        for tensor in (*around.parameters(), *around.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        if not path:
            return None, None
        path = path.rpartition(".")[0]
