"""How far a network is from the one that it was made from, and what counts as far."""

import math

import torch
from torch import Tensor

from aafit.training.losses import Scores

FAR_LOSS = 0.02  # of the base network's loss
FAR_OUTPUTS = 0.05  # of the standard deviation of the base network's outputs


class Distance:
    """How far the outputs of a network, and its loss where that is given, are from those of its base, over batches."""

    def __init__(self) -> None:
        self._numbers = self._total = self._squares = self._differences = 0.0
        self._labelled = 0
        self._base: list[Tensor] = []
        self._net: list[Tensor] = []

    def add(self, of_base: Tensor, of_net: Tensor) -> None:
        """Add the outputs of both networks for a batch, of one shape."""
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
        """The root mean square difference of the outputs over the standard deviation of the base's."""
        mean_square = self._differences / self._numbers
        if self._variance <= 0:
            return math.inf if mean_square else 0.0
        return math.sqrt(mean_square / self._variance)

    @property
    def is_far(self) -> bool:
        """Whether the outputs or the loss are far from the base's; what is not a number is far, too.

        The outputs are far where `outputs` is above FAR_OUTPUTS: the loss may hardly show that. The loss is far where
        it is above the base's by more than FAR_LOSS of that, and by more than the noise of the difference.
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
        """The base's loss, by how much the network's is above it, and the noise of that: two of its standard errors."""
        base_N = torch.cat(self._base) * len(torch.cat(self._base)) / self._labelled
        excess_N = torch.cat(self._net) * len(base_N) / self._labelled - base_N
        base_loss = base_N.mean().item()
        noise = 2 * excess_N.std().item() / len(excess_N) ** 0.5
        # Where a few losses are huge, so is the noise of their mean.
        return base_loss, excess_N.mean().item(), min(noise, base_loss)
