"""A network in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def own_modes(*nets: nn.Module) -> Iterator[None]:
    """At the end of the block, put each module back into the mode that it had, training or evaluation."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Within the block: no gradients, and the networks without dropout and with fixed statistics; then as they were."""
    with own_modes(*nets), torch.no_grad():
        for net in nets:
            net.eval()
        yield
