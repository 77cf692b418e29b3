"""Tuning: the activations alone change, and the loss falls."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from foreign import changed, snapshot
from small import Batches, Small, freeze, network, problem
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aafit.activations import AHAF, LEAF, FNeuron, from_text
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.surgery import replace_activations
from aafit.training.evaluate import evaluate
from aafit.training.tune import make_optimizers, train_epoch, tune


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as Tanh", "F-Neuron as ReLU", "LEAF random"])
def test_tuning_changes_the_activations_alone(text: str, sharing: str, precision: str) -> None:
    replacements = {"ReLU": lambda shape: from_text(text, shape, torch.Generator().manual_seed(5))}
    net = network(replacements, sharing=sharing)
    before = snapshot(net)
    tune(net, problem(), epochs=2, lr=0.01, precision=precision)
    assert changed(net, before) == set(adaptive_parameters(net))
    assert {name for name, tensor in net.state_dict().items() if tensor.dtype != before[name].dtype} == set()
    assert not any(p.requires_grad or p.grad is not None for name, p in net.named_parameters() if "act" not in name)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_training_what_is_left_unfrozen_changes_that_alone(optimizer: str) -> None:
    net = network()
    freeze(net, lambda name: name not in ("act1.p1", "act2.beta", "out.bias"))
    before = snapshot(net)
    train_epoch(net, problem(), make_optimizers(net, optimizer))
    assert changed(net, before) == {"act1.p1", "act2.beta", "out.bias"}


def test_a_network_that_trains_as_a_whole_has_its_statistics_too() -> None:
    net = network()
    before = snapshot(net)
    train_epoch(net, problem(), make_optimizers(net))
    assert changed(net, before) == set(before)


def separable(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Batches]:
    """A trained network whose activations were then replaced by ones that do not fit it."""
    torch.manual_seed(2)
    base = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    x = torch.randn(64, 2).to(dtype)
    y = (x[:, 0] > 0).long()
    with torch.no_grad():
        base[0].weight[:, 1] = 0
        base[2].weight[0] = -base[0].weight[:, 0]
        base[2].weight[1] = base[0].weight[:, 0]
    net, _ = replace_activations(base, {"Tanh": FNeuron.random(knots=8, generator=torch.Generator().manual_seed(1))})
    return net, list(zip(x.split(16), y.split(16), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_tuning_lowers_the_loss(optimizer: str, precision: str) -> None:
    dtype = torch.float64 if precision == "float64" else torch.float32
    net, batches = separable(dtype)
    history = tune(net, batches, epochs=12, optimizer=optimizer, lr=0.05, precision=precision)
    assert len(history) == 12
    assert all(isinstance(loss, float) for loss in history)
    assert history == sorted(history, reverse=True)
    assert history[-1] < 0.7 * history[0]
    assert all(parameter.dtype == dtype for parameter in net.parameters())


def test_tuning_is_in_place_and_the_same_each_time() -> None:
    results = []
    for _ in range(2):
        net = network()
        parameters = adaptive_parameters(net)
        torch.manual_seed(4)
        history = tune(net, problem(), epochs=2)
        assert all(adaptive_parameters(net)[name] is parameter for name, parameter in parameters.items())
        results.append((history, [parameter.tolist() for parameter in parameters.values()]))
    assert results[0] == results[1]


@pytest.mark.parametrize(("optimizer", "lr", "slow"), [("adam", 1e-3, 1e-6), ("rmsprop", 1e-4, 1e-5)])
@pytest.mark.parametrize("p24sl", [False, True])
def test_rates_show_in_the_first_step(optimizer: str, lr: float, slow: float, p24sl: bool) -> None:
    net = network(dtype=torch.float64, dropout=0.0)
    before = snapshot(net)
    tune(net, problem(torch.float64)[:1], epochs=1, optimizer=optimizer, p24sl=p24sl, precision="float64")
    # The first step does not depend on the gradient's size: Adam's is lr, RMSprop's lr / sqrt(0.1).
    size = 1 if optimizer == "adam" else 10**0.5
    for name, parameter in adaptive_parameters(net).items():
        rate = slow if p24sl and name in ("act1.p2", "act1.p4") else lr
        assert (parameter - before[name]).abs().item() == pytest.approx(rate * size, rel=1e-3), name


def loader(batches: Batches) -> DataLoader[tuple[Tensor, ...]]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=8)


def generator_of(batches: Batches) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    def of_epoch(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches

    return of_epoch


@pytest.mark.parametrize("form", [tuple, loader, generator_of], ids=["tuple", "DataLoader", "function"])
def test_batches_of_every_form(form: Callable[[Batches], Any]) -> None:
    results = []
    for batches in (problem(), form(problem())):
        net = network(dropout=0.0)
        results.append(tune(net, batches, epochs=3))
    assert results[0] == results[1]


def test_the_function_of_batches_and_the_one_after_see_every_epoch() -> None:
    asked: list[int] = []
    noted: list[tuple[int, float]] = []

    def batches(epoch: int) -> Batches:
        asked.append(epoch)
        return problem()

    history = tune(network(), batches, epochs=3, after_epoch=lambda epoch, loss: noted.append((epoch, loss)))
    assert asked == [0, 1, 2]
    assert noted == list(enumerate(history))


def test_no_epochs_change_nothing() -> None:
    net = network()
    before = snapshot(net)
    assert tune(net, problem(), epochs=0) == []
    assert changed(net, before) == set()


class Spare(nn.Module):
    """A network with an activation that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.spare, self.out = LEAF.like("Tanh"), LEAF.like("Tanh"), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.act(x.flatten(1)))
        return logits


