"""Compute the Hessian of a loss with respect to the network's outputs, as factors and Hessian-vector products.

The loss of a sample is here the sum over its labelled positions. Begin with `probes_of`. Axes in names: B sample, M
position, K output, R row (one position of one sample), C column of a factor.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Size, Tensor

from aafit.training.losses import Loss, Positions, by_position, scores


def gradient_of(loss: Loss, outputs: Tensor, target: Any) -> tuple[float, int, Tensor]:
    """Return the loss and its gradient with respect to the outputs.

    Returns:
        The sum of the losses, the number of labelled positions, and the gradient of the sum, in the shape of the
        outputs and in float64.
    """
    wide = outputs.detach().double().requires_grad_()
    with torch.enable_grad():
        found = scores(loss, wide, wide_target(target))
        total = found.loss_B.sum()
    (gradient,) = torch.autograd.grad(total, wide)
    return total.item(), int(found.labelled_B.sum()), gradient


def probes_of(
    loss: Loss, outputs: Tensor, target: Any, probes: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield probes c in the shape of the outputs, such that the sum of c c^T is the Hessian of each sample's loss.

    Args:
        loss: any loss.
        outputs: outputs of the network, (B, ...).
        target: the target, as the loss takes it.
        probes: number of random probes, for which the expectation of the sum is the Hessian; None for the exact
            Hessian, from as many probes as a sample has outputs.
        generator: random number generator of the probes.
    """
    wide, size = outputs.detach().double(), outputs[0].numel()
    if loss.whole:
        factor_BKC = loss.factor(wide, wide_target(target))
        if probes is not None and probes < size:
            factor_BKC = _mixed(factor_BKC, probes, generator)
        yield from (column_BK.reshape(outputs.shape) for column_BK in factor_BKC.unbind(2))
        return
    positions = Positions.of(loss, wide, target)
    B, M, K = positions.outputs_BMK.shape
    labelled_BM1, axis = positions.labelled_BM.unsqueeze(2), positions.axis
    if probes is None or probes >= size:
        for m in range(M):
            factor_BKC = loss.factor(positions.outputs_BMK[:, m], positions.targets[:, m])
            for column_BK in factor_BKC.unbind(2):
                column_BMK = torch.zeros_like(positions.outputs_BMK)
                column_BMK[:, m] = column_BK
                yield _restored(column_BMK.where(labelled_BM1, 0), outputs.shape, axis)
        return
    outputs_RK, targets_R = positions.outputs_BMK.flatten(0, 1), positions.targets.flatten(0, 1)
    if loss.sampled is None:
        factor_RKC = _mixed(loss.factor(outputs_RK, targets_R), probes, generator)
    else:
        factor_RKC = loss.sampled(outputs_RK, targets_R, probes, generator)
    factor_BMKC = factor_RKC.reshape(B, M, K, probes)
    if M > 1:
        # The Hessian has no elements between positions: with random signs those of c c^T are 0 in expectation.
        factor_BMKC = factor_BMKC * _signs((B, M, 1, probes), generator).to(factor_BMKC)
    for column_BMK in factor_BMKC.unbind(3):
        yield _restored(column_BMK.where(labelled_BM1, 0), outputs.shape, axis)


def hessian_vector_product(loss: Loss, outputs: Tensor, target: Any, change: Tensor) -> Tensor:
    """Return the Hessian of each sample's loss times a change of the outputs.

    Args:
        loss: any loss.
        outputs: outputs of the network, (B, ...).
        target: the target, as the loss takes it.
        change: change of the outputs, (B, ...).

    Returns:
        The product, in the shape of the outputs and in float64.
    """
    wide = outputs.detach().double()
    if loss.whole:
        factor_BKC = loss.factor(wide, wide_target(target))
        product_BK1 = factor_BKC @ (factor_BKC.mT @ change.double().reshape(len(change), -1, 1))
        return product_BK1.reshape(outputs.shape)
    positions = Positions.of(loss, wide, target)
    change_BMK = by_position(change.double(), positions.axis)
    products = []
    for m in range(change_BMK.shape[1]):
        factor_BKC = loss.factor(positions.outputs_BMK[:, m], positions.targets[:, m])
        products.append((factor_BKC @ (factor_BKC.mT @ change_BMK[:, m].unsqueeze(2))).squeeze(2))
    product_BMK = torch.stack(products, 1).where(positions.labelled_BM.unsqueeze(2), 0)
    return _restored(product_BMK, outputs.shape, positions.axis)


def wide_target(target: Any) -> Any:
    """Return a floating-point target in float64, any other target unchanged."""
    return target.double() if isinstance(target, Tensor) and target.is_floating_point() else target


def _restored(values_BMK: Tensor, shape: Size, axis: int) -> Tensor:
    if len(shape) == 1:
        return values_BMK.reshape(shape)
    return values_BMK.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]).movedim(-1, axis)


def _mixed(factor_BKC: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Return random combinations F' of a factor's columns, such that the expectation of F' F'^T is F F^T."""
    signs = _signs((len(factor_BKC), factor_BKC.shape[2], probes), generator)
    mixed_BKC: Tensor = factor_BKC @ signs.to(factor_BKC) / probes**0.5
    return mixed_BKC


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2 - 1
