"""Identification, audit and importance of a network that takes ids by keyword and returns an object, without labels."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF, FNeuron
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError
from aafit.identification import audit, identify, importance, smooth_start
from aafit.networks.surgery import replace_activations


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


@dataclass
class Encoded:
    last_hidden_state: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """Mixes the positions of a sequence as an attention does, with two feed-forward layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 8)
        self.first, self.act1, self.second = nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)
        self.mix, self.third, self.act2, self.fourth = nn.Linear(8, 8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 20)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        x = self.embed(input_ids)
        x = x + self.second(self.act1(self.first(x)))
        scores = (self.mix(x) @ x.mT).masked_fill(attention_mask[:, None] == 0, -1e9)
        x = x + (scores / 8).softmax(-1) @ x
        y = self.fourth(self.act2(self.third(x)))
        return Encoded(y, y.mean(1))


def hidden(out: Encoded) -> Tensor:
    return out.last_hidden_state


def batches(count: int = 60, size: int = 20) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(30, (count, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(3, 7, (count, 1), generator=generator)).long()
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(size), mask.split(size), strict=True)]


def started(new: Any = None) -> tuple[nn.Module, Any]:
    base = Encoder().eval()
    return base, replace_activations(base, {"SiLU": new or LEAF.like("ReLU")}, sample=batches()[0])[0]


def test_the_outputs_of_the_base_are_reached_without_labels() -> None:
    base, net = started()
    result = identify(net, batches(), base=base, target="logits", output=hidden, steps=5, batch_size=16)
    phases = [step.phase for step in result.steps]
    assert phases[1:3] == ["slope", "layers"]
    # Mean squared errors of outputs, whose standard deviation over the samples is about 6.
    assert result.steps[0].loss > 1
    assert result.steps[-1].loss < 1e-4 * result.steps[0].loss
    assert result.uncertainty is not None
    assert result.uncertainty.probes == 8


def test_standard_errors_that_nobody_asked_for_are_not_computed() -> None:
    base, net = started()
    found = [
        identify(copy, batches(), base=base, target="logits", output=hidden, steps=1, errors=errors)
        for copy, errors in ((deepcopy(net), True), (net, False))
    ]
    assert found[0].uncertainty is not None
    assert found[1].uncertainty is None
    assert found[0].values == found[1].values


def test_a_bounded_memory_takes_fewer_samples() -> None:
    base, net = started()
    each = 2 * 6 * 8 + 6 * 20 * 4  # ids and mask, and the outputs of the base
    result = identify(net, batches(), base=base, target="logits", output=hidden, steps=0, memory=each * 45)
    assert result.samples + result.heldout_samples == 40


def test_audit_and_importance_against_the_base() -> None:
    base, net = started(FNeuron.like("SiLU"))
    found = audit(net, batches(), base=base, output=hidden, samples=30)
    assert {row.name for row in found.rows} == {"act1.weight", "act2.weight"}
    first = [{name: x[:10] for name, x in batch.items()} if at else batch for at, batch in enumerate(batches()[:2])]
    with torch.no_grad():
        squares = [(hidden(net(**b)) - hidden(base(**b))).square().flatten() for b in first]
    assert found.loss == pytest.approx(torch.cat(squares).mean().item(), rel=1e-5)
    ranked = importance(net, batches(), base=base, output=hidden, samples=30)
    assert {row.layer for row in ranked.rows} == {"act1", "act2"}
    assert ranked.loss == pytest.approx(found.loss)
    assert ranked.together.gain > 0


def test_a_smooth_start_keeps_the_outputs() -> None:
    _, net = started()
    with torch.no_grad():
        before = torch.cat([hidden(net(**batch)) for batch in batches()])
        ceiling = smooth_start(net, batches(), budget=0.01, output=hidden)
        after = torch.cat([hidden(net(**batch)) for batch in batches()])
    assert ceiling is not None
    assert ceiling < 2**16
    assert (after - before).abs().mean() <= 0.01 * before.std()


@pytest.mark.parametrize("call", [identify, audit, importance])
def test_what_is_missing_is_named(call: Any) -> None:
    _, net = started()
    with pytest.raises(UserError, match="The batches have no target"):
        call(net, batches(), output=hidden)
    labelled = [batch | {"labels": torch.zeros(20).long()} for batch in batches()]
    with pytest.raises(UserError, match=r"say which tensor is meant, as output=lambda out: out\.last_hidden_state"):
        call(net, labelled)
    with pytest.raises(UserError, match=r"Labels of shape .* do not fit outputs of shape"):
        call(net, labelled, output=hidden)
    classes = [batch | {"labels": batch["input_ids"] % 20} for batch in batches()]
    call(net, classes, output=hidden)
    nothing = [batch | {"labels": torch.full((20, 6), -100)} for batch in batches()]
    with pytest.raises(UserError, match="No position is labelled: all labels are -100"):
        call(net, nothing, output=hidden)
    with pytest.raises(UserError, match="The function given as output gives one number for a whole batch"):
        call(net, classes, output=lambda out: out.pooled.mean())


def by_sample(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target.to(output), reduction="none")


@pytest.mark.parametrize("call", [identify, audit, importance])
@pytest.mark.parametrize("loss", ["mean squared error", by_sample])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_one_number_for_each_sample_is_as_good_as_one_in_a_row(call: Any, loss: Any, dtype: torch.dtype) -> None:
    found = []
    for output in (lambda out: out.pooled[:, 0], lambda out: out.pooled[:, :1]):
        _, net = started()
        targets = [output(Encoded(b["input_ids"], b["input_ids"] % 2)).to(dtype) for b in batches()]
        labelled = [batch | {"labels": y} for batch, y in zip(batches(), targets, strict=True)]
        result = call(net, labelled, output=output, loss=loss)
        found.append(result.state.steps[-1].loss if call is identify else result.loss)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
