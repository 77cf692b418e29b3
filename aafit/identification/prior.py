"""The prior of the adaptive parameters: an activation stays near the original one unless the samples determine it.

With t the coordinates, m those of the original activations and A the precision, it adds (t - m)^T A (t - m) / 2 to the
negative log-likelihood of all samples. A has a block for each parameter set: weight * (change of the function) +
smoothness * (second differences of the change, F-Neurons only). See "Why a prior" in docs/identification/README.md.

Axes in names: E input, P coordinate, Q coordinate of a set, S set.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, IntervalActivation
from aafit.activations.fitting import LeastSquares
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import adaptive_activations

WEIGHTS = (1.0, 10.0, 100.0, 1e3, 1e4)
"""Weights that `prior="auto"` selects from: the number of samples that a change of an activation by its standard
deviation counts as."""

FIRST_SMOOTHNESS = 10.0
LEAST_SMOOTHNESS, MOST_SMOOTHNESS = 1e-3, 1e8
LARGEST_CHANGE = 10.0  # factor by which one update changes a smoothness, at most
POINTS = 300  # number of reference inputs in each of their two halves
QUANTILES = 1000  # number of inputs to which the mean is fitted, for an activation with an interval
EVEN = 0.01  # weight of evenly spaced inputs in that fit, as in the `fit` of these families
WIDER = 0.5  # how far evenly spaced reference inputs reach beyond the layer's range on both sides, as a share of it
TAILS = (0.001, 0.999)  # quantiles that bound the range of a layer's inputs
BEYOND = 0.01  # share of inputs beyond a flat end above which data determine the value of its knot
MOST_ELEMENTS = 20_000_000  # most elements of a Jacobian in memory
ITERATIONS = 100
CONVERGED = 1e-4  # relative decrease of the squared error at which a fit ends
MATCHED = 1e-6  # squared error over the variance of the output at which an activation is matched
SMOOTH = 1.0  # largest slope coordinate of the second initialization of a fit: a slope of sinh(1) = 1.2
TINY = 1e-8  # added to the diagonal, relative to its largest element, so that every block is invertible


@dataclass(frozen=True)
class Block:
    """The prior of one activation.

    Attributes:
        path: Path of the activation.
        index_SQ: Indices of the coordinates of each parameter set.
        function_SQQ: Mean outer product of the output's derivatives over the reference inputs, divided by `variance`.
        smooth_QQ: D^T D / `variance` with D the second differences of an F-Neuron's knots; None for other families.
        variance: Variance of the output on the layer's inputs.
    """

    path: str
    index_SQ: Tensor
    function_SQQ: Tensor
    smooth_QQ: Tensor | None
    variance: float


@dataclass(frozen=True)
class Strength:
    """How strong a prior is.

    Attributes:
        weight: Weight of the change of the functions, as a number of samples; 0 for no prior.
        smoothness: Smoothness of each block; 0 for families without it.
    """

    weight: float
    smoothness: tuple[float, ...]


class Prior:
    """The mean and the blocks of the prior. Its methods take the `Strength`, which changes during an identification.

    Args:
        net: the network with adaptive activations.
        coordinates: the coordinates of its adaptive parameters.
        mean_P: coordinates of the original activations.
        inputs: inputs of each activation, (E,) in float64, by path; without an activation that is not called.
    """

    def __init__(self, net: nn.Module, coordinates: Coordinates, mean_P: Tensor, inputs: Mapping[str, Tensor]) -> None:
        self.mean_P, self.blocks = mean_P, tuple[Block, ...]()
        for path, index_SQ in set_indices(net).items():
            activation = adaptive_activations(net)[path]
            values_SQ = coordinates.values(mean_P)[index_SQ]
            self.blocks += (_block(path, activation, index_SQ, values_SQ, inputs.get(path)),)

    def first(self, weight: float | None) -> Strength:
        """Return the initial strength with this weight; None: no prior, a strength of 0."""
        smooth = 0.0 if weight is None else FIRST_SMOOTHNESS
        return Strength(weight or 0.0, tuple(0.0 if block.smooth_QQ is None else smooth for block in self.blocks))

    def precisions(self, strength: Strength) -> list[Tensor]:
        """Return the blocks of A, (S, Q, Q) each."""
        return [
            strength.weight * block.function_SQQ + (0.0 if block.smooth_QQ is None else smooth * block.smooth_QQ)
            for block, smooth in zip(self.blocks, strength.smoothness, strict=True)
        ]

    def matrix(self, strength: Strength) -> Tensor:
        """Return A, (P, P)."""
        full_PP = torch.zeros(len(self.mean_P), len(self.mean_P), dtype=torch.float64)
        for block, precision_SQQ in zip(self.blocks, self.precisions(strength), strict=True):
            full_PP[block.index_SQ.unsqueeze(2), block.index_SQ.unsqueeze(1)] = precision_SQQ
        return full_PP

    def product(self, strength: Strength, direction_P: Tensor) -> Tensor:
        """Return A times a direction, (P,), without the matrix."""
        product_P = torch.zeros_like(direction_P)
        for block, precision_SQQ in zip(self.blocks, self.precisions(strength), strict=True):
            product_P[block.index_SQ] = (precision_SQQ @ direction_P[block.index_SQ].unsqueeze(2)).squeeze(2)
        return product_P

    def smoother(self, strength: Strength, vector_P: Tensor, posterior: Sequence[Tensor]) -> Strength:
        """Return the strength after one generalized Fellner-Schall update of the smoothness.

        With S the second differences, A the prior's precision, V the posterior covariance and e the change from the
        mean: smoothness <- smoothness * (tr(A^-1 S) - tr(V S)) / (e^T S e), by at most a factor of 10. Wood and Fasiolo
        (2017), A generalized Fellner-Schall method for smoothing parameter optimization, Biometrics 73.

        Args:
            strength: the current strength.
            vector_P: the current coordinates.
            posterior: blocks of the posterior covariance, (S, Q, Q) each.
        """
        updated = []
        each = zip(self.blocks, self.precisions(strength), strength.smoothness, posterior, strict=True)
        for block, precision_SQQ, smooth, posterior_SQQ in each:
            if block.smooth_QQ is None or smooth == 0:
                updated.append(smooth)
                continue
            change_SQ = (vector_P - self.mean_P)[block.index_SQ]
            prior_SQQ = torch.linalg.pinv(precision_SQQ, hermitian=True)
            freedom = ((prior_SQQ - posterior_SQQ) * block.smooth_QQ).sum().clamp(min=1e-12)
            roughness = ((change_SQ @ block.smooth_QQ) * change_SQ).sum().clamp(min=1e-12)
            factor = min(max((freedom / roughness).item(), 1 / LARGEST_CHANGE), LARGEST_CHANGE)
            updated.append(min(max(smooth * factor, LEAST_SMOOTHNESS), MOST_SMOOTHNESS))
        return Strength(strength.weight, tuple(updated))


def set_indices(net: nn.Module) -> dict[str, Tensor]:
    """Return the coordinates of each activation's parameter sets by path, (S, Q), in the order of `Coordinates`."""
    found, first = {}, 0
    for path, activation in adaptive_activations(net).items():
        columns = []
        for parameter in activation.parameters(recurse=False):
            columns.append(torch.arange(first, first + parameter.numel()).reshape(math.prod(activation.shape), -1))
            first += parameter.numel()
        found[path] = torch.cat(columns, 1)
    return found


