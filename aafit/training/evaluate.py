"""Accuracy and loss of a network: once, or again and again while its activations are tuned."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.frozen_prefix import split_network
from aafit.training.precision import autocast

Batches = Iterable[tuple[Tensor, Tensor]]

KEPT_BYTES = 1 << 29  # bytes of outputs of the frozen prefix


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy (mean over the images, in nats) and accuracy (share of right predictions) over a whole set.

    An image whose logits are NaN or infinite counts as wrong; `not_finite` is the number of such images.
    """

    loss: float
    accuracy: float
    images: int
    not_finite: int = 0

    @property
    def diverged(self) -> bool:
        """Whether some logits are NaN or infinite: then loss and accuracy say nothing of the network."""
        return self.not_finite > 0 or not math.isfinite(self.loss)

    def __str__(self) -> str:
        if self.diverged:
            return f"DIVERGED: NaN or infinity for {self.not_finite} of {self.images} images"
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.2%}"


@contextmanager
def own_modes(*nets: nn.Module) -> Iterator[None]:
    """Put each module's own mode, training or evaluation, back at the end."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """The networks without dropout, with fixed statistics and without gradients; then as they were."""
    with own_modes(*nets), torch.no_grad():
        for net in nets:
            net.eval()
        yield


def evaluate(net: nn.Module, batches: Batches, precision: str = "float32") -> Evaluation:
    """Loss and accuracy of `net` over all of `batches` of (images, labels); the network's mode is left as it was.

    Raises:
        UserError: there is no image in `batches`.
    """
    images, loss, right = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    finite = torch.zeros((), dtype=torch.int64)
    with evaluation_mode(net):
        for x_B, y_B in batches:
            with autocast(precision, x_B.device):
                logits_BK = net(x_B)
            logits_BK = logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()
            # Sums stay on the device: reading them here would make a GPU wait for every batch.
            loss = loss.to(x_B.device) + F.cross_entropy(logits_BK, y_B, reduction="sum")
            finite_B = logits_BK.isfinite().all(1)
            finite = finite.to(x_B.device) + finite_B.sum()
            right = right.to(x_B.device) + ((logits_BK.argmax(1) == y_B) & finite_B).sum()
            images += len(y_B)
    if images == 0:
        raise UserError("There is nothing to evaluate: the batches hold no image.")
    return Evaluation(loss.item() / images, right.item() / images, images, images - int(finite.item()))


def repeated_evaluation(
    net: nn.Module, batches: Callable[[], Batches], precision: str = "float32"
) -> Callable[[], Evaluation]:
    """A function that evaluates `net` as it then is on `batches()`, with the same bits as `evaluate` gives.

    Where only adaptive activations are trained, the outputs of what lies below the lowest of them are kept, if there
    is one such output and it takes less than half a GiB: so for activations of the fully connected layers.
    """

    def plainly() -> Evaluation:
        return evaluate(net, batches(), precision)

    adaptive = set(adaptive_parameters(net).values())
    if not adaptive or any(parameter.requires_grad for parameter in net.parameters() if parameter not in adaptive):
        return plainly
    with evaluation_mode(net):
        x_B, _ = next(iter(batches()))
        prefix, rest = split_network(net, (x_B[:2],))
        if prefix is None:
            return plainly
        kept, kept_bytes = [], 0
        for x_B, y_B in batches():
            with autocast(precision, x_B.device):
                outputs = prefix(x_B)
            kept_bytes += outputs[0].nbytes
            if len(outputs) > 1 or kept_bytes > KEPT_BYTES:
                return plainly
            kept.append((outputs[0], y_B))
    return lambda: evaluate(rest, kept, precision)
