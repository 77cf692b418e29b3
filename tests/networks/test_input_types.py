"""Activations that receive no real numbers: listed with the reason, left as they are, refused by their path."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.networks.find import find_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Types(nn.Module):
    """Activations of integers, of complex numbers and of real ones, as modules and at several places."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spectrum = nn.Linear(4, 4), nn.Tanh()
        self.whole, self.act, self.twice = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        n = self.whole((5 * x).int())
        z = self.spectrum(torch.fft.fft(self.act(self.fc(x))))
        return self.twice(n - 2) + self.twice(z.real) + z.imag


REFUSED = {
    "whole": r"called with integers \(int32\), which no adaptive activation takes",
    "spectrum": r"called with complex numbers \(complex64\), which no adaptive activation takes",
    "twice_1": r"called with integers \(int32\), which no adaptive activation takes",
}


def test_what_receives_no_real_numbers_is_listed_and_left() -> None:
    found = find_activations(Types(), X)
    assert {row.path for row in found if row.refused} == set(REFUSED)
    net, swap = replace_activations(Types(), {"*": LEAF.like("ReLU")}, sample=X)
    assert [row.path for row in swap.rows] == ["act", "twice_2"]
    assert {row.path for row in swap.skipped} == set(REFUSED)
    assert torch.isfinite(net(X)).all()


@pytest.mark.parametrize(("path", "why"), REFUSED.items())
@pytest.mark.parametrize("sample", [X, {"x": X}])
def test_by_its_path_it_is_refused(path: str, why: str, sample: Any) -> None:
    with pytest.raises(UserError, match=f"^'{path}' is a (ReLU|Tanh), {why}: it cannot be replaced"):
        replace_activations(Types(), {path: LEAF.like("ReLU")}, sample=sample)