def test_an_activation_that_is_never_called_stays() -> None:
    net = Spare()
    before = snapshot(net)
    with pytest.warns(UserWarning, match="no gradient with respect to spare.p1, spare.p2, spare.p3, spare.p4"):
        tune(net, problem(), epochs=1)
    assert changed(net, before) == {f"act.{name}" for name in ("p1", "p2", "p3", "p4")}


@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as Tanh", "F-Neuron as ReLU"])
def test_what_follows_an_activation_may_work_in_place(text: str) -> None:
    net = nn.Sequential(nn.Flatten(), from_text(text), nn.Dropout(0.5, inplace=True), nn.Linear(32, 3))
    before = snapshot(net)
    tune(net, problem(), epochs=1, lr=0.01)
    assert changed(net, before) == set(adaptive_parameters(net))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batches": iter(problem())}, "only once"),
        ({"batches": (batch for batch in problem())}, "only once"),
        ({"batches": []}, "no sample"),
        ({"batches": lambda epoch: []}, "no sample"),
        ({"optimizer": "sgd"}, "Unknown optimizer 'sgd'"),
        ({"precision": "float16"}, "Unknown precision 'float16'"),
        ({"lr": -0.1}, "learning rate"),
        ({"net": Small()}, "no adaptive activation"),
    ],
)
def test_what_cannot_be_tuned(options: dict[str, Any], sentence: str) -> None:
    arguments = {"net": network(), "batches": problem(), "epochs": 2, **options}
    before = snapshot(arguments["net"])
    with pytest.raises(UserError, match=sentence):
        tune(**arguments)
    assert changed(arguments["net"], before) == set()


def test_half_precision_parameters_are_stepped_in_float32() -> None:
    """Steps of 1e-3 round away in bfloat16 one by one; together they do not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), AHAF.like("SiLU"), nn.Linear(32, 3)).bfloat16()
    x, y = torch.randn(64, 8).bfloat16(), torch.randint(3, (64,))
    before = [p.detach().clone() for p in adaptive_parameters(net).values()]
    tune(net, [(x, y)], epochs=30)
    for parameter, was in zip(adaptive_parameters(net).values(), before, strict=True):
        assert parameter.dtype == torch.bfloat16
        assert (parameter - was).abs().max() > 0.01


def test_a_parameter_that_ends_unchanged_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), LEAF.like("SiLU"), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"Tuning left 1\.p1, 1\.p3 unchanged"):
        tune(net, [(torch.randn(9, 4), torch.arange(9) % 3)], epochs=1, lr=1e-30)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = LEAF.like("SiLU"), LEAF.like("Tanh"), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.second(self.first(x).detach()))
        return y


def test_a_detached_part_is_named() -> None:
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    with pytest.warns(UserWarning, match=r"no gradient with respect to first\.p1, first\.p2, first\.p3, first\.p4"):
        tune(Detached(), [(x, y)], epochs=1)
    net = nn.Sequential(Detached(), nn.Flatten())
    net[0].out.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(UserError, match="no gradient with respect to any adaptive parameter"):
        tune(net, [(x, y)], epochs=1)


def test_tuning_under_no_grad_and_in_inference_mode() -> None:
    data = [(torch.randn(9, 4), torch.arange(9) % 3)]
    nets = [nn.Sequential(nn.Linear(4, 8), LEAF.like("SiLU"), nn.Linear(8, 3)) for _ in range(2)]
    with torch.no_grad():
        before = snapshot(nets[0])
        tune(nets[0], data, epochs=1)
        assert changed(nets[0], before) == set(adaptive_parameters(nets[0]))
    with torch.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        tune(nets[1], data, epochs=1)


def test_the_loss_of_an_epoch_is_over_the_labelled_positions() -> None:
    net = nn.Sequential(nn.Linear(6, 8), LEAF.like("SiLU"), nn.Linear(8, 4))
    x, y = torch.randn(8, 3, 6), torch.randint(4, (8, 3))
    data = [(x, y), (x[:2], y[:2]), (x, torch.full((8, 3), -100))]
    (loss,) = tune(net, data, epochs=1, lr=1e-6)
    assert loss == pytest.approx(evaluate(net, data).loss, abs=1e-4)


def test_no_step_is_taken_on_a_batch_whose_loss_is_not_finite() -> None:
    net = nn.Sequential(nn.Linear(4, 8), LEAF.like("SiLU"), nn.Linear(8, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    broken = x.clone()
    broken[0, 0] = math.nan
    with pytest.warns(UserWarning, match="NaN or infinite: no step was taken on it"):
        first, second = tune(net, lambda epoch: [(x, y), (x if epoch else broken, y)], epochs=2)
    assert math.isnan(first)
    assert math.isfinite(second)
    assert all(parameter.isfinite().all() for parameter in net.parameters())
