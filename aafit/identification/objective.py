"""What an identification minimizes: the loss of the samples and the prior, with their quadratic models.

The models of the last vector are remembered, since a step asks for them several times.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from aafit.identification.elements import calls_of, input_elements
from aafit.identification.gauss_newton import DENSE, Model, Posterior, curvature_at, model_at
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

FEW = 256  # samples suffice to match a layer, or to find what a slope changes
MOST_OUTPUTS = 1 << 20  # of these samples together: of long sequences and large maps there are fewer
LEAST_FEW = 8
EXACT_SAMPLES = 1000  # up to which the curvature on all samples is exact
PROBES = 2  # random probes of the curvature for each sample elsewhere: many samples make up for few probes
CURVATURE_SAMPLES = 4000  # at most, for a curvature
COLLAPSED = 0.05  # of the standard deviation of the outputs over the samples
SURE = 0.4  # of the standard deviation of the labels: what the probabilities of a useful network have


@dataclass(frozen=True)
class Objective:
    """Loss and prior as functions of the coordinates of all adaptive parameters, and the base network to compare with.

    Attributes:
        net: The network.
        base: Runs the network that it was made from, if it is given.
        samples: To fit, and held out.
        problem: The loss and its derivatives.
        exact: Whether the curvature is without random probes.
        seed: Of the random probes.
    """

    net: nn.Module
    base: Predictor | None
    samples: Samples
    problem: Problem
    exact: bool
    seed: int

    def losses(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """Return the loss of each sample, (N,), scaled so that their mean is the loss."""
        losses, labelled = [], 0
        for batch, outputs in self.problem.outputs_by_batch(vector_P, samples):
            found = self.problem.scores(outputs, batch.target)
            losses.append(found.loss_B.double().cpu())
            labelled += int(found.labelled_B.sum())
        return torch.cat(losses) * len(samples) / labelled

    def loss(self, vector_P: Tensor, samples: Batch) -> float:
        """Return the loss, the mean over the labelled positions."""
        return self.losses(vector_P, samples).mean().item()

    def model(self, vector_P: Tensor, samples: int, curved_P: Tensor) -> Model:
        """Return the quadratic model on the first samples, with the curvature at `curved_P`."""
        key = (vector_P.numpy().tobytes(), samples, curved_P.numpy().tobytes())
        if key not in self._models:
            self._models.clear()
            whole = samples == len(self.samples.fitted)
            few = whole and (self.exact or samples <= EXACT_SAMPLES)
            curvature = self._curvature(curved_P, samples, self.probes if few else PROBES)
            sample = self.samples.fitted.part(0, samples)
            self._models[key] = model_at(self.problem, vector_P, sample, self.groups, curvature)
        return self._models[key]

    def final_model(self, vector_P: Tensor) -> Model:
        """Return the model on all samples with the curvature that standard errors are computed from."""
        n = len(self.samples.fitted)
        curvature = self._curvature(vector_P, n, self.probes)
        return replace(self.model(vector_P, n, vector_P), curvature=curvature)

    def posterior(self, state: State, model: Model, strength: Strength, dispersion: float) -> Posterior:
        """Return the quadratic model of the log-posterior at the state's vector."""
        sample, prior = self.samples.fitted.part(0, state.samples), self.prior(state.mean_P)
        return Posterior(self.problem, sample, model, state.vector_P, prior, strength, dispersion)

    def prior(self, mean_P: Tensor) -> Prior:
        """Return the prior with this mean; its inputs are those in the base network or, without one, at the mean."""
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
        """Return inputs of the activations in a network, (E,) in float64 by path, for the first samples."""
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
        """Return whether the outputs vary far less over the samples than those of the base, or of the start."""
        before = self.problem.outputs(start_P, self.few) if self.base is None else self.base.outputs(self.raw_few)
        after, target = self.problem.outputs(vector_P, self.few), self.few.target
        least = predictions(self.problem.loss, before).double().std(0).mean().item()
        if isinstance(target, Tensor) and has_labels(after, target) and self.problem.loss.is_cross_entropy:
            least = max(least, SURE * one_hot(after, target).double().std(0).mean().item())
        return not predictions(self.problem.loss, after).double().std(0).mean().item() >= COLLAPSED * least

    def first(self, outputs: int) -> Batch:
        """Return the first samples to fit: as many as have that many outputs together, from 8 to 256."""
        return self.samples.fitted.part(0, max(LEAST_FEW, min(FEW, outputs // self._outputs_each)))

    @property
    def few(self) -> Batch:
        """The first samples, for what few can tell."""
        return self.first(MOST_OUTPUTS)

    @property
    def raw_few(self) -> Batch:
        """Their inputs of the whole network."""
        return self.samples.raw.part(0, len(self.few))

    @cached_property
    def groups(self) -> list[Tensor]:
        """Coordinates that share a dense block of the curvature: all of them, or of many those of each activation."""
        P = len(self.problem.coordinates)
        return [torch.arange(P).unsqueeze(0)] if P <= DENSE else list(set_indices(self.net).values())

    @cached_property
    def probes(self) -> int | None:
        """Random probes for the curvature that decides and of standard errors; None: it is exact."""
        if len(self.groups) > 1 and not self.exact:
            return 1
        return None if self.exact else probes_for(self.problem, self.problem.coordinates.read(), self.samples.fitted)

    def _curvature(self, vector_P: Tensor, samples: int, probes: int | None) -> list[Tensor]:
        key = (vector_P.numpy().tobytes(), samples, probes)
        if key not in self._curvatures:
            self._curvatures.clear()
            some = self.samples.fitted.part(0, min(samples, CURVATURE_SAMPLES))
            self._curvatures[key] = curvature_at(self.problem, vector_P, some, self.groups, probes, self.seed)
        return self._curvatures[key]

    @cached_property
    def _outputs_each(self) -> int:
        outputs = self.problem.outputs(self.problem.coordinates.read(), self.samples.fitted.part(0, 1))
        return max(1, outputs.numel())

    @cached_property
    def _models(self) -> dict[Any, Model]:
        return {}

    @cached_property
    def _curvatures(self) -> dict[Any, list[Tensor]]:
        return {}

    @cached_property
    def _priors(self) -> dict[Any, Prior]:
        return {}
