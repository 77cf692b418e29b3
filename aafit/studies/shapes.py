"""Compute the learned shape of each activation: its curves, their standard errors, and the nearest known functions.

Begin with `learned_shapes`. Axes in names: U point of a curve, P parameter of one layer, S step of the identification,
C curve of one layer.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.activations.base import curve_values
from aafit.identification import Identification
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.kinds import Near, distance, nearest_functions, rms
from aafit.plots.curves import Curves, curves_of, median
from aafit.studies.inputs import InputDistribution

POINTS = 121
BEYOND = 0.2
"""How far a curve extends beyond the inputs, as a share of their range."""
AS_NEAR, SHARE = 0.001, 0.02
"""A known function counts as near as the nearest one if its distance is larger by at most AS_NEAR, or by at most SHARE
of the nearest one's distance."""
ROUNDING = 1e-6
"""Standard deviation, relative to the mean, up to which a shape is constant."""
NEAR = 0.1
"""Distance up to which a shape gets the name of a known function."""


@dataclass(frozen=True)
class LearnedShape(Curves):
    """The curves of one layer's activation, and what they show.

    Distances are relative RMS differences over the layer's inputs: the root mean square of the difference, divided by
    the standard deviation of the shape.

    Attributes:
        path: Path of the layer.
        curves: Number of the layer's curves.
        steps_SU: The curve after each step of the identification.
        nearest: The nearest known function, and those that are as near; or a constant, if it is nearer than all.
        changed: Relative RMS change from initial to tuned.
        error: Root mean square of `error_U` over the inputs at which it is not NaN, relative as `changed`; None if it
            is not available, or if the layer has several curves.
        significant: Whether the change exceeds two standard errors; None: no standard error is available.
    """

    original_U: Tensor
    initial_U: Tensor
    path: str
    curves: int
    steps_SU: Tensor
    nearest: tuple[Near, ...]
    changed: float
    error: float | None
    significant: bool | None

    @property
    def undetermined(self) -> bool:
        """Whether the standard error exceeds the shape's standard deviation, and no change is significant."""
        return self.error is not None and self.error >= 1 and not self.significant

    def nearest_text(self, most: int = 3) -> str:
        """Return the nearest known functions with their distance: "SiLU, 0.8%", or "none (closest: ReLU, 37%)"."""
        names = [f"{near.name}, {near.distance:.1%}" for near in self.nearest[:most]]
        more = [f"{len(self.nearest) - most} more"] if len(self.nearest) > most else []
        if self.nearest[0].distance < NEAR:
            return "; ".join([*names, *more])
        return f"none (closest: {self.nearest[0].name}, {self.nearest[0].distance:.0%})"


def learned_shapes(
    initial: nn.Module,
    base: nn.Module,
    identification: Identification,
    vectors: Sequence[Tensor],
    inputs: Iterable[InputDistribution],
) -> tuple[LearnedShape, ...]:
    """Return the shapes of the layers that receive inputs.

    Args:
        initial: The network with the new activations before tuning.
        base: The network with the original activations at the same paths.
        identification: The identification.
        vectors: The coordinates after each of its steps, (P,) each.
        inputs: The distributions of the layers' inputs.
    """
    tuned = deepcopy(initial)
    coordinates = Coordinates(tuned)
    by_path = {row.path: row for row in inputs}
    steps: dict[str, list[Tensor]] = {path: [] for path in by_path}
    # If no step was recorded, the result stands for the only one.
    for vector_P in vectors or [identification.state.vector_P]:
        coordinates.write(vector_P)
        for path, row in by_path.items():
            steps[path].append(median(curve_values(tuned.get_submodule(path), points(row))))
    coordinates.write(identification.state.vector_P)
    covariance_PP = None if identification.uncertainty is None else identification.uncertainty.covariance_PP
    activations = adaptive_activations(tuned)
    shapes = []
    for path, row in by_path.items():
        at = torch.tensor([number for number, layer in enumerate(coordinates.layers) if layer == path])
        of_layer_PP = None if covariance_PP is None else covariance_PP[at][:, at]
        modules = base.get_submodule(path), initial.get_submodule(path), activations[path]
        shapes.append(_shape(path, *modules, of_layer_PP, torch.stack(steps[path]), row))
    return tuple(shapes)


