"""What the part of a network behind its frozen prefix receives, computed once and kept."""

from collections.abc import Iterable

import torch
from torch import nn

from aafit.networks.batches import Batch, Output, takes_inputs
from aafit.networks.frozen_prefix import split_network
from aafit.networks.running import fork_rng
from aafit.training.precision import autocast


def after_prefix(
    net: nn.Module, batches: Iterable[Batch], memory: int, precision: str, output: Output | None = None
) -> tuple[nn.Module, list[Batch]] | None:
    """The part of `net` behind its frozen prefix, and for each batch what it receives, with the batch's target.

    It gives for these what `net` gives for `batches`, however its adaptive activations are tuned. None where there is
    no prefix, no batch, or one with keyword inputs, where the outputs of the prefix take more than `memory` bytes, or
    where `output` asks for the inputs of the network: behind a prefix they are others.
    """
    if takes_inputs(output):
        return None
    prefix: nn.Module | None = None
    rest, kept, used = net, [], 0
    for batch in batches:
        if batch.kwargs:
            return None
        if prefix is None:
            # A network that draws random numbers is never split, but it draws some before that shows.
            with fork_rng(None):
                prefix, rest = split_network(net, batch.part(0, 2).args)
        if prefix is None:
            return None
        with torch.no_grad(), autocast(precision, batch.device):
            # Cloned: a network may work in place on what it receives.
            outputs = prefix(*batch.cloned().args)
        used += sum(x.nbytes for x in outputs)
        if used > memory:
            return None
        kept.append(Batch(outputs, {}, batch.target))
    return (rest, kept) if kept else None
