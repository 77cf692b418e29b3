"""Random activations and inputs, their results, and whether loops can be compiled."""

import math
import os
import shutil

import pytest
import torch
from torch import Tensor

from aafit.activations import AdaptiveActivation, from_text

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler here"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_activation(family: str, shape: tuple[int, ...] = (1,)) -> AdaptiveActivation:
    made = from_text(f"{family} random", shape, seeded())
    assert isinstance(made, AdaptiveActivation)
    return made


def batch(
    sizes: tuple[int, ...], dtype: torch.dtype = torch.float32, fmt: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """An input, mostly within [-4, 4] but not all, and a gradient for the output."""
    u = (torch.randn(sizes, generator=seeded(1)) * 2).to(dtype).to(memory_format=fmt)
    grad = torch.randn(sizes, generator=seeded(2)).to(dtype).to(memory_format=fmt)
    return u.requires_grad_(), grad


def results(activation: torch.nn.Module, u: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients by the input and by every parameter."""
    y = activation(u)
    assert y.shape == u.shape
    assert y.dtype == u.dtype
    return [y.detach(), *torch.autograd.grad(y, (u, *activation.parameters()), grad)]


def assert_sums_close(given: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Sums of `terms` numbers of size 1 or so, in whatever order."""
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * math.sqrt(terms))
