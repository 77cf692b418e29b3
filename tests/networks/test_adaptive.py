import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from foreign import RELUS, adaptive_resnet, changed, resnet, snapshot, train
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF
from aafit.errors import UserError
from aafit.experiment.models import NETWORKS, build
from aafit.networks.adaptive import (
    adaptive_activations,
    adaptive_parameters,
    train_only_activations,
    training_mode,
)
from aafit.networks.saving import load_activations, read_activations, save_activations
from aafit.networks.surgery import replace_activations

NAMES = ("p1", "p2", "p3", "p4")
SMALL = (1, 16, 16)


def test_adaptive_activations_and_parameters_are_named_by_path() -> None:
    net = adaptive_resnet()
    assert list(adaptive_activations(net)) == list(RELUS)
    assert list(adaptive_parameters(net)) == [f"{path}.{name}" for path in RELUS for name in NAMES]
    named = dict(net.named_parameters())
    assert all(parameter is named[name] for name, parameter in adaptive_parameters(net).items())
    assert adaptive_activations(resnet()) == {}
    assert adaptive_activations(resnet().head) == adaptive_parameters(resnet().head) == {}
    assert list(adaptive_parameters(AHAF.like("ReLU"))) == ["gamma", "beta"]


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
def test_frozen_means_frozen(sharing) -> None:
    net = adaptive_resnet(sharing)
    before = snapshot(net)
    parameters = train_only_activations(net)
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters() if p.requires_grad}
    training_mode(net)
    train(net, parameters)
    tuned = changed(net, before)
    assert tuned == set(adaptive_parameters(net))
    assert any("running_mean" in name for name in before)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_activations_of_the_experiment_s_networks_train(name: str) -> None:
    net, _ = replace_activations(build(name, SMALL, 3), {"ReLU": LEAF.like("SiLU")})
    parameters = train_only_activations(net)
    before = snapshot(net)
    training_mode(net)
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    nn.functional.cross_entropy(net(torch.rand(4, *SMALL)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert changed(net, before) == set(adaptive_parameters(net))


def test_freezing_again_frees_an_activation_that_was_frozen_with_the_rest() -> None:
    net = adaptive_resnet().requires_grad_(False)
    assert len(train_only_activations(net)) == 20
    assert all(parameter.requires_grad for parameter in adaptive_parameters(net).values())


def test_nothing_adaptive_to_train_or_save_is_an_error_that_freezes_nothing(tmp_path: Path) -> None:
    net = resnet()
    with pytest.raises(UserError, match="no adaptive activation to train: put some in with replace_activations"):
        train_only_activations(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(UserError, match=r"nothing to save .* no adaptive activation"):
        save_activations(net, tmp_path / "none.safetensors")
    assert list(tmp_path.iterdir()) == []


def modes(net: nn.Module) -> dict[str, bool]:
    kinds = (nn.Dropout, nn.BatchNorm2d, LEAF)
    return {path: module.training for path, module in net.named_modules() if isinstance(module, kinds)}


def test_dropout_and_activations_train_where_frozen_batch_norms_do_not() -> None:
    net = adaptive_resnet()
    train_only_activations(net)
    training_mode(net.eval())
    expected = {path: "bn" not in path and path != "stem.1" for path in modes(net)}
    assert modes(net) == expected
    assert sorted(expected.values()).count(False) == 5
    assert net.training


def test_batch_norms_train_in_a_network_that_trains() -> None:
    net = adaptive_resnet()
    training_mode(net)
    assert all(modes(net).values())
    net.layers[0].bn1.requires_grad_(False)
    training_mode(net)
    assert [path for path, trains in modes(net).items() if not trains] == ["layers.0.bn1"]
    net.layers[0].bn1.bias.requires_grad_(True)
    training_mode(net)
    assert all(modes(net).values())


def test_a_module_without_buffers_below_one_with_buffers_trains() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1))
            self.inner = nn.Sequential(nn.Dropout(), AHAF.like("SiLU"))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * self.scale)

    net = Scaled()
    train_only_activations(net)
    training_mode(net)
    assert (net.training, net.inner[0].training) == (False, True)


class Loops(nn.Module):
    """A network with modules that have statistics: with weights, without, below an activation's path."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.plain = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.BatchNorm1d(12, affine=False)
        self.act, self.drop, self.out = nn.ReLU(), nn.Dropout(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.drop(self.act(self.plain(self.norm(self.fc(x))))))
        return y


def _loop(net: nn.Module, x: Tensor) -> None:
    """A training loop of the user's own."""
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        net.train()
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        net.eval()


@pytest.mark.parametrize("copy", [lambda net: net, deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_frozen_statistics_stay_in_a_loop_of_the_user_s_own(copy) -> None:
    net, _ = replace_activations(Loops(), {"ReLU": LEAF.like("ReLU")})
    train_only_activations(net)
    net = copy(net)
    before = snapshot(net)
    _loop(net, torch.randn(8, 6))
    assert changed(net, before) <= set(adaptive_parameters(net))
    assert changed(net, before)
    net.train()
    assert [path for path, module in net.named_modules() if not module.training] == ["norm", "plain"]
    net.eval()
    assert not any(module.training for module in net.modules())
    net.requires_grad_(True).train()
    assert all(module.training for module in net.modules())
    _loop(net, torch.randn(8, 6))
    assert {"norm.running_mean", "plain.running_mean", "fc.weight"} <= changed(net, before)


class Backwards(nn.Module):
    """Calls its modules in another order than they are registered in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.a, self.b = nn.SiLU(), nn.SiLU(), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.up(nn.functional.relu(self.down(self.a(x)))))
        return y


def test_activations_are_in_the_order_of_their_calls(tmp_path: Path) -> None:
    x, order = torch.randn(5, 4), ["down", "relu_1", "up"]
    first, _ = replace_activations(Backwards(), {"up": LEAF.like("SiLU")}, sample=x)
    net, _ = replace_activations(first, {"ReLU": AHAF.like("ReLU"), "down": LEAF.like("SiLU")}, sample=x)
    save_activations(net, tmp_path / "a.safetensors")
    loaded = load_activations(Backwards(), tmp_path / "a.safetensors")
    for own in (net, deepcopy(net), loaded):
        assert list(adaptive_activations(own)) == order
        assert list(dict.fromkeys(name.partition(".")[0] for name in adaptive_parameters(own))) == order
    assert [row.path for row in read_activations(tmp_path / "a.safetensors")] == order
    unsampled, _ = replace_activations(Backwards(), {"SiLU": LEAF.like("SiLU")})
    assert list(adaptive_activations(unsampled)) == ["up", "down"]