def _shape(
    path: str,
    original: nn.Module,
    initial: nn.Module,
    tuned: AdaptiveActivation,
    covariance_PP: Tensor | None,
    steps_SU: Tensor,
    inputs: InputDistribution,
) -> LearnedShape:
    u_U, u, weights = points(inputs), inputs.centres, inputs.weights
    drawn = curves_of(tuned, initial, original, u_U)
    several = drawn.low_U is not None
    error_U = None if covariance_PP is None or several else standard_errors(tuned, u_U, covariance_PP)
    before, after = (median(curve_values(activation, u)) for activation in (initial, tuned))
    error = significant = None
    if error_U is not None:
        squares = error_U[torch.bucketize(u, u_U).clamp(max=len(u_U) - 1)].square()
        determined = ~squares.isnan()
        share, std = weights[determined].sum().item(), rms(before - (weights * before).sum(), weights)
        if share > 0 and std > 0:
            counted = weights * determined / share
            error = rms(squares.nan_to_num(0).sqrt(), counted) / std
            significant = rms(after - before, counted) / std > 2 * error
    return LearnedShape(
        **(vars(drawn) | {"error_U": error_U}),
        path=path,
        curves=torch.Size(tuned.shape).numel(),
        steps_SU=steps_SU,
        nearest=nearest(after, inputs),
        changed=distance(before, after, weights),
        error=error,
        significant=significant,
    )


def points(inputs: InputDistribution) -> Tensor:
    """Return the inputs at which a layer's curve is computed, (U,): the range of its inputs and a little beyond."""
    left, right = inputs.edges[0].item(), inputs.edges[-1].item()
    beyond = BEYOND * (right - left)
    return torch.linspace(left - beyond, right + beyond, POINTS, dtype=torch.float64)


def standard_errors(activation: AdaptiveActivation, u_U: Tensor, covariance_PP: Tensor) -> Tensor:
    """Return the standard error of an activation with a single curve at each input, (U,), by the delta method.

    With the covariance C of the parameters and the gradient g of the output with respect to them it is sqrt(g^T C g).

    Args:
        activation: An activation with one parameter set.
        u_U: Inputs in float64.
        covariance_PP: Covariance of the parameters. A variance of NaN stands for a parameter that is not determined:
            the standard error is NaN where the output depends on it.
    """
    # Each point becomes a neuron with its own parameters: one backward pass gives the gradients at all points.
    neurons = deepcopy(activation).cpu().double().reshaped((len(u_U),)).requires_grad_(True)
    gradients = torch.autograd.grad(neurons(u_U.unsqueeze(0)).sum(), list(neurons.parameters(recurse=False)))
    gradients_UP = torch.cat([gradient.reshape(len(u_U), -1) for gradient in gradients], dim=1)
    undetermined_P = covariance_PP.diag().isnan()
    variance_U = ((gradients_UP @ covariance_PP.nan_to_num(0)) * gradients_UP).sum(1).clamp(min=0)
    depends_U = (gradients_UP[:, undetermined_P] != 0).any(1)
    return torch.where(depends_U, torch.nan, variance_U.sqrt())


def nearest(shape: Tensor, inputs: InputDistribution) -> tuple[Near, ...]:
    """Return the known functions nearest to a shape, given at the centres of the histogram; see `LearnedShape.nearest`.

    A constant, the mean of the shape, counts as a known function: it is the nearest where the shape is flat.
    """
    mean = (inputs.weights * shape).sum()
    known = nearest_functions(inputs.centres, shape, inputs.weights)
    std = rms(shape - mean, inputs.weights)
    if std < known[0].rms:
        # The RMS difference of the mean is the shape's standard deviation, so the relative distance is 1, unless the
        # shape is constant up to rounding.
        return (Near(f"the constant {mean:.3g}", std, 0.0 if std <= ROUNDING * abs(mean.item()) else 1.0),)
    least = known[0].distance
    return tuple(row for row in known if row.distance <= least + max(AS_NEAR, SHARE * least))
