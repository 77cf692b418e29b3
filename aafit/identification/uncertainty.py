"""Compute standard errors of the identified parameters from the curvature of loss and prior at the result.

Axes in names: P coordinate, Z direction without curvature.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from aafit.identification.coordinates import Coordinates
from aafit.identification.gauss_newton import Posterior
from aafit.identification.prior import Prior, Strength
from aafit.tables import fit_for_json, table

NO_CURVATURE = 1e-7  # eigenvalue, relative to the largest, that counts as 0: the accuracy of float32 gradients
FROM_PRIOR = 0.5  # posterior variance, relative to the prior variance, above which a parameter is undetermined
REACHED = 0.01  # least contribution of a parameter's curvature: below it, only the smoothness prior determines it
SHOWN = 10  # collinear pairs in the table, at most
ANY_SLOPE = 1e3  # factor of the standard error above which the value of a slope says only that it is steep
STEEP_SLOPE = 10.0  # slope above which an activation is called as steep as ReLU
STEEP = (
    "An activation as steep as ReLU depends on its slope at inputs near 0 only, and few samples determine it. "
    'To learn the shape there, start from a smooth function such as LEAF.like("SiLU"), or take F-Neurons.'
)
ALIKE = 0.95  # correlation above which two parameters are collinear


@dataclass(frozen=True)
class UncertaintyRow:
    """One parameter, its value and its standard error.

    Attributes:
        name, value: The parameter and its value.
        error: Its standard error; if the samples do not determine it, the standard deviation under the prior.
        determined: Whether the samples determine the parameter: its variance is below half of the prior variance.
        factor: exp(standard error of the coordinate) for a slope, since the error of a large slope is relative; 1 for
            other parameters.
    """

    name: str
    value: float
    error: float
    determined: bool
    factor: float

    @property
    def has_error(self) -> bool:
        """Whether the standard error is reported: not for a slope whose error exceeds a factor of 1,000."""
        return self.determined and self.factor <= ANY_SLOPE


@dataclass(frozen=True)
class Pair:
    """Two parameters whose estimates are almost collinear, and their correlation."""

    first: str
    second: str
    correlation: float


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors of the parameters and the collinear pairs; prints as a table.

    Attributes:
        rows: One for each parameter.
        pairs: The collinear pairs, the largest correlation first.
        samples: Number of fitted samples.
        covariance_PP: Covariance of the parameters. For undetermined parameters it is that of the prior.
        dispersion: See `aafit.identification.gauss_newton.dispersion_of`.
        effective: Effective number of parameters.
        probes: Number of random probes of the curvature for each sample; None: it is exact.
    """

    rows: tuple[UncertaintyRow, ...]
    pairs: tuple[Pair, ...]
    samples: int
    covariance_PP: Tensor
    dispersion: float
    effective: float
    probes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON, without the covariance."""
        names = ("samples", "dispersion", "effective", "probes")
        return fit_for_json(
            {
                **{name: getattr(self, name) for name in names},
                "rows": [asdict(row) for row in self.rows],
                "pairs": [asdict(pair) for pair in self.pairs],
            }
        )

    def __str__(self) -> str:
        lines = [table(("parameter", "value", "standard error", ""), [_cells(row) for row in self.rows])]
        if self.pairs:
            lines.append("Collinear parameters (correlation of their estimates):")
            lines += [f"  {pair.correlation:+.3f}  {pair.first} and {pair.second}" for pair in self.pairs[:SHOWN]]
            if len(self.pairs) > SHOWN:
                lines.append(f"  and {len(self.pairs) - SHOWN} more pairs")
        slopes = [row for row in self.rows if row.factor > math.e or (row.factor > 1 and not row.determined)]
        if any(abs(row.value) > STEEP_SLOPE for row in slopes):
            lines.append(STEEP)
        probes = "" if self.probes is None else f", with {self.probes} random probes of the curvature for each"
        lines.append(f"{self.effective:.1f} effective parameters from {self.samples} samples{probes}")
        return "\n".join(lines)


def uncertainty(
    posterior: Posterior,
    prior: Prior,
    strength: Strength,
    dispersion: float,
    coordinates: Coordinates,
    shift_P: Tensor,
    samples: int,
    probes: int | None,
) -> Uncertainty:
    """Return standard errors of the parameters at the optimum of loss plus prior, and the collinear pairs.

    With B the curvature of the objective over n samples, S the covariance of the samples' gradients, A the precision of
    the prior and phi the dispersion,

        cov(t) = B^-1 (S + phi^2 A / n) B^-1 / n + shift shift^T,

    the sandwich (Huber 1967; White 1982, https://doi.org/10.2307/1912526) with the prior as one more source of
    information. It holds for noise of any distribution, and equals phi B^-1 / n, the Bayesian posterior covariance, if
    the loss is the negative log-likelihood. `shift` is the bias of the result: how far a stronger prior, or restoring
    the initial parameters, has moved it from the optimum under the weak prior of `posterior`. Its outer product is
    added, because a biased estimate would otherwise seem too accurate. For the parameters p the delta method gives
    D cov(t) D with D = diag(dp/dt).

    Args:
        posterior: the posterior at the result, with a prior of weight 1 or less if its weight was selected, from all
            samples or the first ones.
        prior: the prior of the objective.
        strength: the strength of the prior in `posterior`.
        dispersion: the dispersion of the loss.
        coordinates: the coordinates of the parameters.
        shift_P: the result minus the optimum under the prior of `posterior`, (P,).
        samples: number of all samples, n.
        probes: number of random probes of the curvature, for the report.
    """
    inverse_PP, scatter_PP = posterior.inverse[0][0], posterior.model.scatter[0][0]
    prior_PP = prior.matrix(strength)
    middle_PP = scatter_PP + dispersion**2 / samples * prior_PP
    covariance_PP = inverse_PP @ middle_PP @ inverse_PP / samples
    own_P = posterior.model.curvature[0][0].diag() * inverse_PP.diag()
    if strength.weight > 0:
        prior_P = scaled_inverse(prior_PP, 1e-14)[0].diag()
        determined_P = dispersion / samples * inverse_PP.diag() < FROM_PRIOR * prior_P
    else:
        _, flat_PZ = scaled_inverse(posterior.curvature[0][0])
        determined_P = flat_PZ.square().sum(1) < 1e-2
    determined_P &= (covariance_PP.diag() > 0) & (own_P > REACHED)
    pairs = _pairs(covariance_PP, coordinates.names, determined_P)
    covariance_PP = covariance_PP + torch.outer(shift_P, shift_P)
    derivatives_P, deviation_P = coordinates.derivatives(posterior.vector_P), covariance_PP.diag().clamp(min=0).sqrt()
    factor_P = torch.where(coordinates.is_slope_P, deviation_P.clamp(max=700).exp(), 1.0)
    columns = (coordinates.values(posterior.vector_P), derivatives_P * deviation_P, determined_P, factor_P)
    rows = zip(coordinates.names, *(column_P.tolist() for column_P in columns), strict=True)
    return Uncertainty(
        rows=tuple(UncertaintyRow(*row) for row in rows),
        pairs=pairs,
        samples=samples,
        covariance_PP=covariance_PP * torch.outer(derivatives_P, derivatives_P),
        dispersion=dispersion,
        effective=posterior.effective,
        probes=probes,
    )


def scaled_inverse(matrix_PP: Tensor, threshold: float = NO_CURVATURE) -> tuple[Tensor, Tensor]:
    """Return the pseudoinverse of a positive semidefinite matrix and a basis of its null space, (P, P) and (P, Z).

    The matrix is first scaled to a diagonal of ones, so that the units of its coordinates do not matter. The null space
    consists of the eigenvectors, orthonormal in this scale, whose eigenvalue is at most `threshold` times the largest.
    A coordinate whose diagonal element is 0 belongs to it.
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


def _pairs(covariance_PP: Tensor, names: list[str], determined_P: Tensor) -> tuple[Pair, ...]:
    deviation_P = covariance_PP.diag().clamp(min=0).sqrt()
    products_PP = torch.outer(deviation_P, deviation_P)
    correlation_PP = torch.where(products_PP > 0, covariance_PP / products_PP, 0)
    alike = (correlation_PP.abs() > ALIKE).triu(1).nonzero().tolist()
    pairs = [Pair(names[i], names[j], correlation_PP[i, j].item()) for i, j in alike]
    return tuple(sorted(pairs, key=lambda pair: -abs(pair.correlation)))


def _cells(row: UncertaintyRow) -> tuple[str, ...]:
    if not row.determined:
        return row.name, f"{row.value:.6g}", "-", "not determined by these samples, set by the prior"
    if not row.has_error:
        return row.name, f"{row.value:.6g}", "-", "any slope as steep fits these samples as well"
    note = f"determined to a factor of {row.factor:.2g}" if row.factor > math.e else ""
    return row.name, f"{row.value:.6g}", f"{row.error:.2g}", note
