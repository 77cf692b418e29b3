"""Sharing by key, and networks that share the tensors of their base."""

import re

import pytest
import torch
import torch.nn.functional as F
from foreign import images, resnet
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF
from aafit.errors import UserError
from aafit.identification import identify
from aafit.networks.adaptive import train_only_activations
from aafit.networks.surgery import replace_activations


def test_each_key_has_its_sharing() -> None:
    new = {"layers.*": LEAF.like("ReLU"), "head.act": AHAF.like("ReLU"), "SiLU": LEAF.like("SiLU")}
    sharing = {"layers.*": "channel", "head.act": "neuron"}
    net, report = replace_activations(resnet(), new, sharing, images())
    shapes = {row.path: row.shape for row in report.rows}
    assert shapes == {
        "stem.2": (1,),
        **{f"layers.{block}.act{number}": (4, 1, 1) for block in (0, 1) for number in (1, 2)},
        "head.act": (5,),
    }
    assert all(net.get_submodule(path).shape == shape for path, shape in shapes.items())


@pytest.mark.parametrize(
    ("sharing", "sample", "message"),
    [
        ({"SiLU": "channel"}, True, "The sharing names 'SiLU', which is no key of the replacements: they have 'ReLU'."),
        ({"ReLU": "chanel"}, True, "Unknown sharing of 'ReLU': 'chanel'. Did you mean 'channel'?"),
        ({"ReLU": "channel"}, False, "Sharing by channel needs the layers' shapes"),
        ("chanel", True, "Unknown sharing 'chanel'. Did you mean 'channel'?"),
    ],
)
def test_a_sharing_that_cannot_be_used(sharing, sample: bool, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace_activations(resnet(), {"ReLU": LEAF.like("ReLU")}, sharing, images() if sample else None)


def test_a_network_that_is_not_copied_shares_its_tensors_and_leaves_the_base_alone() -> None:
    base, x = resnet(), images()
    with torch.no_grad():
        before = base(x)
    net, report = replace_activations(base, {"*": LEAF.like("Tanh")}, sample=x, copy=False)
    own, shared = (
        {name: id(tensor) for name, tensor in (*each.named_parameters(), *each.named_buffers())} for each in (net, base)
    )
    assert {name: own.pop(name) for name in shared} == shared
    assert {name.rpartition(".")[0] for name in own} == {row.path for row in report.rows}
    with torch.no_grad():
        assert torch.equal(base(x), before)
        assert not torch.equal(net(x), before)
    train_only_activations(net)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    with torch.no_grad():
        assert torch.equal(report.restore(net)(x), before)


class Functions(nn.Module):
    """Its activations are functions, for which `identify` gives a copy of the base modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.silu(self.one(x)))


def test_shared_and_copied_networks_are_identified_alike() -> None:
    torch.manual_seed(0)
    base, x = Functions().eval(), torch.randn(100, 4)
    batches, found = [(x, base(x).argmax(1))], []
    for copy in (True, False):
        net, _ = replace_activations(base, {"*": LEAF.like("Tanh")}, sample=x, copy=copy)
        found.append(identify(net, batches, base=base, steps=2, errors=False).values)
    assert found[0] == found[1]
    assert not base.one._forward_hooks
    assert torch.equal(base(x).argmax(1), batches[0][1])
