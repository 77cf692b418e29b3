"""Optimizers and epochs, against steps written down by hand."""

import copy
import math
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from foreign import changed, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Batches, Small, freeze, network, problem
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from aafit.activations import AHAF, LEAF
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters, train_only_activations
from aafit.training.tune import make_optimizers, train_epoch


def rates(net: nn.Module, optimizers: Iterable[Optimizer]) -> list[dict[str, float]]:
    """What each optimizer trains, by the parameters' names, and at which rate."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [
        {names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in optimizers
    ]


@pytest.mark.parametrize(
    ("optimizer", "lr", "p24sl", "expected", "expected_slow"),
    [
        ("adam", None, False, 1e-3, 1e-3),
        ("adam", None, True, 1e-3, 1e-6),
        ("adam", 0.5, True, 0.5, 5e-4),
        ("rmsprop", None, False, 1e-4, 1e-4),
        ("rmsprop", None, True, 1e-4, 1e-5),
        ("rmsprop", 0.5, True, 0.5, 0.05),
    ],
)
@pytest.mark.parametrize("dspu4", [False, True])
@pytest.mark.parametrize("sharing", ["layer", "neuron"])
def test_learning_rates(
    optimizer: str, lr: float | None, p24sl: bool, expected: float, expected_slow: float, dspu4: bool, sharing: str
) -> None:
    net = network(sharing=sharing)
    found = rates(net, make_optimizers(net, optimizer, lr, p24sl, dspu4))
    merged = {name: rate for one in found for name, rate in one.items()}
    slow = ("act1.p2", "act1.p4")
    assert merged == pytest.approx(
        {name: expected_slow if name in slow else expected for name, _ in net.named_parameters()}, rel=1e-12
    )
    adaptive = set(adaptive_parameters(net))
    if dspu4:
        assert [set(one) for one in found] == [adaptive, merged.keys() - adaptive]
    else:
        assert len(found) == 1


@settings(max_examples=20, deadline=None)
@given(lr=st.floats(1e-9, 10), optimizer=st.sampled_from([("adam", 1000), ("rmsprop", 10)]))
def test_p2_and_p4_are_slower_at_every_rate(lr: float, optimizer: tuple[str, int]) -> None:
    net = LEAF.like("ReLU")
    name, slower = optimizer
    (found,) = rates(net, make_optimizers(net, name, lr, p24sl=True))
    assert found == pytest.approx({"p1": lr, "p2": lr / slower, "p3": lr, "p4": lr / slower}, rel=1e-12)


@pytest.mark.parametrize("dspu4", [False, True])
@pytest.mark.parametrize("frozen", [(), ("act1.p2",), ("conv.weight", "norm.bias", "act2.gamma")])
def test_optimizers_hold_only_what_trains(frozen: tuple[str, ...], dspu4: bool) -> None:
    net = network()
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    found = rates(net, make_optimizers(net, p24sl=True, dspu4=dspu4))
    everything = [name for one in found for name in one]
    assert sorted(everything) == sorted({name for name, _ in net.named_parameters()} - set(frozen))


def test_with_all_else_frozen_only_the_activations_are_held() -> None:
    net = network()
    train_only_activations(net)
    assert [set(one) for one in rates(net, make_optimizers(net))] == [set(adaptive_parameters(net))]


@pytest.mark.parametrize(
    ("net", "dspu4", "sentence"),
    [
        (freeze(Small(), lambda name: True), False, "No parameter requires"),
        (nn.ReLU(), False, "No parameter requires"),
        (Small(), True, "2SPU-4 needs both"),
        (freeze(network(), lambda name: name.startswith("act")), True, "2SPU-4 needs both"),
        (freeze(network(), lambda name: not name.startswith("act")), True, "2SPU-4 needs both"),
    ],
)
def test_nothing_to_train(net: nn.Module, dspu4: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_optimizers(net, dspu4=dspu4)


@pytest.mark.parametrize(
    ("given", "meant"), [("Adam", "adam"), ("RMSprop", "rmsprop"), ("adamw", "adam"), ("rms", "rmsprop")]
)
def test_an_unknown_optimizer(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Unknown optimizer '{given}'. Did you mean '{meant}'"):
        make_optimizers(network(), given)


@pytest.mark.parametrize("lr", [-1e-3, float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_rate_that_is_none(lr: float, optimizer: str) -> None:
    with pytest.raises(UserError, match="learning rate"):
        make_optimizers(network(), optimizer, lr)


def adam_step(value: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """Adam's step with the last of the gradients so far, by the paper (Kingma & Ba, 2014, algorithm 1)."""
    m = v = torch.zeros_like(value)
    for gradient in gradients:
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
    t = len(gradients)
    return value - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def rmsprop_step(value: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """RMSprop's step with the last of the gradients so far: alpha 0.9, eps 1e-7 outside of the root."""
    v = torch.zeros_like(value)
    for gradient in gradients:
        v = 0.9 * v + 0.1 * gradient**2
    return value - lr * gradients[-1] / (v.sqrt() + 1e-7)


STEPS = {"adam": adam_step, "rmsprop": rmsprop_step}


def reference_epoch(net: nn.Module, batches: Batches, optimizer: str, parts: list[dict[str, float]]) -> list[float]:
    """An epoch with a forward and a step for each part of the parameters; the losses of the first forwards."""
    gradients: dict[str, list[Tensor]] = {}
    losses = []
    net.train()
    for x, y in batches:
        for number, part in enumerate(parts):
            loss = F.cross_entropy(net(x), y)
            found = torch.autograd.grad(loss, [net.get_parameter(name) for name in part])
            by_name = dict(zip(part, found, strict=True))
            with torch.no_grad():
                for name, gradient in by_name.items():
                    gradients.setdefault(name, []).append(gradient)
                    parameter = net.get_parameter(name)
                    parameter.copy_(STEPS[optimizer](parameter, gradients[name], part[name]))
            if number == 0:
                losses.append(loss.item())
    return losses


def assert_alike(net: nn.Module, other: nn.Module) -> None:
    for (name, one), two in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("p24sl", [False, True])
@pytest.mark.parametrize("dspu4", [False, True])
def test_an_epoch_is_the_procedure_by_hand(optimizer: str, p24sl: bool, dspu4: bool) -> None:
    net = network(dtype=torch.float64)
    by_hand, batches, lr = copy.deepcopy(net), problem(torch.float64), 0.01
    slow = lr / {"adam": 1000, "rmsprop": 10}[optimizer]
    all_rates = {name: slow if p24sl and name in ("act1.p2", "act1.p4") else lr for name, _ in net.named_parameters()}
    adaptive = {name: rate for name, rate in all_rates.items() if name.startswith("act")}
    others = {name: rate for name, rate in all_rates.items() if name not in adaptive}
    # The same seed makes the same dropout, as long as there are as many forwards.
    torch.manual_seed(1)
    mean, variance = train_epoch(net, batches, make_optimizers(net, optimizer, lr, p24sl, dspu4), "float64")
    torch.manual_seed(1)
    losses = reference_epoch(by_hand, batches, optimizer, [adaptive, others] if dspu4 else [all_rates])
    assert_alike(net, by_hand)
    assert mean == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert variance == pytest.approx(sum((loss - mean) ** 2 for loss in losses) / 3, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_where_gradients_are_tiny_eps_counts(optimizer: str) -> None:
    net = network(dtype=torch.float64, dropout=0.0)
    with torch.no_grad():
        net.out.weight.mul_(1e-7)
    train_only_activations(net)
    net.norm.eval()
    by_hand = copy.deepcopy(net)
    x, y = problem(torch.float64)[0]
    gradients = torch.autograd.grad(F.cross_entropy(by_hand(x), y), list(adaptive_parameters(by_hand).values()))
    assert all(gradient.abs() < 1e-6 for gradient in gradients)
    train_epoch(net, [(x, y)], make_optimizers(net, optimizer, 0.1), "float64")
    for (name, tuned), start, gradient in zip(
        adaptive_parameters(net).items(), adaptive_parameters(by_hand).values(), gradients, strict=True
    ):
        expected = STEPS[optimizer](start, [gradient], 0.1)
        assert (tuned - start).item() == pytest.approx((expected - start).item(), rel=1e-6), name


def test_each_step_of_2spu4_changes_its_own_part() -> None:
    net = network()
    optimizers = make_optimizers(net, lr=0.01, dspu4=True)
    parts: list[set[str]] = []

    def note_changes(*_: object) -> None:
        nonlocal before
        parts.append({name for name in changed(net, before) if "running" not in name and "tracked" not in name})
        before = snapshot(net)

    before = snapshot(net)
    for optimizer in optimizers:
        optimizer.register_step_post_hook(note_changes)
    train_epoch(net, problem(), optimizers)
    adaptive = set(adaptive_parameters(net))
    others = {name for name, _ in net.named_parameters()} - adaptive
    assert len(parts) == 6
    assert all(part == adaptive for part in parts[0::2])
    # Dropout may take all that a bias leads to: then it stays for once.
    assert all(part <= others and len(part) > 4 for part in parts[1::2])


def test_the_loss_is_that_of_the_first_forward() -> None:
    net, (batch, *_) = network(dropout=0.0), problem()
    expected = F.cross_entropy(copy.deepcopy(net).train()(batch[0]), batch[1]).item()
    loss, variance = train_epoch(net, [batch], make_optimizers(net, lr=0.5, dspu4=True))
    assert (loss, variance) == (pytest.approx(expected, rel=1e-6), 0)
    assert train_epoch(net, [batch], make_optimizers(net))[0] != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("batches", "mean", "variance"),
    [
        # -log p of the right labels: each batch's mean, then mean and variance of those.
        ([([0.5], [0])], math.log(2), 0.0),
        ([([0.5], [0]), ([0.125], [0])], 2 * math.log(2), math.log(2) ** 2),
        # A batch counts as one, however many images it has.
        ([([0.5, 0.125, 0.5, 0.125], [0, 0, 1, 0]), ([1 / 32], [0])], None, None),
        ([([0.5, 0.25], [0, 0]), ([0.5], [1]), ([0.25], [0])], math.log(2) * 4.5 / 3, math.log(2) ** 2 / 6),
    ],
)
def test_mean_and_variance_by_hand(
    batches: list[tuple[list[float], list[int]]], mean: float | None, variance: float | None
) -> None:
    if mean is None:
        losses = [(1 + 3 + 1 + 3) / 4 * math.log(2), 5 * math.log(2)]
        mean, variance = sum(losses) / 2, (losses[1] - losses[0]) ** 2 / 4
    # beta * u * sigmoid(0) is u: the logits are what goes in.
    net = nn.Sequential(AHAF(0.0, 2.0)).double()
    given_batches = []
    for first, labels in batches:
        p = torch.tensor(first, dtype=torch.float64)
        given_batches.append((torch.stack([p, 1 - p], 1).log(), torch.tensor(labels)))
    found = train_epoch(net, given_batches, [SGD(net.parameters(), lr=0.0)], "float64")
    assert found == pytest.approx((mean, variance), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("batches", [[], iter([])])
def test_no_images(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    net = network()
    with pytest.raises(UserError, match="no sample"):
        train_epoch(net, batches, make_optimizers(net))
