"""Gauss-Newton on loss plus prior: the quadratic model at a vector, its posterior, and a damped step.

With L the mean loss over n samples, the objective is L + (dispersion / n) (t - m)^T A (t - m) / 2, see `Prior`. Up to
DENSE parameters the curvature is one matrix; with more, it is available as curvature-vector products, and as one block
for each parameter set. Read `Model` and `Posterior` first, then `descend`.

Axes in names: B sample, P coordinate, Q coordinate of a group, S group of one shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aafit.identification.damped_steps import KrylovSteps, dense_step
from aafit.identification.prior import Prior, Strength
from aafit.identification.problem import Problem
from aafit.networks.batches import Batch

DENSE = 2000
"""Number of parameters up to which the curvature is a matrix."""

CURVATURE_SAMPLES = 2000
"""Number of samples that a curvature is computed from, at most; more if a block has more than 100 parameters."""

SAMPLES_EACH = 20
"""Number of samples for each parameter of a block of the curvature, if that is more."""

FIRST_DAMPING = 1e-3  # damping after an undamped step has failed
LEAST_DAMPING = 1e-6  # damping below which a step is not damped at all
STRONGER = 8  # factor by which a failed step increases the damping
MOST_DAMPED = 1e3
LEAST_SHARE = 0.01  # least actual decrease of an accepted step, relative to the predicted one
POOR = 0.5  # actual decrease, relative to the predicted one, below which a shorter step is tried too
LONGEST_STEP = 2.0  # longest step of a slope, in the coordinate t of `Coordinates`
MOST_DISPERSED = 1e12
LEAST_CURVATURE = 0.2  # least curvature along a step after its update, relative to the curvature before
ROUNDED = 1e-6  # least cosine of a step and the change of the gradient over it that is not only rounding
MOST_GRADIENTS = 1 << 22  # samples times parameters up to which a model keeps its per-sample gradients (32 MiB)
LEAST_PRIOR = 1e-9  # least average prior precision, relative to the curvature: fixes directions that no data determine


@dataclass(frozen=True)
class Model:
    """The loss near a vector, in groups of coordinates: all of them, or each parameter set.

    Attributes:
        groups: Indices of the coordinates of each group, (S, Q) each.
        loss, gradient_P: Loss and gradient with respect to the coordinates, means over the labelled positions.
        curvature: Generalized Gauss-Newton blocks, (S, Q, Q) each.
        scatter: Blocks of the covariance of the per-sample gradients, (S, Q, Q) each.
        samples, labelled: Number of samples and of labelled positions.
        gradients_NP: Per-sample gradients, not divided by the number of labelled positions; None if they are too many.
    """

    groups: list[Tensor]
    loss: float
    gradient_P: Tensor
    curvature: list[Tensor]
    scatter: list[Tensor]
    samples: int
    labelled: int
    gradients_NP: Tensor | None = None

    @property
    def is_finite(self) -> bool:
        """Whether loss and derivatives are finite."""
        parts = (self.gradient_P, *self.curvature, *self.scatter)
        return math.isfinite(self.loss) and all(bool(part.isfinite().all()) for part in parts)

    def updated(self, before: "Model", step_P: Tensor) -> "Model":
        """Return the model with the curvature of `before`, updated by the change of the gradient over a step.

        It is the BFGS update, damped so that the curvature stays positive (Powell 1978,
        https://doi.org/10.1007/BFb0067703).
        """
        curvature_PP = before.curvature[0][0]
        change_P, expected_P = self.gradient_P - before.gradient_P, curvature_PP @ step_P
        along, expected_along = (step_P @ change_P).item(), (step_P @ expected_P).item()
        if not expected_along > ROUNDED * step_P.norm().item() * expected_P.norm().item():
            return self  # the loss has no curvature along the step
        least = LEAST_CURVATURE * expected_along
        share = 1.0 if along >= least else (expected_along - least) / (expected_along - along)
        change_P = share * change_P + (1 - share) * expected_P
        along = (step_P @ change_P).item()
        if not along > ROUNDED * step_P.norm().item() * change_P.norm().item():
            return self
        update_PP = torch.outer(change_P, change_P) / along - torch.outer(expected_P, expected_P) / expected_along
        return replace(self, curvature=[(curvature_PP + update_PP).unsqueeze(0)])

    def curved(self, step_P: Tensor) -> float:
        """Return step^T H step with the block-diagonal curvature H: without terms that mix groups."""
        parts = [step_P[index_SQ] for index_SQ in self.groups]
        products = [(x.unsqueeze(1) @ h).squeeze(1) for x, h in zip(parts, self.curvature, strict=True)]
        return sum((x * product).sum().item() for x, product in zip(parts, products, strict=True))


def model_at(
    problem: Problem,
    vector_P: Tensor,
    samples: Batch,
    groups: list[Tensor],
    probes: int | None,
    seed: int,
    curvature: list[Tensor] | None = None,
    known: Model | None = None,
) -> Model:
    """Return the quadratic model of the loss at a vector.

    Args:
        problem: the network and its loss.
        vector_P: the coordinates, in float64.
        samples: the samples.
        groups: indices of the coordinates of each block, (S, Q) each.
        probes: None for the exact curvature; else the number of random probes per sample of an unbiased estimate.
        seed: seed of the random probes.
        curvature: blocks that were computed near the vector, which saves their computation. If None, they are computed
            from the first CURVATURE_SAMPLES samples, or SAMPLES_EACH for each coordinate of a block if that is more,
            rounded up to full batches.
        known: a model at this vector with another curvature, whose loss, gradient and scatter are reused.
    """
    derivatives_P, generator = problem.coordinates.derivatives(vector_P), torch.Generator().manual_seed(seed)
    gradient_P, total, labelled, scatter = torch.zeros_like(vector_P), 0.0, 0, _zeros(groups)
    blocks, curved, seen = _zeros(groups), 0, 0
    most = max(CURVATURE_SAMPLES, SAMPLES_EACH * max(index_SQ.shape[1] for index_SQ in groups))
    kept: list[Tensor] | None = [] if len(samples) * len(vector_P) <= MOST_GRADIENTS else None
    for batch in problem.predictor.batches(samples):
        wanted = curvature is None and seen < most
        if known is not None and not wanted:
            break
        rows = problem.rows(vector_P, batch, probes, generator)
        if known is None:
            gradients_BP = rows.gradients() * derivatives_P
            total, labelled = total + rows.loss, labelled + rows.labelled
            gradient_P += gradients_BP.sum(0)
            _add(scatter, groups, gradients_BP)
            if kept is not None:
                kept.append(gradients_BP)
        if wanted:
            curved += rows.labelled
            for probe_BP in rows.probes:
                _add(blocks, groups, probe_BP * derivatives_P)
        seen += len(batch)
    if curvature is None:
        curvature = [block / curved for block in blocks]
    if known is not None:
        return replace(known, curvature=curvature)
    n, gradient_P = len(samples), gradient_P / labelled
    for block_SQQ, index_SQ in zip(scatter, groups, strict=True):
        mean_SQ = gradient_P[index_SQ]
        block_SQQ.mul_(n / labelled**2).sub_(mean_SQ.unsqueeze(2) * mean_SQ.unsqueeze(1))
    gradients_NP = None if kept is None else torch.cat(kept)
    return Model(groups, total / labelled, gradient_P, curvature, scatter, n, labelled, gradients_NP)


def _zeros(groups: list[Tensor]) -> list[Tensor]:
    sizes = ((len(index_SQ), index_SQ.shape[1]) for index_SQ in groups)
    return [torch.zeros(S, Q, Q, dtype=torch.float64) for S, Q in sizes]


def _add(blocks: list[Tensor], groups: list[Tensor], rows_BP: Tensor) -> None:
    """Add the sum of the outer products of the rows to the blocks."""
    for block_SQQ, index_SQ in zip(blocks, groups, strict=True):
        rows_SBQ = rows_BP[:, index_SQ].transpose(0, 1)
        block_SQQ += rows_SBQ.mT @ rows_SBQ


class Posterior:
    """The quadratic model of the objective, loss plus prior, near a vector.

    Attributes:
        objective: Loss plus prior, in units of the loss.
        gradient_P: Gradient of the objective.
        curvature: Blocks of the curvature of the objective: one if it is a matrix, else those of `Model.groups`.
        inverse: Blocks of the inverse of `curvature`.
        effective: Effective number of parameters, tr(inverse * curvature of the loss).
        optimism: Leave-one-out estimate of the loss minus the loss: tr(inverse * scatter) / n.
    """

    def __init__(
        self,
        problem: Problem,
        samples: Batch,
        model: Model,
        vector_P: Tensor,
        prior: Prior,
        strength: Strength,
        dispersion: float,
    ) -> None:
        self.problem, self.samples, self._prior, self._strength = problem, samples, prior, strength
        self.model, self.vector_P, self._share = model, vector_P, dispersion / model.samples
        self.objective = model.loss + self.prior_term(vector_P)
        self.gradient_P = model.gradient_P + self._share * prior.product(strength, vector_P - prior.mean_P)
        self._dense = len(vector_P) <= DENSE
        precisions = [prior.matrix(strength).unsqueeze(0)] if self._dense else prior.precisions(strength)
        self.curvature = [h + self._share * a for h, a in zip(model.curvature, precisions, strict=True)]
        self.inverse = [inverse(block) for block in self.curvature]
        self.effective = traces(self.inverse, model.curvature)
        self.optimism = traces(self.inverse, model.scatter) / model.samples
        self._krylov: KrylovSteps | None = None

    def prior_term(self, vector_P: Tensor) -> float:
        """Return the term of the objective that the prior adds, at any vector."""
        change_P = vector_P - self._prior.mean_P
        return self._share / 2 * (change_P @ self._prior.product(self._strength, change_P)).item()

    def step(self, damping: float) -> Tensor:
        """Return the damped step, (P,), in which no slope moves by more than LONGEST_STEP.

        With a curvature matrix the other coordinates are solved for again, with the slopes at their bounds; without
        one the whole step is shortened.
        """
        is_slope_P = self.problem.coordinates.is_slope_P
        if not self._dense:
            step_P = self._krylov_steps()(damping)
            longest = torch.where(is_slope_P, step_P.abs(), 0.0).max().item()
            return step_P * (LONGEST_STEP / longest) if longest > LONGEST_STEP else step_P
        curvature_PP = self.curvature[0][0]
        step_P, free_P = dense_step(self.gradient_P, curvature_PP, damping), torch.ones_like(is_slope_P)
        # Not the whole step is shortened: one undetermined slope would then slow all other coordinates down.
        while (beyond_P := is_slope_P & free_P & (step_P.abs() > LONGEST_STEP)).any():
            free_P &= ~beyond_P
            bounded_P = torch.where(free_P, 0.0, step_P.clamp(-LONGEST_STEP, LONGEST_STEP))
            if not free_P.any():
                return bounded_P
            gradient_P = self.gradient_P + curvature_PP @ bounded_P
            step_P = bounded_P
            step_P[free_P] = dense_step(gradient_P[free_P], curvature_PP[free_P][:, free_P], damping)
        return step_P

    def predicted(self, step_P: Tensor) -> float:
        """Return the decrease of the objective that the quadratic model predicts."""
        slope = -(self.gradient_P @ step_P).item()
        # For a Newton step, which a Krylov step approximates, the quadratic term is half the linear one.
        return slope - (step_P @ self.curvature[0][0] @ step_P).item() / 2 if self._dense else slope / 2

    def decrement(self) -> float:
        """Return half the squared Newton decrement: the decrease of the objective that an undamped step predicts."""
        if self._dense:
            return (self.gradient_P @ self.inverse[0][0] @ self.gradient_P).item() / 2
        return -(self.gradient_P @ self._krylov_steps()(0.0)).item() / 2

    def covariances(self) -> list[Tensor]:
        """Return the posterior covariance of each parameter set, (S, Q, Q) for each block of the prior."""
        if not self._dense:
            return [self._share * block for block in self.inverse]
        blocks = (block.index_SQ for block in self._prior.blocks)
        return [self._share * self.inverse[0][0][i.unsqueeze(2), i.unsqueeze(1)] for i in blocks]

    def block_step(self) -> Tensor:
        """Return the undamped step from the blocks of the inverse alone, (P,)."""
        step_P = torch.zeros_like(self.gradient_P)
        for inverse_SQQ, index_SQ in zip(self.inverse, self.model.groups, strict=True):
            step_P[index_SQ] = -(inverse_SQQ @ self.gradient_P[index_SQ].unsqueeze(2)).squeeze(2)
        return step_P

    def gradients(self) -> Iterator[Tensor]:
        """Yield the per-sample gradients of the loss by batch, (B, P): those of the model, or computed again."""
        if self.model.gradients_NP is not None:
            yield from self.model.gradients_NP.split(self.problem.predictor.batch_size or len(self.samples))
            return
        derivatives_P, generator = self.problem.coordinates.derivatives(self.vector_P), torch.Generator()
        for batch in self.problem.predictor.batches(self.samples):
            yield self.problem.rows(self.vector_P, batch, 1, generator).gradients() * derivatives_P

    def _krylov_steps(self) -> KrylovSteps:
        if self._krylov is None:
            diagonal_P = torch.zeros_like(self.gradient_P)
            for block_SQQ, index_SQ in zip(self.curvature, self.model.groups, strict=True):
                diagonal_P[index_SQ] = block_SQQ.diagonal(dim1=1, dim2=2)

            def product(direction_P: Tensor) -> Tensor:
                of_loss_P = self.problem.product(self.vector_P, self.samples, direction_P)
                return of_loss_P + self._share * self._prior.product(self._strength, direction_P)

            self._krylov = KrylovSteps(self.gradient_P, product, diagonal_P)
        return self._krylov


def left_out(posteriors: Sequence[Posterior], steps: Sequence[Tensor]) -> Tensor:
    """Return the leave-one-out estimate of the change of each sample's loss by steps from one vector, (W, N).

    With g_i the gradient of a sample's loss, B the curvature of the objective and H that of the loss, the loss of a
    sample that is left out changes by g_i . step + step^T H step / 2 + g_i^T B^-1 g_i / n. The last term is the effect
    of the sample itself on the optimum. The values are scaled so that their mean is the change of the loss.

    Args:
        posteriors: the posteriors under W priors, on the same samples and at the same vector.
        steps: the step to the optimum of each posterior under its quadratic model, (P,) each; zeros at the optimum.
    """
    model, parts = posteriors[0].model, []
    to_loss = model.samples / model.labelled
    for gradients_BP in posteriors[0].gradients():
        changes_WB = torch.stack([gradients_BP @ step_P for step_P in steps]) * to_loss
        for changes_B, posterior in zip(changes_WB, posteriors, strict=True):
            for inverse_SQQ, index_SQ in zip(posterior.inverse, model.groups, strict=True):
                rows_SBQ = gradients_BP[:, index_SQ].transpose(0, 1)
                changes_B += ((rows_SBQ @ inverse_SQQ) * rows_SBQ).sum((0, 2)) * to_loss / model.labelled
        parts.append(changes_WB)
    curved_W = torch.tensor([model.curved(step_P) / 2 for step_P in steps], dtype=torch.float64)
    return torch.cat(parts, 1) + curved_W[:, None]


def first_dispersion(model: Model) -> float:
    """Return an initial estimate of the dispersion, tr(scatter) / tr(curvature); see `dispersion_of`."""
    scatter, curvature = (
        sum(block.diagonal(dim1=1, dim2=2).sum().item() for block in blocks)
        for blocks in (model.scatter, model.curvature)
    )
    return scatter / curvature if curvature > 0 and scatter > 0 else 1.0


def dispersion_of(posterior: Posterior, prior: Prior, strength: Strength, likelihood: bool) -> float:
    """Return the dispersion of the loss: tr(inverse * scatter) / tr(inverse * curvature).

    It is the factor by which the gradients of the samples vary more than the curvature implies: 1 for the
    cross-entropy of a correct model, 2 sigma^2 / K for the mean squared error of K outputs with noise variance sigma^2,
    nearly 0 where the targets are another network's outputs, and c times as large for c times the loss. Divided by it,
    the loss is a (quasi-)log-likelihood, so that the prior keeps its meaning (Wedderburn 1974,
    https://doi.org/10.1093/biomet/61.3.439).

    Args:
        posterior: the posterior at the current vector.
        prior: its prior.
        strength: the strength of this prior.
        likelihood: whether the loss of a position is its negative log-likelihood. The dispersion is then at least 1
            for each position, because a smaller estimate is due to chance.
    """
    model = posterior.model
    found = posterior.optimism * model.samples / max(posterior.effective, 1e-300)
    data = sum(block.diagonal(dim1=1, dim2=2).sum().item() for block in model.curvature)
    precision = sum(block.diagonal(dim1=1, dim2=2).sum().item() for block in prior.precisions(strength))
    least = model.samples / model.labelled if likelihood else 0.0
    found = min(found, MOST_DISPERSED)  # saturated outputs have gradients without curvature
    return max(found, least, LEAST_PRIOR * model.samples * data / precision if precision > 0 else 0.0, 1e-300)


@dataclass(frozen=True)
class Accepted:
    """A step that decreased the objective.

    Attributes:
        vector_P: The coordinates after the step.
        loss: The loss there.
        damping: Damping for the next step.
        predicted, gained: Decrease of the objective, as the quadratic model predicts and as measured.
    """

    vector_P: Tensor
    loss: float
    damping: float
    predicted: float
    gained: float


def descend(
    posterior: Posterior,
    loss_at: Callable[[Tensor, float], float],
    damping: float,
    least_predicted: float = 0.0,
    most: float = MOST_DAMPED,
) -> Accepted | None:
    """Search for a step that decreases the objective on its samples.

    A step whose actual decrease is less than LEAST_SHARE of the predicted one is tried again with eight times the
    damping (Levenberg-Marquardt). The damping for the next step is an eighth of this one if the first trial achieved at
    least POOR of the predicted decrease. Otherwise it stays: with less, the next first trial would often fail again.

    Args:
        posterior: the quadratic model of the objective at the current vector.
        loss_at: returns the loss at a vector on the same samples. Its second argument is the loss above which the
            trial fails; it may return inf for a loss that is probably higher.
        damping: damping of the first trial.
        least_predicted: least predicted decrease of a step that is tried.
        most: largest damping to try.

    Returns:
        The step, or None if no damping up to `most` leads to one with enough predicted and actual decrease.
    """

    def tried(step_P: Tensor) -> tuple[float, float]:
        vector_P = posterior.vector_P + step_P
        limit = posterior.objective - posterior.prior_term(vector_P)
        loss = loss_at(vector_P, limit)
        return loss, limit - loss

    first = damping
    while damping <= most:
        step_P = posterior.step(damping)
        slope, predicted = -(posterior.gradient_P @ step_P).item(), posterior.predicted(step_P)
        # With bounded slopes, more damping may predict a larger decrease.
        loss, gained = tried(step_P) if predicted >= least_predicted else (math.inf, -math.inf)
        # NaN fails every comparison, so that it is never accepted.
        if predicted > 0 and gained > LEAST_SHARE * predicted:
            if gained >= POOR * predicted and damping == first:
                damping = damping / STRONGER if damping > LEAST_DAMPING else 0.0
            elif gained < POOR * predicted and slope > gained:
                # Line search: the minimum of the parabola through both objectives with this slope at the start.
                share = slope / (2 * (slope - gained))
                nearer, better = tried(share * step_P)
                if better > gained:
                    step_P, loss, gained = share * step_P, nearer, better
            return Accepted(posterior.vector_P + step_P, loss, damping, predicted, gained)
        damping = max(FIRST_DAMPING, STRONGER * damping)
    return None


def traces(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the trace of the product of two symmetric matrices, given in blocks."""
    return sum((one * other).sum().item() for one, other in zip(left, right, strict=True))


def inverse(matrix_SQQ: Tensor) -> Tensor:
    """Return the inverse of positive semidefinite matrices, or the pseudoinverse with their diagonal scaled to ones."""
    diagonal_SQ = matrix_SQQ.diagonal(dim1=1, dim2=2)
    root_SQ = torch.where(diagonal_SQ > 0, diagonal_SQ.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    outer_SQQ = root_SQ.unsqueeze(2) * root_SQ.unsqueeze(1)
    ones_SQQ = matrix_SQQ * outer_SQQ
    factor_SQQ, failed_S = torch.linalg.cholesky_ex(ones_SQQ)
    if not failed_S.any():
        return torch.cholesky_inverse(factor_SQQ) * outer_SQQ
    try:
        scaled_SQQ: Tensor = torch.linalg.pinv(ones_SQQ, rtol=1e-12, hermitian=True)
    except torch.linalg.LinAlgError:
        # Eigenvalues that do not converge: the singular values of the symmetric matrix do.
        scaled_SQQ = torch.linalg.pinv(ones_SQQ, rtol=1e-12)
    return scaled_SQQ * outer_SQQ
