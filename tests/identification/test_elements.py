"""The elements that a layer is fitted to: which they are, and what is not computed for them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.identification import elements
from aafit.identification.elements import calls_of, input_elements, output_elements
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import as_inputs


class Twice(nn.Module):
    """Calls one activation twice, on different shapes, and then something else."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.wide, self.out = nn.SiLU(), nn.Linear(6, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(self.wide(self.act(x))))
        return y


@pytest.mark.parametrize("most", [50, 10_000])
def test_the_same_elements_of_what_is_received_and_given(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(elements, "ELEMENTS", most)
    monkeypatch.setattr(elements, "LEAST_ELEMENTS", 1)
    torch.manual_seed(0)
    base = Twice().double().eval()
    batches = [as_inputs(x) for x in torch.randn(50, 6, dtype=torch.float64).split(20)]
    net: Any = deepcopy(base)
    net.act = LEAF.like("SiLU").double()
    after = []
    net.out.register_forward_hook(lambda *_: after.append(1))
    calls, activations = calls_of(net, batches[0]), adaptive_activations(net)
    assert (calls, len(after)) == ({"act": 2}, 1)
    received = input_elements(net, activations, calls, batches, seed=3)["act"].elements_ES
    given = output_elements(base, activations, calls, batches, seed=3)["act"].elements_ES
    assert torch.allclose(F.silu(received), given, rtol=1e-12, atol=1e-12)
    # All, or a share from each call of each batch.
    assert len(received) == 50 * 15 if most > 50 * 15 else most <= len(received) < most + 6
    assert len(received.unique()) == len(received)
    # The rest of a forward is not computed.
    assert len(after) == 1
