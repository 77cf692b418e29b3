"""Identify the adaptive activations of a network by Gauss-Newton, with everything else frozen.

The phases in order: lower slopes until they are trainable; match a poor initialization to the base network, layer by
layer; tune all parameters together in damped steps on loss plus prior, first on a subset of 500 samples and in the end
on all; judge the result; compute standard errors. Read `Identifier.advance` and `Identifier._joint` first.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import LARGEST, Stopped, UserError, check_count, check_name, check_seed, is_number
from aafit.identification.coordinates import Coordinates
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
from aafit.identification.problem import Problem
from aafit.identification.result import HEADER, Gain, Identification, State, Step
from aafit.identification.samples import prepare
from aafit.identification.slope import outputs_changed, smoothest
from aafit.identification.uncertainty import Uncertainty, uncertainty
from aafit.networks.adaptive import train_only_activations
from aafit.networks.batches import Batch
from aafit.networks.running import own_modes, replaced_paths, with_matching_modules
from aafit.progress import ShowProgress, progress
from aafit.training.losses import LossLike, as_loss
from aafit.training.predictor import Output, Predictor, unwrapped

TARGETS = ("labels", "logits", "activations")
CURVATURES = ("exact", "sampled")
OUTPUTS_FOR_SLOPES = 1 << 18  # number of outputs, at most, on which the effect of lower slopes is measured
FIRST_SUBSET = 500  # number of samples of the first joint steps
LARGER = 8  # factor by which the subset grows once the steps on it have converged
TRUSTED = 0.25  # relative error of the predicted decrease up to which the next step uses the same curvature
SETTLED = 0.05  # least Newton decrement of the log-posterior: below, the search ends (a third of a standard error)
STALLED = 0.02  # decrease of the negative log-posterior: the search ends after two steps that both achieve less
SHARE_OF_NOISE = 0.02  # Newton decrement for each effective parameter at which the last steps end
SHARE_OF_PART = 0.25  # the same for steps on a subset, and for those before the prior's weight is selected
NOT_NOISY = 0.01  # Newton decrement for each sample at which steps end if the targets are the base network's outputs
STEADY = 0.02  # relative change of the effective number of parameters at which updates of the prior's strength end
UPDATES = 5  # most updates of the prior's strength at one vector
CLEARLY = 0.5  # standard errors above the least loss up to which the largest weight of the prior is selected
REFUTED = 4.0  # standard errors of the gain over the prior's mean above which few samples may lower its weight
FEW_WEIGHT = 100.0  # initial weight of the prior for fewer than FIRST_SUBSET samples
MOST_ROUNDS = 8  # most vectors at which the prior's strength is updated on one subset

logger = logging.getLogger(__name__)


def identify(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    base: nn.Module | None = None,
    target: str = "labels",
    output: Output | None = None,
    loss: LossLike | None = None,
    prior: float | str | None = "auto",
    steps: int = 30,
    heldout: float | None = None,
    curvature: str = "sampled",
    budget: float = 0.005,
    memory: int = 2 << 30,
    batch_size: int | None = None,
    precision: str = "float32",
    seed: int = 0,
    errors: bool = True,
    state: State | None = None,
    after_step: Callable[[State], None] | None = None,
    verbose: bool = True,
) -> Identification:
    """Identify the adaptive activations of `net`, in place, from a few hundred or thousand samples.

    Minimizes, in evaluation mode and with all other parameters frozen, the mean loss over the samples plus a prior,

        n / dispersion * loss(t) + (t - m)^T A (t - m) / 2,

    by damped Gauss-Newton steps. The prior keeps an activation near the original function where the samples do not
    determine it; see `aafit.identification.prior`. Use samples that the network was not trained on, or augmented ones:
    on its training samples the network is overfitted. The result depends on the arguments only. The initial parameters
    are restored if the result is significantly worse on the held-out samples, or no better by the leave-one-out
    estimate of the loss and not significantly better on the held-out samples.

    Args:
        net: a network with adaptive activations.
        batches: samples, iterated once: (inputs, labels), dictionaries with "labels", or the output of a tokenizer,
            see `aafit.networks.batches.as_batch`; sequences must have one length.
        base: the network that `net` was made from. The prior's mean is then its activations, as near as the family
            can represent them (but the initial ones if the target is labels and these are better), and a poor
            initialization is first matched to it layer by layer, without labels.
        target: "labels"; "logits" (the outputs of `base`, whatever they are, without labels); "activations" (those of
            `base`, layer by layer, without joint steps).
        output: selects the output tensor of what the network returns, such as `lambda out: out.last_hidden_state`:
            (B, K), (B, T, K) or (B, C, H, W).
        loss: CROSS_ENTROPY, SQUARED_ERROR, their names, one made by `loss_with_hessian`, or a function of outputs and
            target that returns the loss of each sample, (B,). Default: cross-entropy; squared error if the targets are
            the base network's outputs and the batches have no class labels. Positions with the label -100 do not count.
        prior: "auto" (its weight is selected by the leave-one-out estimate of the loss), a weight (a change of an
            activation by its standard deviation counts as much as that many samples; 1 is weak), or None for none.
        steps: maximum number of joint steps.
        heldout: share of the samples held out. The result is evaluated on them once. It is rejected if it is
            significantly worse there, and accepted if it is significantly better; apart from that they have no
            influence. Default: 0.2, or 0 for fewer than 500 samples.
        curvature: how to compute the curvature on all samples: "exact", with one backward pass for each output, or
            "sampled", from two random probes per sample, which is exact in expectation. For up to 1,000 samples
            and 2,000 parameters "sampled" takes more probes, and is exact for up to 16 outputs. Steps on a subset
            always take two probes.
        budget: how much the outputs may change when slopes are lowered, see `smooth_start`; 0 keeps the slopes.
        memory: bytes that the samples and the outputs of the frozen prefix may take.
        batch_size: samples per forward pass; by default the size of the largest batch, at most 128.
        precision: precision of the forward passes, as for `tune`.
        seed: seed of the order of the samples and of the random probes.
        errors: whether to compute standard errors, for up to 2,000 parameters. They take one curvature of up to 4,000
            samples: exact for up to 16 outputs per sample or with curvature="exact", else from 8 random probes per
            sample, or 2 above 4,096 outputs.
        state: the state to resume from, as `after_step` received it; all other arguments must be the same.
        after_step: called with the state before the first step and after each.
        verbose: whether to show the progress: a bar on a terminal and in a notebook, a line a step elsewhere.

    Returns:
        The steps, the gain, the parameters and their standard errors.

    Raises:
        UserError: the network has no adaptive activation or is scripted; there are no samples or too few held out, they
            are not finite, or the network fails on them; labels do not fit its outputs; an argument has an unknown
            value; the loss has no Hessian; the target needs a base network and none is given; the weight of the prior
            is not above 0.
        Stopped: Ctrl-C was pressed; the network has the parameters of the last step, and the error has the state to
            resume from.

    Warns:
        UserWarning: `prior=None`, and fewer than two samples for each parameter.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), aafit.AHAF.like("SiLU"), torch.nn.Linear(8, 3))
        >>> found = aafit.identify(net, [(torch.randn(200, 4), torch.randint(3, (200,)))])
        >>> found.names
        ('1.gamma', '1.beta')
    """
    check_name("target", target, TARGETS)
    check_name("curvature", curvature, CURVATURES)
    check_count("number of steps", steps, least=0)
    if batch_size is not None:
        check_count("batch size", batch_size)
    check_seed(seed)
    _check_prior(prior)
    if loss is not None:
        loss = as_loss(loss)
    if base is None and target != "labels":
        raise UserError(f"The target {target!r} is the base network's: give the network as base=.")
    net = unwrapped(net)
    coordinates = Coordinates(net)
    if state is not None and not (isinstance(state, State) and len(state.vector_P) == len(coordinates)):
        raise UserError(f"state= is no state of an identification of {len(coordinates)} parameters: give error.state.")
    if base is not None:
        base = _matching_base(unwrapped(base), net)
    train_only_activations(net)
    began = time.perf_counter()
    with own_modes(net, *([] if base is None else [base])), progress("identify", steps, verbose) as show:
        net.eval()
        if base is not None:
            base.eval()
        predictor = Predictor(net, output, precision, batch_size)
        of_base = None if base is None else predictor.of(base)
        samples = prepare(predictor, batches, None if target == "labels" else of_base, loss, heldout, memory, seed)
        of_base = None if base is None else predictor.of(base)  # again: `prepare` may have set the batch size
        problem = Problem(samples.predictor, coordinates, samples.loss)
        problem.check(samples.fitted)
        if len(samples.heldout):
            problem.check(samples.heldout)
        if prior is None and target == "labels" and len(samples.fitted) < 2 * len(coordinates):
            warnings.warn(
                f"{len(coordinates)} parameters are identified from {len(samples.fitted)} samples without a prior, and "
                'may fit their noise: give more samples, or prior="auto".',
                stacklevel=2,
            )
        objective = Objective(net, of_base, samples, problem, curvature == "exact", seed)
        identifier = Identifier(objective, target, prior, steps, budget, errors)
        try:
            if state is None:
                state = identifier.start(began)
            while True:
                coordinates.write(state.vector_P)
                _show(state, show, steps)
                if after_step:
                    after_step(state)
                if state.phase == "done":
                    return identifier.result(state)
                state = identifier.advance(state)
        except KeyboardInterrupt:
            if state is None:
                raise
            coordinates.write(state.vector_P)
            raise Stopped(
                f"Stopped after step {state.steps[-1].number}: the network has the parameters of this step. The same "
                "call with state=error.state resumes bit-identically, where error is this exception (in a notebook or "
                "shell sys.last_value).",
                state,
            ) from None


def _matching_base(base: nn.Module, net: nn.Module) -> nn.Module:
    """Return the base network with a module at the path of each adaptive activation of `net`.

    Raises:
        UserError: `base` is `net` itself, or `net` was not made from it.
    """
    if base is net:
        raise UserError("The base is the network itself: give the one in which activations were replaced.")
    matching = with_matching_modules(base, net)
    replaced_paths(matching, net)
    return matching


def _show(state: State, show: ShowProgress, steps: int) -> None:
    last, joint = state.steps[-1], sum(step.phase == "joint" for step in state.steps)
    done = steps if state.phase == "done" else min(joint, steps - 1)
    show(done, f"step {last.number} ({last.phase}), {last.samples} samples: loss {last.loss:.5g}")


def _check_prior(prior: float | str | None) -> None:
    if isinstance(prior, str):
        check_name("prior", prior, ("auto",))
    elif prior is not None and not (is_number(prior) and 0 < prior <= LARGEST):
        raise UserError(
            f'The weight of the prior must be a number above 0 and at most {LARGEST}, "auto", or None for no prior; '
            f"got {prior!r}."
        )


@dataclass(frozen=True)
class Identifier:
    """The phases of one identification; each method takes a `State` and returns the next one.

    Attributes:
        objective: Loss and prior.
        target, prior, steps, budget, errors: As for `identify`.
    """

    objective: Objective
    target: str
    prior: float | str | None
    steps: int
    budget: float
    errors: bool

    def start(self, began: float) -> State:
        """Return the state before any step."""
        vector_P = self.objective.problem.coordinates.read()
        n = len(self.objective.samples.fitted)
        step = self._step((), "start", vector_P, self.objective.few, heldout=True)
        step = replace(step, seconds=time.perf_counter() - began)
        logger.info("%s\n%s", HEADER, step)
        return State("slope", vector_P, vector_P, vector_P, min(FIRST_SUBSET, n), (step,))

    def advance(self, state: State) -> State:
        """Return the state after one step of its phase, which may end the phase without a step."""
        began = time.perf_counter()
        phases = {"slope": self._slope, "layers": self._layers, "joint": self._joint}
        further = phases[state.phase](state)
        last = replace(further.steps[-1], seconds=state.steps[-1].seconds + time.perf_counter() - began)
        further = replace(further, steps=(*further.steps[:-1], last))
        if len(further.steps) > len(state.steps):
            logger.info("%s", last)
        for message in (*further.messages[len(state.messages) :], *further.gains[len(state.gains) :]):
            logger.info("%s", message)
        return further

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
        """Take one damped step of all parameters, enlarge the subset, select the prior's weight, or end."""
        prior, n = self.objective.prior(state.mean_P), len(self.objective.samples.fitted)
        whole, to_weigh = state.samples == n, self.prior == "auto" and not state.weighed
        # On a subset the curvature is cheap, so it is computed again after every step.
        curved_P = state.vector_P if state.curved_P is None or not whole else state.curved_P
        state = replace(state, curved_P=curved_P)
        model = self.objective.model(state.vector_P, state.samples, curved_P)
        if not model.is_finite:
            raise UserError(
                "The loss of the network is not finite: start from other values of the activations, or give the "
                "network that it was made from as base=, so that they can be matched to it."
            )
        state, posterior = self._adapted(state, prior, model)
        per_sample = state.samples / state.dispersion
        decrement = posterior.decrement() * per_sample
        last = [step.gained or 0.0 for step in state.steps[-2:]]
        # If the quadratic model is wrong, as for the slope of a ReLU, the decrement never becomes small enough.
        stalled = whole and state.rounds > 2 and max(last) * per_sample < STALLED
        done = stalled or sum(step.phase == "joint" for step in state.steps) >= self.steps
        accepted = None
        if not done and decrement >= self._enough(posterior, whole and not to_weigh):
            sample = self.objective.samples.fitted.part(0, state.samples)
            fresh = torch.equal(curved_P, state.vector_P)
            accepted = descend(
                posterior,
                lambda vector_P: self.objective.loss(vector_P, sample),
                state.damping,
                *([] if fresh else [state.damping]),
            )
            if accepted is None and not fresh:
                return replace(state, curved_P=None)
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
            poor = abs(accepted.gained / accepted.predicted - 1) > TRUSTED or len(self.objective.groups) > 1
            return replace(
                state,
                vector_P=accepted.vector_P,
                curved_P=None if poor else state.curved_P,
                damping=accepted.damping,
                steps=(*state.steps, step),
            )
        if not whole:
            # The result is evaluated on all samples even if the maximum number of steps was taken on a subset.
            larger = n if done else LARGER * state.samples
            return replace(state, samples=n if 1.5 * larger > n else larger, rounds=0, damping=0.0, curved_P=None)
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

    def _adapted(self, state: State, prior: Prior, model: Model) -> tuple[State, Posterior]:
        """Return the state with dispersion and smoothness updated at its vector, and the posterior there."""
        strength, dispersion = state.strength, state.dispersion
        if not dispersion:
            strength, dispersion = prior.first(self._first_weight), first_dispersion(model)
        labels = (
            isinstance(self.objective.samples.fitted.target, Tensor)
            and not self.objective.samples.fitted.target.is_floating_point()
        )
        likelihood = labels and self.objective.problem.loss.is_cross_entropy
        posterior = self.objective.posterior(state, model, strength, dispersion)
        for _ in range(UPDATES if state.rounds < MOST_ROUNDS else 0):
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
        with half a standard error of the paired difference: a whole one loses much of the gain from few samples
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
        alike = excess_WN.mean(1) <= CLEARLY * excess_WN.std(1) / state.samples**0.5
        if self.target == "logits":
            # A heavy weight that is only "not clearly worse" could lead back to the start: there is no noise to fear.
            start_N = self.objective.losses(state.start_P, self.objective.samples.fitted)
            better = model.loss + changes_WN.mean(1) < start_N.mean()
            alike = alike & better if (alike & better).any() else alike
        return max(weight for weight, is_alike in zip(weights, alike.tolist(), strict=True) if is_alike)

    def _judged(self, state: State, posterior: Posterior) -> State:
        """Return the final state: the result with its gain, or the initial parameters if the result is no better."""
        fitted, heldout = self.objective.samples.fitted, self.objective.samples.heldout
        at_P = state.vector_P
        before, after = (self.objective.losses(vector_P, fitted) for vector_P in (state.start_P, at_P))
        if after.isfinite().all() and not before.isfinite().all():
            # Any finite loss is better than an initial one that is not finite.
            step = self._step(state.steps, "end", at_P, fitted, heldout=True)
            return replace(state, phase="done", steps=(*state.steps, step))
        # The estimate is a linear approximation, and for an outlier it can exceed every loss that occurs: clamp it.
        worst = max(before.max().item(), after.max().item())
        own_N = left_out([posterior], [torch.zeros_like(at_P)])[0].clamp(max=worst)
        gains = [_gain("leave-one-out estimate", before - after - own_N)]
        if len(heldout):
            before, after = (self.objective.losses(vector_P, heldout) for vector_P in (state.start_P, at_P))
            gains.append(_gain("held-out set", before - after))
        state = replace(state, phase="done")
        if self.objective.has_collapsed(at_P, state.start_P):
            message = "joint: the outputs hardly depend on the inputs any more"
            if self.objective.base is None:
                message += ": give the network that this one was made from as base="
            state = replace(state, messages=(*state.messages, message))
        on_heldout = [gain for gain in gains[1:] if gain.significant]
        worse = [gain for gain in on_heldout if gain.gain < 0]
        if gains[0].gain <= 0 and on_heldout and not worse:
            # Without a prior, parameters that hardly any sample determines make the estimate arbitrarily large.
            message = f"the held-out set refutes the estimate from the fitted samples, which is left out ({gains[0]})"
            state, gains = replace(state, messages=(*state.messages, message)), on_heldout
        if gains[0].gain > 0 and not worse:
            step = self._step(state.steps, "end", at_P, fitted, heldout=True)
            return replace(state, steps=(*state.steps, step), gains=tuple(gains))
        why = (worse or gains)[0]
        message = f"the result is no better than the start, and is the start ({why})"
        return self._moved(state, "start", state.start_P, fitted, message, heldout=True)

    def _uncertainty(self, state: State) -> Uncertainty:
        prior = self.objective.prior(state.mean_P)
        strength = replace(state.strength, weight=min(state.strength.weight, WEIGHTS[0]))
        if not isinstance(self.prior, str):
            strength = state.strength
        n = len(self.objective.samples.fitted)
        state = replace(state, samples=n)
        model = self.objective.model(state.vector_P, n, state.vector_P, final=True)
        posterior = self.objective.posterior(state, model, strength, state.dispersion)
        shift_P = -posterior.block_step()  # from the optimum under this prior, by the quadratic model, to the result
        coordinates, probes = self.objective.problem.coordinates, self.objective.probes
        return uncertainty(posterior, prior, strength, state.dispersion, coordinates, shift_P, n, probes)

    @property
    def _first_weight(self) -> float | None:
        """The initial weight of the prior; larger for few samples with labels, whose noise is easily fitted.

        The outputs of a base network have no noise. Few of them outweigh the prior where the family cannot represent
        the original activation, so that the prior's mean is far from the base network.
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
    return Gain(judged_by, gain_N.mean().item(), (gain_N.std() / len(gain_N) ** 0.5).nan_to_num().item(), len(gain_N))
