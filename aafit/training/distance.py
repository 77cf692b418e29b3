"""Differences between the values of two networks, accumulated over batches.

`Distance` judges whether the outputs and the loss of a network are far from those of its base network. `Gap` and
`InputRange` are for the layers of a comparison.
"""

import math

import numpy as np
import torch
from torch import Tensor

from aafit.training.losses import Scores

FAR_LOSS = 0.02  # of the base network's loss
FAR_OUTPUTS = 0.05  # of the standard deviation of the base network's outputs
SAMPLED = 1 << 17  # inputs of an activation that its quantiles are computed from, at most
CHUNK = 1 << 20  # values compared at once in float64


class Distance:
    """Difference of the outputs, and of the loss if given, between a network and its base network over batches."""

    def __init__(self) -> None:
        self._numbers = self._total = self._squares = self._differences = 0.0
        self._labelled = 0
        self._base: list[Tensor] = []
        self._net: list[Tensor] = []

    def add(self, of_base: Tensor, of_net: Tensor) -> None:
        """Add the outputs of both networks for a batch."""
        wide = of_base.double()
        self._numbers += wide.numel()
        self._total += wide.sum().item()
        self._squares += wide.square().sum().item()
        self._differences += (of_net.double() - wide).square().sum().item()

    def add_losses(self, base: Scores, net: Scores) -> None:
        """Add the per-sample losses of both networks for a batch."""
        self._base.append(base.loss_B.double().cpu())
        self._net.append(net.loss_B.double().cpu())
        self._labelled += int(base.labelled_B.sum())

    @property
    def outputs(self) -> float:
        """Root mean square difference of the outputs over the standard deviation of the base's outputs."""
        mean_square = self._differences / self._numbers
        if self._variance <= 0:
            return math.inf if mean_square else 0.0
        return math.sqrt(mean_square / self._variance)

    @property
    def is_far(self) -> bool:
        """Whether the outputs or the loss are far from the base's; NaN counts as far.

        The outputs are far if `outputs` exceeds FAR_OUTPUTS, which the loss may hardly show. The loss is far if it
        exceeds the base's by more than FAR_LOSS of that, and by more than two standard errors of the difference.
        """
        return not (self._outputs_near and self._loss_near)

    def __str__(self) -> str:
        text = (
            f"its outputs differ by {self.outputs:.2%} of the standard deviation of the base's "
            f"(near is up to {FAR_OUTPUTS:.0%})"
        )
        if self._base:
            base_loss, excess, _ = self._losses
            text += f", its loss by {excess:.3g} from the base's {base_loss:.3g} (near is up to {FAR_LOSS:.0%} of it)"
        return text

    @property
    def _variance(self) -> float:
        return self._squares / self._numbers - (self._total / self._numbers) ** 2

    @property
    def _outputs_near(self) -> bool:
        return self._differences / self._numbers <= FAR_OUTPUTS**2 * self._variance

    @property
    def _loss_near(self) -> bool:
        if not self._base:
            return True
        base_loss, excess, noise = self._losses
        return excess <= max(noise, FAR_LOSS * base_loss)

    @property
    def _losses(self) -> tuple[float, float, float]:
        """The base's loss, how much the network's loss exceeds it, and two standard errors of that excess."""
        base_N = torch.cat(self._base) * len(torch.cat(self._base)) / self._labelled
        excess_N = torch.cat(self._net) * len(base_N) / self._labelled - base_N
        base_loss = base_N.mean().item()
        noise = 2 * excess_N.std().item() / len(excess_N) ** 0.5
        # A few huge losses make the standard error of their mean huge, too.
        return base_loss, excess_N.mean().item(), min(noise, base_loss)


class Gap:
    """Largest, mean and relative difference between pairs of tensors."""

    def __init__(self) -> None:
        self.max_abs = self._total = self._squares = self._of_base = 0.0
        self.count = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add the values of the base and of the other network, of one shape."""
        for base, other in zip(before.reshape(-1).split(CHUNK), after.reshape(-1).split(CHUNK), strict=True):
            base = base.double()
            difference = (other.double() - base).abs()
            # Not Python's max, which loses NaN: the largest of 0 and NaN is 0 there.
            self.max_abs = float(np.maximum(self.max_abs, difference.max().item()))
            self._total += difference.sum().item()
            self._squares += difference.square().sum().item()
            self._of_base += base.square().sum().item()
            self.count += difference.numel()

    @property
    def mean_abs(self) -> float:
        return self._total / self.count

    @property
    def relative(self) -> float:
        """Norm of the difference over that of the base's values; infinite if only the latter is 0."""
        if self._of_base == 0:
            return math.inf if self._squares else 0.0
        return math.sqrt(self._squares / self._of_base)


class InputRange:
    """Minimum and maximum of all values added, and two quantiles of a random sample to which all contribute alike."""

    def __init__(self) -> None:
        self._least, self._largest = math.inf, -math.inf
        self._generator = torch.Generator().manual_seed(0)
        self._sample: list[Tensor] = []
        self._share = 1.0

    def add(self, values: Tensor) -> None:
        """Add the values of a tensor."""
        least, largest = values.aminmax()
        self._least = float(np.minimum(self._least, least.item()))
        self._largest = float(np.maximum(self._largest, largest.item()))
        flat = values.reshape(-1)
        while sum(map(len, self._sample)) + self._share * len(flat) > SAMPLED:
            self._share /= 2
            if self._sample:
                kept = torch.cat(self._sample)
                half = torch.randperm(len(kept), generator=self._generator)[: len(kept) // 2]
                self._sample = [kept[half]]
        if self._share < 1:
            count = round(self._share * len(flat))
            flat = flat[torch.randint(len(flat), (count,), generator=self._generator).to(flat.device)]
        self._sample.append(flat.double().cpu())

    def quantiles(self) -> tuple[float, float, float, float]:
        """Return minimum, 1% quantile, 99% quantile and maximum."""
        with np.errstate(invalid="ignore"):  # between infinite values
            low, high = np.quantile(torch.cat(self._sample).numpy(), [0.01, 0.99])
        return self._least, float(low), float(high), self._largest
