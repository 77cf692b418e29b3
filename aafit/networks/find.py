"""Find the activations of any torch network, however they are written: the dry run of a replacement."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from aafit.errors import UserError, nearest
from aafit.networks.call_sites import Doorway, Site
from aafit.networks.kinds import activation_name, is_activation, is_elementwise
from aafit.networks.observe import Observation, Seen, observe
from aafit.tables import table


@dataclass(frozen=True)
class FoundActivation:
    """An activation of a network, at the path that its replacement will have.

    Attributes:
        path: "act1", or "block.relu_1" for a call that has no module of its own yet.
        kind: Of the function, "ReLU".
        class_name: Of the module; for a function its name, "F.relu".
        line: Where the program calls it; None: no sample was given, or its forward does not call it.
        calls: In one forward of the sample; None: no sample was given.
        shape: Of what it receives, the batch first; None where that is not known.
        low, high: The range of what it receives.
        after: The layer before it, as ("Conv2d", "conv1").
        gate: Why it is taken for a gate; empty: it is none. A gate is replaced only by its own path.
        refused: Why it cannot be replaced; empty: it can.
        channel_axis: Of what it receives, None where the layer before does not tell.
        site: What is to be given a module first.
        owner: Path of the module whose forward makes that call.
    """

    path: str
    kind: str
    class_name: str
    line: str | None = None
    calls: int | None = None
    shape: tuple[int, ...] | None = None
    low: float | None = None
    high: float | None = None
    after: tuple[str, str] | None = None
    gate: str = ""
    refused: str = ""
    channel_axis: int | None = None
    device: torch.device | None = field(default=None, repr=False)
    dtype: torch.dtype | None = field(default=None, repr=False)
    site: Site | None = field(default=None, repr=False)
    owner: str = field(default="", repr=False)
    in_place: bool = field(default=False, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)

    @property
    def sets(self) -> dict[str, int | None]:
        """The number of parameter sets when it is shared by layer, channel or neuron; None where that is not known.

        A set has 2 parameters of an AHAF, 4 of a LEAF, pieces + 2 of an F-Neuron.
        """
        shape = self.shape
        if shape is None or len(shape) < 2:
            return {"layer": 1, "channel": None, "neuron": None}
        axis = self.channel_axis if len(shape) > 2 else 1
        return {
            "layer": 1,
            "channel": None if axis is None else shape[axis],
            "neuron": torch.Size(shape[1:]).numel(),
        }


@dataclass(frozen=True)
class Found:
    """What `find_activations` found, in the order of the first calls; prints as a table."""

    rows: tuple[FoundActivation, ...]
    owners: tuple[str, ...] = field(default=(), repr=False)
    sampled: bool = True

    def __iter__(self) -> Iterator[FoundActivation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> FoundActivation:
        for row in self.rows:
            if path == row.path or path in row.aliases:
                return row
        raise UserError(f"The network has no activation at {path!r}. {nearest(path, [row.path for row in self.rows])}")

    def __str__(self) -> str:
        header = ("path", "kind", "calls", "input", "range", "after", "sets: layer/channel/neuron", "what can be done")
        text = table(header, [_cells(row) for row in self.rows], numbers=False)
        lines = [(row.path, row.line) for row in self.rows if row.line is not None]
        if lines:
            text += "\n\n" + table(("path", "called in"), lines, numbers=False)
        return text if self.sampled else f"{text}\n\n{NOT_SAMPLED}"


NOT_SAMPLED = (
    "No sample was given: activations called as functions (F.relu), and modules called more than once, were not looked "
    "for."
)


def find_activations(net: nn.Module, *sample: Any, **keywords: Any) -> Found:
    """The activations of `net`, and what a replacement would do with each. `net` is left as it was.

    With a sample they are found however they are written: modules, functions (F.relu, torch.relu, x.relu(),
    x.clamp(min=0)), functions held in attributes, one module called at several places, modules of a class of the
    network's own that computes a function element by element. Without one only modules are.

    Args:
        net: any network.
        sample: an input of it, as it is called: find_activations(net, images), find_activations(net, ids, mask=mask).

    Raises:
        UserError: the network is wrapped, scripted or quantised; it refuses the sample.
    """
    if not sample and not keywords:
        return found_in(net, None)
    return found_in(net, (*sample, keywords) if keywords else sample)


def found_in(net: nn.Module, sample: Any, named: Collection[str] = (), share_calls: bool = False) -> Found:
    """As `find_activations`, with the sample as one value of any form (None: there is none).

    The modules at the paths `named` are among them, whatever they are. With `share_calls` a module that is called at
    several places is one activation.
    """
    check_plain(net)
    if sample is None:
        return Found(tuple(_modules(net, Observation(), named)), sampled=False)
    watched = observe(net, sample, named)
    if share_calls:
        watched.share_calls()
    rows = [*_modules(net, watched, named), *_sites(net, watched)]
    order = {id(seen): at for at, seen in enumerate(watched.seen)}
    first: defaultdict[str, int] = defaultdict(lambda: len(order))
    for row, seen in zip(_site_paths(net, watched), _of_sites(watched), strict=True):
        first[row] = order[id(seen)]
    for seen in reversed(watched.seen):
        if seen.module is not None and seen.module not in _at_several_places(watched):
            first[seen.module] = order[id(seen)]
    rows.sort(key=lambda row: first[row.path])
    owners = tuple(dict.fromkeys(seen.owner for seen in watched.seen))
    return Found(tuple(rows), owners)


def check_plain(net: nn.Module) -> None:
    """Nothing, where the network is a plain module.

    Raises:
        UserError: it is wrapped, scripted or quantised; the message says what to give instead.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"The network is a {type(net).__name__}: give a torch.nn.Module.")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(
            "The network is a ScriptModule, whose program is fixed: give the network that it was made from."
        )
    name = type(net).__name__
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"The network is wrapped in a {name}: give net.module, and wrap what comes out.")
    if name == "OptimizedModule":
        raise UserError("The network is compiled by torch.compile: give net._orig_mod, and compile what comes out.")
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{path!r} is a ScriptModule, whose program is fixed: give the module it was made from.")
        if ".quantized" in type(module).__module__:
            raise UserError(
                f"{path!r} is a quantised {type(module).__name__}: give the network as it was before quantisation."
            )


