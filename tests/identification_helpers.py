"""What several tests of identification share: a loss with a Hessian of its own, and small problems."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aafit.networks.adaptive import adaptive_parameters
from aafit.training.losses import Loss, loss_with_hessian

Batches = list[tuple[Tensor, Tensor]]


def hessians(loss: Loss, outputs_BK: Tensor, targets: Tensor) -> Tensor:
    """The Hessian of each image's loss by its outputs, by autograd."""

    def one(at: int) -> Callable[[Tensor], Tensor]:
        return lambda outputs_K: loss.value(outputs_K[None], targets[at : at + 1])[0]

    each = [torch.autograd.functional.hessian(one(at), outputs_K) for at, outputs_K in enumerate(outputs_BK)]
    return torch.stack(each)


def distance(outputs_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """sqrt(1 + |d|^2), which has a Hessian with all elements."""
    return (1 + (outputs_BK - targets_BK).square().sum(1)).sqrt()


def distance_hessian(outputs_BK: Tensor, targets_BK: Tensor) -> Tensor:
    d_BK, s_B = outputs_BK - targets_BK, distance(outputs_BK, targets_BK)[:, None, None]
    return torch.eye(d_BK.shape[1], dtype=d_BK.dtype) / s_B - d_BK[:, :, None] * d_BK[:, None, :] / s_B**3


DISTANCE = loss_with_hessian("distance", distance, distance_hessian)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in adaptive_parameters(net).items()}


def clusters(images: int, seed: int) -> Batches:
    """Four classes that a small network tells apart without error."""
    labels = torch.randint(4, (images,), generator=torch.Generator().manual_seed(seed))
    return [(drawn(4, 8, seed=7)[labels] + 0.6 * drawn(images, 8, seed=seed), labels)]
