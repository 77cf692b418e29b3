"""Compute loss, accuracy and agreement of the base, the initial and the tuned network, and the gain's significance.

Begin with `study_scores`. Axes in names: B sample of a batch, N sample.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import torch
from torch import Size, Tensor, nn

from aafit.errors import UserError
from aafit.identification.hessian import wide_target
from aafit.networks.batches import Batch
from aafit.networks.running import evaluation_mode
from aafit.training.losses import (
    CROSS_ENTROPY,
    IGNORED,
    SQUARED_ERROR,
    Loss,
    LossLike,
    as_loss,
    check_labels,
    class_axis,
    has_labels,
    scores,
)
from aafit.training.predictor import Output, Predictor

FEW = 25
"""Changed samples below which the standard error of an accuracy gain is unreliable, and an exact test is used."""
LEVEL = 0.05
"""Significance level of the exact test."""
VALUES = ("loss", "labelled", "correct", "with class", "agreed", "positions", "finite", "squares", "elements")
"""The values of a sample: sums (loss, correct, agreed, squares of the differences from the base's
outputs) with the counts that they are divided by (labelled, with class, positions, elements), and whether the outputs
are finite."""


@dataclass(frozen=True)
class Score:
    """One network on the evaluated samples.

    Attributes:
        loss: Mean loss over the labelled positions; None without targets.
        accuracy: Share of correct predictions of the labelled positions; None without classes.
        agreement: Share of predictions that equal the base network's; None unless there are class labels or the loss is
            the cross-entropy.
        difference: RMS difference of the outputs from the base network's, relative to the standard deviation of the
            base network's outputs over the samples; absolute if that is 0.
        not_finite: Number of samples with NaN or infinity among the outputs.
    """

    loss: float | None
    accuracy: float | None
    agreement: float | None
    difference: float
    not_finite: int


@dataclass(frozen=True)
class PairedGain:
    """The difference between the tuned and the base network, on the same samples.

    Attributes:
        value: The difference of the means.
        error: Its standard error, from the paired differences of the samples.
        changed: Number of samples that differ in correctness; None for a loss.
        p: Two-sided p-value of an exact sign test (McNemar's test), where fewer than 25 samples differ in correctness;
            else None.
    """

    value: float
    error: float
    changed: int | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the exact test gives p < 0.05, or without one, whether the gain exceeds twice its error."""
        if self.p is not None:
            return self.p < LEVEL
        return abs(self.value) > 2 * self.error and self.value != 0


@dataclass(frozen=True)
class StudyScores:
    """The three networks on the evaluated samples.

    Attributes:
        samples: Number of samples.
        held_out: Whether they took no part in the identification.
        base: The base network.
        initial: The network before tuning.
        tuned: The tuned network.
        accuracy_gain: Accuracy of the tuned network minus the base network's; None without classes.
        loss_gain: Loss of the tuned network minus the base network's: negative is better; None without targets.
    """

    samples: int
    held_out: bool
    base: Score
    initial: Score
    tuned: Score
    accuracy_gain: PairedGain | None
    loss_gain: PairedGain | None

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as nested dictionaries."""
        return asdict(self)


def study_scores(
    base: nn.Module,
    initial: nn.Module,
    tuned: nn.Module,
    batches: Iterable[Batch],
    held_out: bool,
    loss: LossLike | None = None,
    output: Output | None = None,
) -> StudyScores:
    """Evaluate the three networks.

    Args:
        base: The base network.
        initial: The network before tuning.
        tuned: The tuned network.
        batches: The samples to evaluate on.
        held_out: Whether they took no part in the identification.
        loss: As for `identify`; None: cross-entropy for class labels, mean squared error for targets of the shape of
            the outputs, and no loss for others.
        output: Selects the output tensor of what the networks return, as for `identify`.

    Raises:
        UserError: There is no sample; the targets do not fit the outputs.
    """
    nets = (base, initial, tuned)
    predictors = [Predictor(net, output) for net in nets]
    values: list[list[dict[str, Tensor]]] = [[], [], []]
    totals: dict[Size, list[Tensor]] = {}
    with evaluation_mode(*nets):
        for batch in batches:
            all_outputs = [predictor(batch).double() for predictor in predictors]
            base_outputs, target = all_outputs[0], wide_target(batch.target)
            for outputs, of_batches in zip(all_outputs, values, strict=True):
                of_batches.append(sample_values(loss, outputs, base_outputs, target))
            sums = [base_outputs.sum(0), base_outputs.square().sum(0), torch.ones_like(base_outputs).sum(0)]
            before = totals.get(base_outputs.shape[1:], [torch.zeros_like(one) for one in sums])
            totals[base_outputs.shape[1:]] = [one + other for one, other in zip(before, sums, strict=True)]
    if not values[0]:
        raise UserError("The batches hold no sample to evaluate.")
    base_values, initial_values, tuned_values = map(joined_values, values)
    variance = sum((square - total.square() / count).sum().item() for total, square, count in totals.values())
    std = (variance / base_values["elements"].sum().item()) ** 0.5
    return StudyScores(
        samples=len(base_values["loss"]),
        held_out=held_out,
        base=_score(base_values, std),
        initial=_score(initial_values, std),
        tuned=_score(tuned_values, std),
        accuracy_gain=paired_gain(tuned_values, base_values, "correct", "with class"),
        loss_gain=paired_gain(tuned_values, base_values, "loss", "labelled"),
    )


def sample_values(loss_like: LossLike | None, outputs: Tensor, base_outputs: Tensor, target: Any) -> dict[str, Tensor]:
    """Return the `VALUES` of each sample by name, (B,) in float64 on the CPU; NaN for those that are not defined.

    Args:
        loss_like: The loss; None: the default for the target.
        outputs: Outputs of a network, (B, ...) in float64.
        base_outputs: Outputs of the base network, of the same shape.
        target: The target; None: there is none.
    """
    values = dict.fromkeys(VALUES, torch.full((len(outputs),), torch.nan, dtype=torch.float64))
    loss = _loss_of(loss_like, outputs, target)
    if loss is not None and target is not None:
        scored = scores(loss, outputs, target)
        values |= {"loss": scored.loss_B, "labelled": scored.labelled_B}
        if scored.correct_B is not None and scored.with_class_B is not None:
            check_labels(scored.outside, scored.classes)
            values |= {"correct": scored.correct_B, "with class": scored.with_class_B}
    labels = target if has_labels(outputs, target) else None
    axis = class_axis(outputs.shape, None if labels is None else labels.shape)
    if axis is not None and (labels is not None or (loss is not None and loss.is_cross_entropy)):
        same = (outputs.argmax(axis) == base_outputs.argmax(axis)) & outputs.isfinite().all(axis)
        counted = torch.ones_like(same) if labels is None else labels != IGNORED
        agreed, positions = (x.reshape(len(outputs), -1).sum(1) for x in (same & counted, counted))
        values |= {"agreed": agreed, "positions": positions}
    flat = (outputs - base_outputs).reshape(len(outputs), -1)
    values |= {"finite": outputs.reshape(len(outputs), -1).isfinite().all(1), "squares": flat.square().sum(1)}
    values["elements"] = torch.full((len(outputs),), flat.shape[1])
    return {name: value.detach().double().cpu() for name, value in values.items()}


def joined_values(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the `VALUES` of the samples of all batches by name, (N,) each."""
    return {name: torch.cat([values[name] for values in batches]) for name in VALUES}


def _loss_of(loss_like: LossLike | None, outputs: Tensor, target: Any) -> Loss | None:
    if loss_like is not None:
        return as_loss(loss_like)
    if has_labels(outputs, target):
        return CROSS_ENTROPY
    return SQUARED_ERROR if isinstance(target, Tensor) and target.shape == outputs.shape else None


def _score(values: dict[str, Tensor], std: float) -> Score:
    difference = _mean(values["squares"], values["elements"])
    assert difference is not None
    return Score(
        _mean(values["loss"], values["labelled"]),
        _mean(values["correct"], values["with class"]),
        _mean(values["agreed"], values["positions"]),
        difference**0.5 / std if std > 0 else difference**0.5,
        int((values["finite"] == 0).sum()),
    )


def _mean(totals_N: Tensor, counts_N: Tensor) -> float | None:
    counts = counts_N.nansum()
    return None if counts == 0 else (totals_N.sum() / counts).item()


def paired_gain(
    values: Mapping[str, Tensor], base_values: Mapping[str, Tensor], total: str, count: str
) -> PairedGain | None:
    """Return the paired difference of two ratios of sums, with its standard error by the delta method.

    Args:
        values: The values of each sample by name, (N,) each.
        base_values: The same values of the base network.
        total: Name of the value whose sum is the numerator.
        count: Name of the value whose sum is the denominator.

    Returns:
        The difference, `values` minus `base_values`; None for fewer than two samples, or if the value is not defined.
    """
    counts_N, difference_N = base_values[count], values[total] - base_values[total]
    if len(counts_N) < 2 or counts_N.nansum() == 0:
        return None
    value = (difference_N.sum() / counts_N.sum()).item()
    residual_N = difference_N - value * counts_N
    error = residual_N.std().item() * len(counts_N) ** 0.5 / counts_N.sum().item()
    if total == "loss":
        return PairedGain(value, error)
    more, fewer = int((difference_N > 0).sum()), int((difference_N < 0).sum())
    return PairedGain(value, error, more + fewer, sign_test(more, fewer) if more + fewer < FEW else None)


def sign_test(more: int, fewer: int) -> float:
    """Return the two-sided p-value of `more` increases and `fewer` decreases, if both are equally likely."""
    changed = more + fewer
    tail = sum(comb(changed, number) for number in range(min(more, fewer) + 1))
    return min(1.0, float(tail / 2 ** (changed - 1)))
