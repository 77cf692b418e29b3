"""How far a network is from its base, by outputs and by loss; and what `tune` says of a far start."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.activations.compiled import compiled_loops
from aafit.networks.surgery import replace_activations
from aafit.training.distance import Distance
from aafit.training.losses import Scores
from aafit.training.tune import tune

pytestmark = pytest.mark.filterwarnings("ignore:Tuning left")
X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
BATCHES = [(X[:12], None), (X[12:], None)]
FAR = "The initial outputs are far from the base network's: on the first batch its outputs differ by"


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


def pair(start: str, unlikely: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """A network with a ReLU and the same with LEAF; the third class can be one that no image is of."""
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        base[2].weight *= 8
        base[2].bias[2] = unlikely
    return base, replace_activations(base, {"ReLU": LEAF.like(start)})[0]


@pytest.mark.parametrize(("apart", "far"), [(0.0, False), (0.049, False), (0.051, True), (float("nan"), True)])
def test_outputs_are_measured_by_the_standard_deviation_of_the_base(apart: float, far: bool) -> None:
    of_base = 3 + 2 * torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]])
    distance = Distance()
    for part in (of_base[:1], of_base[1:]):
        distance.add(part, part + 2 * apart)
    assert distance.outputs == pytest.approx(apart, rel=1e-5, nan_ok=True)
    assert distance.is_far == far


def scored(loss_B: Tensor) -> Scores:
    return Scores(loss_B, torch.ones(len(loss_B)), torch.ones(len(loss_B), dtype=torch.bool))


@pytest.mark.parametrize(
    ("losses", "far"),
    [
        ([0.0] * 8, False),
        ([0.01] * 8, False),
        ([0.03] * 8, True),
        ([-1.0] * 8, False),
        # One image alone: within the noise.
        ([0.4] + [0.0] * 7, False),
    ],
)
def test_a_loss_is_far_above_the_base_s_by_more_than_two_percent_and_its_noise(losses: list[float], far: bool) -> None:
    of_base, distance = torch.ones(8).double(), Distance()
    distance.add(X, X)
    for part in (slice(3), slice(3, 8)):
        distance.add_losses(scored(of_base[part]), scored(of_base[part] + torch.tensor(losses).double()[part]))
    assert distance.is_far == far


def test_outputs_that_are_constant_are_far_where_they_differ_at_all() -> None:
    distance = Distance()
    distance.add(torch.ones(2, 2), torch.ones(2, 2))
    assert (distance.outputs, distance.is_far) == (0, False)
    distance.add(torch.ones(1, 2), torch.zeros(1, 2))
    assert (distance.outputs, distance.is_far) == (float("inf"), True)


def test_a_far_start_is_said_once_with_its_numbers_where_tune_was_called() -> None:
    base, net = pair("Tanh")
    with torch.no_grad():
        apart = ((net(X[:12]) - base(X[:12])).square().mean().sqrt() / base(X[:12]).std(correction=0)).item()
    with pytest.warns(UserWarning, match=FAR) as said:
        tune(net, BATCHES, epochs=2, base=base)
    (one,) = said
    assert f"differ by {apart:.2%} of the standard deviation" in str(one.message)
    assert 'identify(net, batches, base=base, target="activations")' in str(one.message)
    assert Path(one.filename) == Path(__file__)


def test_a_near_start_is_not_far_and_labels_are_not_asked() -> None:
    base, net = pair("ReLU")
    assert len(tune(net, BATCHES, epochs=1, base=base)) == 1
    far = pair("Tanh")[1]
    tune(far, [(X, torch.zeros(24).long())], epochs=1)
    tune(far, BATCHES, epochs=0, base=base)


def test_a_cross_entropy_says_what_the_outputs_hide() -> None:
    """A class that no image is of makes the outputs differ much among themselves."""
    base, net = pair("Tanh", unlikely=-1000.0)
    tune(pair("Tanh", unlikely=-1000.0)[1], BATCHES, epochs=1, base=base)
    with pytest.warns(UserWarning, match=r"its loss by [\d.]+ from the base's [\d.]+ \(near is up to 2% of it\)"):
        tune(net, BATCHES, epochs=1, base=base, loss="cross-entropy")


def first(out: Tensor) -> Tensor:
    return out[:, :1]


@pytest.mark.parametrize(("rows", "output"), [(1, None), (1, first), (12, first)])
@pytest.mark.parametrize("loss", [None, lambda out, target: (out - target).abs().sum()])
def test_few_numbers_make_no_false_alarm(rows: int, output: Any, loss: Any) -> None:
    base, net = pair("ReLU")
    assert len(tune(net, [X[:rows]], epochs=1, base=base, output=output, loss=loss)) == 1


def test_one_row_of_classes_makes_no_false_alarm() -> None:
    base, net = pair("ReLU")
    assert len(tune(net, [X[:1]], epochs=1, base=base, loss="cross-entropy")) == 1


def test_the_judgement_needs_no_forward_of_its_own() -> None:
    base, net = pair("Tanh")
    calls = []
    for one in (base, net):
        one.register_forward_hook(lambda module, *_: calls.append(module))
    with warnings.catch_warnings(action="ignore"):
        tune(net, BATCHES, epochs=3, base=base)
    assert [calls.count(one) for one in (base, net)] == [6, 6]
