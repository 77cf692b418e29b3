"""How well three networks do, on outputs of any form."""

import pytest
import torch
from torch import nn

from aafit.networks.batches import Batch
from aafit.studies.standing import standings


class Given(nn.Module):
    """Outputs that are given, whatever comes in."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs[: len(x)]


def judged(base, other, target, **options):
    batches = [Batch((torch.zeros(len(base), 1),), {}, target)]
    return standings(Given(base), Given(base), Given(other), batches, True, **options)


def test_classes_are_counted_and_the_gain_has_the_error_of_the_paired_difference():
    labels = torch.tensor([0, 1, 1, 0])
    base = nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 2).double()
    other = nn.functional.one_hot(torch.tensor([0, 1, 1, 1]), 2).double()
    found = judged(base, other, labels)
    assert (found.base.accuracy, found.tuned.accuracy, found.tuned.agreement) == (0.5, 0.75, 0.75)
    assert found.accuracy_gain.value == 0.25
    assert found.accuracy_gain.error == pytest.approx(torch.tensor([0.0, 1, 0, 0]).std().item() / 2)
    assert found.tuned.loss == pytest.approx(nn.functional.cross_entropy(other, labels).item())


def test_positions_of_a_sequence_that_do_not_count():
    labels = torch.tensor([[0, 1, -100], [1, 1, 1], [-100, -100, -100]])
    base = nn.functional.one_hot(torch.tensor([[0, 0, 0], [1, 1, 1], [0, 0, 0]]), 2).double()
    found = judged(base, base.flip(2), labels)
    assert found.base.accuracy == (0.5 + 1) / 2
    assert found.tuned.accuracy == (0.5 + 0) / 2
    assert found.tuned.agreement == 0


def test_outputs_that_are_no_classes_have_no_predictions():
    y = torch.randn(4, 3, 5, dtype=torch.float64)
    found = judged(y, y + 0.1, None)
    assert (found.base.accuracy, found.base.loss, found.tuned.agreement, found.accuracy_gain) == (None,) * 4
    assert found.tuned.difference == pytest.approx(0.1 / (y - y.mean(0)).square().mean().sqrt().item())


@pytest.mark.parametrize(
    "loss", [None, "mean squared error", lambda output, target: (output - target).square().mean(1)]
)
def test_numbers_are_judged_by_the_squared_error_or_by_a_loss_that_is_given(loss):
    y = torch.randn(4, 3, dtype=torch.float64)
    found = judged(y, y + 1, y, loss=loss)
    assert found.base.accuracy is None
    assert (found.base.loss, found.tuned.loss) == pytest.approx((0, 1))


def test_a_prediction_that_is_not_finite_is_not_right():
    y = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]], dtype=torch.float64)
    found = judged(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), y, torch.tensor([0, 0]))
    assert (found.tuned.accuracy, found.tuned.agreement, found.tuned.not_finite) == (0.5, 0.5, 1)
