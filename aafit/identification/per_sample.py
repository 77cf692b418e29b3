"""Parameters of its own for each sample, so that one backward pass gives the gradients of all samples apart.

An activation may receive the samples on its first axis, folded with something else (positions, windows), or on another
axis. Which it is shows in what it receives for four samples and for each half of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch
from aafit.networks.running import watched

FEW = 4


@dataclass(frozen=True)
class Placement:
    """Where the samples are in what an activation receives.

    Attributes:
        rank: The number of its dimensions.
        axis: That of the samples.
        copies: How many slices of that axis a sample has.
        together: Whether these lie side by side, as after flatten(0, 1) of (B, T, ...); else as of (T, B, ...).
    """

    rank: int
    axis: int = 0
    copies: int = 1
    together: bool = True

    def own(self, activation: AdaptiveActivation, tensor: Tensor, samples: int) -> Tensor:
        """A parameter repeated for each sample, as a leaf that broadcasts against the activation's input."""
        sets, beyond = tensor.shape[: len(activation.shape)], tensor.shape[len(activation.shape) :]
        sets = torch.Size() if sets == (1,) else sets
        full = [1] * (self.rank - len(sets)) + list(sets)
        if full[self.axis] > 1:
            raise UserError(
                f"An activation with parameters of shape {tuple(sets)} has some along axis {self.axis}, where the "
                "samples are, so that their gradients cannot be told apart: share its parameters by layer."
            )
        full[self.axis] = samples
        return tensor.reshape(*[1] * (self.rank - len(sets)), *sets, *beyond).expand(*full, *beyond).clone()

    def spread(self, own: Tensor) -> Tensor:
        """Such a parameter as the activation is called with it: for each slice of the samples' axis."""
        if self.copies == 1:
            return own
        if self.together:
            return own.repeat_interleave(self.copies, self.axis)
        return own.repeat(*(self.copies if axis == self.axis else 1 for axis in range(own.ndim)))

    def rows(self, gradient: Tensor) -> Tensor:
        """The gradient by such a parameter, a row a sample."""
        return gradient.movedim(self.axis, 0).reshape(gradient.shape[self.axis], -1)


def placements(net: nn.Module, batch: Batch, run: Callable[[Batch], Tensor]) -> dict[str, Placement]:
    """Where the samples are in what each adaptive activation receives; one that is not called is left out.

    Raises:
        UserError: it cannot be told, or differs between the calls of one activation.
    """
    count = min(FEW, len(batch) // 2 * 2)
    if count == 0:
        return {path: Placement(u.ndim) for path, calls in _received(net, batch, run).items() for u in calls}
    whole, half = batch.part(0, count), count // 2
    seen = [_received(net, part, run) for part in (whole, whole.part(0, half), whole.part(half, count))]
    found = {}
    for path, calls in seen[0].items():
        places = {_placement(path, count, *each) for each in zip(calls, seen[1][path], seen[2][path], strict=True)}
        if len(places) > 1:
            raise UserError(
                f"The activation {path!r} is called several times, with the samples in different places: give the "
                "network an activation for each call."
            )
        found[path] = places.pop()
    return found


def _received(net: nn.Module, batch: Batch, run: Callable[[Batch], Tensor]) -> dict[str, list[Tensor]]:
    received: dict[str, list[Tensor]] = {}

    def see(path: str, u: Tensor, y: Tensor) -> None:
        received.setdefault(path, []).append(u.detach().clone())

    with watched(net, adaptive_activations(net), see), torch.no_grad():
        run(batch)
    return received


def _placement(path: str, count: int, whole: Tensor, first: Tensor, second: Tensor) -> Placement:
    axes = [a for a in range(whole.ndim) if whole.ndim == first.ndim and whole.shape[a] != first.shape[a]]
    if first.shape == second.shape and len(axes) == 1:
        (axis,) = axes
        copies, rest = divmod(whole.shape[axis], count)
        if rest == 0 and copies > 0 and 2 * first.shape[axis] == whole.shape[axis]:
            if copies == 1:
                return Placement(whole.ndim, axis)
            for together, size in ((True, (count, copies)), (False, (copies, count))):
                inner = axis if together else axis + 1
                halves = [
                    x.unflatten(axis, (count // 2, copies) if together else (copies, count // 2))
                    for x in (first, second)
                ]
                if torch.allclose(torch.cat(halves, inner), whole.unflatten(axis, size), rtol=1e-3, atol=1e-5):
                    return Placement(whole.ndim, axis, copies, together)
    raise UserError(
        f"The activation {path!r} receives {tuple(whole.shape)} for {count} samples and {tuple(first.shape)} for half "
        "of them: no axis of it is that of the samples, so that their gradients cannot be told apart."
    )