def original_activations(
    net: nn.Module, base: nn.Module, coordinates: Coordinates, vector_P: Tensor, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return the coordinates with which each activation is nearest to the original one, (P,).

    An F-Neuron takes the original's values at its knots; other families are fitted by least squares over the reference
    inputs, starting from `vector_P`. Families with an interval, which may represent the original only roughly, are
    fitted to the layer's inputs, with a small weight of evenly spaced ones in the interval. If an original activation
    cannot be evaluated on its own, the coordinates of its replacement in `vector_P` are returned.

    Args:
        net: the network with the adaptive activations.
        base: the network with the original activations at the same paths.
        coordinates: the coordinates of the adaptive parameters.
        vector_P: initial values of the fit.
        inputs: inputs of each activation by path, (E,) in float64.
    """
    mean_P = vector_P.clone()
    for path, index_SQ in set_indices(net).items():
        activation = adaptive_activations(net)[path]
        if path not in inputs:
            continue
        # Knots may differ from set to set, (*shape, N).
        knots = activation.knot_positions.movedim(-1, 0) if isinstance(activation, FNeuron) else None
        weight_E = None
        if knots is not None:
            u_E = knots
        elif isinstance(activation, IntervalActivation):
            u_E, weight_E = _fitted_inputs(inputs[path], activation.interval)
        else:
            u_E = _reference(inputs[path])
        y_ES = _values(base.get_submodule(path), u_E, activation.shape)
        if y_ES is None:
            continue
        if isinstance(activation, FNeuron):
            mean_P[index_SQ] = y_ES.T
        else:
            start = parameters_of(activation, coordinates.values(vector_P)[index_SQ])
            u_ES = u_E[:, None].expand_as(y_ES).contiguous()
            squares = LeastSquares(_double(activation), start, u_ES, y_ES, weight_E)
            solve(squares)
            mean_P[index_SQ] = squares.at_SQ
    return mean_P


def parameters_of(activation: AdaptiveActivation, values_SQ: Tensor) -> dict[str, Tensor]:
    """Return the parameters of S sets by name, each of shape (S, ...), from a row of values for each set."""
    shapes = {name: p.shape[len(activation.shape) :] for name, p in activation.named_parameters()}
    parts = values_SQ.split([math.prod(own) for own in shapes.values()], 1)
    return {name: part.reshape(len(part), *own) for (name, own), part in zip(shapes.items(), parts, strict=True)}


def solve(squares: LeastSquares) -> None:
    """Solve a least-squares problem in place.

    If the family has slopes and a set does not match the outputs, all sets are solved again, from slope coordinates of
    at most SMOOTH; each set keeps the better solution.
    """
    start_SQ, matched_S = squares.at_SQ, MATCHED * squares.y_ES.var(0)
    cost_S = squares.minimise(ITERATIONS, CONVERGED, matched_S)
    if (cost_S > matched_S).any() and squares.is_slope_Q.any():
        first_SQ = squares.at_SQ
        squares.at_SQ = torch.where(squares.is_slope_Q, start_SQ.clamp(-SMOOTH, SMOOTH), start_SQ)
        again_S = squares.minimise(ITERATIONS, CONVERGED, matched_S)
        squares.at_SQ = torch.where((again_S < cost_S)[:, None], squares.at_SQ, first_SQ)


def input_range(u_E: Tensor) -> tuple[float, float]:
    """Return the range of a layer's inputs without the lowest and the highest 0.1%."""
    low, high = torch.quantile(_some(u_E, 100_000), u_E.new_tensor(TAILS)).tolist()
    return low, high


def _block(
    path: str, activation: AdaptiveActivation, index_SQ: Tensor, values_SQ: Tensor, inputs_E: Tensor | None
) -> Block:
    S, Q = index_SQ.shape
    if inputs_E is None:
        return Block(path, index_SQ, torch.eye(Q, dtype=torch.float64).expand(S, Q, Q), None, 1.0)
    own, u_E = _double(activation), _reference(inputs_E)
    blocks, variances = [], []
    for part in torch.arange(S).split(max(1, MOST_ELEMENTS // (len(u_E) * Q))):
        u_ES = u_E[:, None].expand(-1, len(part)).contiguous()
        called, u_ES = own.by_column(u_ES, lambda x, part=part: x.reshape(S, -1)[part])  # type: ignore[misc]
        squares = LeastSquares(called, parameters_of(own, values_SQ[part]), u_ES, torch.zeros_like(u_ES))
        blocks.append(squares.normal(squares.at_SQ)[1])
        variances.append(squares.outputs(squares.at_SQ)[:POINTS].var(0))
    variance = max(torch.cat(variances).mean().item(), 1e-12)
    function_SQQ = torch.cat(blocks) / variance
    largest_S11 = function_SQQ.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-12)[:, None, None]
    function_SQQ = function_SQQ + TINY * largest_S11 * torch.eye(Q, dtype=torch.float64)
    smooth_QQ = _second_differences(activation, inputs_E) / variance if isinstance(activation, FNeuron) else None
    return Block(path, index_SQ, function_SQQ, smooth_QQ, variance)


def _second_differences(activation: FNeuron, inputs_E: Tensor) -> Tensor:
    """Return D^T D, where D takes the second differences of an F-Neuron's knots, (Q, Q).

    The knot at a flat end with many inputs beyond it determines the output for all of them, so it is not smoothed
    towards its neighbors. At an end that extrapolates linearly, D also has the first difference, so that the change
    becomes flat where the inputs end.
    """
    left, right = activation.interval
    difference_QQ = torch.eye(activation.knots, dtype=torch.float64).diff(n=2, dim=0)
    if activation.outside == "flat":
        for row, beyond in ((0, inputs_E < left), (-1, inputs_E > right)):
            if beyond.double().mean() > BEYOND:
                difference_QQ[row] = 0
    else:
        slopes_QQ = torch.eye(activation.knots, dtype=torch.float64).diff(dim=0)
        difference_QQ = torch.cat([slopes_QQ[:1], difference_QQ, slopes_QQ[-1:]])
    return difference_QQ.T @ difference_QQ


def _reference(inputs_E: Tensor) -> Tensor:
    """Return the reference inputs: half drawn from the layer's inputs, half evenly spaced on their widened range."""
    low, high = input_range(inputs_E)
    reach = WIDER * max(high - low, 1e-6)
    return torch.cat([_some(inputs_E, POINTS), torch.linspace(low - reach, high + reach, POINTS, dtype=torch.float64)])


def _fitted_inputs(inputs_E: Tensor, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return evenly spaced quantiles of the inputs and evenly spaced inputs in the interval, with their weights."""
    at = torch.linspace(0, len(inputs_E) - 1, QUANTILES, dtype=torch.float64).round().long()
    even_E = torch.linspace(*interval, POINTS, dtype=torch.float64)
    u_E = torch.cat([inputs_E.sort().values[at], even_E])
    weight_E = torch.cat([torch.full((QUANTILES,), 1 / QUANTILES), torch.full((POINTS,), EVEN / POINTS)]).double()
    return u_E, weight_E / weight_E.sum()


def _some(inputs_E: Tensor, count: int) -> Tensor:
    drawn = torch.randint(len(inputs_E), (count,), generator=torch.Generator().manual_seed(0))
    return inputs_E[drawn]


def _double(activation: AdaptiveActivation) -> AdaptiveActivation:
    return deepcopy(activation).cpu().double().requires_grad_(False)


def _values(original: nn.Module, u_E: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return the outputs of an original activation for each parameter set, (E, S); None if it cannot be evaluated.

    The inputs have the shape (E,), or (E, *shape) if they differ between sets.
    """
    own = deepcopy(original).cpu().double()
    u = (u_E if u_E.ndim > 1 else u_E.reshape(-1, *[1] * len(shape))).expand(-1, *shape).clone()
    try:
        with torch.no_grad():
            y = own(u)
    # The error may be of any type: the module is the user's.
    except Exception:
        return None
    if not isinstance(y, Tensor) or y.shape != u.shape or not y.isfinite().all():
        return None
    return y.reshape(len(u_E), -1)
