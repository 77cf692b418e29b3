"""How well the base, the replaced and the tuned network do on the samples held out, and how sure the difference is.

Axes in names: N sample, T position, K class.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.batches import Batch, Output
from aafit.networks.running import evaluation_mode
from aafit.training.losses import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    LossLike,
    as_loss,
    class_axis,
    finite_samples,
    has_labels,
    scores,
)
from aafit.training.predictor import Predictor


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


def standings(
    base: nn.Module,
    replaced: nn.Module,
    tuned: nn.Module,
    batches: Iterable[Batch],
    held_out: bool,
    loss: LossLike | None = None,
    output: Output | None = None,
) -> Scores:
    """Return the scores of the three networks.

    Args:
        base, replaced, tuned: the networks.
        batches: the samples to score on.
        held_out: whether they took no part in the identification.
        loss: as for `identify`; by default the cross-entropy for labels, the mean squared error for other targets.
        output: function that selects the output tensor from what the networks return.

    Raises:
        UserError: there is no sample.
    """
    batches = list(batches)
    if not sum(map(len, batches)):
        raise UserError("There is nothing to score on: the batches hold no sample.")
    first, second, third = (_Outputs(net, batches, loss, output) for net in (base, replaced, tuned))
    return Scores(
        sum(map(len, batches)),
        held_out,
        first.score(first),
        second.score(first),
        third.score(first),
        _gain(third.correct_N, first.correct_N),
        _gain(third.loss_N, first.loss_N),
    )


class _Outputs:
    """Outputs, losses, share of correct predictions, and predictions of one network, sample by sample."""

    def __init__(self, net: nn.Module, batches: Iterable[Batch], loss: LossLike | None, output: Output | None) -> None:
        outputs, found, predicted = [], [], []
        with evaluation_mode(net):
            for batch, y in Predictor(net, output).over(batches):
                y = y.cpu().double()
                outputs.append(y)
                target = batch.target.cpu() if isinstance(batch.target, Tensor) else None
                labelled = has_labels(y, target)
                if target is not None and (loss is not None or labelled or target.shape == y.shape):
                    made = as_loss(loss or (CROSS_ENTROPY if labelled else SQUARED_ERROR))
                    found.append(scores(made, y, target.double() if target.is_floating_point() else target))
                axis = class_axis(y.shape, target.shape) if target is not None and labelled else None
                if axis is not None or y.dim() == 2:
                    predicted.append(y.argmax(axis or 1).reshape(len(y), -1))
        self.outputs = torch.cat(outputs)
        self.predicted = torch.cat(predicted) if predicted else None
        self.loss_N: Tensor | None = None
        self.correct_N: Tensor | None = None
        if found:
            labelled_N = torch.cat([one.labelled_B for one in found])
            each = labelled_N.double().mean()
            self.loss_N = torch.cat([one.loss_B for one in found]) / each
            if all(one.correct_B is not None for one in found):
                with_class_N = torch.cat([one.with_class_B for one in found if one.with_class_B is not None])
                correct_N = torch.cat([one.correct_B for one in found if one.correct_B is not None])
                self.correct_N = correct_N / with_class_N.double().mean()

    def score(self, base: "_Outputs") -> Score:
        """Return the score of this network, compared with the base network."""
        finite_N = finite_samples(self.outputs)
        agreement = None
        if self.predicted is not None and base.predicted is not None:
            agreement = ((self.predicted == base.predicted) & finite_N[:, None]).double().mean().item()
        deviation = (base.outputs - base.outputs.mean(0)).square().mean().sqrt().item()
        difference = (self.outputs - base.outputs).square().mean().sqrt().item()
        return Score(
            None if self.loss_N is None else self.loss_N.mean().item(),
            None if self.correct_N is None else self.correct_N.mean().item(),
            agreement,
            difference / deviation if deviation > 0 else difference,
            int((~finite_N).sum()),
        )


def _gain(own_N: Tensor | None, base_N: Tensor | None) -> Gain | None:
    if own_N is None or base_N is None or len(own_N) < 2:
        return None
    difference_N = own_N - base_N
    return Gain(difference_N.mean().item(), difference_N.std().item() / len(difference_N) ** 0.5)
