"""How well the base, the replaced and the tuned network do on the samples held out, and how sure the difference is.

Axes in names: N sample, K output.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.identification.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss
from aafit.networks.inputs import Batch, Output, run
from aafit.training.evaluate import evaluation_mode


@dataclass(frozen=True)
class Standing:
    """One network on the samples held out.

    Attributes:
        loss: Mean over the samples, None where it cannot be told.
        accuracy: Share of right predictions, None where the targets are no classes.
        agreement: Share of predictions that are the base network's, None where the outputs are no classes.
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
class Standings:
    """The three networks; the gains are those of the tuned one over the base (loss: below 0 is better).

    `held_out`: whether the samples took no part in the identification.
    """

    samples: int
    held_out: bool
    base: Standing
    replaced: Standing
    tuned: Standing
    accuracy_gain: Gain | None
    loss_gain: Gain | None


@dataclass(frozen=True)
class _Rows:
    """Of one network, sample by sample."""

    outputs: Tensor
    loss_N: Tensor | None
    right_N: Tensor | None


def standings(
    base: nn.Module,
    replaced: nn.Module,
    tuned: nn.Module,
    batches: Iterable[Batch],
    held_out: bool,
    loss: Loss | None = None,
    output: Output | None = None,
) -> Standings:
    """The three networks on `batches`.

    Args:
        base, replaced, tuned: the networks.
        batches: the samples to judge on.
        held_out: whether they took no part in the identification.
        loss: by sample; by default cross-entropy of classes, the mean squared error of other targets.
        output: what is meant of what the networks return, as for `identify`.

    Raises:
        UserError: there is no sample.
    """
    batches = list(batches)
    if not sum(map(len, batches)):
        raise UserError("There is nothing to judge on: the batches hold no sample.")
    first, second, third = (_rows(net, batches, loss, output) for net in (base, replaced, tuned))
    return Standings(
        sum(map(len, batches)),
        held_out,
        _standing(first, first),
        _standing(second, first),
        _standing(third, first),
        _gain(third.right_N, first.right_N),
        _gain(third.loss_N, first.loss_N),
    )


def _rows(net: nn.Module, batches: Iterable[Batch], loss: Loss | None, output: Output | None) -> _Rows:
    outputs, losses, right = [], [], []
    with evaluation_mode(net):
        for batch in batches:
            y = run(net, batch.cloned(), output).detach().cpu().double()
            outputs.append(y)
            target = batch.target.cpu() if isinstance(batch.target, Tensor) else None
            if target is None or y.dim() != 2:
                continue
            if target.dim() == 1 and not target.is_floating_point():
                losses.append((loss or CROSS_ENTROPY).value(y, target))
                right.append(((y.argmax(1) == target) & y.isfinite().all(1)).double())
            elif target.shape == y.shape:
                losses.append((loss or SQUARED_ERROR).value(y, target.double()))
    return _Rows(torch.cat(outputs), torch.cat(losses) if losses else None, torch.cat(right) if right else None)


def _standing(own: _Rows, base: _Rows) -> Standing:
    finite = own.outputs.isfinite().reshape(len(own.outputs), -1).all(1)
    agreement = None
    if own.outputs.dim() >= 2:
        agreement = (
            (own.outputs.argmax(1) == base.outputs.argmax(1)).reshape(len(finite), -1).all(1) & finite
        ).double()
    deviation = (base.outputs - base.outputs.mean(0)).square().mean().sqrt().item()
    difference = (own.outputs - base.outputs).square().mean().sqrt().item()
    return Standing(
        None if own.loss_N is None else own.loss_N.mean().item(),
        None if own.right_N is None else own.right_N.mean().item(),
        None if agreement is None else agreement.mean().item(),
        difference / deviation if deviation > 0 else difference,
        int((~finite).sum()),
    )


def _gain(own_N: Tensor | None, base_N: Tensor | None) -> Gain | None:
    if own_N is None or base_N is None or len(own_N) < 2:
        return None
    difference_N = own_N - base_N
    return Gain(difference_N.mean().item(), difference_N.std().item() / len(difference_N) ** 0.5)
