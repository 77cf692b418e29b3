"""The elements of what activations receive and give to which a layer is fitted: chosen at once, so that few are kept.

Axes in names: E element of an array, S set.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.activations.compiled import Layout
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch, call, without_padding
from aafit.networks.running import fork_rng, receiving, watched

ELEMENTS = 1 << 16  # of a layer's output that are fitted, more only to give every set its share
ROWS = 64  # at least, for a set of its own


@dataclass(frozen=True)
class Elements:
    """Elements of an array, (E, S), and how that lies in memory."""

    layout: Layout
    elements_ES: Tensor


def calls_of(net: nn.Module, batch: Batch) -> Mapping[str, int]:
    """How often a forward calls each adaptive activation, by path, in the order in which it first does."""
    counts: Counter[str] = Counter()
    with watched(net, adaptive_activations(net), lambda path, u, y: counts.update([path])), torch.no_grad():
        _call(net, batch)
    return counts


def elements_received(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
) -> dict[str, Elements]:
    """The elements to fit, of what the modules at the paths of `activations` receive; padding is left out.

    Args:
        calls: see `calls_of`; what a forward does after the last of them is not computed.
        batches: of inputs; each gives its share of the elements.
        seed: of the choice, which is the same for `elements_given`.
    """
    return _seen(net, activations, calls, batches, seed, partial(receiving, net, activations))


def elements_given(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
) -> dict[str, Elements]:
    """The same of what they give."""

    def giving(see: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        return watched(net, activations, lambda path, u, y: see(path, y))

    return _seen(net, activations, calls, batches, seed, giving)


def by_sets(array: Tensor) -> Tensor:
    """An array as `Layout.read` gives it, (elements,), (rows, sets) or (rows, sets, elements), as (E, S)."""
    if array.ndim == 1:
        return array.unsqueeze(1)
    return array if array.ndim == 2 else array.transpose(1, 2).flatten(0, 1)


def wanted_of(sets: int) -> int:
    """How many elements of each set are to be fitted."""
    return max(ROWS, ELEMENTS // sets)


def some(x_ES: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """So many rows chosen at random, or all, in memory of their own: who gave them may work in place."""
    if wanted >= len(x_ES):
        return x_ES.clone()
    return x_ES[torch.randperm(len(x_ES), generator=generator)[:wanted].to(x_ES.device)]


class _AllSeen(BaseException):
    """What is wanted of a forward is there: the rest of it needs no computing.

    No Exception: that would be an error of the network's.
    """


def _seen(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
    watch: Callable[[Callable[[str, Tensor], None]], AbstractContextManager[None]],
) -> dict[str, Elements]:
    layouts: dict[str, Layout] = {}
    kept: dict[str, list[Tensor]] = {path: [] for path in activations}
    generators = {path: torch.Generator().manual_seed(seed) for path in activations}
    left: Counter[str] = Counter()
    share = 0.0

    def see(path: str, x: Tensor) -> None:
        if not left[path]:
            return
        x = without_padding(x, batch, activations[path].shape).contiguous()
        layouts[path] = Layout.of(x, activations[path].shape)
        x_ES = by_sets(layouts[path].read(x))
        wanted = ceil(wanted_of(x_ES.shape[1]) * share / calls[path])
        kept[path].append(some(x_ES, wanted, generators[path]))
        left[path] -= 1
        if not left.total():
            raise _AllSeen

    samples = sum(map(len, batches))
    for batch in batches:
        share = len(batch) / samples
        left.clear()
        left.update({path: calls[path] for path in activations})
        with watch(see), torch.no_grad(), suppress(_AllSeen):
            _call(net, batch)
    return {path: Elements(layouts[path], torch.cat(pieces)) for path, pieces in kept.items()}


def _call(net: nn.Module, batch: Batch) -> None:
    # Cloned: a network may work in place on what it receives.
    with fork_rng(0):
        call(net, batch.cloned())
