"""How networks compute for a while: in evaluation mode, without the fused steps of torch.nn, from one seed."""

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
    """Within the block: no gradients, and the networks without dropout and with fixed statistics; then as they were.

    They compute step by step, see `step_by_step`.
    """
    with own_modes(*nets), torch.no_grad(), step_by_step():
        for net in nets:
            net.eval()
        yield


@contextmanager
def step_by_step() -> Iterator[None]:
    """Within the block encoders of torch.nn compute as in training.

    In evaluation mode they take a fused step, which calls no activation. They also leave padding out then, and give
    0 there. A network with replaced activations cannot, so that the zeros would count as a difference.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def random_numbers_from(seed: int | None) -> Iterator[None]:
    """Within the block torch draws random numbers from a seed on (None: the next ones); then it goes on as before it.

    So networks that draw some in evaluation mode, as a variational one does, can be held against each other: each draws
    the same for a batch.
    """
    # Not torch.manual_seed: where CUDA is not in use yet, that would seed it for later.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    with torch.random.fork_rng(devices, device_type="cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
        yield
