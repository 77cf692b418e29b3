"""A network with its activations as modules: what replacement, comparison and matching by layer build on."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.call_sites import CallSites, Site, call_sites, install_interceptors, remove_interceptors
from aafit.networks.find import Found, FoundActivation
from aafit.networks.running import copied, forward_of_sample, probe_of


def with_modules(
    model: nn.Module, found: Found, chosen: Iterable[FoundActivation]
) -> tuple[nn.Module, dict[str, CallSites]]:
    """A copy of `model` in which each of the chosen activations is a module, and the calls that were given one.

    Raises:
        UserError: it cannot be copied, or a call is in the program of torch.fx.
    """
    net = copied(model)
    sites: dict[str, tuple[Site, ...]] = {}
    for row in chosen:
        owner = row.path.rpartition(".")[0]
        if row.site is not None:
            sites[owner] = (*sites.get(owner, ()), row.site)
        leave_fused_step(net, owner)
    # Every owner is watched then, so that the calls of one are never taken for those of another around it.
    owners = found.owners if sites else ()
    calls = {owner: CallSites(sites.get(owner, ())) for owner in owners}
    install_interceptors(net, calls)
    return net, calls


def with_matching_modules(base: nn.Module, net: nn.Module) -> nn.Module:
    """A copy of `base` in which the calls that have modules of their own in `net` have such modules too.

    It computes what `base` does, and has an activation at every path at which `net`, made from it, has one. Where all
    of them are modules in `base` already, it is `base` itself.

    Raises:
        UserError: `net` was made from another network.
    """
    opened = call_sites(base)
    wanted = {path: calls for path, calls in call_sites(net).items() if calls != opened.get(path)}
    if not wanted:
        return base
    twin = deepcopy(base)
    remove_interceptors(twin, opened)
    install_interceptors(twin, call_sites(net))
    for path in call_sites(net):
        leave_fused_step(twin, path)
    return twin


def check_same_outputs(model: nn.Module, net: nn.Module, sample: Any, chosen: Iterable[FoundActivation]) -> None:
    """Check that the network gives for the sample what it gave, now that the chosen activations are modules.

    Raises:
        UserError: it does not.
    """
    rows = [row for row in chosen if row.site is not None or works_in_place(row)]
    if not rows:
        return
    base, twin = probe_of(model), probe_of(net)
    for row in rows:
        if works_in_place(row):
            vars(twin.get_submodule(row.path))["inplace"] = False
    before, after = (list(_tensors(forward_of_sample(own, sample))) for own in (base, twin))
    same = len(before) == len(after) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        for one, other in zip(before, after, strict=True)
    )
    if not same:
        in_place = ", ".join(row.path for row in rows if works_in_place(row))
        why = (
            f"{in_place} work in place, and the network goes on with the input that they changed: let them not "
            "(inplace=False)"
            if in_place
            else f"its calls at {', '.join(row.path for row in rows)} do more than compute a function of their input"
        )
        raise UserError(f"With its activations as modules the network gives other outputs for the sample: {why}.")


def works_in_place(row: FoundActivation) -> bool:
    """Whether a call changes its input."""
    return row.seen is not None and row.seen.in_place


def leave_fused_step(net: nn.Module, path: str) -> None:
    """Let a TransformerEncoderLayer at `path` call its activation; in eval mode it would compute it in a fused step.

    The encoder around it then hands it padded tensors: nested ones, which leave the padding out, only that step takes.
    """
    layer = net.get_submodule(path)
    if isinstance(layer, nn.TransformerEncoderLayer) and layer.activation_relu_or_gelu:
        vars(layer)["_fused_activation"], layer.activation_relu_or_gelu = layer.activation_relu_or_gelu, 0
        for encoder in _encoders_around(net, path):
            vars(encoder).setdefault("_nested_tensors", encoder.use_nested_tensor)
            encoder.use_nested_tensor = False


def take_fused_step(net: nn.Module, path: str) -> None:
    """Undo `leave_fused_step`."""
    layer = net.get_submodule(path)
    if isinstance(layer, nn.TransformerEncoderLayer) and "_fused_activation" in vars(layer):
        layer.activation_relu_or_gelu = layer.__dict__.pop("_fused_activation")
        for encoder in _encoders_around(net, path):
            if not any("_fused_activation" in vars(one) for one in encoder.layers):
                encoder.use_nested_tensor = encoder.__dict__.pop("_nested_tensors")


def _encoders_around(net: nn.Module, path: str) -> Iterator[nn.TransformerEncoder]:
    names = path.split(".")
    around = (net.get_submodule(".".join(names[:depth])) for depth in range(len(names)))
    return (module for module in around if isinstance(module, nn.TransformerEncoder))


def _tensors(returned: Any, met: dict[int, Any] | None = None) -> Iterator[Tensor]:
    """All tensors in what a network returns. Of each object once (`met`, by id): some hold one that holds them."""
    if isinstance(returned, Tensor):
        yield returned
        return
    met = {} if met is None else met
    if id(returned) in met:
        return
    met[id(returned)] = returned
    values = returned.values() if isinstance(returned, Mapping) else returned
    if not isinstance(returned, (Mapping, tuple, list)):
        values = vars(returned).values() if hasattr(returned, "__dict__") else ()
    for value in values:
        yield from _tensors(value, met)
