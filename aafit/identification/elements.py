"""Select random elements of the inputs and outputs of activations, to which a layer is fitted.

They are selected while the forward pass runs, so that memory stays bounded. Begin with `input_elements`.

Axes in names: E element of an array, S parameter set.
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
from aafit.networks.batches import Batch, without_padding
from aafit.networks.running import receiving, watched
from aafit.training.predictor import Predictor

ELEMENTS = 1 << 16  # number of elements of a layer's output that are fitted, unless a parameter set would get too few
LEAST_ELEMENTS = 64  # least number of elements of each parameter set


@dataclass(frozen=True)
class Elements:
    """Selected elements of an array, (E, S), and the `Layout` that maps the array to parameter sets."""

    layout: Layout
    elements_ES: Tensor


def calls_of(net: nn.Module, batch: Batch) -> Mapping[str, int]:
    """Return how often a forward pass calls each adaptive activation, by path, in the order of the first calls."""
    counts: Counter[str] = Counter()
    with watched(net, adaptive_activations(net), lambda path, u, y: counts.update([path])):
        Predictor(net).forward(batch)
    return counts


def input_elements(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
) -> dict[str, Elements]:
    """Return selected elements of the inputs of modules, by path; padding is left out.

    Args:
        net: the network whose modules are observed.
        activations: the adaptive activations at the paths of these modules; they determine the parameter sets.
        calls: number of calls of each module in a forward pass, see `calls_of`; the pass ends after the last of them.
        batches: inputs of the network; each contributes elements in proportion to its samples.
        seed: seed of the selection; with the same seed `output_elements` selects the same elements.
    """
    return _selected(net, activations, calls, batches, seed, partial(receiving, net, activations))


def output_elements(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
) -> dict[str, Elements]:
    """Return selected elements of the outputs of modules, by path; see `input_elements`."""

    def of_outputs(see: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        return watched(net, activations, lambda path, u, y: see(path, y))

    return _selected(net, activations, calls, batches, seed, of_outputs)


def by_sets(array: Tensor) -> Tensor:
    """Return an array that `Layout.read` returned, (elements,), (rows, sets) or (rows, sets, elements), as (E, S)."""
    if array.ndim == 1:
        return array.unsqueeze(1)
    return array if array.ndim == 2 else array.transpose(1, 2).flatten(0, 1)


def elements_for(sets: int) -> int:
    """Return how many elements of each parameter set are to be fitted."""
    return max(LEAST_ELEMENTS, ELEMENTS // sets)


def random_rows(x_ES: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a copy of `count` random rows, or of all if there are fewer."""
    if count >= len(x_ES):
        return x_ES.clone()
    return x_ES[torch.randperm(len(x_ES), generator=generator)[:count].to(x_ES.device)]


class _Complete(BaseException):
    """Ends a forward pass once all elements of a batch are selected.

    It is no Exception, because `Predictor.forward` would report an Exception as a failure of the network.
    """


def _selected(
    net: nn.Module,
    activations: Mapping[str, AdaptiveActivation],
    calls: Mapping[str, int],
    batches: Sequence[Batch],
    seed: int,
    watch: Callable[[Callable[[str, Tensor], None]], AbstractContextManager[None]],
) -> dict[str, Elements]:
    layouts: dict[str, Layout] = {}
    selected: dict[str, list[Tensor]] = {path: [] for path in activations}
    generators = {path: torch.Generator().manual_seed(seed) for path in activations}
    left: Counter[str] = Counter()
    predictor, share = Predictor(net), 0.0

    def see(path: str, x: Tensor) -> None:
        if not left[path]:
            return
        x = without_padding(x, batch, activations[path].shape).contiguous()
        layouts[path] = Layout.of(x, activations[path].shape)
        x_ES = by_sets(layouts[path].read(x))
        count = ceil(elements_for(x_ES.shape[1]) * share / calls[path])
        selected[path].append(random_rows(x_ES, count, generators[path]))
        left[path] -= 1
        if not left.total():
            raise _Complete

    samples = sum(map(len, batches))
    for batch in batches:
        share = len(batch) / samples
        left.clear()
        left.update({path: calls[path] for path in activations})
        with watch(see), suppress(_Complete):
            predictor.forward(batch)
    return {path: Elements(layouts[path], torch.cat(pieces)) for path, pieces in selected.items()}
