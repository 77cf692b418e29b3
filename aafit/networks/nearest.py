"""Which known function an activation is nearest to, on the inputs that it has."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aafit.networks.kinds import KNOWN


@dataclass(frozen=True)
class Near:
    """A known function, and how far from it a form is over its inputs.

    Attributes:
        name: In `aafit.networks.kinds.KNOWN`.
        rms: The root of the mean squared difference, in units of the output.
        distance: `rms` by the standard deviation of the form; infinite where a constant form is not the function.
    """

    name: str
    rms: float
    distance: float


def nearest_functions(u: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Near, ...]:
    """All known functions, the nearest first.

    Args:
        u: inputs, of any shape, in float64.
        y: what the form gives for them, of the same shape.
        weights: of the inputs, that sum to 1; None: all the same.
    """
    with torch.no_grad():
        near = [Near(name, rms(y - known(u), weights), distance(y, known(u), weights)) for name, known in KNOWN.items()]
    return tuple(sorted(near, key=lambda row: row.rms))


def distance(form: Tensor, other: Tensor, weights: Tensor | None = None) -> float:
    """The root mean squared difference by the standard deviation of `form`; infinite where only `form` is constant."""
    deviation = rms(form - _mean(form, weights), weights)
    difference = rms(form - other, weights)
    return difference / deviation if deviation > 0 else 0.0 if difference == 0 else float("inf")


def rms(values: Tensor, weights: Tensor | None = None) -> float:
    """The root of the mean square, weighted by `weights` that sum to 1."""
    return _mean(values.square(), weights).sqrt().item()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (weights * values).sum()
