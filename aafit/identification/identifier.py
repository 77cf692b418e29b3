"""The phases of an identification, from one `State` to the next.

In order: lower slopes until they are trainable; match a poor initialization to the base network, layer by layer; tune
all parameters together in damped steps on loss plus prior, first on a subset of 500 samples and in the end on all;
judge the result, from few samples by cross-validation; compute standard errors. Read `Identifier.advance` and
`Identifier._joint` first.
"""

import time
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from aafit.errors import UserError
from aafit.identification.gauss_newton import (
    DENSE,
    Model,
    Posterior,
    descend,
    dispersion_of,
    first_dispersion,
    left_out,
)
from aafit.identification.layerwise import match_layers
from aafit.identification.objective import Objective
from aafit.identification.prior import WEIGHTS, Prior, input_range, original_activations
from aafit.identification.result import Gain, Identification, State, Step
from aafit.identification.slope import outputs_changed, smoothest
from aafit.identification.uncertainty import Uncertainty, uncertainty
from aafit.networks.batches import Batch

OUTPUTS_FOR_SLOPES = 1 << 18  # number of outputs, at most, on which the effect of lower slopes is measured
FIRST_SUBSET = 500  # number of samples of the first joint steps
LARGER = 8  # factor by which the subset grows once the steps on it have converged
TRUSTED = 0.25  # relative error of the predicted decrease up to which the next step uses the same curvature
SETTLED = 0.05  # least decrease of the negative log-posterior of a step: a third of a standard error
SHARE_OF_NOISE = 0.02  # Newton decrement for each effective parameter at which the last steps end
SHARE_OF_PART = 0.25  # the same for steps on a subset, and for those before the prior's weight is selected
NOT_NOISY = 0.01  # Newton decrement for each sample at which steps end if the targets are the base network's outputs
STEADY = 0.02  # relative change of the effective number of parameters at which updates of the prior's strength end
UPDATES = 5  # most updates of the prior's strength at one vector
CLEARLY = 0.5  # standard errors above the least loss up to which the largest weight of the prior is selected
REFUTED = 4.0  # standard errors of the gain over the prior's mean above which few samples may lower its weight
FEW_WEIGHT = 100.0  # initial weight of the prior for fewer than FIRST_SUBSET samples
FOLDS = 5  # number of folds of the cross-validation
MOST_ROUNDS = 8  # number of vectors after which the prior's strength stays, unless steps update the curvature


