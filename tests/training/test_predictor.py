"""Running networks: copies of the inputs, random numbers, precision, and the frozen prefix."""

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.networks.batches import Batch
from aafit.networks.running import evaluation_mode
from aafit.training.evaluate import evaluate, repeated_evaluation
from aafit.training.predictor import Predictor, unwrapped
from aafit.training.tune import tune


class Skip(nn.Module):
    """Two values go from what is frozen to what is adapted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(6, 5), LEAF.like("Tanh"), nn.Linear(5, 3)
        for layer in (self.first, self.last):
            layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(x)
        y: Tensor = self.last(self.act(u) + x[:, :5])
        return y


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch((torch.randn(n, 6, generator=generator),), {}, torch.randint(0, 3, (n,), generator=generator))
        for n in sizes
    ]


def test_it_gives_what_the_network_gives_whatever_the_activations_become() -> None:
    net, given = Skip(), batches(4, 1)
    with evaluation_mode(net):
        found = Predictor(net).after_prefix(given, 1 << 20)
        assert found is not None
        rest, kept = found
        net.act.p2.add_(1)
        for batch, seen in zip(given, kept, strict=True):
            assert len(seen.args) == 2
            assert torch.equal(rest(seen), net(*batch.args))
            assert torch.equal(seen.target, batch.target)


# Five numbers of four bytes and the inputs or a part of them, of five images.
@pytest.mark.parametrize(("memory", "there"), [(1 << 10, True), (5 * 5 * 4 - 1, False), (0, False)])
def test_what_takes_too_much_is_not_kept(memory: int, there: bool) -> None:
    assert (Predictor(Skip()).after_prefix(batches(4, 1), memory) is not None) is there


@pytest.mark.parametrize(
    ("net", "given"),
    [
        (Skip(), []),
        (Skip(), [Batch((), {"x": torch.zeros(2, 6)})]),
        (nn.Sequential(LEAF.like("Tanh"), nn.Linear(6, 3)), batches(4)),
    ],
)
def test_where_nothing_can_be_kept(net: nn.Module, given: list[Batch]) -> None:
    assert Predictor(net).after_prefix(given, 1 << 20) is None


def test_an_output_that_asks_for_the_inputs_gets_those_of_the_network() -> None:
    assert Predictor(Skip(), lambda y, batch: y).after_prefix(batches(4), 1 << 20) is None


def test_evaluations_keep_several_values_too() -> None:
    net, given = Skip(), batches(4, 3)
    again, calls = repeated_evaluation(net, lambda: given), []
    net.first.register_forward_hook(lambda *_: calls.append(1))
    assert again() == again()
    assert not calls
    assert again() == evaluate(net, given)


def test_inputs_are_copied_even_for_networks_that_work_in_place() -> None:
    net = nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Linear(6, 8), LEAF.like("SiLU"), nn.Linear(8, 3))
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    before = x.clone()
    evaluate(net, [(x, y)])
    tune(net, [(x, y)], epochs=2)
    assert torch.equal(x, before)


def test_every_batch_gets_the_same_random_numbers_and_the_callers_stay() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    predictor, zeros, state = Predictor(Noisy(), batch_size=2), torch.zeros(4, 3), torch.get_rng_state()
    outputs = predictor.outputs(Batch((zeros,), {}))
    assert torch.equal(outputs[:2], outputs[2:])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(predictor(Batch((zeros,), {}), seed=None), predictor(Batch((zeros,), {}), seed=None))


def test_parameters_can_be_substituted() -> None:
    net, x = nn.Linear(3, 2, bias=False), torch.randn(5, 3)
    weight = torch.randn(2, 3)
    assert torch.equal(Predictor(net)(Batch((x,), {}), {"weight": weight}), nn.functional.linear(x, weight))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_outputs_are_float32_or_float64(dtype: str, expected: str) -> None:
    net = nn.Linear(3, 2).to(getattr(torch, dtype))
    x = torch.randn(5, 3).to(getattr(torch, dtype))
    assert Predictor(net)(Batch((x,), {})).dtype == getattr(torch, expected)


def test_a_data_parallel_network_is_unwrapped() -> None:
    net = nn.Linear(3, 2)
    assert unwrapped(nn.DataParallel(net)) is net
    assert unwrapped(net) is net
