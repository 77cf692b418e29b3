"""What modules receive and give, seen while a block runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aafit.networks.running import receiving, watched


class ByName(nn.Module):
    """Calls its activation, which works in place, with its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(input=2 * x)
        return y


def test_what_is_received_is_seen_before_the_module_changes_it() -> None:
    net, seen = ByName(), list[tuple[str, float]]()
    with receiving(net, ["act"], lambda path, u: seen.append((path, u.item()))):
        net(torch.tensor([-1.0]))
    assert seen == [("act", -2.0)]


def test_what_is_given_is_seen_after() -> None:
    net, seen = ByName(), list[tuple[str, float, float]]()
    with watched(net, ["act"], lambda path, u, y: seen.append((path, u.item(), y.item()))):
        net(torch.tensor([3.0]))
    assert seen == [("act", 6.0, 6.0)]


@pytest.mark.parametrize("seeing", [receiving, watched])
def test_nothing_is_seen_after_the_block_nor_after_an_error_in_it(seeing: Any) -> None:
    net, seen = ByName(), list[str]()
    with pytest.raises(ZeroDivisionError), seeing(net, ["act"], lambda path, *_: seen.append(path)):
        raise ZeroDivisionError
    net(torch.tensor([3.0]))
    assert not seen
