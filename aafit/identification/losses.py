"""Losses with the curvature that Gauss-Newton needs: the Hessian by the network's outputs, as a product of factors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aafit.errors import UserError, check_name

MOST_OUTPUTS = 512  # whose Hessian is computed by automatic differentiation


@dataclass(frozen=True)
class Loss:
    """A loss by row, convex in the network's outputs. A row is a position of a sample, or all of the sample.

    Called with outputs and targets it gives the loss of each row: `evaluate`, `compare` and `tune` take it too.

    Axes in names: B row, K output, R column.

    Attributes:
        value: (outputs_BK, targets) -> loss_B.
        factor: (outputs_BK, targets) -> F_BKR with F F^T the Hessian of a row's loss by its outputs.
        sampled: (outputs_BK, targets, columns, generator) -> F_BKR of so many random columns, with F F^T the Hessian
            on average; None where there is no cheap one.
        whole: The loss takes a sample's outputs as the network gives them, (B, ...); its K are all of their numbers.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    factor: Callable[[Tensor, Tensor], Tensor]
    sampled: Callable[[Tensor, Tensor, int, torch.Generator], Tensor] | None = None
    whole: bool = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, (B,)."""
        return self.value(outputs, targets)


def loss_with_hessian(
    name: str,
    value: Callable[[Tensor, Tensor], Tensor],
    hessian: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Loss:
    """Any loss, as a function of output and target that gives a number for each sample, (B,), or several, (B, ...).

    Of several the mean is taken. The Hessian by a sample's outputs is hessian(outputs, targets) -> H_BKK, where K
    counts all of the sample's outputs. Without one it is computed by automatic differentiation, for up to 512 outputs.
    Where it is not positive semidefinite its negative part is left out, as Gauss-Newton needs.

    Raises:
        UserError: the name is that of a loss that there is; when called, the function gives one number for a whole
            batch, or the outputs are too many.
    """
    if name in LOSSES:
        raise UserError(f"There is a loss named {name!r} already: give this one another name.")

    def by_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        values = value(outputs, targets)
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(outputs):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise UserError(
                f"The loss {name!r} gives {given} for {len(outputs)} samples: let it give a number for each, as "
                'the losses of torch do with reduction="none".'
            )
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    def factor(outputs: Tensor, targets: Tensor) -> Tensor:
        given = _hessian(by_sample, outputs, targets) if hessian is None else hessian(outputs, targets)
        values_BK, vectors_BKK = torch.linalg.eigh(given)
        root_BK: Tensor = values_BK.clamp(min=0).sqrt()
        factor_BKR: Tensor = vectors_BKK * root_BK.unsqueeze(1)
        return factor_BKR

    return Loss(name, by_sample, factor, whole=True)


def as_loss(loss: "Loss | str | Callable[[Tensor, Tensor], Tensor]") -> Loss:
    """A loss from its name or from a function of output and target.

    Raises:
        UserError: it is neither.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return loss_with_hessian(getattr(loss, "__name__", type(loss).__name__), loss)
    if not isinstance(loss, str):
        raise UserError(f"The loss {loss!r} is no loss: give a function, or {' or '.join(LOSSES)}.")
    return LOSSES[check_name("loss", loss, LOSSES)]


def _hessian(value: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """The Hessian of each sample's loss by its outputs, (B, K, K): one backward pass for each output."""
    size = outputs[0].numel()
    if size > MOST_OUTPUTS:
        raise UserError(
            f"The Hessian of a loss that is given as a function is computed for up to {MOST_OUTPUTS} outputs a sample, "
            f"and the network has {size}: give the loss its Hessian by loss_with_hessian, or take a named one."
        )
    leaf_BK = outputs.detach().reshape(len(outputs), -1).requires_grad_()
    with torch.enable_grad():
        total = value(leaf_BK.reshape(outputs.shape), targets).sum()
        (gradient_BK,) = torch.autograd.grad(total, leaf_BK, create_graph=True)
        if not gradient_BK.requires_grad:  # linear in the outputs
            return leaf_BK.new_zeros(len(leaf_BK), size, size)
        columns = [
            torch.autograd.grad(gradient_BK[:, k].sum(), leaf_BK, retain_graph=True, materialize_grads=True)[0]
            for k in range(size)
        ]
    return torch.stack(columns, 2)


def _cross_entropy(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs_BK, targets, reduction="none")


def _cross_entropy_factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    """diag(p) - p p^T = F F^T with F = diag(sqrt p) - p sqrt(p)^T."""
    p_BK = outputs_BK.softmax(1)
    root_BK = p_BK.sqrt()
    return torch.diag_embed(root_BK) - p_BK.unsqueeze(2) * root_BK.unsqueeze(1)


def _cross_entropy_sampled(outputs_BK: Tensor, targets: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Gradients e_k - p of labels k, drawn and scaled such that they have diag(p) - p p^T on average.

    A label is drawn with a probability in proportion to p_k |e_k - p|^2, and its gradient scaled to the root of the
    Hessian's trace, so that every draw has the right trace. Drawn with the probability p_k, a label other than the
    one that a network is sure of would hardly ever come, and nearly all of the curvature with it.
    """
    p_BK = outputs_BK.softmax(1)
    square_BK = 1 - 2 * p_BK + p_BK.square().sum(1, keepdim=True)
    share_BK = (p_BK * square_BK.clamp(min=0)).double()
    trace_B1 = share_BK.sum(1, keepdim=True)
    # Drawn on the CPU from uniform numbers, so that every device draws the same labels.
    uniform_BR = torch.rand(len(p_BK), columns, generator=generator, dtype=torch.float64).to(p_BK.device)
    labels_BR = torch.searchsorted(share_BK.cumsum(1), uniform_BR * trace_B1).clamp(max=p_BK.shape[1] - 1)
    gradient_BRK = F.one_hot(labels_BR, p_BK.shape[1]).to(p_BK.dtype) - p_BK.unsqueeze(1)
    length_BR1 = gradient_BRK.square().sum(2, keepdim=True).sqrt()
    unit_BRK = torch.where(length_BR1 > 0, gradient_BRK / length_BR1, 0)
    factor_BKR: Tensor = unit_BRK.mT * (trace_B1.to(p_BK) / columns).sqrt().unsqueeze(2)
    return factor_BKR


def _squared_error(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    return (outputs_BK - targets).square().mean(1)


def _squared_error_factor(outputs_BK: Tensor, targets: Tensor) -> Tensor:
    outputs = outputs_BK.shape[1]
    return (
        torch.eye(outputs, dtype=outputs_BK.dtype, device=outputs_BK.device)
        .mul((2 / outputs) ** 0.5)
        .expand(len(outputs_BK), -1, -1)
    )


def _squared_error_sampled(outputs_BK: Tensor, targets: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    B, K = outputs_BK.shape
    signs_BKR = torch.randint(0, 2, (B, K, columns), generator=generator) * 2 - 1
    scale: float = (2 / K / columns) ** 0.5
    return signs_BKR.to(outputs_BK) * scale


CROSS_ENTROPY = Loss("cross-entropy", _cross_entropy, _cross_entropy_factor, _cross_entropy_sampled)
"""F.cross_entropy, in nats: targets are classes (B,) or probabilities (B, K)."""

SQUARED_ERROR = Loss("mean squared error", _squared_error, _squared_error_factor, _squared_error_sampled)
"""The mean over the outputs of their squared differences from the targets (B, K)."""

LOSSES = {"cross-entropy": CROSS_ENTROPY, "mean squared error": SQUARED_ERROR}
