"""A network too sure of its answers: where it is wrong there is hardly any curvature, and only damped steps help."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from aafit import AHAF, LEAF, FNeuron, identify, replace_activations
from tests.identification_helpers import drawn

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def overlapping(images: int, seed: int) -> Batches:
    """Four classes that no network tells apart without error."""
    labels = torch.randint(4, (images,), generator=torch.Generator().manual_seed(seed))
    return [(drawn(4, 8, seed=7)[labels] + 1.3 * drawn(images, 8, seed=seed), labels)]


def trained(activation: type[nn.Module], images: int, steps: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 4)).double()
    ((inputs, labels),) = overlapping(images, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    return net


@pytest.fixture(scope="module")
def memorised() -> nn.Module:
    """A network that has learnt 40 images by heart."""
    return trained(nn.SiLU, images=40, steps=60)


def loss_on_others(net: nn.Module) -> float:
    ((images, labels),) = overlapping(2000, seed=3)
    with torch.no_grad():
        return cross_entropy(net(images), labels).item()


@pytest.mark.parametrize("start", [LEAF.like("SiLU"), AHAF.like("SiLU"), FNeuron.like("SiLU")])
def test_an_overconfident_network_is_made_less_sure(memorised: nn.Module, start: Any) -> None:
    net, _ = replace_activations(memorised, {"*": start}, "layer", torch.zeros(1, 8).double())
    before = loss_on_others(net)
    assert before > 2  # more than the log 4 of a guess

    identify(net, overlapping(300, seed=2), base=memorised)

    assert loss_on_others(net) < before / 2
