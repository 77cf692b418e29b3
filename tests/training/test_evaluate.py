"""Loss and accuracy against values worked out by hand, and a network left as it was."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.running import evaluation_mode
from aafit.training.evaluate import Evaluation, evaluate

LABELS = (0, 1, 1, 0)
# The softmax of (log a, log b) with a + b = 1 is (a, b): the loss of label 0 is -log a.
PROBABILITIES = ((0.5, 0.5), (0.25, 0.75), (0.9, 0.1), (0.8, 0.2))
LOSS = -(math.log(0.5) + math.log(0.75) + math.log(0.1) + math.log(0.8)) / 4
ACCURACY = 3 / 4


def given_logits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits to put through nn.Identity, and the labels; of two equal logits the first counts as predicted."""
    return torch.tensor(PROBABILITIES, dtype=torch.float64).log().to(dtype), torch.tensor(LABELS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.9))
    )


def problem(images: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 6, generator=generator).to(dtype), torch.randint(3, (images,), generator=generator)


def split(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_against_values_by_hand(dtype: torch.dtype, error: float, size: int) -> None:
    result = evaluate(nn.Identity(), split(*given_logits(dtype), size))
    assert result.accuracy == ACCURACY
    assert result.samples == 4
    assert result.loss == pytest.approx(LOSS, rel=error)


def test_the_loss_of_a_certain_network_is_nought_or_large() -> None:
    x = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert evaluate(nn.Identity(), [(x, torch.tensor([0, 1]))]) == Evaluation(0.0, 1.0, 2)
    assert evaluate(nn.Identity(), [(x, torch.tensor([1, 0]))]) == Evaluation(100.0, 0.0, 2)


def test_an_evaluation_reads_as_a_sentence() -> None:
    assert str(Evaluation(0.65678, 0.78125, 10_000)) == "loss 0.6568, accuracy 78.12%"


@settings(max_examples=20, deadline=None)
@given(images=st.integers(1, 40), size=st.integers(1, 45))
def test_the_batch_size_does_not_matter(images: int, size: int) -> None:
    net, (x, y) = network(), problem(images)
    whole, parts = evaluate(net, [(x, y)]), evaluate(net, split(x, y, size))
    assert parts.samples == whole.samples == images
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 45))
def test_in_float64_the_batch_size_matters_by_rounding_alone(size: int) -> None:
    net, (x, y) = network().double(), problem(40, torch.float64)
    assert evaluate(net, split(x, y, size)).loss == pytest.approx(evaluate(net, [(x, y)]).loss, rel=1e-13)


def test_batches_may_come_from_a_generator() -> None:
    net, (x, y) = network(), problem(10)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from split(x, y, 3)

    assert evaluate(net, batches()) == evaluate(net, split(x, y, 3))


@pytest.mark.parametrize("batches", [[], [(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))]])
def test_nothing_to_evaluate(batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(UserError, match="no sample"):
        evaluate(network(), batches)


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def in_its_modes(training: bool) -> nn.Sequential:
    """A network with one module in the other mode, as a frozen batch norm is in training."""
    net = network().train(training)
    net[1].training = not training
    return net


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    net, (x, y) = in_its_modes(training), problem(20)
    before, before_modes = {name: tensor.clone() for name, tensor in net.state_dict().items()}, modes(net)
    results = {evaluate(net, [(x, y)]) for _ in range(3)}
    assert len(results) == 1, "dropout was at work"
    assert modes(net) == before_modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", ["the network", "the batches"])
def test_the_network_is_left_as_it_was_when_something_fails(training: bool, fails: str) -> None:
    net, (x, y) = in_its_modes(training), problem(4)
    before = modes(net)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield x, y
        if fails == "the batches":
            raise RuntimeError("a file is gone")
        yield x[:, 1:], y

    error, match = (RuntimeError, "a file is gone") if fails == "the batches" else (UserError, "mat1 and mat2")
    with pytest.raises(error, match=match):
        evaluate(net, batches())
    assert modes(net) == before
    assert torch.is_grad_enabled()


def test_several_networks_in_evaluation_mode() -> None:
    one, other = in_its_modes(True), in_its_modes(False)
    before = modes(one), modes(other)
    with evaluation_mode(one, other):
        assert not any(modes(one) + modes(other))
        assert not one(problem(2)[0]).requires_grad
    assert (modes(one), modes(other)) == before


def test_bf16_rounds_the_products_and_not_the_loss() -> None:
    net, (x, y) = network().eval(), problem(30)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    result = evaluate(net, [(x, y)], "bf16")
    assert result.loss == pytest.approx(F.cross_entropy(logits.double(), y).item(), rel=1e-6)
    assert result.loss != evaluate(net, [(x, y)]).loss
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_an_unknown_precision() -> None:
    with pytest.raises(UserError, match=r"Unknown precision 'bfloat16'.*bf16"):
        evaluate(network(), [problem(2)], "bfloat16")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_diverged(value: float) -> None:
    logits, labels = given_logits()
    logits[1, 0] = value
    found = evaluate(nn.Identity(), [(logits, labels)])
    assert found.diverged
    assert found.not_finite == 1
    assert str(found) == "DIVERGED: NaN or infinite outputs for 1 of 4 samples"
    assert found.accuracy == 2 / 4  # it is not right either
    assert not evaluate(nn.Identity(), [given_logits()]).diverged


def test_health_is_counted_over_the_outputs() -> None:
    """A recurrent network whose first axis is time has fewer outputs than its inputs have rows, and is healthy."""
    found = evaluate(nn.GRU(5, 3), [(torch.randn(50, 8, 5), torch.zeros(8).long())], output=lambda out: out[0][-1])
    assert (found.samples, found.not_finite, found.diverged) == (8, 0, False)


def test_broken_outputs_are_counted_where_there_are_more_of_them_than_inputs() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Flatten(0, 1))
    ids = torch.arange(20).reshape(4, 5) % 9
    with torch.no_grad():
        net[0].weight[0] = math.nan
    found = evaluate(net, [(ids, torch.zeros(20).long())])
    assert (found.samples, found.not_finite, found.diverged) == (20, 3, True)
