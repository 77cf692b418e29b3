"""The joint phase: damped Gauss-Newton steps of all parameters, each checked on the sample and on held-out images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aafit.identification.damped_steps import KrylovSteps, dense_step, scales
from aafit.identification.problem import Problem
from aafit.networks.batches import Batch
from aafit.training.losses import one_hot, predictions

DENSE = 2000
"""Parameters up to which the curvature is a matrix."""

STRONGER = 8  # times the last damping: the next one to try
MOST_DAMPED = 1e3  # the last damping to try: a network sure of wrong answers needs it, having nearly no curvature
LEAST_GAIN = 1e-4  # of the loss: a step that promises less is worth nothing
LEAST_SHARE = 0.01  # of the predicted gain: what a step must bring
LONGEST_STEP = 2.0  # of a steepness, in its own coordinate
WORTHWHILE = 0.2  # of what pure noise would promise: what a step must promise

SMALLEST_SHARE = 0.05
"""Of the variation that the outputs should have: below it, they no longer depend on the images."""

LEAST = 0.4
"""Of the variation of the targets: what the outputs should have at least, however little they had at first."""


@dataclass(frozen=True)
class Outcome:
    """The result of a search for a step.

    Attributes:
        vector_P: The new place, or the old one where no better one was found.
        moved: Whether a better one was found.
        predicted: The gain in loss that the last step looked at promised.
        gained: The gain of the last step whose loss on the sample was measured; 0 where there was none.
        noise: What the last step would have promised if the gradient were nothing but noise.
        promised: Whether any step promised enough to be tried.
        collapsed: Whether a place was refused because the outputs no longer depended on the images there.
    """

    vector_P: Tensor
    moved: bool
    loss: float
    heldout_loss: float
    damping: float
    predicted: float
    gained: float
    noise: float
    promised: bool
    collapsed: bool


@dataclass(frozen=True)
class Descent:
    """A search for steps.

    Attributes:
        problem: The network and its loss.
        heldout: Batch on which no step may do worse.
        columns: As for `Problem.quadratic`.
        ridge: Weight of half the squared distance from `start_P`, in coordinates, which is added to the loss.
        start_P: The coordinates at the start.
        variation: Of the outputs, which a step must not lose, see `collapsed`; 0 for any.
        worthwhile: The share of `Outcome.noise` that a step must promise to gain.
    """

    problem: Problem
    heldout: Batch
    columns: int | None
    ridge: float
    start_P: Tensor
    variation: float
    worthwhile: float = WORTHWHILE

    def step(self, vector_P: Tensor, sample: Batch, damping: float, heldout_loss: float, seed: int) -> Outcome:
        """Search for a better place from `vector_P`, on a sample of n images.

        Let g be the gradient, C the curvature and A = (C + damping diag(C))^-1. The step d = -A g promises to gain
        g A g - g A C A g / 2. Were g nothing but noise, with the covariance S / n, it would promise
        tr((A - A C A / 2) S) / n on average: `Outcome.noise`. A step that promises less than the share `worthwhile` of
        that, or that does not keep its promise, is tried again with a stronger damping, up to MOST_DAMPED. The search
        ends before where a step promises too little and a stronger damping would not lower the noise.
        """
        make = self._dense if len(vector_P) <= DENSE else self._matrix_free
        model = make(vector_P, sample, seed)
        lost, promised, predicted, gained, noise = False, False, 0.0, 0.0, 0.0
        while damping <= MOST_DAMPED:
            noise = model.noise(damping)
            step_P = self._shortened(model.step(damping, noise))
            predicted = -(model.gradient_P @ step_P + model.curved(step_P) / 2).item()
            if predicted > self.worthwhile * noise:
                promised = True
                trial_P = vector_P + step_P
                # The held-out images first: they are fewer. NaN fails every comparison, and so is never kept.
                trial_heldout, trial_variation = measured(self.problem, trial_P, self.heldout)
                lost_here = collapsed(trial_variation, self.variation)
                lost = lost or lost_here
                if trial_heldout <= heldout_loss and not lost_here:
                    trial_loss = measured(self.problem, trial_P, sample)[0] + self._penalty(trial_P)
                    gained = model.loss - trial_loss
                    if gained > LEAST_SHARE * predicted:
                        ratio = gained / predicted
                        easier = damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3)
                        return Outcome(
                            trial_P, True, trial_loss, trial_heldout, easier, predicted, gained, noise, promised, lost
                        )
            elif not model.noise(STRONGER * damping) < noise:
                break
            damping *= STRONGER
        return Outcome(vector_P, False, model.loss, heldout_loss, damping, predicted, gained, noise, promised, lost)

    def _dense(self, vector_P: Tensor, sample: Batch, seed: int) -> "_Model":
        model = self.problem.quadratic(vector_P, sample, self.columns, seed)
        gradient_P = model.gradient_P + self.ridge * (vector_P - self.start_P)
        curvature_PP = model.curvature_PP + self.ridge * torch.eye(len(vector_P), dtype=torch.float64)
        root_P = scales(curvature_PP.diagonal()).sqrt()
        outer_PP = root_P[:, None] * root_P
        # In the basis of the scaled curvature's eigenvectors the A of `step` is diagonal, whatever the damping.
        values_P, vectors_PP = torch.linalg.eigh(curvature_PP / outer_PP)
        scatter_P = (vectors_PP * ((model.scatter_PP / outer_PP) @ vectors_PP)).sum(0)
        # Directions without curvature have no scatter either, except for rounding errors.
        seen_P = values_P > 1e-9 * values_P.max()

        def noise(damping: float) -> float:
            damped_P = values_P[seen_P] + damping
            share_P = (1 - values_P[seen_P] / (2 * damped_P)) / damped_P
            total: float = (share_P * scatter_P[seen_P]).nan_to_num().sum().item()
            return total / len(sample)

        return _Model(
            loss=model.loss + self._penalty(vector_P),
            gradient_P=gradient_P,
            noise=noise,
            step=lambda damping, noise: dense_step(gradient_P, curvature_PP + self._held(noise).diag(), damping),
            curved=lambda step_P: step_P @ curvature_PP @ step_P,
        )

    def _matrix_free(self, vector_P: Tensor, sample: Batch, seed: int) -> "_Model":
        loss, gradient_P = self.problem.gradient(vector_P, sample)
        gradient_P = gradient_P + self.ridge * (vector_P - self.start_P)
        diagonal_P = self.problem.diagonal(vector_P, sample, seed) + self.ridge

        def product(direction_P: Tensor) -> Tensor:
            return self.problem.product(vector_P, sample, direction_P) + self.ridge * direction_P

        # So many parameters can fit the noise of any sample: only the held-out images say when to stop.
        noise = LEAST_GAIN * abs(loss)
        held_P = self._held(noise)
        steps = KrylovSteps(gradient_P, lambda d_P: product(d_P) + held_P * d_P, diagonal_P + held_P)
        return _Model(
            loss=loss + self._penalty(vector_P),
            gradient_P=gradient_P,
            noise=lambda damping: noise,
            step=lambda damping, _: steps(damping),
            curved=lambda step_P: step_P @ product(step_P),
        )

    def _held(self, noise: float) -> Tensor:
        """Curvature added for each steepness: without it a flat direction would take it far for a gain below noise."""
        return self.problem.coordinates.is_slope_P * (2 * noise)

    def _shortened(self, step_P: Tensor) -> Tensor:
        longest = step_P[self.problem.coordinates.is_slope_P].abs().max().item() if self._has_steepness else 0.0
        return step_P * (LONGEST_STEP / max(longest, LONGEST_STEP))

    @property
    def _has_steepness(self) -> bool:
        return bool(self.problem.coordinates.is_slope_P.any())

    def _penalty(self, vector_P: Tensor) -> float:
        return self.ridge * (vector_P - self.start_P).square().sum().item() / 2


@dataclass(frozen=True)
class _Model:
    """The loss near a place, as a quadratic.

    Attributes:
        noise: From a damping to what its step would promise if the gradient were nothing but noise.
        step: From a damping and its noise to the step.
        curved: From a step d to d^T C d, with the curvature C.
    """

    loss: float
    gradient_P: Tensor
    noise: Callable[[float], float]
    step: Callable[[float, float], Tensor]
    curved: Callable[[Tensor], Tensor]


def measured(problem: Problem, vector_P: Tensor, samples: Batch) -> tuple[float, float]:
    """The mean loss at a vector, and the variation of the outputs: no more than one batch of them is kept."""
    total, labelled, spread = 0.0, 0, Spread()
    for batch, outputs in problem.outputs_by_batch(vector_P, samples):
        found = problem.scores(outputs, batch.target)
        total += found.loss_B.sum().item()
        labelled += int(found.labelled_B.sum())
        spread.add(predictions(problem.loss, outputs))
    return total / labelled, spread.variation


class Spread:
    """The standard deviation of each output over the samples, from one batch after another."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, outputs: Tensor) -> None:
        """The outputs of a batch, (B, ...)."""
        wide = outputs.double().cpu()
        self.count += len(wide)
        self.sum, self.squares = self.sum + wide.sum(0), self.squares + wide.square().sum(0)

    @property
    def variation(self) -> float:
        """How much the outputs depend on the sample: their standard deviation over the samples, mean over outputs."""
        mean = self.sum / self.count
        return (self.squares / self.count - mean.square()).clamp(min=0).sqrt().mean().item()


def variation(outputs: Tensor) -> float:
    """How much outputs (N, ...) depend on the sample: their standard deviation over the samples, mean over outputs."""
    spread = Spread()
    spread.add(outputs)
    return spread.variation


def perfect_variation(outputs: Tensor, targets: Any) -> float:
    """The variation of outputs that are the targets: classes, or probabilities or values of the outputs' shape.

    Args:
        outputs: of a few samples, for their shape.
    """
    values = targets.is_floating_point() or targets.shape[1:] == outputs.shape[1:]
    return variation(targets if values else one_hot(outputs, targets))


def collapsed(now: float, before: float) -> bool:
    """Whether outputs of this variation have lost that of the network which they come from; NaN counts as lost."""
    return not now >= SMALLEST_SHARE * before or not torch.tensor(now).isfinite()
