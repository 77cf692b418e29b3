"""evaluate and tune with inputs, outputs, labels and losses of every form, against values worked out by hand."""

import math
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign import changed, snapshot
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.identification import CROSS_ENTROPY, SQUARED_ERROR, identify, loss_with_hessian
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Batch
from aafit.networks.surgery import replace_activations
from aafit.training.compare import compare
from aafit.training.evaluate import Evaluation, evaluate, repeated_evaluation
from aafit.training.losses import as_loss, mean_loss
from aafit.training.tune import tune

pytestmark = pytest.mark.filterwarnings("ignore:The initial outputs are far from the base network's")
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, shape, generator=GENERATOR)


OUTPUTS = [((6, 3), 1), ((4, 5, 3), 2), ((4, 3, 5), 1), ((2, 3, 4, 5), 1), ((2, 4, 5, 3), 3), ((2, 3, 4, 5, 6), 1)]


@pytest.mark.parametrize(("shape", "axis"), OUTPUTS)
@pytest.mark.parametrize("ignored", [False, True])
def test_labels_for_each_place(shape: tuple[int, ...], axis: int, ignored: bool) -> None:
    logits = random(*shape)
    y = labels(*shape[:axis], *shape[axis + 1 :])
    if ignored:
        y[0] = -100
        y[-1, ...].reshape(-1)[0] = -100
    rows, y_N = logits.movedim(axis, -1).reshape(-1, 3), y.reshape(-1)
    counts = y_N != -100
    found = evaluate(nn.Identity(), [(logits[:1], y[:1]), (logits[1:], y[1:])])
    assert found.loss == pytest.approx(F.cross_entropy(rows[counts].double(), y_N[counts]).item(), rel=1e-6)
    assert found.accuracy == (rows.argmax(1) == y_N)[counts].double().mean().item()
    assert (found.samples, found.not_finite) == (len(logits), 0)
    assert mean_loss(CROSS_ENTROPY, logits, y)[0].item() == pytest.approx(found.loss, rel=1e-6)


def test_a_batch_in_which_nothing_counts_has_no_gradient_and_no_nan() -> None:
    logits, none = random(2, 4, 3).requires_grad_(), torch.full((2, 4), -100)
    loss, _ = mean_loss(CROSS_ENTROPY, logits, none)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    found = evaluate(nn.Identity(), [(logits.detach(), none)])
    assert math.isnan(found.loss)
    assert math.isnan(found.accuracy)
    assert not found.diverged
    assert str(found) == "no loss: it is NaN, as where all labels are -100"


def test_probabilities_as_target() -> None:
    logits, p = random(5, 3), random(5, 3).softmax(1)
    found = evaluate(nn.Identity(), [(logits[:2], p[:2]), (logits[2:], p[2:])])
    assert found.loss == pytest.approx(F.cross_entropy(logits, p).item(), rel=1e-6)
    assert found.accuracy == (logits.argmax(1) == p.argmax(1)).double().mean().item()


def by_row(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().sum(1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mean squared error", lambda out, target: (out - target).square().mean()),
        (by_row, lambda out, target: by_row(out, target).mean()),
        (lambda out, target: by_row(out, target).mean(), lambda out, target: by_row(out, target).mean()),
        (lambda out, target: (out - target).abs(), lambda out, target: (out - target).abs().mean()),
    ],
)
def test_losses(loss: Any, expected: Any) -> None:
    x, target = random(7, 3), random(7, 3)
    found = evaluate(nn.Identity(), [(x[:3], target[:3]), (x[3:], target[3:])], loss=loss)
    assert found.loss == pytest.approx(expected(x, target).item(), rel=1e-6)
    assert math.isnan(found.accuracy)
    assert str(found) == f"loss {found.loss:.4f}"
    assert mean_loss(as_loss(loss), x, target)[0].item() == pytest.approx(found.loss, rel=1e-6)


