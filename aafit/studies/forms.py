"""The form of each activation before and after identification, how sure it is, and which known function is nearest.

Axes in names: U point of a curve, P parameter of one layer, S step, C curve of one layer.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.identification import Identification
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.build import sets_of
from aafit.networks.nearest import Near, distance, nearest_functions, rms
from aafit.studies.inputs import InputsSeen

POINTS = 121
BEYOND = 0.2
"""How far a curve is drawn beyond the inputs, as a share of their range."""
AS_NEAR, SHARE = 0.001, 0.02
"""A known function is as near as the nearest within a thousandth, or within a fiftieth of its distance."""
AT_ONCE = 30_000
"""Elements: for large inputs an activation compiles a loop, which takes longer than all the points."""


@dataclass(frozen=True)
class Identified:
    """An identification, and where its coordinates were after each step."""

    result: Identification
    vectors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Form:
    """The form of one layer's activation; where it has several (channels, neurons), their median.

    Attributes:
        path: Of the layer.
        curves: How many the layer has.
        u_U: The inputs of the curve.
        replaced_U: The function that stood there.
        start_U, tuned_U: As it was put in, and as identified.
        error_U: The standard error of `tuned_U`; NaN where the samples do not determine it; None: not known.
        low_U, high_U: Where 90 % of the layer's curves are, None where it has one.
        steps_SU: After each step of the identification.
        nearest: The nearest known function, and those that are as near; a constant, where that is nearer.
        changed: From the start to the end, as `Near.distance`.
        error: The root mean square of `error_U` over the inputs, by the form's deviation; None: not known.
    """

    path: str
    curves: int
    u_U: Tensor
    replaced_U: Tensor
    start_U: Tensor
    tuned_U: Tensor
    error_U: Tensor | None
    low_U: Tensor | None
    high_U: Tensor | None
    steps_SU: Tensor
    nearest: tuple[Near, ...]
    changed: float
    error: float | None


def forms(
    start: nn.Module,
    originals: Mapping[str, nn.Module],
    way: Identified,
    inputs: Mapping[str, InputsSeen],
) -> tuple[Form, ...]:
    """The forms of the layers that receive anything.

    Args:
        start: the network with its activations as they were put in.
        originals: the modules that they took the place of, by path.
        way: what was identified, and how.
        inputs: what each layer receives.
    """
    net = deepcopy(start)
    coordinates = Coordinates(net)
    curves: dict[str, list[Tensor]] = {path: [] for path in inputs}
    for vector_P in way.vectors:
        coordinates.write(vector_P)
        for path in inputs:
            curves[path].append(middle(values(net.get_submodule(path), points(inputs[path]))))
    coordinates.write(way.result.state.vector_P)
    tuned, before = adaptive_activations(net), adaptive_activations(start)
    covariance_PP = None if way.result.uncertainty is None else way.result.uncertainty.covariance_PP
    made = []
    for path, seen in inputs.items():
        of_layer = torch.tensor([number for number, layer in enumerate(coordinates.layers) if layer == path])
        u_U = points(seen)
        curves_UC = values(tuned[path], u_U)
        error_U = None
        if covariance_PP is not None and curves_UC.shape[1] == 1:
            error_U = errors(tuned[path], u_U, covariance_PP[of_layer][:, of_layer])
        several = curves_UC.shape[1] > 1
        low_U, high_U = (curves_UC.quantile(q, dim=1) if several else None for q in (0.05, 0.95))
        at = middle(values(tuned[path], seen.centres))
        first = middle(values(before[path], seen.centres))
        made.append(
            Form(
                path,
                curves_UC.shape[1],
                u_U,
                middle(values(originals[path], u_U)),
                middle(values(before[path], u_U)),
                middle(curves_UC),
                error_U,
                low_U,
                high_U,
                torch.stack(curves[path]),
                nearest(at, seen),
                distance(first, at, seen.weights),
                None if error_U is None else _mean_error(error_U, u_U, at, seen),
            )
        )
    return tuple(made)


def points(seen: InputsSeen) -> Tensor:
    """The inputs at which a layer's curve is drawn, (U,): all that it receives, and a little beyond."""
    left, right = seen.edges[0].item(), seen.edges[-1].item()
    beyond = BEYOND * (right - left)
    return torch.linspace(left - beyond, right + beyond, POINTS, dtype=torch.float64)


def values(activation: nn.Module, u_U: Tensor) -> Tensor:
    """The curves of an activation, (U, C) in float64: one for each of its parameters' channels or neurons."""
    own = deepcopy(activation).cpu().double().eval()
    shape = sets_of(own)
    u = u_U.reshape(-1, *[1] * len(shape))
    with torch.no_grad():
        parts = [own(part.expand(-1, *shape).clone()) for part in u.split(max(1, AT_ONCE // torch.Size(shape).numel()))]
    return torch.cat(parts).reshape(len(u_U), -1)


def middle(curves_UC: Tensor) -> Tensor:
    """The median of the curves, (U,)."""
    return curves_UC.quantile(0.5, dim=1)


def errors(activation: AdaptiveActivation, u_U: Tensor, covariance_PP: Tensor) -> Tensor:
    """The standard error of an activation that its layer shares, at each input, (U,), by the delta method.

    With the covariance C of its parameters and the slopes g of the form by them it is sqrt(g^T C g); NaN where the form
    depends on a parameter that the samples do not determine.
    """
    # Each point is a neuron with parameters of its own: one backward pass gives the slopes at all points.
    own = deepcopy(activation).cpu().double().reshaped((len(u_U),)).requires_grad_(True)
    parameters = [parameter for _, parameter in own.named_parameters(recurse=False)]
    slopes = torch.autograd.grad(own(u_U.unsqueeze(0)).sum(), parameters)
    slopes_UP = torch.cat([slope.reshape(len(u_U), -1) for slope in slopes], dim=1)
    unknown_P = covariance_PP.diag().isnan()
    known_PP = covariance_PP.nan_to_num(0)
    variance_U = ((slopes_UP @ known_PP) * slopes_UP).sum(1).clamp(min=0)
    touched_U = (slopes_UP[:, unknown_P] != 0).any(1)
    return torch.where(touched_U, torch.nan, variance_U.sqrt())


def nearest(form: Tensor, seen: InputsSeen) -> tuple[Near, ...]:
    """What a form, given at the centres of the histogram, is nearest to; see `Form.nearest`.

    A constant counts as a known function: the mean of the form, which is nearer than all others where the form is flat.
    """
    mean = (seen.weights * form).sum()
    known = nearest_functions(seen.centres, form, seen.weights)
    flat = Near(f"the constant {mean:.3g}", rms(form - mean, seen.weights), distance(form, mean, seen.weights))
    if flat.rms < known[0].rms:
        return (flat,)
    least = known[0].distance
    return tuple(row for row in known if row.distance <= least + max(AS_NEAR, SHARE * least))


def _mean_error(error_U: Tensor, u_U: Tensor, form: Tensor, seen: InputsSeen) -> float | None:
    at = torch.bucketize(seen.centres, u_U).clamp(max=len(u_U) - 1)
    square = error_U[at].square()
    known = ~square.isnan()
    deviation = rms(form - (seen.weights * form).sum(), seen.weights)
    share = seen.weights[known].sum().item()
    if share == 0 or deviation == 0:
        return None
    return ((seen.weights[known] * square[known]).sum() / share).sqrt().item() / deviation
