"""Networks and samples that can be looked at, and what is said of those that cannot."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.networks.batches import Batch
from aafit.networks.find import find_activations
from aafit.networks.freeze import freeze_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
LIKE = LEAF.like("ReLU")


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x + y)


class OfADictionary(nn.Module):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return F.relu(inputs["x"])


@pytest.mark.parametrize(
    ("net", "sample"),
    [
        (nn.ReLU, (X,)),
        (Sum, (X, X)),
        (Sum, ((X, X),)),
        (Sum, (Batch((X,), {"y": X}, X),)),
        (OfADictionary, (Batch(({"x": X},), {}),)),
    ],
)
def test_a_sample_is_given_as_it_is_called_or_whole(net, sample) -> None:
    assert [row.kind for row in find_activations(net(), *sample)] == ["ReLU"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("x", "The sample is a str: give a tensor, a tuple of the inputs, a dictionary"),
        ((), "no tensor .*of the inputs,"),
    ],
)
def test_of_a_sample_no_target_is_asked(sample, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replace_activations(nn.Sequential(nn.ReLU()), {"ReLU": LIKE}, sample=sample)
    assert "target" not in str(caught.value)


class Kept(nn.Module):
    """Keeps what it computed, with its graph; or a lock."""

    def __init__(self, lock: bool = False) -> None:
        super().__init__()
        self.fc, self.act, self.lock = nn.Linear(3, 3), nn.ReLU(), threading.Lock() if lock else None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.act(F.relu(self.fc(x)))
        return self.last


def kept() -> nn.Module:
    net = Kept()
    net(X)
    return net


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def spectral() -> nn.Module:
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.ReLU())
    net(X)
    return net.eval()


def weight_normed() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.ReLU())


@pytest.mark.parametrize("sample", [X, None], ids=["sample", "no sample"])
@pytest.mark.parametrize("build", [kept, pruned, spectral, weight_normed])
def test_computed_tensors_of_a_network_are_copied(build, sample) -> None:
    base = build()
    net, swap = replace_activations(base, {"ReLU": LIKE}, sample=sample)
    torch.testing.assert_close(net(X), base(X), rtol=0, atol=1e-6)
    assert torch.equal(swap.restore(net)(X), base(X))
    net.zero_grad()
    net(X).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("sample", [X, None], ids=["sample", "no sample"])
def test_a_network_that_cannot_be_copied(sample) -> None:
    message = r"The network cannot be copied, as it holds 'lock' \(cannot pickle.*: remove that attribute"
    with pytest.raises(UserError, match=message):
        replace_activations(Kept(lock=True), {"ReLU": LIKE}, sample=sample)
    net, swap = replace_activations(Kept(), {"ReLU": LIKE})
    net.lock = threading.Lock()
    for copies in (swap.restore, freeze_activations):
        with pytest.raises(UserError, match=message):
            copies(net)


def exported() -> nn.Module:
    return torch.export.export(nn.Sequential(nn.ReLU()), (X,)).module()


def around_compiled() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Sequential(nn.ReLU()), backend="eager"))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (exported, "The network is exported by torch.export, and its program is fixed: replace before"),
        (lambda: nn.Sequential(exported()), "'0' is exported by torch.export"),
        (lambda: torch.export.export(nn.ReLU(), (X,)), "The network is exported by torch.export"),
        (around_compiled, "'1' is compiled by torch.compile, .*: put its _orig_mod there"),
        (
            lambda: torch.fx.symbolic_trace(Kept()),
            "The network is a GraphModule of torch.fx, .*: give the network that it was made from",
        ),
        (lambda: nn.Sequential(torch.fx.symbolic_trace(Kept())), "'0' is a GraphModule of torch.fx"),
    ],
)
def test_a_program_that_is_fixed(net, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(net(), {"ReLU": LIKE}, sample=X)


def test_modules_of_a_traced_network_are_replaced() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    net, swap = replace_activations(traced, {"ReLU": LIKE}, sample=X)
    torch.testing.assert_close(net(X), traced(X))
    assert torch.equal(swap.restore(net)(X), traced(X))