def least(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().mean(1)


@pytest.mark.parametrize(
    ("loss", "same"),
    [
        (CROSS_ENTROPY, "cross-entropy"),
        (SQUARED_ERROR, "mean squared error"),
        (loss_with_hessian("least", least), least),
    ],
)
def test_a_loss_with_a_hessian_is_taken_as_it_is_by_identify(loss: Any, same: Any) -> None:
    base = Encoder(head=True).eval()
    net = replaced(base).eval()
    with torch.no_grad():
        batches = [
            {**batch, "labels": (base(**batch)["logits"] > 0).float()} if same != "cross-entropy" else labelled
            for batch, labelled in zip(tokens(False), tokens(True), strict=True)
        ]
    found = evaluate(net, batches, loss=loss)
    assert str(found) == str(evaluate(net, batches, loss=same))
    assert math.isnan(found.accuracy) == (same != "cross-entropy")
    assert str(compare(base, net, batches, loss=loss)) == str(compare(base, net, batches, loss=same))
    one, other = (tune(replaced(base), tokens(False), epochs=2, base=base, loss=which) for which in (loss, same))
    assert one == pytest.approx(other, rel=1e-5)


def test_the_name_of_a_loss_is_its_own() -> None:
    with pytest.raises(UserError, match="There is a loss named 'cross-entropy' already"):
        loss_with_hessian("cross-entropy", least)


def test_a_loss_of_ones_own_with_classes_has_an_accuracy() -> None:
    x, y = random(7, 3), labels(7)
    found = evaluate(nn.Identity(), [(x, y)], loss=F.multi_margin_loss)
    assert found.loss == pytest.approx(F.multi_margin_loss(x, y).item(), rel=1e-6)
    assert found.accuracy == evaluate(nn.Identity(), [(x, y)]).accuracy


def test_the_accuracy_of_sequences_does_not_depend_on_the_loss() -> None:
    """Of a loss of one's own, too, it is the share of the labelled positions."""
    x, y = random(7, 5, 3), (torch.arange(35) % 4 - 1).reshape(7, 5)
    y[y < 0] = -100
    loss = lambda out, target: F.cross_entropy(out.movedim(2, 1), target, reduction="none")  # noqa: E731
    found, plain = (evaluate(nn.Identity(), [(x, y)], loss=one) for one in (loss, "cross-entropy"))
    assert found.accuracy == plain.accuracy == (x.argmax(2) == y)[y >= 0].double().mean().item()


def test_metrics_with_labels_and_without() -> None:
    x, y = random(7, 3), labels(7)
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    found = evaluate(
        nn.Identity(), parts, metric=lambda out, target: (out.argsort(1)[:, -2:] == target[:, None]).any(1)
    )
    assert found.metric == ((x.topk(2).indices == y[:, None]).any(1)).double().mean().item()
    assert found.loss == evaluate(nn.Identity(), parts).loss
    alone = evaluate(nn.Identity(), [x[:3], x[3:]], metric=lambda out: out.norm(dim=1).mean())
    assert alone.metric == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-6)
    assert str(alone) == f"metric {alone.metric:.4g}"
    assert evaluate(nn.Identity(), [x], metric=lambda out: 2).metric == 2