@dataclass(frozen=True)
class Identifier:
    """The phases of one identification; each method takes a `State` and returns the next one.

    Attributes:
        objective: Loss and prior.
        target, prior, steps, budget, errors: As for `identify`.
        folds: Number of folds of the cross-validation; 0 for none.
    """

    objective: Objective
    target: str
    prior: float | str | None
    steps: int
    budget: float
    errors: bool
    folds: int

    def start(self, began: float) -> State:
        """Return the state before any step.

        Args:
            began: time.perf_counter() when the identification began.
        """
        vector_P = self.objective.problem.coordinates.read()
        n = len(self.objective.samples.fitted)
        step = self._step((), "start", vector_P, self.objective.few, heldout=True)
        step = replace(step, seconds=time.perf_counter() - began)
        return State("slope", vector_P, vector_P, vector_P, min(FIRST_SUBSET, n), (step,))

    def advance(self, state: State) -> State:
        """Return the state after one step of its phase, which may end the phase without a step.

        Raises:
            UserError: the loss or its derivatives are not finite at the state.
        """
        began = time.perf_counter()
        phases = {
            "slope": self._slope,
            "layers": self._layers,
            "joint": self._joint,
            "validation": self._validation,
        }
        further = phases[state.phase](state)
        last = replace(further.steps[-1], seconds=state.steps[-1].seconds + time.perf_counter() - began)
        return replace(further, steps=(*further.steps[:-1], last))

    def result(self, state: State) -> Identification:
        """Return the result, with standard errors if they were requested, for the final state."""
        objective, coordinates = self.objective, self.objective.problem.coordinates
        errors = None
        if self.errors and len(coordinates) <= DENSE and state.dispersion:
            errors = self._uncertainty(state)
        return Identification(
            state=state,
            names=tuple(coordinates.names),
            start=tuple(coordinates.values(state.start_P).tolist()),
            values=tuple(coordinates.values(state.vector_P).tolist()),
            uncertainty=errors,
            ranges={path: input_range(inputs_E) for path, inputs_E in objective.inputs(objective.net).items()},
            samples=len(objective.samples.fitted),
            heldout_samples=len(objective.samples.heldout),
            memory=objective.samples.memory,
            outside=objective.outside(),
        )

    def _slope(self, state: State) -> State:
        """Lower slopes that are too steep to be trainable, as far as the change of the outputs is within `budget`."""
        following = replace(state, phase="layers")
        if not self.budget:
            return following
        few, problem = self.objective.first(OUTPUTS_FOR_SLOPES), self.objective.problem

        def outputs(vector_P: Tensor) -> Tensor:
            return problem.outputs(vector_P, few)

        vector_P, largest = smoothest(problem.coordinates, state.vector_P, outputs, self.budget)
        if largest is None:
            return following
        message = (
            f"slope: lowered to at most {largest:.4g}, where it is trainable; the outputs change by "
            f"{outputs_changed(outputs(state.vector_P), outputs(vector_P)):.2%} of their standard deviation"
        )
        return self._moved(replace(following, mean_P=vector_P), "slope", vector_P, few, message)

    def _layers(self, state: State) -> State:
        """Set the prior's mean to the original activations, and match a poor initialization to the base network."""
        only = self.target == "activations"
        after = replace(state, phase="done" if only else "joint")
        objective, coordinates = self.objective, self.objective.problem.coordinates
        if objective.base is None:
            return after
        net, base = objective.net, objective.base.net
        inputs = objective.inputs(base)
        mean_P = original_activations(net, base, coordinates, state.vector_P, inputs)
        before_N, nearest_N = (objective.losses(at_P, objective.few) for at_P in (state.vector_P, mean_P))
        # A family that cannot represent the original, as LEAF for ReLU6, may be worse nearest to it than at the start.
        # Few labels do not outweigh such a mean; the base network's outputs do.
        worse = _gain("", nearest_N - before_N)
        if self.target == "labels" and worse.significant and worse.gain > 0 and objective.is_far(mean_P):
            mean_P = state.vector_P
        after = replace(after, mean_P=mean_P)
        if not only and not objective.is_far(state.vector_P):
            return after
        raw, prior = list(objective.base.batches(objective.raw_few)), Prior(net, coordinates, mean_P, inputs)
        tried: list[tuple[float, Tensor, tuple[Any, ...]]] = []
        # The first activation has the same inputs in both networks, so one alone is fitted once.
        for inputs_of_base in (False, True)[: len(prior.blocks)]:
            coordinates.write(state.vector_P)
            matched = tuple(match_layers(net, base, raw, prior, objective.seed, inputs_of_base))
            found_P = coordinates.read()
            tried.append((objective.loss(found_P, objective.few), found_P, matched))
        loss, vector_P, matched = min(tried, key=lambda one: one[0] if isfinite(one[0]) else float("inf"))
        # A start whose loss is NaN is always replaced: the comparison is false.
        if not only and loss >= before_N.mean().item():
            return replace(after, messages=(*state.messages, "layers: matching them did not improve the start"))
        worst = max(matched, key=lambda row: row.after)
        why = "" if only else "the start is far from the base network, so "
        message = (
            f"layers: {why}each activation was matched to the base's "
            f"{'from the input on' if vector_P is tried[0][1] else 'on the inputs that it has there'}; "
            f"the error left is at most {worst.after:.2%} of a layer's standard deviation ({worst.path})"
        )
        return self._moved(replace(after, matched=matched), "layers", vector_P, objective.few, message)

    def _joint(self, state: State) -> State:
        """Take a damped step of all parameters, renew the curvature, enlarge the subset, select the weight, or end."""
        prior, n = self.objective.prior(state.mean_P), len(self.objective.samples.fitted)
        whole, to_weigh = state.samples == n, self.prior == "auto" and not state.weighed
        path = (*state.path, state.vector_P)
        model = self.objective.model(path, state.samples)
        if not model.is_finite:
            raise UserError(
                "The loss of the network is not finite: start from other values of the activations, or give the "
                "network that it was made from as base=, so that they can be matched to it."
            )
        renewed = replace(state, path=())
        fresh = len(path) == 1
        # Updated curvature may be far too small in some directions; the dispersion, a ratio to it, is then too large.
        is_updated = whole and self.objective.updates_curvature(n)
        state, posterior = self._adapted(state, prior, model, fresh if is_updated else state.rounds < MOST_ROUNDS)
        per_sample = state.samples / state.dispersion
        decrement = posterior.decrement() * per_sample
        last = [step.gained or 0.0 for step in state.steps[-2:]]
        enough = self._enough(posterior, whole and not to_weigh)
        # If the quadratic model is wrong, as for the slope of a ReLU, the decrement never becomes small enough. More
        # steps on few samples are cheap.
        least = enough if self.objective.updates_curvature(n) else SETTLED
        stalled = whole and state.rounds > 2 and max(last) * per_sample < least
        done = stalled or sum(step.phase == "joint" for step in state.steps) >= self.steps
        accepted = None
        if not done and decrement >= enough:
            sample = self.objective.samples.fitted.part(0, state.samples)
            accepted = descend(
                posterior,
                self.objective.screened(state.vector_P, model.loss, sample),
                state.damping,
                self._enough(posterior, last=True) / per_sample,
                *([] if fresh else [state.damping]),
            )
            if accepted is None and not fresh:
                return renewed
            if accepted is None and state.damping:
                return replace(renewed, damping=0.0)  # it was set at another vector, and may be too large here
        if accepted is not None:
            step = Step(
                len(state.steps),
                "joint",
                state.samples,
                accepted.loss,
                None,
                accepted.damping,
                accepted.predicted,
                accepted.gained,
            )
            poor = abs(accepted.gained / accepted.predicted - 1) > TRUSTED
            # An update corrects the curvature after a poor prediction, but an outdated one must not end the search.
            if self.objective.updates_curvature(n):
                poor = poor and accepted.gained * per_sample < least
            return replace(
                state,
                vector_P=accepted.vector_P,
                # On a subset the curvature is cheap, so it is computed again after every step.
                path=path if whole and not poor and len(self.objective.groups) == 1 else (),
                damping=accepted.damping,
                steps=(*state.steps, step),
            )
        if not whole:
            # The result is evaluated on all samples even if the maximum number of steps was taken on a subset.
            larger = n if done else LARGER * state.samples
            return replace(state, samples=n if 1.5 * larger > n else larger, rounds=0, damping=0.0, path=())
        if not fresh and self.objective.updates_curvature(n):
            # The estimates need the curvature itself: after a few updates it may be wrong in other directions.
            return renewed
        if done and not stalled:
            state = replace(state, messages=(*state.messages, f"joint: stopped after {self.steps} steps"))
        elif to_weigh:
            weight = self._weight(model, state)
            state = replace(state, weighed=True)
            if weight != state.strength.weight:
                message = f"joint: the prior weighs {weight:g} samples, by the leave-one-out estimate of the loss"
                strength = replace(state.strength, weight=weight)
                state = replace(state, strength=strength, rounds=0, damping=0.0, messages=(*state.messages, message))
            return state
        return self._judged(state, posterior)

    def _adapted(self, state: State, prior: Prior, model: Model, updates: bool) -> tuple[State, Posterior]:
        """Return the state, with dispersion and smoothness updated if `updates`, and the posterior at its vector."""
        strength, dispersion = state.strength, state.dispersion
        if not dispersion:
            strength, dispersion = prior.first(self._first_weight), first_dispersion(model)
        labels = (
            isinstance(self.objective.samples.fitted.target, Tensor)
            and not self.objective.samples.fitted.target.is_floating_point()
        )
        likelihood = labels and self.objective.problem.loss.is_cross_entropy
        posterior = self.objective.posterior(state, model, strength, dispersion)
        for _ in range(UPDATES if updates else 0):
            dispersion = dispersion_of(posterior, prior, strength, likelihood)
            if state.rounds:  # at the initial vector the change from the prior's mean is 0 and determines no smoothness
                strength = prior.smoother(strength, state.vector_P, posterior.covariances())
            before, posterior = posterior.effective, self.objective.posterior(state, model, strength, dispersion)
            if abs(posterior.effective - before) < STEADY * before:
                break
        return replace(state, strength=strength, dispersion=dispersion, rounds=state.rounds + 1), posterior

    def _enough(self, posterior: Posterior, last: bool) -> float:
        """Return the Newton decrement of the log-posterior below which steps end; less for the last ones.

        The last steps are those on all samples, with the selected prior.
        """
        if self.target == "logits":
            return NOT_NOISY * posterior.model.samples
        return max(SETTLED, (SHARE_OF_NOISE if last else SHARE_OF_PART) * posterior.effective)

    def _weight(self, model: Model, state: State) -> float:
        """Return the largest weight whose leave-one-out estimate of the loss is not clearly above the least.

        It is the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3),
        with half a standard error of the paired difference: with a full one, much of the gain from few samples is lost
        (benchmarks/digits.py). The estimate is taken at the optimum of the quadratic model under each weight. If the
        targets are the base network's outputs, weights that are estimated worse than the start are left out, unless
        all are.
        """
        posteriors = [
            self.objective.posterior(state, model, replace(state.strength, weight=weight), state.dispersion)
            for weight in WEIGHTS
        ]
        changes_WN = left_out(posteriors, [posterior.block_step() for posterior in posteriors])

        weights = [weight for weight in WEIGHTS if weight >= state.strength.weight]
        if len(weights) < len(WEIGHTS):
            # Few samples begin with a heavier prior. Its weight is not lowered unless they refute the prior's mean.
            before_N, after_N = (
                self.objective.losses(at_P, self.objective.samples.fitted) for at_P in (state.mean_P, state.vector_P)
            )
            gain = _gain("", before_N - after_N - changes_WN[WEIGHTS.index(state.strength.weight)])
            weights = list(WEIGHTS) if gain.gain > REFUTED * gain.error else weights
        changes_WN = changes_WN[[WEIGHTS.index(weight) for weight in weights]]
        excess_WN = changes_WN - changes_WN[changes_WN.mean(1).argmin()]
        deviation_W = excess_WN.std(1, correction=min(1, state.samples - 1))
        alike = excess_WN.mean(1) <= CLEARLY * deviation_W / state.samples**0.5
        if self.target == "logits":
            # A heavy weight that is only "not clearly worse" could lead back to the start: there is no noise to fear.
            start_N = self.objective.losses(state.start_P, self.objective.samples.fitted)
            better = model.loss + changes_WN.mean(1) < start_N.mean()
            alike = alike & better if (alike & better).any() else alike
        return max(weight for weight, is_alike in zip(weights, alike.tolist(), strict=True) if is_alike)

    def _judged(self, state: State, posterior: Posterior) -> State:
        """Return the final state, with the result or the initial parameters, or the state before cross-validation."""
        fitted, heldout = self.objective.samples.fitted, self.objective.samples.heldout
        at_P = state.vector_P
        before, after = (self.objective.losses(vector_P, fitted) for vector_P in (state.start_P, at_P))
        if after.isfinite().all() and not before.isfinite().all():
            return self._ended(state)  # any finite loss is better than an initial one that is not finite
        # The estimate is a linear approximation, and for an outlier it can exceed every loss that occurs: clamp it.
        worst = max(before.max().item(), after.max().item())
        own_N = left_out([posterior], [torch.zeros_like(at_P)])[0].clamp(max=worst)
        gains = [_gain("leave-one-out estimate", before - after - own_N)]
        if len(heldout):
            before, after = (self.objective.losses(vector_P, heldout) for vector_P in (state.start_P, at_P))
            gains.append(_gain("held-out set", before - after))
        on_heldout = [gain for gain in gains[1:] if gain.significant]
        worse = [gain for gain in on_heldout if gain.gain < 0]
        if gains[0].gain <= 0 and on_heldout and not worse:
            # Without a prior, parameters that hardly any sample determines make the estimate arbitrarily large.
            message = (
                f"the held-out set shows a gain, although an estimate from the fitted samples does not ({gains[0]})"
            )
            state, gains = replace(state, messages=(*state.messages, message)), on_heldout
        if gains[0].gain > 0 and not worse:
            if self.folds:
                return replace(state, phase="validation")
            return self._ended(state, *gains)
        return self._restored(state, (worse or gains)[0])

    def _validation(self, state: State) -> State:
        """Identify from all folds but one and evaluate on this one; after the last fold judge the result by them.

        Few samples choose the prior's weight and smoothness and that there is a gain at all, so the leave-one-out
        estimate of this gain is too high. Cross-validation repeats these choices without the samples that judge.
        """
        samples, problem = self.objective.samples, self.objective.problem
        n, fold = len(samples.fitted), len(state.folds)
        if fold < self.folds:
            first, stop = (n * at // self.folds for at in (fold, fold + 1))
            others_N = torch.cat([torch.arange(first), torch.arange(stop, n)]).to(samples.fitted.device)
            fewer = replace(samples, fitted=samples.fitted.at(others_N), raw=samples.raw.at(others_N))
            refit = replace(self, objective=replace(self.objective, samples=fewer), folds=0)
            problem.coordinates.write(state.start_P)
            found = refit.start(time.perf_counter())
            while found.phase != "done":
                problem.coordinates.write(found.vector_P)
                found = refit.advance(found)
            fold_samples = samples.fitted.part(first, stop)
            before_N, after_N = (self.objective.losses(at_P, fold_samples) for at_P in (state.start_P, found.vector_P))
            return replace(state, folds=(*state.folds, tuple((before_N - after_N).tolist())))
        gain = _gain(f"{self.folds}-fold cross-validation", torch.tensor(sum(state.folds, ()), dtype=torch.float64))
        no_gain = not any(map(any, state.folds))  # all refits ended at their start
        if no_gain or (gain.significant and gain.gain < 0):
            return self._restored(state, gain)
        return self._ended(state, gain)

    def _ended(self, state: State, *gains: Gain) -> State:
        """Return the final state with the result and its gains."""
        step = self._step(state.steps, "end", state.vector_P, self.objective.samples.fitted, heldout=True)
        return self._done(replace(state, steps=(*state.steps, step), gains=gains))

    def _restored(self, state: State, why: Gain) -> State:
        """Return the final state with the initial parameters, because of a gain that is none."""
        message = f"the result is no better than the start, and is the start ({why})"
        restored = self._moved(state, "start", state.start_P, self.objective.samples.fitted, message, heldout=True)
        return self._done(restored)

    def _done(self, state: State) -> State:
        """Return the state with phase "done", and a message if its outputs hardly vary over the samples."""
        state = replace(state, phase="done")
        if not self.objective.has_collapsed(state.vector_P, state.start_P):
            return state
        message = "joint: the outputs hardly depend on the inputs any more"
        if self.objective.base is None:
            message += ": give the network that this one was made from as base="
        return replace(state, messages=(*state.messages, message))

    def _uncertainty(self, state: State) -> Uncertainty:
        prior = self.objective.prior(state.mean_P)
        strength = replace(state.strength, weight=WEIGHTS[0]) if self.prior == "auto" else state.strength
        n = len(self.objective.samples.fitted)
        state = replace(state, samples=n)
        model = self.objective.model((state.vector_P,), n)
        posterior = self.objective.posterior(state, model, strength, state.dispersion)
        shift_P = -posterior.block_step()  # from the optimum under this prior, by the quadratic model, to the result
        coordinates, probes = self.objective.problem.coordinates, self.objective.probes_for(n)
        return uncertainty(posterior, prior, strength, state.dispersion, coordinates, shift_P, n, probes)

    @property
    def _first_weight(self) -> float | None:
        """The initial weight of the prior; larger for few samples with labels, whose noise is easily fitted.

        The outputs of a base network have no noise. Even a few of them must be able to overrule the prior if the family
        cannot represent the original activation, because the prior's mean is then far from the base network.
        """
        if not isinstance(self.prior, str):
            return self.prior
        few = len(self.objective.samples.fitted) < FIRST_SUBSET
        return FEW_WEIGHT if few and self.target == "labels" else WEIGHTS[0]

    def _moved(
        self, state: State, phase: str, vector_P: Tensor, samples: Batch, message: str, heldout: bool = False
    ) -> State:
        step = self._step(state.steps, phase, vector_P, samples, heldout)
        return replace(state, vector_P=vector_P, steps=(*state.steps, step), messages=(*state.messages, message))

    def _step(
        self, steps: tuple[Step, ...], phase: str, vector_P: Tensor, samples: Batch, heldout: bool = False
    ) -> Step:
        objective, unseen = self.objective, self.objective.samples.heldout
        judged = objective.loss(vector_P, unseen) if heldout and len(unseen) else None
        return Step(len(steps), phase, len(samples), objective.loss(vector_P, samples), judged)


def _gain(judged_by: str, gain_N: Tensor) -> Gain:
    error = (gain_N.std() / len(gain_N) ** 0.5).item() if len(gain_N) > 1 else float("inf")
    return Gain(judged_by, gain_N.mean().item(), error, len(gain_N))
