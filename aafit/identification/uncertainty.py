"""How well the images determine the identified parameters: standard errors from the curvature, held against the loss.

Axes in names: P coordinate, Z direction without curvature.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.problem import Problem, Quadratic, probes_for
from aafit.identification.reliance import images_in_effect, is_quadratic, rise_at, rises_within
from aafit.networks.batches import Batch
from aafit.tables import fit_for_json, table

# Of the largest eigenvalue of the curvature scaled to a diagonal of ones: float32 gradients are good to about 1e-7.
NO_CURVATURE = 1e-7
MOST_IMAGES = 4_000  # that the matrices are made from; the number of all is what the errors depend on
MOST_WALKED = 100  # parameters up to which each error is held against the loss
TAKES_PART = 1e-2  # in a direction without curvature: less is a rounding of the others
SHOWN = 10
ALIKE = 0.95
# Of a steepness in its coordinate: beyond a factor of 1,000 there is nothing to tell.
MOST_SPREAD = 6.9


@dataclass(frozen=True)
class UncertaintyRow:
    """One parameter: its value, its standard error, and the one that would hold were the network the true model.

    Both are infinite, and `determined` is False, where the images do not determine it, or where the loss is no
    quadratic within the error, so that there is none to print.

    Attributes:
        factor: exp(error of t) of a steepness, which is known to that factor where it is large; 1 of all others.
        rises: How much the loss rises two standard errors below and above, over what its quadratic promises, see
            `rises_within`; None where that was not measured.
    """

    name: str
    value: float
    error: float
    model_error: float
    determined: bool
    factor: float
    rises: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pair:
    """Two parameters that cannot be told apart, with the correlation of their estimates."""

    first: str
    second: str
    correlation: float


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors of the parameters and the pairs that cannot be told apart; prints as a table.

    Attributes:
        covariance_PP: The sandwich covariance of the parameters that the curvature sees, with NaN for all others. Also
            where the loss is no quadratic: what the parameters do together may be known better than each of them.
        draws: Random columns of the curvature for each image; None: it is exact.
        noise: By what share other draws would change the errors (root of the mean square); 0 where it is exact.
        effective: From how many images the errors come, see `uncertainty`; None where that was not measured.
    """

    rows: tuple[UncertaintyRow, ...]
    pairs: tuple[Pair, ...]
    images: int
    covariance_PP: Tensor
    draws: int | None = None
    noise: float = 0.0
    effective: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON, without the covariance; what is infinite becomes None."""
        return fit_for_json(
            {
                "images": self.images,
                "draws": self.draws,
                "noise": self.noise,
                "effective": self.effective,
                "rows": [asdict(row) for row in self.rows],
                "pairs": [asdict(pair) for pair in self.pairs],
            }
        )

    def __str__(self) -> str:
        lines = [
            table(
                ("parameter", "value", "standard error", "if the model were true", ""), [_cells(r) for r in self.rows]
            )
        ]
        if self.pairs:
            lines.append("Cannot be told apart (correlation of their estimates):")
            lines += [f"  {pair.correlation:+.3f}  {pair.first} and {pair.second}" for pair in self.pairs[:SHOWN]]
            if len(self.pairs) > SHOWN:
                lines.append(f"  and {len(self.pairs) - SHOWN} more pairs")
        else:
            lines.append(f"No two estimates are correlated by more than {ALIKE}.")
        drawn = f", with {self.draws} random columns of the curvature for each, whose draw changes the errors by about "
        lines.append(f"from {self.images} images" + (f"{drawn}{self.noise:.1%}" if self.draws else ""))
        if self.effective is not None:
            lines.append(f"about {self.effective:.0f} of them in effect")
        if any(row.determined and row.rises is None for row in self.rows):
            lines.append("Whether the loss is a quadratic within these errors was not measured.")
        return "\n".join(lines)


def uncertainty_at(
    problem: Problem, vector_P: Tensor, images: Batch, ridge: float = 0.0, exact: bool = False, seed: int = 0
) -> Uncertainty:
    """`uncertainty` at a vector of a problem, from all of the images or the first 4,000 of them.

    The curvature is exact for up to 16 outputs, or where `exact` says so. For more it is the mean of 8 random columns
    for each image, of 2 above 4,096 outputs, right on average. The noise of that draw is estimated from what each half
    of the columns gives. Up to 100 parameters are each moved by twice their error, to see on 2,000 of the images
    whether the loss rises as it should: two forward passes a parameter.
    """
    some = images.part(0, MOST_IMAGES)
    ridge_P = torch.full((len(vector_P),), ridge, dtype=torch.float64)

    def errors(model: Quadratic, *held: Any) -> Uncertainty:
        return uncertainty(replace(model, samples=len(images)), problem.coordinates, vector_P, ridge_P, *held)

    few = len(vector_P) <= MOST_WALKED
    held = (rise_at(problem, vector_P, some, ridge), problem.gradients(vector_P, some)) if few else ()
    draws = None if exact else probes_for(problem, vector_P, some)
    if draws is None:
        return errors(problem.quadratic(vector_P, some), *held)
    one, other = (problem.quadratic(vector_P, some, draws // 2, seed + half) for half in (0, 1))
    both = errors(replace(one, curvature_PP=(one.curvature_PP + other.curvature_PP) / 2), *held)
    errors_2P = torch.tensor([[row.error for row in errors(half).rows] for half in (one, other)], dtype=torch.float64)
    errors_2P = errors_2P[:, errors_2P.isfinite().all(0)]
    # The halves differ by twice the standard deviation of their mean, on average.
    share_P = (errors_2P[0] - errors_2P[1]) / errors_2P.sum(0)
    return replace(both, draws=draws, noise=share_P.square().mean().sqrt().nan_to_num().item())


def uncertainty(
    quadratic: Quadratic,
    coordinates: Coordinates,
    vector_P: Tensor,
    ridge_P: Tensor | None = None,
    rise: Callable[[Tensor], float] | None = None,
    gradients_NP: Tensor | None = None,
) -> Uncertainty:
    """Standard errors of the parameters at a minimum t of the mean loss over n images, and what cannot be told apart.

    With H the curvature (and the ridge), and S the covariance of the images' own gradients g_i,

        cov(t) = H^-1 S H^-1 / n,        S = mean of g_i g_i^T - g g^T,        g = mean of g_i,

    the sandwich (Huber 1967; White 1982, https://doi.org/10.2307/1912526): it holds at a minimum of any loss, whatever
    drew the labels. The network, most of it frozen, is not the true model of the labels, so that S is not H, and the
    usual H^-1 / n, given beside it, is not the covariance of the estimates; for losses other than cross-entropy that
    is not even in the right units. The mean gradient is taken out of S since with a ridge, or shortly before the
    minimum, it is not 0. From t to the parameters p by their slopes: cov(p) = D cov(t) D with D = diag(dp/dt) (the
    delta method). For a steepness that needs an error in t well below 1; above 1 the table gives its factor, and beyond
    a factor of 1,000 it is not determined. Both are for n much larger than P, and for the
    images' share of the error alone: they say nothing of the frozen weights.

    Directions without curvature are those eigenvectors of H, scaled to a diagonal of ones, whose eigenvalue is below
    1e-7 of the largest. A parameter that takes part in such a direction is not determined: its error is infinite. The
    correlations between such parameters are those along the directions without curvature.

    All of this takes the loss for its quadratic. Where `rise` is given each parameter is moved by twice its error to
    either side, and the others with it, see `rises_within`. Where the loss then rises by more than 2.5 times what the
    quadratic promises, or by less than 1/2.5 of that, no error is given: the parameter counts as not determined.

    It also takes the images for many. A network that is sure of its answers learns from the few that it is not sure
    of: with q_i = g_i^T H^-1 g_i the errors come from (sum of q)^2 / sum of q^2 images in effect. Where `gradients_NP`
    is given and these are fewer than the directions that have curvature, no error is given at all.

    Args:
        quadratic: at `vector_P`.
        coordinates: of the parameters.
        vector_P: the identified vector.
        ridge_P: the second derivative of a ridge by each coordinate, where the loss had one.
        rise: by how much the loss changes at a step (P,) from `vector_P`, less what its slope makes of it.
        gradients_NP: the gradients g_i of all images or of some.

    Raises:
        UserError: shapes that do not fit one another, fewer than two images, a negative ridge or values not finite.
    """
    P, n = len(coordinates), quadratic.samples
    ridge_P = torch.zeros(P, dtype=torch.float64) if ridge_P is None else ridge_P.double()
    _check(quadratic, P, vector_P, ridge_P)
    curvature_PP = quadratic.curvature_PP + ridge_P.diag()
    scatter_PP = quadratic.scatter_PP - torch.outer(quadratic.gradient_P, quadratic.gradient_P)
    inverse_PP, flat_PZ = scaled_inverse(curvature_PP)
    part_P = flat_PZ.square().sum(1)
    curved_P = part_P < TAKES_PART
    covariance_PP = inverse_PP @ scatter_PP @ inverse_PP / n
    derivatives_P, values_P = coordinates.derivatives(vector_P), coordinates.values(vector_P)
    spread_P, model_spread_P = (matrix_PP.diag().clamp(min=0).sqrt() for matrix_PP in (covariance_PP, inverse_PP / n))
    determined_P = curved_P & ~(coordinates.is_slope_P & (spread_P > MOST_SPREAD))
    rises = (None,) * P if rise is None else rises_within(rise, curvature_PP, covariance_PP, determined_P)
    effective = None if gradients_NP is None else images_in_effect(gradients_NP, inverse_PP) * n / len(gradients_NP)
    few = effective is not None and effective < P - flat_PZ.shape[1]
    seen_P, determined_P = determined_P, torch.tensor([is_quadratic(own) and not few for own in rises]) & determined_P
    errors_P, model_errors_P = (
        torch.where(determined_P, derivatives_P * each_P, torch.inf) for each_P in (spread_P, model_spread_P)
    )
    factors_P = torch.where(determined_P & coordinates.is_slope_P, spread_P.exp(), 1.0)
    rows = zip(
        coordinates.names,
        values_P.tolist(),
        errors_P.tolist(),
        model_errors_P.tolist(),
        determined_P.tolist(),
        factors_P.tolist(),
        rises,
        strict=True,
    )
    both_PP = torch.outer(seen_P, seen_P)
    correlation_PP = torch.where(
        torch.outer(curved_P, curved_P),
        _correlation(covariance_PP),
        torch.where(torch.outer(~curved_P, ~curved_P), _correlation(flat_PZ @ flat_PZ.T), 0),
    )
    pairs = [
        Pair(coordinates.names[i], coordinates.names[j], correlation_PP[i, j].item())
        for i, j in (correlation_PP.abs() > ALIKE).triu(1).nonzero().tolist()
    ]
    return Uncertainty(
        rows=tuple(UncertaintyRow(*row) for row in rows),
        pairs=tuple(sorted(pairs, key=lambda pair: -abs(pair.correlation))),
        images=n,
        covariance_PP=torch.where(both_PP, covariance_PP * torch.outer(derivatives_P, derivatives_P), torch.nan),
        effective=effective,
    )


def scaled_inverse(matrix_PP: Tensor, threshold: float = NO_CURVATURE) -> tuple[Tensor, Tensor]:
    """The inverse of a positive semidefinite matrix where it has one, and the directions (P, Z) where it has none.

    The matrix is scaled to a diagonal of ones, so that the units of its coordinates do not matter. Orthonormal in that
    scale are the directions whose eigenvalue is at most `threshold` of the largest; a coordinate without a diagonal is
    one of them.
    """
    diagonal_P = matrix_PP.diag()
    none_P = diagonal_P <= 0
    scale_P = torch.where(none_P, 0, diagonal_P.clamp(min=torch.finfo(torch.float64).tiny).rsqrt())
    scaled_PP = matrix_PP * scale_P.unsqueeze(1) * scale_P
    values_P, vectors_PP = torch.linalg.eigh((scaled_PP + scaled_PP.T) / 2)
    flat_P = values_P <= threshold * values_P.max().clamp(min=torch.finfo(torch.float64).tiny)
    kept_PK = vectors_PP[:, ~flat_P]
    inverse_PP = (kept_PK / values_P[~flat_P]) @ kept_PK.T * scale_P.unsqueeze(1) * scale_P
    return inverse_PP, vectors_PP[:, flat_P]


def _correlation(covariance_PP: Tensor) -> Tensor:
    deviations_P = covariance_PP.diag().clamp(min=0).sqrt()
    products_PP = torch.outer(deviations_P, deviations_P)
    return torch.where(products_PP > 0, covariance_PP / products_PP, 0)


def _check(quadratic: Quadratic, P: int, vector_P: Tensor, ridge_P: Tensor) -> None:
    shapes = {tuple(x.shape) for x in (vector_P, ridge_P, quadratic.gradient_P)}
    if shapes != {(P,)} or quadratic.curvature_PP.shape != (P, P):
        raise UserError(
            f"The network has {P} adaptive parameters, but the vector is of shape {tuple(vector_P.shape)}, the ridge "
            f"{tuple(ridge_P.shape)} and the curvature {tuple(quadratic.curvature_PP.shape)}."
        )
    if quadratic.samples < 2:
        raise UserError(f"Standard errors need at least 2 images; got {quadratic.samples}.")
    if not (ridge_P >= 0).all():
        raise UserError("The ridge must be 0 or more for every coordinate.")
    parts = (vector_P, ridge_P, quadratic.gradient_P, quadratic.curvature_PP, quadratic.scatter_PP)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise UserError("The vector, the ridge, the gradient and the curvature must be finite.")


def _cells(row: UncertaintyRow) -> tuple[str, ...]:
    if not row.determined:
        why = "not determined by these images" if is_quadratic(row.rises) else "not determined: no quadratic so far out"
        return row.name, f"{row.value:.6g}", "-", "-", why
    note = f"known to a factor of {row.factor:.2g}" if row.factor > math.e else ""
    return row.name, f"{row.value:.6g}", f"{row.error:.2g}", f"{row.model_error:.2g}", note
