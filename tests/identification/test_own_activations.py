"""Identification of a user's own activation, and of F-Neurons whose ends go on."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import Quotient, Small, problem

from aafit.activations import AdaptiveActivation, FNeuron
from aafit.activations.compiled import compiled_loops
from aafit.identification import audit, identify, importance
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.surgery import replace_activations


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


OWN = [
    (Quotient.like("ReLU"), Quotient(0.1, 0.8, 0.4, 0.6)),
    (
        FNeuron.like("Tanh", interval=(-0.5, 0.5), knots=5, outside="linear"),
        FNeuron.like("ReLU", interval=(-0.5, 0.5), knots=5, outside="linear"),
    ),
]


@pytest.mark.parametrize("target", ["logits", "activations"])
@pytest.mark.parametrize(("start", "truth"), OWN, ids=["Quotient", "F-Neuron"])
def test_what_the_base_computes_is_found(start: AdaptiveActivation, truth: AdaptiveActivation, target: str) -> None:
    torch.manual_seed(0)
    small, batches = Small().double(), problem(torch.float64, count=200, size=50)
    base: Any = replace_activations(small, {"ReLU": truth})[0].eval()
    net: Any = replace_activations(small, {"ReLU": start})[0].eval()
    # Both start from copies of the same network: only what is identified brings them together.
    x = batches[0][0]
    before = (net(x) - base(x)).std().item()
    result = identify(net, [x for x, _ in batches], base=base, target=target, seed=1)
    assert (net(x) - base(x)).std().item() < 1e-3 * before
    assert len(result.names) == len(adaptive_activations(net)) * sum(p.numel() for p in start.parameters())


@pytest.mark.parametrize(("start", "truth"), OWN, ids=["Quotient", "F-Neuron"])
def test_audit_and_importance(start: AdaptiveActivation, truth: AdaptiveActivation) -> None:
    torch.manual_seed(0)
    batches = problem(torch.float64)
    net = replace_activations(Small().double(), {"ReLU": start})[0]
    found = audit(net, batches)
    assert [row.stalled for row in found.rows] == [0] * len(found.rows)
    assert all(row.curvature > 0 for row in found.rows)
    gains = importance(net, batches)
    assert {row.layer for row in gains.rows} == set(adaptive_activations(net))
