"""Find the activations of a torch network, modules and calls of functions: the dry run of a replacement."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule

from aafit.errors import UserError
from aafit.networks.call_sites import Doorway
from aafit.networks.found import Found, FoundActivation
from aafit.networks.inputs import Batch
from aafit.networks.kinds import activation_name, is_activation, is_elementwise
from aafit.networks.observe import Observation, Seen, observe
from aafit.networks.places import Site

EXPORTED = "{} is exported by torch.export, and its program is fixed: replace before it is exported."


def find_activations(net: nn.Module, *sample: Any, **keywords: Any) -> Found:
    """The activations of `net`, and what a replacement would do with each. `net` is left as it was.

    With a sample: modules, functions (F.relu, torch.relu, x.relu(), x.clamp(min=0)), functions held in attributes, one
    module called at several places, modules of a class of the network's own that computes a function element by
    element; docs/networks/README.md lists what is found and what is not. Without one only modules are.

    Args:
        net: any network.
        sample: an input of it, as it is called: find_activations(net, images), find_activations(net, ids, mask=mask).
            Or what `sample=` of `replace_activations` takes: a tuple of the inputs, or an `aafit.Batch`.

    Raises:
        UserError: the network is wrapped, scripted, compiled, exported or quantised; it refuses the sample.
    """
    if not sample and not keywords:
        return found_in(net, None)
    if len(sample) == 1 and not keywords and isinstance(sample[0], (tuple, Batch)):
        return found_in(net, sample[0])
    return found_in(net, (*sample, keywords) if keywords else sample)


def found_in(net: nn.Module, sample: Any, named: Collection[str] = (), share_calls: bool = False) -> Found:
    """As `find_activations`, with the sample as one value of any form (None: there is none).

    The modules at the paths `named` are among them, whatever they are. With `share_calls` a module that is called at
    several places is one activation.
    """
    check_plain(net)
    if sample is None:
        return Found(tuple(_modules(net, Observation(), named)), sampled=False)
    for path, module in net.named_modules():
        if type(module).__name__ == "OptimizedModule":
            raise UserError(
                f"{path!r} is compiled by torch.compile, and no call in it can be seen: put its _orig_mod there, and "
                "compile what comes out."
            )
    watched = observe(net, sample, named)
    if share_calls:
        watched.share_calls()
    rows = [*_modules(net, watched, named), *_calls(net, watched)]
    order = {id(seen): at for at, seen in enumerate(watched.seen)}
    rows.sort(key=lambda row: order.get(id(row.seen), len(order)))
    return Found(tuple(rows), tuple(dict.fromkeys(seen.owner for seen in watched.seen)))


def check_plain(net: nn.Module) -> None:
    """Raise unless the network is a plain module.

    Raises:
        UserError: it is wrapped, scripted, compiled, exported or quantised; the message says what to give instead.
    """
    name = type(net).__name__
    if name == "ExportedProgram":
        raise UserError(EXPORTED.format("The network"))
    if not isinstance(net, nn.Module):
        raise UserError(f"The network is a {type(net).__name__}: give a torch.nn.Module.")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(
            "The network is a ScriptModule, whose program is fixed: give the network that it was made from."
        )
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"The network is wrapped in a {name}: give net.module, and wrap what comes out.")
    if name == "OptimizedModule":
        raise UserError("The network is compiled by torch.compile: give net._orig_mod, and compile what comes out.")
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{path!r} is a ScriptModule, whose program is fixed: give the module it was made from.")
        if isinstance(module, GraphModule) and any(isinstance(node.target, OpOverload) for node in module.graph.nodes):
            raise UserError(EXPORTED.format(repr(path) if path else "The network"))
        if ".quantized" in type(module).__module__:
            raise UserError(
                f"{path!r} is a quantised {type(module).__name__}: give the network as it was before quantisation."
            )


def _modules(net: nn.Module, watched: Observation, named: Collection[str] = ()) -> Iterator[FoundActivation]:
    """The activations that are modules, each called at one place at most."""
    seen_of = {seen.module: seen for seen in watched.seen if seen.module is not None}
    places, aliases = _places(net)
    inside = tuple(f"{path}." for path in watched.own)
    inside += tuple(f"{path}." for path, module in places.items() if isinstance(module, Doorway))
    several = _called_at_several_places(net, watched)
    for path, module in places.items():
        known = is_activation(module)
        if not known and path not in watched.own and path not in named:
            continue
        if path in several or path.startswith(inside):
            continue
        seen = seen_of.get(path)
        yield FoundActivation(
            path,
            watched.own.get(path) or activation_name(module),
            type(module).__name__,
            "not an elementwise activation" if known and not is_elementwise(module) else _of_no_reals(seen),
            bool(watched.seen),
            seen,
            aliases=tuple(other for other in aliases[id(module)] if other not in places),
        )


def _places(net: nn.Module) -> tuple[dict[str, nn.Module], dict[int, list[str]]]:
    """What can be replaced apart, by path in the order of the network; and all paths of each module, by its id.

    A module in a block that is one object under several names is one. Under several names of its own it is several.
    """
    own = {
        f"{around_path}.{name}" if around_path else name: module
        for around_path, around in net.named_modules()
        for name, module in around._modules.items()
        if module is not None
    }
    places: dict[str, nn.Module] = {"": net} if is_activation(net) else {}
    paths: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in net.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
        if path in own:
            places[path] = module
    return places, paths


def _calls(net: nn.Module, watched: Observation) -> Iterator[FoundActivation]:
    """The calls that have no module of their own: of functions, and of modules called at several places.

    The path of each is that of its owner, with the name of the function and a number: "block.relu_1".
    """
    several = _called_at_several_places(net, watched)
    taken: defaultdict[str, set[str]] = defaultdict(set)
    ways = Counter((seen.owner, seen.place[0]) for seen in watched.seen)
    for seen in watched.seen:
        if seen.module is not None and seen.module not in several:
            continue
        name = _free_name(seen, net.get_submodule(seen.owner), taken[seen.owner])
        call = seen.call if seen.module is None else seen.module
        # Where the sample shows one way to a place only, another way to it means the same.
        place = seen.place if ways[seen.owner, seen.place[0]] > 1 else seen.place[:1]
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in seen.options.values())
        yield FoundActivation(
            f"{seen.owner}.{name}" if seen.owner else name,
            seen.kind,
            f"{seen.call}()" if seen.module is None else type(net.get_submodule(seen.module)).__name__,
            _of_no_reals(seen) if plain else "which is called with a tensor beside its input",
            True,
            seen,
            Site(name, place, seen.kind, call, seen.options, seen.module is not None),
        )


def _of_no_reals(seen: Seen | None) -> str:
    """Why what is called with integers or complex numbers is not replaced."""
    if seen is None or seen.dtype.is_floating_point:
        return ""
    kind = "complex numbers" if seen.dtype.is_complex else "integers"
    return f"called with {kind} ({str(seen.dtype).removeprefix('torch.')}), which no adaptive activation takes"


def _called_at_several_places(net: nn.Module, watched: Observation) -> set[str]:
    """The modules that are; one behind a doorway was when others of its calls were given modules."""
    places = Counter(seen.module for seen in watched.seen if seen.module is not None)
    doorways = {path for path, module in net.named_modules() if isinstance(module, Doorway)}
    return {path for path, count in places.items() if count > 1} | doorways


def _free_name(seen: Seen, owner: nn.Module, taken: set[str]) -> str:
    called = seen.call if seen.module is None else seen.module.rpartition(".")[2]
    # The modules of a Sequential are called "0", "1", ...
    called = called if called.isidentifier() else f"act_{called}"
    number = 1
    while f"{called}_{number}" in taken or hasattr(owner, f"{called}_{number}"):
        number += 1
    taken.add(f"{called}_{number}")
    return f"{called}_{number}"
