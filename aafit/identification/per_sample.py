"""Give each sample a copy of the parameters, so that one backward pass yields all per-sample gradients.

For that, the sample axis of each activation's input must be known. It may be the first axis, alone or flattened
together with others (positions, windows), or another one. `placements` determines it from the inputs for four different
samples and for each half of them. If it cannot, it returns None, and the samples are run one at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch
from aafit.networks.running import watched
from aafit.training.predictor import Predictor

FEW = 4  # samples from which the sample axis is determined


@dataclass(frozen=True)
class Placement:
    """The sample axis of the input of an activation.

    Attributes:
        rank: Number of dimensions of the input.
        axis: The sample axis.
        copies: Number of slices of that axis for each sample.
        together: Whether the slices of a sample are adjacent, as after flatten(0, 1) of (B, T, ...); False if they are
            interleaved with those of other samples, as after flatten(0, 1) of (T, B, ...).
    """

    rank: int
    axis: int = 0
    copies: int = 1
    together: bool = True

    def own(self, activation: AdaptiveActivation, tensor: Tensor, samples: int) -> Tensor:
        """Return a tensor with a copy of a parameter for each sample, which broadcasts against the activation's input.

        Args:
            activation: the activation that the parameter belongs to.
            tensor: the values of the parameter.
            samples: number of samples.

        Raises:
            UserError: the parameter has separate values along the sample axis.
        """
        sets, beyond = tensor.shape[: len(activation.shape)], tensor.shape[len(activation.shape) :]
        sets = torch.Size() if sets == (1,) else sets
        full = [1] * (self.rank - len(sets)) + list(sets)
        if full[self.axis] > 1:
            raise UserError(
                f"An activation has parameters of shape {tuple(sets)} that vary along axis {self.axis}, its sample "
                "axis, so per-sample gradients cannot be separated: share its parameters by layer."
            )
        full[self.axis] = samples
        return tensor.reshape(*[1] * (self.rank - len(sets)), *sets, *beyond).expand(*full, *beyond).clone()

    def repeat(self, own: Tensor) -> Tensor:
        """Return the per-sample copies `own` repeated for each slice of the sample axis."""
        if self.copies == 1:
            return own
        if self.together:
            return own.repeat_interleave(self.copies, self.axis)
        return own.repeat(*(self.copies if axis == self.axis else 1 for axis in range(own.ndim)))

    def rows(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the per-sample copies with one row for each sample, (B, elements)."""
        return gradient.movedim(self.axis, 0).reshape(gradient.shape[self.axis], -1)


def placements(predictor: Predictor, batch: Batch) -> dict[str, Placement] | None:
    """Determine the sample axis of the input of each adaptive activation that a forward pass calls.

    Returns:
        The placements by path; None if the axis of an activation cannot be determined, or differs between its calls.
    """
    count = min(FEW, len(batch) // 2 * 2)
    if count == 0:
        return {path: Placement(u.ndim) for path, calls in _inputs(predictor, batch).items() for u in calls}
    chosen, half = _different_samples(batch, count), count // 2
    inputs = [_inputs(predictor, batch.at(part)) for part in (chosen, chosen[:half], chosen[half:])]
    found = {}
    for path, calls in inputs[0].items():
        triples = [calls, *(each.get(path, []) for each in inputs[1:])]
        if len({len(each) for each in triples}) > 1:
            return None
        places = {_placement(count, *each) for each in zip(*triples, strict=True)}
        place = places.pop()
        if places or place is None:
            return None
        found[path] = place
    return found


def _different_samples(batch: Batch, count: int) -> Tensor:
    """Return the indices of the first `count` samples with different inputs; of others too if too few differ."""
    inputs = [x.detach() for x in batch.inputs() if x.ndim > batch.axis and x.shape[batch.axis] == len(batch)]
    rows = [x.movedim(batch.axis, 0) for x in inputs]
    if not rows:  # a list of objects
        return torch.arange(count, device=batch.device)
    chosen: list[int] = []
    for n in range(len(batch)):
        if len(chosen) == count:
            break
        if all(any(not torch.equal(x[n], x[other]) for x in rows) for other in chosen):
            chosen.append(n)
    chosen += [n for n in range(len(batch)) if n not in chosen][: count - len(chosen)]
    return torch.tensor(sorted(chosen), device=batch.device)


def _inputs(predictor: Predictor, batch: Batch) -> dict[str, list[Tensor]]:
    inputs: dict[str, list[Tensor]] = {}

    def see(path: str, u: Tensor, y: Tensor) -> None:
        inputs.setdefault(path, []).append(u.detach().clone())

    with watched(predictor.net, adaptive_activations(predictor.net), see):
        predictor.forward(batch)
    return inputs


def _placement(count: int, whole: Tensor, first: Tensor, second: Tensor) -> Placement | None:
    """Return the sample axis of an input, from it and from the inputs for both halves of the samples."""
    axes = [a for a in range(whole.ndim) if whole.ndim == first.ndim and whole.shape[a] != first.shape[a]]
    if first.shape != second.shape or len(axes) != 1:
        return None
    (axis,) = axes
    copies, rest = divmod(whole.shape[axis], count)
    if rest or not copies or 2 * first.shape[axis] != whole.shape[axis]:
        return None
    if copies == 1:
        return Placement(whole.ndim, axis)
    fits = []
    for together, size in ((True, (count, copies)), (False, (copies, count))):
        inner = axis if together else axis + 1
        shape = (count // 2, copies) if together else (copies, count // 2)
        halves = [x.unflatten(axis, shape) for x in (first, second)]
        if torch.allclose(torch.cat(halves, inner), whole.unflatten(axis, size), rtol=1e-3, atol=1e-5):
            fits.append(Placement(whole.ndim, axis, copies, together))
    return fits[0] if len(fits) == 1 else None
