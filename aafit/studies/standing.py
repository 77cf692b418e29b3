"""How well the base, the replaced and the tuned network do on the samples held out, and how sure the difference is.

Axes in names: N sample, T position, K class.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.identification.losses import CROSS_ENTROPY, SQUARED_ERROR, as_loss
from aafit.identification.outputs import losses_of
from aafit.networks.batches import Batch, Output, run
from aafit.networks.running import evaluation_mode, fork_rng
from aafit.studies.asked import LossGiven
from aafit.training.losses import IGNORED, class_axis, with_classes


@dataclass(frozen=True)
class Score:
    """One network on the samples held out.

    Attributes:
        loss: Mean over the samples, None where it cannot be told.
        accuracy: Share of right predictions, over the positions of a sample and then over the samples; None where the
            targets are no classes.
        agreement: Share of predictions that are the base network's. Without labels the largest of outputs (N, K) is
            the prediction; of other outputs there is none.
        difference: Root mean squared difference of the outputs from the base's, by the deviation of those.
        not_finite: How many samples get NaN or infinity.
    """

    loss: float | None
    accuracy: float | None
    agreement: float | None
    difference: float
    not_finite: int


@dataclass(frozen=True)
class Gain:
    """What tuning changed against another network, with the standard error of the paired difference over samples."""

    value: float
    error: float

    @property
    def significant(self) -> bool:
        """Whether it exceeds twice its error."""
        return abs(self.value) > 2 * self.error and self.value != 0


@dataclass(frozen=True)
class Scores:
    """The three networks; the gains are those of the tuned one over the base (loss: below 0 is better).

    `held_out`: whether the samples took no part in the identification.
    """

    samples: int
    held_out: bool
    base: Score
    replaced: Score
    tuned: Score
    accuracy_gain: Gain | None
    loss_gain: Gain | None


@dataclass(frozen=True)
class _Rows:
    """Of one network, sample by sample."""

    outputs: Tensor
    loss_N: Tensor | None
    right_N: Tensor | None
    predicted: Tensor | None


def standings(
    base: nn.Module,
    replaced: nn.Module,
    tuned: nn.Module,
    batches: Iterable[Batch],
    held_out: bool,
    loss: LossGiven | None = None,
    output: Output | None = None,
) -> Scores:
    """The three networks on `batches`.

    Args:
        base, replaced, tuned: the networks.
        batches: the samples to judge on.
        held_out: whether they took no part in the identification.
        loss: as for `identify`; by default the cross-entropy of classes, the mean squared error of other targets.
        output: what is meant of what the networks return, as for `identify`.

    Raises:
        UserError: there is no sample.
    """
    batches = list(batches)
    if not sum(map(len, batches)):
        raise UserError("There is nothing to judge on: the batches hold no sample.")
    first, second, third = (_rows(net, batches, loss, output) for net in (base, replaced, tuned))
    return Scores(
        sum(map(len, batches)),
        held_out,
        _standing(first, first),
        _standing(second, first),
        _standing(third, first),
        _gain(third.right_N, first.right_N),
        _gain(third.loss_N, first.loss_N),
    )


def _rows(net: nn.Module, batches: Iterable[Batch], loss: LossGiven | None, output: Output | None) -> _Rows:
    outputs, losses, predicted, right = [], [], [], []
    with evaluation_mode(net):
        for number, batch in enumerate(batches):
            with fork_rng(number):
                y = run(net, batch.cloned(), output).detach().cpu().double()
            outputs.append(y)
            target = batch.target.cpu() if isinstance(batch.target, Tensor) else None
            labelled = (
                target is not None and not target.is_floating_point() and class_axis(y.shape, target.shape) is not None
            )
            if target is not None and (loss is not None or labelled or target.shape == y.shape):
                own = as_loss(loss or (CROSS_ENTROPY if labelled else SQUARED_ERROR))
                losses.append(losses_of(own, y, target))
            if labelled:
                logits, labels = with_classes(y, target)
                hits = ((logits.argmax(1) == labels) & logits.isfinite().all(1)).reshape(len(y), -1).double()
                counted = (labels != IGNORED).reshape(len(y), -1).double()
                share = (hits * counted).sum(1) / counted.sum(1)
                # A sample of which nothing is labelled does not count.
                right.append(share[counted.sum(1) > 0])
                predicted.append(logits.argmax(1).reshape(len(y), -1))
            elif y.dim() == 2:
                predicted.append(y.argmax(1, keepdim=True))
    return _Rows(*(torch.cat(own) if own else None for own in (outputs, losses, right, predicted)))  # type: ignore[arg-type]


def _standing(own: _Rows, base: _Rows) -> Score:
    finite_N = own.outputs.isfinite().reshape(len(own.outputs), -1).all(1)
    agreement = None
    if own.predicted is not None and base.predicted is not None:
        agreement = ((own.predicted == base.predicted) & finite_N[:, None]).double().mean().item()
    deviation = (base.outputs - base.outputs.mean(0)).square().mean().sqrt().item()
    difference = (own.outputs - base.outputs).square().mean().sqrt().item()
    return Score(
        None if own.loss_N is None else own.loss_N.mean().item(),
        None if own.right_N is None else own.right_N.mean().item(),
        agreement,
        difference / deviation if deviation > 0 else difference,
        int((~finite_N).sum()),
    )


def _gain(own_N: Tensor | None, base_N: Tensor | None) -> Gain | None:
    if own_N is None or base_N is None or len(own_N) < 2:
        return None
    difference_N = own_N - base_N
    return Gain(difference_N.mean().item(), difference_N.std().item() / len(difference_N) ** 0.5)