@dataclass
class Encoded:
    last_hidden_state: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """A network of token ids that takes keyword inputs and returns an object, or logits with `head`."""

    def __init__(self, head: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.fc, self.act, self.out = nn.Embedding(9, 6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)
        self.drop, self.head = nn.Dropout(0.5), head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x_BTC = self.out(self.drop(self.act(self.fc(self.embed(input_ids)))))
        if attention_mask is not None:
            x_BTC = x_BTC * attention_mask.unsqueeze(2)
        return UserDict(logits=x_BTC) if self.head else Encoded(x_BTC, x_BTC.mean(1))


def tokens(target: bool) -> list[Any]:
    ids = torch.randint(9, (12, 4), generator=torch.Generator().manual_seed(2))
    y = ids % 3
    y[:, 0] = -100
    whole = {"input_ids": ids, "attention_mask": torch.ones(12, 4)} | ({"labels": y} if target else {})
    return [UserDict({key: value[at : at + 4] for key, value in whole.items()}) for at in (0, 4, 8)]


def replaced(net: nn.Module) -> nn.Module:
    return replace_activations(net, {"GELU": LEAF.like("Tanh")})[0]


def test_a_network_of_tokens_is_tuned_by_labels_and_evaluated() -> None:
    net = replaced(Encoder(head=True))
    before, start = snapshot(net), evaluate(net, tokens(True))
    history = tune(net, tokens(True), epochs=5, lr=0.05)
    assert changed(net, before) == set(adaptive_parameters(net))
    assert evaluate(net, tokens(True)).loss < start.loss
    assert history[0] > history[-1]


@pytest.mark.parametrize("loss", [None, "cross-entropy", lambda out, target: (out - target).abs().mean()])
def test_a_network_without_labels_is_tuned_to_its_bases_outputs(loss: Any) -> None:
    """In evaluation mode: dropout would be in the one and not in the other."""
    base = Encoder()
    net, output = replaced(base), lambda out: out.last_hidden_state
    before, states = snapshot(net), snapshot(base)
    modes = []
    net.drop.register_forward_hook(lambda module, *_: modes.append(module.training))
    history = tune(net, tokens(False), epochs=30, lr=0.05, output=output, base=base, loss=loss)
    assert changed(net, before) == set(adaptive_parameters(net))
    assert not changed(base, states)
    assert history[-1] < (0.9 if loss is None else 1) * history[0]
    assert not any(modes)
    assert net.training
    assert base.training


def test_the_first_loss_of_matching_is_the_mean_squared_difference() -> None:
    base = Encoder().eval()
    net, output = replaced(base), lambda out: out.pooled
    with pytest.warns(UserWarning, match="Tuning left .* unchanged"):
        (loss,) = tune(net, tokens(False), epochs=1, lr=1e-30, output=output, base=base)
    ids = torch.cat([batch["input_ids"] for batch in tokens(False)])
    with torch.no_grad():
        expected = (net(ids).pooled - base(ids).pooled).square().mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_labels_do_not_count_where_a_base_is_matched() -> None:
    base = Encoder(head=True)
    histories = [tune(replaced(base), tokens(target), epochs=2, base=base) for target in (False, True)]
    assert histories[0] == histories[1]


def test_the_inputs_are_not_changed_by_a_base_that_works_in_place() -> None:
    base = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), nn.Tanh())
    net, x = replace_activations(base, {"Tanh": LEAF.like("Tanh")})[0], random(4, 3)
    given = x.clone()
    tune(net[1:], [x], epochs=1, base=base)
    assert torch.equal(x, given)


class Norm(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), LEAF.like("Tanh"), nn.Dropout(0.5), nn.Linear(4, 3))


