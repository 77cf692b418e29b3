"""One objective: the mean over the labelled positions, with one rule for the class axis."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from aafit.activations import LEAF
from aafit.identification import identify
from aafit.networks.surgery import replace_activations
from aafit.training.evaluate import evaluate
from aafit.training.losses import CROSS_ENTROPY, SQUARED_ERROR, as_loss, class_axis, mean_loss, scores
from aafit.training.tune import tune


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((6, 3), None, 1),
        ((6, 3), (6,), 1),
        ((4, 5, 3), None, 2),
        ((4, 5, 3), (4, 5), 2),
        ((4, 3, 5), (4, 5), 1),
        ((2, 3, 4, 5), None, 1),
        ((2, 4, 5, 3), (2, 4, 5), 3),
        ((6,), None, None),
        ((6, 3), (6, 3), None),
    ],
)
def test_class_axis(shape: tuple[int, ...], labels: tuple[int, ...] | None, axis: int | None) -> None:
    assert class_axis(Size(shape), None if labels is None else Size(labels)) == axis


def test_scores_of_a_batch_of_sequences() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [math.nan, 0.0]]])
    labels = torch.tensor([[0, 0], [1, -100]])
    found = scores(CROSS_ENTROPY, logits, labels)
    each = F.cross_entropy(logits.flatten(0, 1)[:3], torch.tensor([0, 0, 1]), reduction="none")
    assert found.loss_B.tolist() == pytest.approx([(each[0] + each[1]).item(), each[2].item()])
    assert found.labelled_B.tolist() == [2, 1]
    assert found.correct_B is not None
    assert found.correct_B.tolist() == [1, 0]
    assert found.finite_B.tolist() == [True, False]


def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero() -> None:
    for shape in ((4, 3), (4, 2, 3)):
        logits = torch.randn(*shape).requires_grad_()
        mean, count = mean_loss(CROSS_ENTROPY, logits, torch.full(shape[:-1], -100))
        mean.backward()
        assert (mean.item(), count.item()) == (0, 0)
        assert logits.grad is not None
        assert not logits.grad.any()


def test_the_mean_loss_for_steps_is_torchs_to_the_last_bit() -> None:
    logits, labels = torch.randn(37, 5).requires_grad_(), torch.arange(37) % 5
    one, other = mean_loss(CROSS_ENTROPY, logits, labels)[0], F.cross_entropy(logits, labels)
    assert torch.equal(one, other)
    assert torch.equal(*(torch.autograd.grad(value, logits)[0] for value in (one, other)))


@pytest.mark.parametrize("function", [F.multi_margin_loss, lambda y, t: F.multi_margin_loss(y, t, reduction="none")])
def test_a_function_of_the_batch_and_one_of_its_samples(function: object) -> None:
    outputs, labels = torch.randn(6, 3), torch.arange(6) % 3
    found = scores(as_loss(function), outputs, labels)  # type: ignore[arg-type]
    expected = F.multi_margin_loss(outputs, labels)
    assert (found.loss_B.sum() / found.labelled_B.sum()).item() == pytest.approx(expected.item())
    assert found.correct_B is not None


def test_outputs_of_one_number_a_sample() -> None:
    outputs, target = torch.randn(6), torch.randn(6)
    found = scores(SQUARED_ERROR, outputs, target)
    assert found.loss_B.tolist() == pytest.approx((outputs - target).square().tolist())


class Tokens(nn.Sequential):
    """Logits for each token; a tenth of the sequences is labelled throughout, the others at their first token."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Embedding(20, 6), nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))


def partly_labelled(samples: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(20, (samples, 10), generator=generator)
    labels = torch.full(ids.shape, -100)
    whole = torch.arange(samples) % 10 == 0
    labels[whole] = torch.randint(2, (int(whole.sum()), 10), generator=generator)
    labels[~whole, 0] = 2 + torch.randint(2, (int((~whole).sum()),), generator=generator)
    return ids, labels


def test_evaluate_tune_and_identify_report_the_same_loss_of_partly_labelled_sequences() -> None:
    base, (ids, labels) = Tokens(), partly_labelled()
    net, _ = replace_activations(base, {"SiLU": LEAF.like("SiLU")}, sample=ids)
    before = evaluate(net, [(ids, labels)]).loss
    parts = [(ids[:150], labels[:150]), (ids[150:], labels[150:])]
    assert evaluate(net, parts).loss == pytest.approx(before, rel=1e-6)
    (history,) = tune(replace_activations(base, {"SiLU": LEAF.like("SiLU")})[0], parts, epochs=1, lr=1e-6)
    assert history == pytest.approx(before, rel=1e-3)
    found = identify(net, [(ids, labels)], errors=False, steps=5, heldout=0.0, prior=1.0)
    assert found.steps[0].loss == pytest.approx(before, rel=1e-5)
    assert found.steps[-1].loss == pytest.approx(evaluate(net, [(ids, labels)]).loss, rel=1e-5)
    assert (labels != -100).sum().item() == 20 * 10 + 180


@pytest.mark.filterwarnings("ignore:Tuning left")
def test_the_target_of_the_base_has_the_class_axis_of_the_labels() -> None:
    """(B, C, T) with labels (B, T): the classes are on axis 1, and so are the base's probabilities."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    x, y = torch.randn(60, 3, 9), torch.randint(4, (60, 9))
    net, _ = replace_activations(base, {"ReLU": LEAF.like("SiLU")}, sample=x[:2])
    found = identify(net, [(x, y)], base=base, target="logits", errors=False, steps=1)
    with torch.no_grad():
        cross_entropy = -(base(x).softmax(1) * net(x).log_softmax(1)).sum(1).mean().item()
    assert found.steps[-1].loss == pytest.approx(cross_entropy, rel=0.1)
    (history,) = tune(net, [(x, y)], epochs=1, lr=1e-6, base=base, loss="cross-entropy")
    assert history == pytest.approx(cross_entropy, rel=1e-3)
