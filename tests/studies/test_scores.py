"""Scores of three networks on outputs of any shape, and the significance of the gain."""

import pytest
import torch
from torch import nn

from aafit.networks.batches import Batch
from aafit.studies.scores import PairedGain, sign_test, study_scores


class Given(nn.Module):
    """Outputs that are given, whatever comes in."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs[: len(x)]


def scored(base, other, target, **options):
    batches = [Batch((torch.zeros(len(base), 1),), {}, target)]
    return study_scores(Given(base), Given(base), Given(other), batches, True, **options)


def one_hot(labels, classes=2):
    return nn.functional.one_hot(labels, classes).double()


def test_classes_are_counted_and_the_gain_has_the_error_of_the_paired_difference():
    labels = torch.tensor([0, 1, 1, 0])
    base, other = one_hot(torch.tensor([0, 0, 1, 1])), one_hot(torch.tensor([0, 1, 1, 1]))
    found = scored(base, other, labels)
    assert (found.base.accuracy, found.tuned.accuracy, found.tuned.agreement) == (0.5, 0.75, 0.75)
    assert found.accuracy_gain.value == 0.25
    assert found.accuracy_gain.error == pytest.approx(torch.tensor([0.0, 1, 0, 0]).std().item() / 2)
    assert found.tuned.loss == pytest.approx(nn.functional.cross_entropy(other, labels).item())


def test_the_loss_is_the_mean_over_all_labelled_positions():
    torch.manual_seed(0)
    labels = torch.tensor([[0, 1, -100], [1, 1, 1], [-100, -100, -100]])
    base, other = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    found = scored(base, other, labels)
    due = [nn.functional.cross_entropy(y.flatten(0, 1), labels.flatten()).item() for y in (base, other)]
    assert (found.base.loss, found.tuned.loss) == pytest.approx(due)
    assert found.loss_gain.value == pytest.approx(due[1] - due[0])
    counted = labels != -100
    for score, y in ((found.base, base), (found.tuned, other)):
        assert score.accuracy == pytest.approx((y.argmax(2) == labels)[counted].double().mean().item())
    assert found.tuned.agreement == pytest.approx((base.argmax(2) == other.argmax(2))[counted].double().mean().item())


@pytest.mark.parametrize("target", [None, torch.randn(4, 3)])
def test_a_regression_has_no_predictions(target):
    y = torch.randn(4, 3, dtype=torch.float64)
    found = scored(y, y + 0.1, target)
    assert (found.base.accuracy, found.tuned.agreement, found.accuracy_gain) == (None,) * 3
    assert found.tuned.difference == pytest.approx(0.1 / (y - y.mean(0)).square().mean().sqrt().item())


def test_without_labels_the_cross_entropy_tells_that_there_are_classes():
    y = torch.randn(4, 3, dtype=torch.float64)
    assert scored(y, y.flip(1), None, loss="cross-entropy").base.agreement == 1


@pytest.mark.parametrize(
    "loss", [None, "mean squared error", lambda output, target: (output - target).square().mean(1)]
)
def test_a_regression_is_evaluated_by_the_squared_error_or_by_the_loss_given(loss):
    y = torch.randn(4, 3, dtype=torch.float64)
    found = scored(y, y + 1, y, loss=loss)
    assert (found.base.loss, found.tuned.loss) == pytest.approx((0, 1))


def test_a_prediction_that_is_not_finite_is_not_correct():
    y = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]], dtype=torch.float64)
    found = scored(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), y, torch.tensor([0, 0]))
    assert (found.tuned.accuracy, found.tuned.agreement, found.tuned.not_finite) == (0.5, 0.5, 1)


@pytest.mark.parametrize(
    ("more", "fewer", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 0.0625), (6, 0, 0.03125), (7, 3, 0.34375)]
)
def test_the_exact_test_is_the_binomial_one(more, fewer, p):
    assert sign_test(more, fewer) == sign_test(fewer, more) == pytest.approx(p)


@pytest.mark.parametrize(("changed", "significant"), [(5, False), (6, True)])
def test_few_changed_predictions_are_tested_exactly(changed, significant):
    # Five corrections exceed two standard errors of the mean, and yet chance alone gives so many in a row.
    labels = torch.zeros(1000, dtype=torch.long)
    wrong = torch.arange(1000) < 100
    right = wrong & (torch.arange(1000) >= changed)
    found = scored(one_hot(wrong.long()), one_hot(right.long()), labels).accuracy_gain
    assert found.value == pytest.approx(changed / 1000)
    assert found.value > 2 * found.error
    assert (found.changed, found.significant) == (changed, significant)


def test_many_changed_predictions_are_judged_by_the_standard_error():
    assert PairedGain(0.03, 0.01, 40).significant
    assert not PairedGain(0.019, 0.01, 40).significant
