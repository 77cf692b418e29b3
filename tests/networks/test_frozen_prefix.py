"""The two parts of a split network against the whole, bit for bit."""

import logging
from typing import Any

import pytest
import torch
from foreign import RELUS, images, resnet
from small import Small
from torch import Tensor, nn
from written import FORMS, written

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.experiment.models import build
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.frozen_prefix import split_network
from aafit.networks.surgery import replace_activations


def made(name: str, paths: list[str]) -> tuple[nn.Module, Tensor]:
    """A network with adaptive activations at these paths, in evaluation mode, and images for it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    base: nn.Module
    if name == "ResNet":
        base, x = resnet(), images(5)
    else:
        side = {"KerasNet": 10, "LeNet-5": 16}[name]
        base, x = build(name, (3, side, side), 4), torch.randn(5, 3, side, side, generator=generator)
    kinds: list[Any] = [LEAF.like("ReLU"), FNeuron.like("Tanh"), AHAF.like("SiLU")]
    replacements = {path: kinds[at % 3] for at, path in enumerate(paths)}
    return replace_activations(base.eval(), replacements, sample=x)[0].eval(), x


def turned(net: nn.Module) -> None:
    """Other adaptive parameters than before."""
    with torch.no_grad():
        for parameter in adaptive_parameters(net).values():
            parameter.add_(torch.linspace(0.1, 0.7, parameter.numel()).reshape(parameter.shape))


CASES = [
    ("KerasNet", ["act7"]),
    ("KerasNet", ["act1"]),
    ("KerasNet", ["act4", "act7"]),
    ("KerasNet", ["act1", "act2", "act4", "act5", "act7"]),
    ("LeNet-5", ["act3"]),
    ("LeNet-5", ["act1", "act2", "act3"]),
    ("ResNet", ["head.act"]),
    ("ResNet", ["stem.2"]),
    ("ResNet", ["layers.0.act1"]),
    ("ResNet", ["layers.1.act1", "head.act"]),
    ("ResNet", [RELUS[3]]),
]


@pytest.mark.parametrize(("name", "paths"), CASES, ids=lambda case: case if isinstance(case, str) else " ".join(case))
def test_the_parts_are_the_whole(name: str, paths: list[str]) -> None:
    net, x = made(name, paths)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    prefix, rest = split_network(net, (x[:2],))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert prefix is not None
    with torch.no_grad():
        between = prefix(x)
        assert torch.equal(rest(*between), net(x))
        turned(net)
        # What the prefix gave still holds, and the rest follows the network's own parameters.
        assert torch.equal(rest(*between), net(x))
        assert all(map(torch.equal, between, prefix(x)))
    assert all(len(value) == len(x) for value in between)


@pytest.mark.parametrize(("name", "paths"), CASES[:1] + CASES[7:8], ids=["KerasNet", "ResNet"])
def test_the_adaptive_parameters_are_shared(name: str, paths: list[str]) -> None:
    net, x = made(name, paths)
    prefix, rest = split_network(net, (x[:2],))
    assert prefix is not None
    mine = {id(parameter) for parameter in adaptive_parameters(net).values()}
    assert {id(parameter) for parameter in adaptive_parameters(rest).values()} == mine
    assert not any(isinstance(module, AdaptiveActivation) for module in prefix.modules())
    assert {id(p) for part in (prefix, rest) for p in part.parameters()} <= {id(p) for p in net.parameters()}
    assert not prefix.training
    assert not rest.training


def test_a_residual_connection_around_the_first_activation() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.act, self.out = nn.Linear(4, 6), AHAF.like("SiLU"), nn.Linear(6, 3)
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            u = self.into(x)
            shortcut = torch.tanh(u) * self.scale
            logits: Tensor = self.out(self.act(u) * self.scale + shortcut + u)
            return logits

    torch.manual_seed(0)
    net, x = Around().eval(), torch.randn(7, 4)
    prefix, rest = split_network(net, (x[:2],))
    assert prefix is not None
    with torch.no_grad():
        assert len(prefix(x)) == 2
        turned(net)
        assert torch.equal(rest(*prefix(x)), net(x))


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_split_however_its_activations_are_written(form: str) -> None:
    between, rows = FORMS[form]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    acts = {path: AHAF(gamma=0.5 + at, beta=1.0) for at, (_, path) in enumerate(rows)}
    net, _ = replace_activations(written(between).eval(), acts, sample=x)
    prefix, rest = split_network(net, (x[:2],))
    assert prefix is not None
    assert torch.equal(rest(*prefix(x)), net(x))


class Depends(nn.Module):
    """Goes one way or the other by the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.act, self.out = nn.Linear(4, 6), AHAF.like("SiLU"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        logits: Tensor = self.out(self.act(u) if u.sum() > 0 else self.act(-u))
        return logits


class InPlace(Depends):
    """Adds to what the prefix would give."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        logits: Tensor = self.out(u.add_(self.act(u)))
        return logits


class FrozenInPlace(Depends):
    """Doubles, in a step that no adaptive parameter takes part in, what the activation has seen before."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        y = self.act(u)
        logits: Tensor = self.out(y + u.mul_(2))
        return logits


class NotRows(Depends):
    """Shares a number of the whole batch with what comes behind."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        logits: Tensor = self.out(self.act(u) * u.mean())
        return logits


class Folded(Depends):
    """The batch is no longer the first dimension behind the prefix."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x).T
        logits: Tensor = self.out(self.act(u).T)
        return logits


class ByNumbers(Depends):
    """The prefix knows the size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        logits: Tensor = self.out(self.act(u).reshape(x.shape[0], 6))
        return logits


class Nothing(Depends):
    """The activation comes first."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.cat([self.act(x), x[:, :2]], 1))
        return logits


@pytest.mark.parametrize("kind", [Depends, InPlace, FrozenInPlace, NotRows, Folded, ByNumbers])
def test_what_cannot_be_split_runs_as_a_whole(kind: type[Depends]) -> None:
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(5, 4)
    kept = x.clone()
    prefix, rest = split_network(net, (x[:2],))
    assert prefix is None
    assert rest is net
    assert torch.equal(x, kept)


class OfNoImage(Depends):
    """Something frozen that no image takes part in, of two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = nn.functional.linear(self.act(self.into(x)), self.weight.exp())
        return logits


@pytest.mark.parametrize("rows", [2, 3])
def test_what_no_image_takes_part_in_is_not_taken_for_rows_of_images(rows: int) -> None:
    torch.manual_seed(0)
    net, x = OfNoImage().eval(), torch.randn(5, 4)
    prefix, rest = split_network(net, (x[:rows],))
    between = (x,) if prefix is None else prefix(x)
    assert all(len(value) == len(x) for value in between)
    assert torch.equal(rest(*between), net(x))


def test_an_activation_that_comes_first() -> None:
    torch.manual_seed(0)
    net, x = Nothing().eval(), torch.randn(5, 4)
    prefix, rest = split_network(net, (x[:2],))
    between = (x,) if prefix is None else prefix(x)
    assert torch.equal(rest(*between), net(x))
    prefix, rest = split_network(nn.Sequential(AHAF.like("SiLU"), nn.Linear(4, 2)), (x[:2],))
    assert prefix is None


def test_the_reason_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "aafit.networks.frozen_prefix"):
        split_network(Depends(), (torch.randn(2, 4),))
    assert "The network is not split" in caplog.text


def test_dropout_in_training_mode_is_not_computed_beforehand() -> None:
    torch.manual_seed(0)
    net: Any = replace_activations(Small(), {"act2": AHAF.like("SiLU")})[0].train()
    net.norm.eval()
    assert split_network(net, (torch.randn(8, 2, 4, 4),)) == (None, net)
