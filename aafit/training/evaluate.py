"""Loss and accuracy of a network, once or after every epoch of tuning."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Batch, each_batch
from aafit.networks.running import evaluation_mode
from aafit.training.losses import (
    IGNORED,
    Loss,
    LossLike,
    Metric,
    as_loss,
    check_labels,
    finite_samples,
    scores,
    total_metric,
)
from aafit.training.predictor import Output, Predictor

Batches = Iterable[Any]
"""Batches of any form that `aafit.networks.batches.as_batch` takes; usually (inputs, labels)."""

KEPT_BYTES = 1 << 29  # bytes of outputs of the frozen prefix


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy of a network over a set of samples.

    Attributes:
        loss: mean over the labelled positions, in nats for cross-entropy; NaN without a target.
        accuracy: share of correct predictions of the labelled positions; NaN without classes.
        samples: how many samples the network returned outputs for.
        not_finite: how many of them have outputs that are NaN or infinite; their predictions count as wrong.
        metric: mean over the samples; NaN without a metric.
    """

    loss: float
    accuracy: float
    samples: int
    not_finite: int = 0
    metric: float = math.nan

    @property
    def diverged(self) -> bool:
        """Whether some outputs are NaN or infinite, so that loss and accuracy say nothing about the network."""
        return self.not_finite > 0 or math.isinf(self.loss)

    def __str__(self) -> str:
        if self.diverged:
            return f"DIVERGED: NaN or infinite outputs for {self.not_finite} of {self.samples} samples"
        texts = (f"loss {self.loss:.4f}", f"accuracy {self.accuracy:.2%}", f"metric {self.metric:.4g}")
        values = (self.loss, self.accuracy, self.metric)
        found = ", ".join(text for text, value in zip(texts, values, strict=True) if not math.isnan(value))
        return found or f"no loss: it is NaN, as where all labels are {IGNORED}"


def evaluate(
    net: nn.Module,
    batches: Batches,
    precision: str = "float32",
    *,
    output: Output | None = None,
    loss: LossLike = "cross-entropy",
    metric: Metric | None = None,
) -> Evaluation:
    """Return loss and accuracy of a network over all batches, in evaluation mode.

    The network's mode and the batches are left as they were.

    Args:
        net: any network.
        batches: (inputs, labels), or any other form that `aafit.networks.batches.as_batch` takes.
        precision: "bf16" for autocast; otherwise the network computes in the data type of its parameters.
        output: function that selects the output tensor from what the network returns.
        loss: "cross-entropy" for outputs (B, K), (B, T, K) or (B, C, H, W) with labels (B,), (B, T) or (B, H, W), where
            labels of -100 do not count; "mean squared error"; a `Loss`; or a function of outputs and target that
            returns one value for the batch or one for each sample.
        metric: function of outputs and target, or of the outputs alone without a target, that returns one value for
            the batch or one for each sample. Its mean over the samples is reported.

    Raises:
        UserError: the batches hold no sample, have an unknown form, or have no target although there is no metric; the
            target does not fit the outputs; or the network fails on a batch.

    Example:
        >>> net = torch.nn.Linear(4, 3)
        >>> print(aafit.evaluate(net, [(torch.randn(8, 4), torch.randint(3, (8,)))]))
        loss 1.1794, accuracy 25.00%
    """
    tally, predictor = Tally(as_loss(loss), metric), Predictor(net, output, precision)
    with evaluation_mode(net):
        for batch, outputs in predictor.over(each_batch(batches)):
            if batch.target is None and metric is None:
                raise UserError("The batches have no target to evaluate with; give (inputs, labels), or a metric.")
            tally.add(batch, outputs)
    return tally.evaluation("evaluate")


class Tally:
    """Sums the scores of one network over batches. The sums stay on the device: reading them makes a GPU wait."""

    def __init__(self, loss: Loss, metric: Metric | None = None) -> None:
        self.loss, self.metric = loss, metric
        self._samples = self._classes = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, batch: Batch, outputs: Tensor) -> None:
        """Add the outputs for a batch."""
        self._samples += len(outputs)
        if batch.target is None:
            self._add(finite=finite_samples(outputs))
        else:
            found = scores(self.loss, outputs, batch.target)
            self._add(finite=found.finite_B, loss=found.loss_B, labelled=found.labelled_B)
            if found.correct_B is not None and found.with_class_B is not None:
                self._classes = found.classes
                self._add(correct=found.correct_B, with_class=found.with_class_B, outside=found.outside)
        if self.metric is not None:
            total, count = total_metric(self.metric, outputs, batch.target)
            self._add(metric=total, metric_count=count)

    def evaluation(self, purpose: str) -> Evaluation:
        """Return what was found.

        Raises:
            UserError: there was no sample, or some labels are no class.
        """
        if not self._samples:
            raise UserError(f"There is nothing to {purpose}: the batches hold no sample.")
        sums = {name: value.item() for name, value in self._sums.items()}
        check_labels(int(sums.get("outside", 0)), self._classes)

        def mean(total: str, count: str) -> float:
            return sums[total] / sums[count] if sums.get(count) else math.nan

        return Evaluation(
            mean("loss", "labelled"),
            mean("correct", "with_class"),
            self._samples,
            self._samples - int(sums["finite"]),
            mean("metric", "metric_count"),
        )

    def _add(self, **values: Tensor | int) -> None:
        for name, value in values.items():
            total = torch.as_tensor(value).detach().sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + total if name in self._sums else total


def repeated_evaluation(
    net: nn.Module, batches: Callable[[], Batches], precision: str = "float32"
) -> Callable[[], Evaluation]:
    """Return a function that evaluates `net` in its present state on `batches()`; bit-identical to `evaluate`.

    Where only adaptive activations are trained, the outputs of the frozen prefix below the first of them are kept if
    they take at most half a GiB, as for activations of the fully connected layers.
    """

    def plainly() -> Evaluation:
        return evaluate(net, batches(), precision)

    adaptive = set(adaptive_parameters(net).values())
    if not adaptive or any(parameter.requires_grad for parameter in net.parameters() if parameter not in adaptive):
        return plainly
    with evaluation_mode(net):
        found = Predictor(net, precision=precision).after_prefix(each_batch(batches()), KEPT_BYTES)
    if found is None:
        return plainly
    rest, kept = found
    return lambda: evaluate(rest.net, kept, precision)
