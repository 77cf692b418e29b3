"""Targets that are numbers under the loss of classes, which would be levenberg_marquardt without meaning anything."""

from typing import Any

import pytest
import torch
from foreign import changed, snapshot
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.identification import audit, identify, importance
from aafit.networks.surgery import replace_activations
from aafit.studies.study import study
from aafit.training.compare import compare
from aafit.training.evaluate import evaluate
from aafit.training.losses import CROSS_ENTROPY, mean_loss
from aafit.training.tune import tune

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
NUMBERS = torch.randn(60, 3, generator=GENERATOR)
PROBABILITIES = torch.randn(60, 3, generator=GENERATOR).softmax(1)
ONES = torch.ones(60, 1)
EVERYWHERE = {
    "evaluate": lambda base, net, batches, **options: evaluate(net, batches, **options),
    "compare": compare,
    "tune": lambda base, net, batches, **options: tune(net, batches, epochs=1, **options),
    "identify": lambda base, net, batches, **options: identify(net, batches, steps=1, errors=False, **options),
    "importance": lambda base, net, batches, **options: importance(net, batches, **options),
    "audit": lambda base, net, batches, **options: audit(net, batches, **options),
    "study": lambda base, net, batches, **options: study(base, batches, steps=1, **options),
}


def networks(outputs: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)).eval()
    return base, replace_activations(base, {"ReLU": LEAF.like("ReLU")})[0].eval()


@pytest.mark.parametrize("function", EVERYWHERE)
@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        (NUMBERS, "[1-9][0-9]* of [0-9]+"),
        (NUMBERS.abs(), "[1-9][0-9]* of [0-9]+"),
        (PROBABILITIES - 0.5 * torch.eye(60, 3), "3 of 60|[123] of [0-9]+"),
        (ONES, "([0-9]+) of \\1"),
        (NUMBERS[:, :1], "([0-9]+) of \\1"),
    ],
)
def test_numbers_are_refused_with_the_loss_that_is_meant(function: str, target: Tensor, wrong: str) -> None:
    base, net = networks(target.shape[1])
    before = snapshot(net)
    with pytest.raises(UserError, match=f'^{wrong} targets are no probabilities .*give loss="mean squared error"'):
        EVERYWHERE[function](base, net, [(X, target)])
    assert not changed(net, before)


@pytest.mark.parametrize("function", EVERYWHERE)
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (NUMBERS, {"loss": "mean squared error"}),
        (NUMBERS[:, :1], {"loss": "mean squared error"}),
        (PROBABILITIES, {}),
        (PROBABILITIES.bfloat16().float(), {}),
        (NUMBERS.argmax(1), {}),
    ],
)
@pytest.mark.filterwarnings("ignore:18 parameters are identified from", "ignore:Tuning left")
def test_what_the_loss_takes_is_taken(function: str, target: Tensor, options: dict[str, Any]) -> None:
    base, net = networks(target.shape[1] if target.dim() > 1 else 3)
    EVERYWHERE[function](base, net, [(X, target)], **options)


def test_a_study_to_the_outputs_of_the_base_takes_any_numbers_beside_them() -> None:
    for target in (NUMBERS, NUMBERS.argmax(1)):
        found = study(networks(3)[0], [(X, target)], steps=1, target="logits", loss="mean squared error")
        assert found.scores.base.loss is not None


def test_a_study_judges_by_the_loss_that_it_identifies_by() -> None:
    base = networks(3)[0]
    found = study(base, [(X, PROBABILITIES)], steps=1)
    assert found.scores.base.loss == pytest.approx(mean_loss(CROSS_ENTROPY, base(X), PROBABILITIES)[0].item(), rel=1e-6)


def test_a_network_with_one_output_has_no_classes_to_match() -> None:
    base, net = networks(1)
    with pytest.raises(UserError, match=r"^60 of 60 targets are no probabilities of several classes"):
        tune(net, [X], base=base, loss="cross-entropy")
