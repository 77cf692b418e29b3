"""Accuracy and loss of a network: once, or again and again while its activations are tuned."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Output, each_batch, run
from aafit.networks.running import evaluation_mode
from aafit.training.after_prefix import after_prefix
from aafit.training.losses import IGNORED, Loss, Metric, check_labels, check_loss, score, total_metric
from aafit.training.precision import autocast

Batches = Iterable[Any]
"""Batches of any form, see `aafit.networks.batches.as_batch`; of images and labels most often."""

KEPT_BYTES = 1 << 29  # bytes of outputs of the frozen prefix


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (cross-entropy in nats unless another was asked for) and share of right predictions over a whole set.

    Means are over the images, or over what is labelled of them. NaN stands for what there is not: accuracy without
    classes, loss without a target, `metric` where none was given. An image whose outputs are NaN or infinite counts as
    wrong; `not_finite` is the number of such images.
    """

    loss: float
    accuracy: float
    images: int
    not_finite: int = 0
    metric: float = math.nan

    @property
    def diverged(self) -> bool:
        """Whether some outputs are NaN or infinite: then loss and accuracy say nothing of the network."""
        return self.not_finite > 0 or math.isinf(self.loss)

    def __str__(self) -> str:
        if self.diverged:
            return f"DIVERGED: NaN or infinity for {self.not_finite} of {self.images} images"
        found = (f"loss {self.loss:.4f}", f"accuracy {self.accuracy:.2%}", f"metric {self.metric:.4g}")
        there = (self.loss, self.accuracy, self.metric)
        told = ", ".join(text for text, value in zip(found, there, strict=True) if not math.isnan(value))
        return told or f"no loss: it is not a number, as where all labels are {IGNORED}"


def evaluate(
    net: nn.Module,
    batches: Batches,
    precision: str = "float32",
    *,
    output: Output | None = None,
    loss: Loss = "cross-entropy",
    metric: Metric | None = None,
) -> Evaluation:
    """Loss and accuracy of `net` over all of `batches`; the network's mode is left as it was.

    Args:
        net: any network.
        batches: of (images, labels), or of any other form that `as_batch` takes.
        precision: "bf16" for autocast, else the type that `net` has.
        output: from what the network returns to the tensor that is meant, where it returns an object.
        loss: "cross-entropy" of outputs (B, K), (B, T, K) or (B, C, H, W) with labels (B,), (B, T) or (B, H, W), of
            which -100 does not count; "mean squared error"; or a function of output and target that gives a number,
            or one for each row or place.
        metric: a function of output and target, or of the output alone where there is no target, that gives as a loss
            does; it is called batch by batch, and averaged over the rows.

    Raises:
        UserError: there is no image in `batches`; a batch has no known form; there is neither a target nor a metric;
            the target does not fit the output; the network refuses a batch.
    """
    loss = check_loss(loss)
    sums = _Sums()
    images = classes = 0
    with evaluation_mode(net):
        for batch in each_batch(batches):
            with autocast(precision, batch.device):
                result = run(net, batch, output)
            result = result if result.dtype == torch.float64 else result.float()
            if batch.target is None and metric is None:
                raise UserError("There is nothing to evaluate by: the batches have no target, and no metric was given.")
            # Sums stay on the device: reading them here would make a GPU wait for every batch.
            if batch.target is not None:
                found = score(loss, result, batch.target)
                classes = found.classes
                sums.add("loss", found.loss, found.count)
                if found.right is not None and found.labelled is not None and found.outside is not None:
                    sums.add("right", found.right, found.labelled)
                    sums.add("outside", found.outside, found.labelled)
            if metric is not None:
                sums.add("metric", *total_metric(metric, result, batch.target))
            sums.add("finite", finite_rows(result).sum(), torch.tensor(len(batch)))
            images += len(batch)
    if images == 0:
        raise UserError("There is nothing to evaluate: the batches hold no image.")
    check_labels(sums.of("outside"), classes)
    not_finite = images - int(sums.of("finite"))
    return Evaluation(sums.mean("loss"), sums.mean("right"), images, not_finite, sums.mean("metric"))


def finite_rows(output: Tensor) -> Tensor:
    """Whether all numbers of a row are finite, (B,)."""
    return output.isfinite().flatten(1).all(1) if output.dim() > 1 else output.isfinite()


class _Sums:
    """Sums by name, and over how many, kept on the device."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, value: Tensor, count: Tensor) -> None:
        value = value.detach()
        value = value.double() if value.is_floating_point() else value
        before = self._kept.get(name)
        self._kept[name] = (value, count) if before is None else (before[0] + value, before[1] + count)

    def of(self, name: str) -> Tensor:
        return self._kept[name][0] if name in self._kept else torch.tensor(0)

    def mean(self, name: str) -> float:
        """NaN where there is nothing to take the mean of."""
        if name not in self._kept:
            return math.nan
        value, count = (kept.item() for kept in self._kept[name])
        return value / count if count else math.nan


def repeated_evaluation(
    net: nn.Module,
    batches: Callable[[], Batches],
    precision: str = "float32",
    *,
    output: Output | None = None,
    loss: Loss = "cross-entropy",
) -> Callable[[], Evaluation]:
    """A function that evaluates `net` as it then is on `batches()`, with the same bits as `evaluate` gives.

    Where only adaptive activations are trained, the outputs of what lies below the lowest of them are kept, if they
    take no more than half a GiB: so for activations of the fully connected layers.
    """

    def plainly() -> Evaluation:
        return evaluate(net, batches(), precision, output=output, loss=loss)

    adaptive = set(adaptive_parameters(net).values())
    if not adaptive or any(parameter.requires_grad for parameter in net.parameters() if parameter not in adaptive):
        return plainly
    with evaluation_mode(net):
        found = after_prefix(net, each_batch(batches()), KEPT_BYTES, precision, output)
    if found is None:
        return plainly
    rest, kept = found
    return lambda: evaluate(rest, kept, precision, output=output, loss=loss)