def test_padding_does_not_count_where_the_output_function_leaves_it_out() -> None:
    base = Encoder().eval()
    ids = torch.randint(9, (40, 4), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(40, 4)
    mask[:, 2:] = 0

    def output(out: Encoded, batch: Batch) -> Tensor:
        return out.last_hidden_state * batch.kwargs["attention_mask"].unsqueeze(2)

    found = []
    for other in (0, 5):
        own = {"input_ids": ids.where(mask == 1, other), "attention_mask": mask}
        plain = Unmasked(base), Unmasked(replaced(base).eval())
        before = compare(*plain, [own], output=output).logits.mean_abs
        steps = identify(plain[1], [own], base=plain[0], target="logits", output=output, steps=1).state.steps
        tune(plain[1], [own], epochs=2, base=plain[0], output=output)
        found.append((before, steps[0].loss, steps[0].heldout_loss))
        assert compare(*plain, [own], output=output).logits.mean_abs < before
    assert found[0] == found[1]


class Unmasked(nn.Module):
    """Takes a mask and does nothing with it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.net(input_ids)


def test_while_activations_train_batch_norm_rests_and_dropout_does_not() -> None:
    net, seen = Norm(), {}
    for name in (1, 3):
        net[name].register_forward_hook(lambda module, *_, name=name: seen.update({name: module.training}))
    before = snapshot(net)
    tune(net, [(random(8, 3) + 5, labels(8))], epochs=2)
    assert seen == {1: False, 3: True}
    assert changed(net, before) == set(adaptive_parameters(net))


def test_repeated_evaluation_of_any_form_gives_what_evaluate_gives() -> None:
    net = replaced(Encoder(head=True))
    tune(net, tokens(True), epochs=1)
    assert repeated_evaluation(net, lambda: tokens(True))() == evaluate(net, tokens(True))


class Two(nn.Module):
    """Takes two inputs, of which the second goes past the frozen part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.out = nn.Linear(3, 4), LEAF.like("Tanh"), nn.Linear(4, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        logits: Tensor = self.out(self.act(self.fc(x) + z))
        return logits


def test_several_inputs() -> None:
    net, batches = Two(), [(random(4, 3), random(4, 4), labels(4)), (random(4, 3), random(4, 4), labels(4))]
    tune(net, batches, epochs=1)
    found = repeated_evaluation(net, lambda: batches)
    assert found() == evaluate(net, batches)
    with torch.no_grad():
        net.act.p1 += 1
    assert found() == evaluate(net, batches)


X, Y = random(4, 3), labels(4)
WRONG = [
    ([(X, torch.tensor([0, 1, 2, 3]))], {}, "1 of the labels are no class: the network has 3 classes, .* 0 to 2"),
    ([(X, torch.tensor([0, -1, 2, 7]))], {}, "2 of the labels"),
    ([(X, Y[:, None])], {}, r"Labels of shape \(4, 1\) and type int64 do not fit outputs of shape \(4, 3\)\. .*\(4,\)"),
    ([(X, Y[:3])], {}, r"\(3,\) and type int64 do not fit"),
    ([(X, Y.float())], {}, "type float32 do not fit .*mean squared error"),
    ([(X, Y.tolist())], {}, "needs targets, and they are a list, not a tensor"),
    (
        [(X, X[:2])],
        {"loss": "mean squared error"},
        r"needs a target of the shape of the outputs, \(4, 3\); it has shape \(2, 3\)",
    ),
    ([(X, Y)], {"loss": "mse"}, "Unknown loss 'mse'"),
    ([(X, Y)], {"loss": 3}, "The loss 3 cannot be used"),
    ([(X, Y)], {"loss": lambda out, target: 3.0}, "given as loss returned a float"),
    ([(X.byte(), Y)], {}, "uint8.*make them floating-point"),
    ([[X.tolist(), Y]], {}, "no tensor among its inputs .list"),
    ([{"image": X, "labels": Y}], {}, "unexpected keyword argument 'image'"),
    ((X, Y), {}, "one batch alone"),
    (X, {}, "one batch alone"),
    ({"input": X, "labels": Y}, {}, "one batch alone"),
    (3, {}, "are a int: give a list"),
    ([X], {}, "no target"),
]


@pytest.mark.parametrize(("batches", "options", "sentence"), WRONG)
@pytest.mark.parametrize("function", [evaluate, tune])
def test_what_is_wrong_is_said(function: Any, batches: Any, options: dict[str, Any], sentence: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), LEAF.like("Tanh"), nn.Linear(4, 3))
    before = snapshot(net)
    with pytest.raises(UserError, match=sentence):
        function(net, batches, **options)
    assert not changed(net, before)


def test_labels_of_which_none_counts_are_nothing_to_tune_by() -> None:
    for shape in ((4, 3), (4, 5, 3)):
        none = torch.full(shape[:-1], -100)
        net = nn.Sequential(nn.Linear(3, 4), LEAF.like("Tanh"), nn.Linear(4, 3))
        before = snapshot(net)
        with pytest.raises(UserError, match="No position is labelled: all labels are -100"):
            tune(net, [(random(*shape), none), (random(*shape), none)])
        assert not changed(net, before)
        some = none.clone()
        some[0] = 1
        tune(net, [(random(*shape), none), (random(*shape), some)], epochs=1)


@pytest.mark.parametrize("metric", [lambda out, y: "high", lambda out, y: None])
def test_a_metric_that_is_no_number(metric: Any) -> None:
    with pytest.raises(UserError, match="given as metric returned a "):
        evaluate(nn.Identity(), [(X, Y)], metric=metric)


@pytest.mark.parametrize("epochs", [-1, 1.5, True, "3"])
def test_epochs_that_are_no_number_of_epochs(epochs: Any) -> None:
    with pytest.raises(UserError, match=f"The number of epochs must be an integer of at least 0; got {epochs!r}"):
        tune(Norm(), [(X, Y)], epochs=epochs)


def test_networks_that_cannot_be_tuned() -> None:
    net = Norm()
    with pytest.raises(UserError, match="is a ScriptModule"):
        tune(torch.jit.trace(nn.Linear(3, 3), X), [(X, Y)])
    with pytest.raises(UserError, match="The base is the network itself"):
        tune(net, [X], base=net)


def test_an_evaluation_without_loss_is_not_diverged() -> None:
    assert not Evaluation(math.nan, math.nan, 3, metric=1.0).diverged
