"""Networks that draw random numbers in evaluation mode, held against each other: both draw the same."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.identification import audit, identify, importance
from aafit.networks.find import find_activations
from aafit.networks.running import fork_rng
from aafit.networks.surgery import replace_activations
from aafit.studies.study import study
from aafit.training.compare import compare
from aafit.training.tune import tune

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
X = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (150,), generator=torch.Generator().manual_seed(1))


class Draws(nn.Module):
    """Draws noise before its activation and after it, in training as in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.out = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(F.dropout(x, 0.5, training=True))
        x = self.act(x + torch.randn_like(x))
        logits: Tensor = self.out(x + torch.rand_like(x))
        return logits


def networks(device: str) -> tuple[nn.Module, nn.Module]:
    base = Draws().to(device).eval()
    return base, replace_activations(base, {"ReLU": LEAF.like("ReLU")})[0].eval()


def states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def batches(device: str, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.to(device).split(size), LABELS.to(device).split(size), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 7])
def test_the_block_leaves_no_trace(device: str, seed: int | None) -> None:
    torch.manual_seed(3)
    before = states()
    drawn = []
    for _ in range(2):
        with fork_rng(seed):
            drawn.append((torch.rand(5), torch.randn(5, device=device)))
    assert all(map(torch.equal, *drawn))
    assert all(map(torch.equal, before, states()))
    if seed is None:
        assert torch.equal(torch.rand(5), drawn[0][0])


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="CUDA is in use")
def test_a_device_that_is_not_in_use_is_not_seeded_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    base, net = networks("cpu")
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    find_activations(base, X)
    compare(base, net, batches("cpu"))
    assert not seeded


@pytest.mark.parametrize("device", DEVICES)
def test_compare_sees_no_difference_where_there_is_none(device: str) -> None:
    base, net = networks(device)
    before = states()
    found = compare(base, net, batches(device), reference=torch.float64)
    assert found.logits.max_abs < 1e-5
    assert found.agreement == 1
    assert found.base_loss == pytest.approx(found.replaced_loss, rel=1e-6)
    assert found.logits.reference is not None
    assert found.logits.reference.max_abs < 1e-5
    assert all(map(torch.equal, before, states()))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_tuned_to_a_base_is_near_it_from_the_start(device: str) -> None:
    base, net = networks(device)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="Tuning left .* unchanged"):
        (loss,) = tune(net, [x for x, _ in batches(device)], epochs=1, lr=1e-30, base=base)
    assert loss < 1e-9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heldout", [0.2, 0.5])
def test_what_is_identified_to_a_base_is_near_it_from_the_start(device: str, heldout: float) -> None:
    base, net = networks(device)
    given = [x for x, _ in batches(device)]
    found = identify(net, given, base=base, target="logits", batch_size=64, heldout=heldout, budget=0, errors=False)
    assert found.state.steps[0].loss < 1e-9
    assert found.state.steps[0].heldout_loss < 1e-9
    assert not any(step.phase == "layers" for step in found.state.steps)


Measured = Callable[[nn.Module, nn.Module, Any], float]
MEASURED: dict[str, Measured] = {
    "audit": lambda base, net, given: audit(net, given, base=base, loss="mean squared error").loss,
    "importance": lambda base, net, given: importance(net, given, base=base, loss="mean squared error").loss,
    "layers": lambda base, net, given: max(
        row.before
        for row in identify(net, given, base=base, target="activations", budget=0, batch_size=64).state.matched
    ),
    "study": lambda base, net, given: (
        study(base, given, {"ReLU": LEAF.like("ReLU")}, target="logits", steps=1).scores.initial.difference
    ),
}


@pytest.mark.parametrize("function", MEASURED)
def test_what_stands_beside_a_base_does_not_differ_from_it(function: str) -> None:
    torch.manual_seed(3)
    before = states()
    base, net = networks("cpu")
    torch.manual_seed(3)
    assert math.sqrt(MEASURED[function](base, net, batches("cpu"))) < 1e-3
    assert all(map(torch.equal, before, states()))


def test_an_identification_does_not_depend_on_what_was_drawn_before() -> None:
    values = []
    for seed in (1, 2):
        base, net = networks("cpu")
        torch.manual_seed(seed)
        values.append(identify(net, batches("cpu"), base=base, steps=2, errors=False).values)
    assert values[0] == values[1]
