"""Replace the activations of any torch network, and restore them.

`replace_activations` finds the activations (find.py), selects those that the keys match (select.py), gives each call a
module in a copy of the network (call_sites.py), builds the new activations (build.py) and puts them there.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError, nearest
from aafit.networks.batches import tensors_in
from aafit.networks.build import (
    NewActivation,
    channel_inputs,
    fit_by_channel,
    input_histograms,
    is_fit,
    leave_out_unfittable,
    make_activation,
)
from aafit.networks.call_sites import ActivationCall, install_interceptors, remove_interceptors
from aafit.networks.find import NOT_SAMPLED, Found, FoundActivation, check_network, found_in
from aafit.networks.kinds import activation_name
from aafit.networks.running import (
    OutsideShares,
    copied,
    disable_fast_path,
    enable_fast_path,
    forward_of_sample,
    outside_text,
    probe_of,
    sharing_copy,
)
from aafit.networks.select import (
    Sharings,
    check_inputs_fit,
    check_keys,
    describe_key,
    named_modules_of,
    parameter_shape,
    select,
    sharing_by_key,
    why_skipped,
)
from aafit.tables import table

POOR_FIT = 0.05
"""A fit with a residual above this is named in the report."""


@dataclass(frozen=True)
class Replaced:
    """An activation that was replaced.

    Attributes:
        path: Its path.
        old, new: Names of the original activation and of the new one.
        calls: Number of calls in one forward of the sample; None if no sample was given.
        shape: Shape of its parameters.
        family: Class of the new module.
    """

    path: str
    old: str
    new: str
    calls: int | None
    shape: tuple[int, ...]
    family: str = ""


@dataclass(frozen=True)
class Skipped:
    """An activation that was found and not replaced, with the reason."""

    path: str
    name: str
    reason: str


@dataclass(frozen=True)
class Replacement:
    """The report of `replace_activations`: prints as a table, and restores the original activations.

    Attributes:
        rows: The replaced activations, in the order of their calls.
        skipped: The other activations, each with the reason.
        originals: The original modules, by path.
        trained: `requires_grad` of each parameter of the base network, by name.
        hooks: Number of hooks that were moved from an original module to the new one, by path.
        sampled: Whether a sample was given; without one, calls of functions are not found.
        calls: The calls that were given modules, by path of the module whose forward makes them.
        residuals: By path, the RMS error of each fit relative to the standard deviation of the original activation: on
            the bulk of the sample's inputs or on all of them, whichever is larger.
        outside: By path, the share of the sample's inputs outside the interval of an activation.
    """

    rows: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    originals: Mapping[str, nn.Module] = field(repr=False, compare=False)
    trained: Mapping[str, bool] = field(default_factory=dict, repr=False, compare=False)
    hooks: Mapping[str, int] = field(default_factory=dict)
    sampled: bool = True
    calls: Mapping[str, tuple[ActivationCall, ...]] = field(default_factory=dict, repr=False, compare=False)
    residuals: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    outside: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

    def restore(self, net: nn.Module) -> nn.Module:
        """Return `restore_activations(net, self)`."""
        return restore_activations(net, self)

    def __str__(self) -> str:
        replaced = [
            (row.path, row.old, row.new, "not counted" if row.calls is None else str(row.calls), str(row.shape))
            for row in self.rows
        ]
        text = table(("replaced", "old", "new", "calls", "parameter shape"), replaced, numbers=False)
        if self.skipped:
            skipped = [(row.path, row.name, row.reason) for row in self.skipped]
            text += "\n\n" + table(("not replaced", "kind", "why"), skipped, numbers=False)
        for path, count in self.hooks.items():
            text += f"\n\n{count} hook(s) of {path!r} were moved to the new activation."
        poor = [f"{path} {rms:.0%}" for path, rms in self.residuals.items() if POOR_FIT < rms < float("inf")]
        if poor:
            text += (
                f"\n\nPoor fits, with an RMS error on the sample above {POOR_FIT:.0%} of the standard deviation of the "
                f"original activation: {', '.join(poor)}."
            )
        if self.outside:
            text += f"\n\n{outside_text(self.outside)}"
        if self.sampled:
            return text
        in_place = [path for path, module in self.originals.items() if getattr(module, "inplace", False)]
        if in_place:
            text += (
                f"\n\n{', '.join(in_place)} worked in place: if the network uses the changed input again, its outputs "
                "differ now, which a sample would show (sample=)."
            )
        return f"{text}\n\n{NOT_SAMPLED}"


def replace_activations(
    model: nn.Module,
    replacements: Mapping[Any, NewActivation],
    sharing: Sharings = "layer",
    sample: Any = None,
    channel_axis: int | None = None,
    share_calls: bool = False,
    copy: bool = True,
) -> tuple[nn.Module, Replacement]:
    """Return a copy of `model` with other activations, and the report of what was replaced and what was not.

    `model` itself is left unchanged. With a sample, calls of functions are found as well as modules, see
    `find_activations`: a call without a module of its own gets one, a child of the module whose forward makes it, such
    as "block.relu_1". It is replaced in that forward only: a method called from outside, as net.encode(x), keeps the
    original activation. Without a sample only modules are found. A network whose outputs would change if these calls
    became modules (one works in place, and the changed input is used again) is refused.

    Args:
        model: any network.
        replacements: the new activations, by a key for those that they replace. If several keys match an activation,
            its own path comes first and "*" last; otherwise only one key may match. A key is

            - a kind ("ReLU": nn.ReLU, F.relu, x.relu(), x.clamp(min=0), ...) or the name of a class;
            - a class (nn.ReLU, which means the kind too);
            - a path ("act7", "layer1.0.relu"), the only text that matches a gate or a function of a parameter;
            - a pattern of paths ("features.*", where `*` also matches dots);
            - the layer before ("after conv", "after linear");
            - a function of a `FoundActivation` that returns whether it matches.

            A value is

            - a text, "LEAF as ReLU", "AHAF random", "F-Neuron ramp" or "SiLU"; a family alone, "LEAF", is fitted;
            - an adaptive activation: each layer gets a copy, with parameters of the shape that `sharing` asks for;
            - another module, which is copied;
            - a function called as `make(shape=...)` for each layer in the order of the calls, for random starts;
            - a class of adaptive activations, or a function of (function, histogram) as `LEAF.fit` or
              `functools.partial(FNeuron.fit, knots=34, outside="linear")`: it is fitted to the original activation,
              weighted by the histogram of its inputs in the sample. A PReLU with a slope for each channel counts as
              their mean, or by channel as one function for each. An activation that the sample does not reach is
              skipped, and refused if its path is the key; one that receives a single value is skipped by "*" and
              refused with any other key.
        sharing: what has parameters of its own: the whole "layer" (shape (1,)), each "channel" ((C, 1, 1) in
            (B, C, H, W), or (C,) in (B, H, W, C), (B, T, C) and (B, C)), or each "neuron" (the layer's input without
            its batch axis). A dictionary gives the sharing by the same keys as in `replacements`, as
            {"after conv": "channel"}; the other keys then share by layer. An F-Neuron that is fitted by channel has an
            interval for each channel, from its inputs.
        sample: an input of the model: a tensor, a tuple if it takes several, a mapping of keyword inputs, an
            `aafit.Batch`, or what a tokenizer returns. No activation is fitted to padding, see
            `aafit.networks.batches`.
        channel_axis: axis of the channels in an activation's input, the batch being axis 0; -1 is the last. Used if the
            layer before does not determine it: it is 1 after a convolution or a batch, group or instance norm and in an
            input with two axes, and the last after a linear layer.
        share_calls: let all calls of one module share one activation, instead of one for each.
        copy: whether the new network has a copy of all parameters and buffers. With False it shares those of `model`,
            so that a large network is held once: `model` keeps its activations and outputs as long as no shared
            parameter is trained, but `train_only_activations`, `tune` and `identify` freeze the parameters of both.

    Returns:
        The network with the new activations, and the report.

    Raises:
        UserError: a key matches nothing, or an activation that cannot be replaced; two keys match one activation; the
            forward of the sample fails, before or after the replacement; sharing by channel or neuron, or a fit, lacks
            a sample; the channel axis cannot be determined, or does not exist; parameters do not fit all inputs of an
            activation; the network is wrapped, scripted, compiled, exported or quantised, or cannot be copied.

    Example:
        >>> net, report = aafit.replace_activations(base, {"ReLU": aafit.LEAF.like("ReLU")}, sample=images)
        >>> print(report)
    """
    check_network(model)
    check_keys(replacements)
    sharing_of = sharing_by_key(sharing, replacements)
    for finer in set(sharing_of.values()) - {"layer"}:
        if sample is None:
            raise UserError(f"Sharing by {finer} needs the layers' shapes: give an input of the network as sample=.")
    if channel_axis is not None and (isinstance(channel_axis, bool) or not isinstance(channel_axis, int)):
        raise UserError(f"channel_axis is the number of an axis, as 1 or -1; got {channel_axis!r}.")
    found = found_in(model, sample, named_modules_of(model, replacements), share_calls)
    key_of = select(model, found, replacements)
    unfittable = {} if sample is None else leave_out_unfittable(found, key_of, replacements)
    chosen = [found[path] for path in key_of]
    new_of = {path: replacements[key] for path, key in key_of.items()}
    sharing_at = {path: sharing_of[key] for path, key in key_of.items()}
    net = copied(model) if copy else sharing_copy(model)
    calls = _give_modules(net, found, chosen)
    if sample is not None:
        _check_same_outputs(model, net, sample, chosen)
    originals = {row.path: net.get_submodule(row.path) for row in chosen}
    fits = [path for path, new in new_of.items() if is_fit(new)]
    histograms = input_histograms(net, sample, fits)
    shapes = {row.path: parameter_shape(row, sharing_at[row.path], channel_axis) for row in chosen}
    by_channel = [path for path in fits if sharing_at[path] == "channel" and fit_by_channel(new_of[path])]
    channels = channel_inputs(net, sample, {path: shapes[path] for path in by_channel})
    made = {
        row.path: make_activation(
            describe_key(key_of[row.path]),
            new_of[row.path],
            row,
            shapes[row.path],
            originals[row.path],
            histograms.get(row.path),
            channels.get(row.path),
        )
        for row in chosen
    }
    adaptive = {path: new for path, new in made.items() if isinstance(new, AdaptiveActivation)}
    if {*sharing_of.values()} != {"layer"}:
        check_inputs_fit(net, sample, {path: shapes[path] for path in adaptive})
    rows: list[Replaced] = []
    hooks: dict[str, int] = {}
    for row in chosen:
        old, new = originals[row.path], made[row.path]
        put_activation(net, row.path, new, row)
        if moved := _move_hooks(old, new):
            hooks[row.path] = moved
        name = activation_name(new)
        rows.append(Replaced(row.path, activation_name(old), name, row.calls, shapes[row.path], type(new).__name__))
    modules = dict(net.named_modules())
    for position, row in enumerate(found):
        if isinstance(activation := modules.get(row.path), AdaptiveActivation):
            activation.call_position = position
    outside = _check_forward(net, sample)
    return net, Replacement(
        tuple(rows),
        tuple(
            Skipped(row.path, row.kind, unfittable.get(row.path) or why_skipped(row))
            for row in found
            if row.path not in key_of
        ),
        originals,
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        hooks,
        sample is not None,
        calls,
        {path: new.residual.worst for path, new in adaptive.items() if path in histograms and new.residual},
        outside,
    )


def restore_activations(net: nn.Module, replacement: Replacement) -> nn.Module:
    """Return a copy of `net` with the original activations, bit-identical.

    Each parameter requires gradients as it did in the base network.

    Args:
        net: the network that `replace_activations` returned, tuned or not; it is left unchanged.
        replacement: the report that it returned.

    Raises:
        UserError: `net` is another network: it has no module at one of the paths, or one of another class.

    Example:
        >>> net, report = aafit.replace_activations(base, {"ReLU": aafit.LEAF.like("ReLU")}, sample=images)
        >>> original = aafit.restore_activations(net, report)
    """
    if not isinstance(replacement, Replacement):
        raise UserError(
            f"The report is a {type(replacement).__name__}: give the network, then the report that replace_activations "
            "returned with it."
        )
    restored = copied(net)
    for row in replacement.rows:
        there = type(find_module(restored, row.path)).__name__
        if there != row.family:
            raise UserError(
                f"{row.path!r} of this network is a {there}, not the {row.family} that was put there: give the network "
                "that replace_activations returned together with this report."
            )
        put_activation(restored, row.path, deepcopy(replacement.originals[row.path]))
        enable_fast_path(restored, row.path.rpartition(".")[0])
    remove_interceptors(restored, replacement.calls)
    for name, parameter in restored.named_parameters():
        parameter.requires_grad_(replacement.trained.get(name, parameter.requires_grad))
    return restored


def find_module(net: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`.

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
    """Put `new` at `path` of `net`, in place, and return the old module.

    `new` gets the training mode of the old module, and the device and dtype of `like`, or else of the first
    floating-point tensor of the old module or of the nearest module around it that has one. An adaptive activation gets
    the more precise of the two dtypes.
    """
    old = net.get_submodule(path)
    device, dtype = _device_and_dtype(net, path)
    if like is not None and like.dtype is not None and like.dtype.is_floating_point:
        around, device, dtype = dtype, like.device, like.dtype
        if around is not None and isinstance(new, AdaptiveActivation):
            # Autocast gives bfloat16 to a network in float32; an adaptive activation takes either.
            dtype = torch.promote_types(around, dtype)
    net.set_submodule(path, new.to(device=device, dtype=dtype).train(old.training))
    if isinstance(new, AdaptiveActivation) and not isinstance(old, AdaptiveActivation):
        new.replaced = activation_name(old) if like is None else like.kind
    return old


def _move_hooks(old: nn.Module, new: nn.Module) -> int:
    """Move the hooks of a module to its replacement, and return their number."""
    count = 0
    for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks"):
        own, moved = getattr(new, name), getattr(old, name)
        own.update(moved)
        count += len(moved)
        for flags in (f"{name}_with_kwargs", f"{name}_always_called"):
            if hasattr(old, flags):
                getattr(new, flags).update(getattr(old, flags))
    return count


def _device_and_dtype(net: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    while True:
        around = net.get_submodule(path)
        for tensor in chain(around.parameters(), around.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        if not path:
            return None, None
        path = path.rpartition(".")[0]


# --- calls as modules -----------------------------------------------------------------------------------------------


def _give_modules(
    net: nn.Module, found: Found, chosen: Iterable[FoundActivation]
) -> dict[str, tuple[ActivationCall, ...]]:
    """Make each chosen activation a module of `net`, and return the calls that were given one.

    Raises:
        UserError: a call is in the program of torch.fx.
    """
    wanted: defaultdict[str, list[ActivationCall]] = defaultdict(list)
    for row in chosen:
        if row.needs_module:
            assert row.call is not None
            wanted[row.call.owner].append(row.call)
        disable_fast_path(net, row.path.rpartition(".")[0])
    # All owners are intercepted then, so that no call of one is taken for a call of an owner around it.
    calls = {owner: tuple(wanted[owner]) for owner in (found.owners if wanted else ())}
    install_interceptors(net, calls)
    return calls


def _check_same_outputs(model: nn.Module, net: nn.Module, sample: Any, chosen: Iterable[FoundActivation]) -> None:
    """Raise unless the outputs for the sample are the same now that the chosen activations are modules.

    Raises:
        UserError: they are not.
    """
    rows = [row for row in chosen if row.needs_module or row.in_place]
    if not rows:
        return
    base, probe = probe_of(model), probe_of(net)
    for row in rows:
        if row.in_place:
            vars(probe.get_submodule(row.path))["inplace"] = False
    before, after = (tensors_in(forward_of_sample(own, sample)) for own in (base, probe))
    same = len(before) == len(after) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        for one, other in zip(before, after, strict=True)
    )
    if not same:
        in_place = ", ".join(row.path for row in rows if row.in_place)
        why = (
            f"{in_place} work in place, and the network uses the changed input again: make them not work in place "
            "(inplace=False)"
            if in_place
            else f"its calls at {', '.join(row.path for row in rows)} do more than compute a function of their input"
        )
        raise UserError(f"With its activations as modules the network gives other outputs for the sample: {why}.")


def _check_forward(net: nn.Module, sample: Any) -> dict[str, float]:
    """Run the finished network on the sample; without one, warn of forwards that may not use the new activations.

    Returns:
        The share of the inputs outside the interval of each activation that has one, by path.

    Raises:
        UserError: the network fails with its new activations.
    """
    if sample is not None:
        probe = probe_of(net)
        outside = OutsideShares(probe)
        try:
            forward_of_sample(probe, sample, outside.counting())
        except UserError as error:
            raise UserError(f"With the new activations the network no longer runs. {error}") from error
        return outside.shares()
    for path, module in net.named_modules():
        # A method is bound to the copy; a function keeps the objects that it was defined with.
        if isinstance(vars(module).get("forward"), FunctionType):
            warnings.warn(
                f"The forward of {path or 'the network'!r} was set on the object, and may call modules of the original "
                "network instead of those of the copy: give a sample (sample=), with which that is noticed.",
                stacklevel=3,
            )
    return {}
