"""The function that an identification minimizes, loss plus prior, with its quadratic models.

The last models and losses are cached, because several parts of a step use them. Begin with `Objective`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from aafit.identification.elements import calls_of, input_elements
from aafit.identification.gauss_newton import DENSE, Model, Posterior, model_at
from aafit.identification.prior import Prior, Strength, set_indices
from aafit.identification.problem import Problem, probes_for
from aafit.identification.result import State
from aafit.identification.samples import Samples
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Batch
from aafit.networks.running import OutsideShares
from aafit.training.distance import Distance
from aafit.training.losses import has_labels, one_hot, predictions
from aafit.training.predictor import Predictor

FEW = 256  # samples that suffice to match a layer or to measure the effect of a slope
MOST_OUTPUTS = 1 << 20  # most outputs of these samples together: fewer samples if sequences are long or maps large
LEAST_FEW = 8
EXACT_SAMPLES = 1000  # number of fitted samples up to which the curvature is accurate, see `Objective.probes_for`
PROBES = 2  # random probes per sample of any other curvature: many samples make up for few probes
SCREENED = 500  # number of samples on which the trials of a step are screened
SCREENED_FROM = 2000  # least number of samples of a step whose trials are screened
REJECTED = 3.0  # standard errors above the limit from which a trial is rejected
CACHED = 8  # number of cached results of `Objective.losses`
COLLAPSED = 0.05  # share of the expected standard deviation of the predictions below which a network has collapsed
CERTAIN = 0.4  # least standard deviation of a useful network's probabilities, relative to that of one-hot labels


@dataclass(frozen=True)
class Objective:
    """Loss and prior as functions of the coordinates of all adaptive parameters, and the base network to compare with.

    Attributes:
        net: The network with adaptive activations.
        base: Runs the network that it was made from; None if it is not given.
        samples: The fitted and the held-out samples.
        problem: The loss and its derivatives.
        exact: Whether the curvature on all samples is computed without random probes.
        seed: Seed of the random probes and of the selection of inputs.
    """

    net: nn.Module
    base: Predictor | None
    samples: Samples
    problem: Problem
    exact: bool
    seed: int

    def losses(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """Return the loss of each sample, (N,), scaled so that their mean is the loss."""
        is_heldout = samples is self.samples.heldout
        key = (vector_P.numpy().tobytes(), is_heldout) if is_heldout or samples is self.samples.fitted else None
        if key in self._losses:
            return self._losses[key]
        losses, labelled = [], 0
        for batch, outputs in self.problem.outputs_by_batch(vector_P, samples):
            found = self.problem.scores(outputs, batch.target)
            losses.append(found.loss_B.double().cpu())
            labelled += int(found.labelled_B.sum())
        losses_N = torch.cat(losses) * len(samples) / labelled
        if key is not None:
            self._losses[key] = losses_N
            while len(self._losses) > CACHED:
                del self._losses[next(iter(self._losses))]
        return losses_N

    def loss(self, vector_P: Tensor, samples: Batch) -> float:
        """Return the loss, the mean over the labelled positions."""
        return self.losses(vector_P, samples).mean().item()

    def screened(self, at_P: Tensor, loss: float, samples: Batch) -> Callable[[Tensor, float], float]:
        """Return a function of a vector and a limit: the loss, or inf if few samples show that it exceeds the limit.

        From 2,000 samples on, a trial is first evaluated on the last 500. It is rejected if its loss there exceeds the
        limit by more than three standard errors of the paired difference from `at_P`.

        Args:
            at_P: a vector whose loss is known.
            loss: its loss on all of `samples`.
            samples: the samples.
        """
        # Not the first ones: the steps on a subset have fitted these, and a better vector for all may be worse there.
        last = samples.part(len(samples) - SCREENED, len(samples))
        before_N = self.losses(at_P, last) if len(samples) >= SCREENED_FROM else None

        def loss_at(vector_P: Tensor, limit: float) -> float:
            if before_N is not None:
                changes_N = self.losses(vector_P, last) - before_N
                error = (changes_N.std() / len(changes_N) ** 0.5).item()
                if not loss + changes_N.mean().item() - REJECTED * error <= limit:  # NaN is rejected
                    return inf
            return self.loss(vector_P, samples)

        return loss_at

    def model(self, path: tuple[Tensor, ...], samples: int) -> Model:
        """Return the quadratic model at the last vector of a path of steps, on the first samples.

        The curvature is computed at the first vector. With more than 1,000 samples each further step updates it by the
        change of the gradient. With fewer it stays: an update brings in what the Hessian of their loss has beyond the
        Gauss-Newton matrix, and from few samples the prior's weight was then selected worse (benchmarks/digits.py).

        Args:
            path: the coordinates, (P,) each.
            samples: number of samples.
        """
        probes = self.probes_for(samples)

        def key(path: tuple[Tensor, ...]) -> Any:
            return samples, probes, *(vector_P.numpy().tobytes() for vector_P in path)

        if key(path) not in self._models:
            # Only updates need the gradients at all vectors of the path.
            earlier = path[:-1] if self.updates_curvature(samples) else path[:-1][:1]
            before = self.model(earlier, samples) if earlier else None
            sample, vector_P = self.samples.fitted.part(0, samples), path[-1]
            known = next((model for at, model in self._models.items() if (*at[:2], at[-1]) == key((vector_P,))), None)
            curvature = None if before is None else before.curvature
            model = model_at(self.problem, vector_P, sample, self.groups, probes, self.seed, curvature, known)
            if before is not None and self.updates_curvature(samples):
                model = model.updated(before, vector_P - path[-2])
            for other in self._models.keys() - {key(earlier)}:
                del self._models[other]
            self._models[key(path)] = model
        return self._models[key(path)]

    def updates_curvature(self, samples: int) -> bool:
        """Return whether steps on the first samples update the curvature, see `model`."""
        return samples > EXACT_SAMPLES and len(self.groups) == 1

    def posterior(self, state: State, model: Model, strength: Strength, dispersion: float) -> Posterior:
        """Return the quadratic model of the log-posterior at the state's vector."""
        sample, prior = self.samples.fitted.part(0, state.samples), self.prior(state.mean_P)
        return Posterior(self.problem, sample, model, state.vector_P, prior, strength, dispersion)

    def prior(self, mean_P: Tensor) -> Prior:
        """Return the prior with this mean.

        Its inputs of the activations are those in the base network or, without one, in the network at the mean.
        """
        key = mean_P.numpy().tobytes()
        if key not in self._priors:
            coordinates = self.problem.coordinates
            if self.base is None:
                before_P = coordinates.read()
                coordinates.write(mean_P)
                inputs = self.inputs(self.net)
                coordinates.write(before_P)
            else:
                inputs = self.inputs(self.base.net)
            self._priors[key] = Prior(self.net, coordinates, mean_P, inputs)
        return self._priors[key]

    def inputs(self, net: nn.Module) -> dict[str, Tensor]:
        """Return randomly selected inputs of the activations in a network, (E,) in float64 by path.

        Args:
            net: the network or its base; it is run on the first samples.
        """
        raw = list(self.problem.predictor.batches(self.raw_few))
        calls = calls_of(self.net, raw[0])
        activations = {path: own for path, own in adaptive_activations(self.net).items() if path in calls}
        found = input_elements(net, activations, calls, raw, self.seed)
        return {path: own.elements_ES.flatten().double().cpu() for path, own in found.items()}

    def outside(self) -> dict[str, float]:
        """Return the share of the first samples' inputs outside the interval of each activation with one, by path."""
        outside = OutsideShares(self.net)
        with outside.counting():
            for batch in self.problem.predictor.batches(self.raw_few):
                self.problem.predictor.of(self.net).forward(batch)
        return outside.shares()

    def is_far(self, vector_P: Tensor) -> bool:
        """Return whether the loss or the outputs of the first samples are far from the base network's."""
        assert self.base is not None
        distance = Distance()
        outputs = self.problem.outputs_by_batch(vector_P, self.few)
        for (batch, y), (_, of_base) in zip(outputs, self.base.over(self.raw_few), strict=True):
            distance.add(of_base, y)
            distance.add_losses(*(self.problem.scores(each, batch.target) for each in (of_base, y)))
        return distance.is_far

    def has_collapsed(self, vector_P: Tensor, start_P: Tensor) -> bool:
        """Return whether the predictions vary far less over the first samples than expected.

        Expected is the standard deviation of the base network's predictions, or without one of those at `start_P`; with
        class labels, at least CERTAIN times that of the one-hot labels.
        """
        before = self.problem.outputs(start_P, self.few) if self.base is None else self.base.outputs(self.raw_few)
        after, target = self.problem.outputs(vector_P, self.few), self.few.target
        least = predictions(self.problem.loss, before).double().std(0, correction=0).mean().item()
        if isinstance(target, Tensor) and has_labels(after, target) and self.problem.loss.is_cross_entropy:
            least = max(least, CERTAIN * one_hot(after, target).double().std(0, correction=0).mean().item())
        if not isfinite(least):
            least = 0.0  # the initial outputs are not finite
        varied = predictions(self.problem.loss, after).double().std(0, correction=0).mean().item()
        return not varied >= COLLAPSED * least  # NaN counts as collapsed

    def first(self, outputs: int) -> Batch:
        """Return the first samples to fit: from 8 to 256, as many as have at most `outputs` outputs together."""
        return self.samples.fitted.part(0, max(LEAST_FEW, min(FEW, outputs // self._outputs_each)))

    @property
    def few(self) -> Batch:
        """The first samples to fit, for computations that need few."""
        return self.first(MOST_OUTPUTS)

    @property
    def raw_few(self) -> Batch:
        """The inputs of the full network for the samples of `few`, without targets."""
        return self.samples.raw.part(0, len(self.few))

    @cached_property
    def groups(self) -> list[Tensor]:
        """Indices of the coordinates that share a dense block of the curvature, (S, Q) each.

        Up to 2,000 coordinates form one block; more are divided into one block for each parameter set.
        """
        P = len(self.problem.coordinates)
        return [torch.arange(P).unsqueeze(0)] if P <= DENSE else list(set_indices(self.net).values())

    def probes_for(self, samples: int) -> int | None:
        """Return the number of random probes per sample of the curvature of the first samples; None: it is exact."""
        whole = samples == len(self.samples.fitted)
        return self._accurate_probes if whole and (self.exact or samples <= EXACT_SAMPLES) else PROBES

    @cached_property
    def _accurate_probes(self) -> int | None:
        if len(self.groups) > 1 and not self.exact:
            return 1
        return None if self.exact else probes_for(self.problem, self.problem.coordinates.read(), self.samples.fitted)

    @cached_property
    def _outputs_each(self) -> int:
        outputs = self.problem.outputs(self.problem.coordinates.read(), self.samples.fitted.part(0, 1))
        return max(1, outputs.numel())

    @cached_property
    def _losses(self) -> dict[Any, Tensor]:
        return {}

    @cached_property
    def _models(self) -> dict[Any, Model]:
        return {}

    @cached_property
    def _priors(self) -> dict[Any, Prior]:
        return {}