def _modules(net: nn.Module, watched: Observation, named: Collection[str] = ()) -> Iterator[FoundActivation]:
    """The activations that are modules, called at one place at most."""
    several = _at_several_places(watched)
    seen_of = {seen.module: seen for seen in watched.seen if seen.module is not None}
    paths: defaultdict[int, list[str]] = defaultdict(list)
    objects = {}
    # A module in a block that is one object under several names is one; under several names of its own it is several.
    for around_path, around in net.named_modules():
        for name, module in around._modules.items():
            if module is not None:
                path = f"{around_path}.{name}" if around_path else name
                objects[path] = module
    for path, module in net.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    objects = {path: objects[path] for own in paths.values() for path in own if path in objects}
    if is_activation(net):
        objects = {"": net}
    doors = tuple(path for path, module in objects.items() if isinstance(module, Doorway))
    for path, module in objects.items():
        known = is_activation(module)
        if path in several or path.startswith(tuple(f"{door}." for door in doors)):
            continue
        if not known and path not in watched.own and path not in named:
            continue
        if any(path.startswith(f"{own}.") for own in watched.own):
            continue
        refused = "" if not known or is_elementwise(module) else "not an elementwise activation"
        kind = watched.own.get(path) or activation_name(module)
        aliases = tuple(other for other in paths[id(module)] if other != path and other not in objects)
        yield _row(path, kind, type(module).__name__, seen_of.get(path), bool(watched.seen), refused, aliases)


def _sites(net: nn.Module, watched: Observation) -> Iterator[FoundActivation]:
    """The calls that have no module of their own: of functions, and of modules called at several places."""
    for path, seen in zip(_site_paths(net, watched), _of_sites(watched), strict=True):
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in seen.options.values())
        refused = "" if plain else "which is called with a tensor beside its input"
        call = seen.call if seen.module is None else seen.module
        name = path.rpartition(".")[2]
        site = Site(name, seen.place, seen.kind, call, seen.options, seen.module is not None)
        written = f"{seen.call}()" if seen.module is None else type(net.get_submodule(seen.module)).__name__
        yield _row(path, seen.kind, written, seen, True, refused, (), site, seen.owner)


def _row(
    path: str,
    kind: str,
    class_name: str,
    seen: Seen | None,
    sampled: bool,
    refused: str,
    aliases: tuple[str, ...],
    site: Site | None = None,
    owner: str = "",
) -> FoundActivation:
    if seen is None:
        return FoundActivation(path, kind, class_name, calls=0 if sampled else None, refused=refused, aliases=aliases)
    return FoundActivation(
        path,
        kind,
        class_name,
        seen.line,
        seen.calls,
        seen.shape,
        seen.low,
        seen.high,
        seen.after,
        seen.gate,
        refused,
        seen.channel_axis,
        seen.device,
        seen.dtype,
        site,
        owner,
        seen.in_place,
        aliases,
    )


def _at_several_places(watched: Observation) -> set[str]:
    places = Counter(seen.module for seen in watched.seen if seen.module is not None)
    return {path for path, count in places.items() if count > 1}


def _of_sites(watched: Observation) -> list[Seen]:
    several = _at_several_places(watched)
    return [seen for seen in watched.seen if seen.module is None or seen.module in several]


def _site_paths(net: nn.Module, watched: Observation) -> list[str]:
    """A path for each call without a module: its owner's, and the function's name with a number, as "block.relu_1"."""
    taken: defaultdict[str, set[str]] = defaultdict(set)
    paths = []
    for seen in _of_sites(watched):
        owner = net.get_submodule(seen.owner)
        base = seen.call if seen.module is None else seen.module.rpartition(".")[2]
        base = base if base.isidentifier() else f"act_{base}"
        number = 1
        while f"{base}_{number}" in taken[seen.owner] or hasattr(owner, f"{base}_{number}"):
            number += 1
        taken[seen.owner].add(f"{base}_{number}")
        paths.append(f"{seen.owner}.{base}_{number}" if seen.owner else f"{base}_{number}")
    return paths


def _cells(row: FoundActivation) -> tuple[str, ...]:
    sets = "/".join("?" if count is None else str(count) for count in row.sets.values())
    low_high = "" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
    done = row.refused or (f"only by its path: {row.gate}" if row.gate else "can be replaced")
    if row.calls == 0:
        done += " (the sample does not reach it)"
    shape = "" if row.shape is None else "x".join(map(str, row.shape))
    after = "" if row.after is None else f"{row.after[0]} {row.after[1]}"
    return row.path, row.kind, "" if row.calls is None else str(row.calls), shape, low_high, after, sets, done
