"""Identify the adaptive activations of a network by Gauss-Newton, with everything else frozen.

The map: images in two parts, one to fit and one held out -> the frozen prefix, once -> a steepness that can move ->
where a base network is given and the start is far from it, layer by layer -> all together, in damped steps on a growing
sample, until a step is worth less than the noise of the images -> standard errors.

The phases of an identification: each takes one of its states to the next.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

from torch import Tensor, nn

from aafit.errors import UserError, check_count, check_name
from aafit.identification.coordinates import Coordinates
from aafit.identification.gauss_newton import (
    DENSE,
    LEAST,
    LEAST_GAIN,
    Descent,
    Spread,
    collapsed,
    measured,
    perfect_variation,
)
from aafit.identification.layerwise import match_layers
from aafit.identification.problem import Problem
from aafit.identification.result import HEADER, Identification, State, Step
from aafit.identification.samples import Samples, prepare
from aafit.identification.steepness import logits_changed, smoothest
from aafit.identification.uncertainty import uncertainty_at
from aafit.networks.adaptive import train_only_activations
from aafit.networks.batches import Batch, Output
from aafit.networks.running import own_modes
from aafit.networks.surgery import with_matching_modules
from aafit.training.distance import Distance
from aafit.training.losses import LossLike, as_loss, predictions
from aafit.training.predictor import Predictor, unwrapped

log = logging.getLogger(__name__)

FEW = 256  # samples are enough to match a layer, or to find what a steepness changes
MOST_NUMBERS = 1 << 20  # of outputs of these few samples: of long sequences and large maps there are fewer
LEAST_FEW = 8
ENOUGH_NUMBERS = 1 << 18  # of outputs, to find what a steepness changes
FIRST_SAMPLE = 500
LEFT = 0.05  # of the loss that is left: a step that promises less brings the base's outputs hardly nearer
FIRST_DAMPING = 1e-3
UNDAMPED = 1e-2  # below it a step goes nearly as far as the curvature says


@dataclass(frozen=True)
class Identifier:
    """One identification. The fields are the arguments of `identify`, or made from them."""

    net: nn.Module
    base: Predictor | None
    target: str
    samples: Samples
    problem: Problem
    steps: int
    columns: int | None
    ridge: float
    budget: float
    seed: int
    errors: bool

    def start(self, began: float) -> State:
        """The state before any step."""
        vector_P = self.problem.coordinates.read()
        few = self._few
        heldout_loss, depends = self._heldout(vector_P)
        if self.base is not None:
            # The base's outputs depend on the images as they should, those of a far start perhaps no longer.
            spread = Spread()
            for _, outputs in self.base.over(self._raw_few):
                spread.add(predictions(self.problem.loss, outputs))
            depends = spread.variation
        if not self.problem.loss.whole:
            outputs = self.problem.outputs(vector_P, few.part(0, 2))
            depends = max(depends, LEAST * perfect_variation(outputs, self.samples.heldout.target))
        loss, _ = measured(self.problem, vector_P, few)
        step = Step(0, "start", len(few), loss, heldout_loss, seconds=time.perf_counter() - began)
        log.info("%s\n%s", HEADER, step)
        return State("steepness", vector_P, vector_P, depends, FIRST_DAMPING, FIRST_SAMPLE, (step,))

    def advance(self, state: State) -> State:
        """One step of the state's phase."""
        began = time.perf_counter()
        phases = {"steepness": self._steepness, "layers": self._layers, "joint": self._joint}
        further = phases[state.phase](state)
        last = replace(further.steps[-1], seconds=state.steps[-1].seconds + time.perf_counter() - began)
        further = replace(further, steps=(*further.steps[:-1], last))
        if len(further.steps) > len(state.steps):
            log.info("%s", last)
        for message in further.messages[len(state.messages) :]:
            log.info("%s", message)
        return further

    def result(self, state: State) -> Identification:
        """The result at the end."""
        coordinates = self.problem.coordinates
        errors = None
        if self.errors and len(coordinates) <= DENSE and self.target != "activations":
            exact = self.columns is None
            errors = uncertainty_at(self.problem, state.vector_P, self.samples.fitted, self.ridge, exact, self.seed)
        return Identification(
            state=state,
            names=tuple(coordinates.names),
            start=tuple(coordinates.values(state.start_P).tolist()),
            values=tuple(coordinates.values(state.vector_P).tolist()),
            uncertainty=errors,
            images=len(self.samples.fitted),
            heldout_images=len(self.samples.heldout),
            memory=self.samples.memory,
            collapsed=collapsed(self._heldout(state.vector_P)[1], state.variation),
        )

    def _steepness(self, state: State) -> State:
        """Lower a steepness that cannot move, as far as the outputs stay what they are."""
        following = replace(state, phase="layers")
        if not self.budget:
            return following
        few, coordinates = self.samples.fitted.part(0, self._count_of(ENOUGH_NUMBERS)), self.problem.coordinates

        def outputs(vector_P: Tensor) -> Tensor:
            return self.problem.outputs(vector_P, few)

        vector_P, ceiling = smoothest(coordinates, state.vector_P, outputs, self.budget, logits_changed)
        if ceiling is None:
            return following
        message = (
            f"steepness: lowered to at most {ceiling:.4g}, where it can move; the outputs change by "
            f"{logits_changed(outputs(state.vector_P), outputs(vector_P)):.2%} of their standard deviation"
        )
        return self._moved(following, "steepness", vector_P, len(few), message)

    def _layers(self, state: State) -> State:
        """Match the activations of a far start to the base network's, layer by layer."""
        after = replace(state, phase="done" if self.target == "activations" else "joint")
        if self.base is None or not (self.target == "activations" or self._is_far(state)):
            return after
        raw = list(self.base.batches(self._raw_few))
        tried = []
        for inputs_of_base in (False, True):
            self.problem.coordinates.write(state.vector_P)
            matched = tuple(match_layers(self.net, self.base.net, raw, self.seed, inputs_of_base))
            vector_P = self.problem.coordinates.read()
            heldout_loss, depends = self._heldout(vector_P)
            flat = collapsed(depends, state.variation)
            tried.append((flat or not isfinite(heldout_loss), heldout_loss, flat, vector_P, matched))
        _, heldout_loss, flat, vector_P, matched = min(tried, key=lambda one: one[:2])
        worse = heldout_loss >= state.steps[-1].heldout_loss or flat
        if self.target != "activations" and worse:
            return replace(after, messages=(*state.messages, "layers: matching them did not bring the start nearer"))
        worst = max(matched, key=lambda row: row.after)
        why = "" if self.target == "activations" else "the start is far from the base network, so "
        message = (
            f"layers: {why}each activation was matched to the base's "
            f"{'on the inputs that it has there' if matched is tried[1][-1] else 'from the input on'}; "
            f"what is left is at most {worst.after:.2%} of a layer's standard deviation ({worst.path})"
        )
        return self._moved(replace(after, matched=matched), "layers", vector_P, len(self._raw_few), message)

    def _joint(self, state: State) -> State:
        """One damped step of all parameters together, or a larger sample for the next search."""
        if not isfinite(state.steps[-1].heldout_loss):
            raise UserError(
                "The loss of the network is not finite: start from other values of the activations, or give the "
                "network that it was made from as base=, so that they can be matched to it."
            )
        done = sum(step.phase == "joint" for step in state.steps)
        if done >= self.steps:
            return self._best(state, f"stopped after {done} steps, as asked for")
        descent = Descent(self.problem, self.samples.heldout, self.columns, self.ridge, state.start_P, state.variation)
        images = min(state.images, len(self.samples.fitted))
        sample = self.samples.fitted.part(0, images)
        outcome = descent.step(
            state.vector_P, sample, state.damping, state.steps[-1].heldout_loss, self.seed + len(state.steps)
        )
        # The squared distance from the base's outputs has hardly any noise, but what the activations cannot be stays.
        distance = self.target == "logits" and self.problem.loss.is_squared_error
        left = distance and outcome.damping < UNDAMPED and outcome.predicted < LEFT * outcome.loss
        larger = 2 * images if outcome.predicted < outcome.noise or not outcome.moved else images
        if left:
            larger = len(self.samples.fitted)
        messages = state.messages
        if outcome.collapsed:
            messages = (*messages, "joint: refused a step whose outputs hardly depended on the images any more")
        whole = images == len(self.samples.fitted)
        if not outcome.moved:
            state = replace(state, messages=messages, images=larger, damping=FIRST_DAMPING)
            if not whole:
                return state
            kept = "kept its promise, with a loss on the held-out images that is no higher"
            why = kept if outcome.promised else "promised enough"
            return self._best(state, *([] if done else [f"joint: no step was kept, since none {why}"]))
        step = Step(
            len(state.steps),
            "joint",
            images,
            outcome.loss,
            outcome.heldout_loss,
            outcome.damping,
            outcome.predicted,
            outcome.gained,
        )
        state = replace(
            state,
            vector_P=outcome.vector_P,
            damping=outcome.damping,
            images=larger,
            steps=(*state.steps, step),
            messages=messages,
        )
        # Undamped steps converge quadratically: after one that was worth less than the noise the next is worth nothing.
        settled = outcome.damping < UNDAMPED and outcome.predicted < outcome.noise
        # Damped ones may creep on for ever.
        settled = settled or outcome.predicted < LEAST_GAIN * abs(outcome.loss)
        return self._best(state) if whole and (left or settled) else state

    def _best(self, state: State, *messages: str) -> State:
        """The end: the present place, or the start where that does better on the held-out images."""
        state = replace(state, phase="done", messages=(*state.messages, *messages))
        # Not "<=": the loss at the start may not be a number.
        if not state.steps[-1].heldout_loss > state.steps[0].heldout_loss:
            return state
        message = "nothing did better on the held-out images: back to the start"
        return self._moved(state, "start", state.start_P, state.steps[0].images, message)

    def _moved(self, state: State, phase: str, vector_P: Tensor, images: int, message: str) -> State:
        loss, _ = measured(self.problem, vector_P, self.samples.fitted.part(0, images))
        step = Step(len(state.steps), phase, images, loss, self._heldout(vector_P)[0])
        return replace(
            state,
            vector_P=vector_P,
            steps=(*state.steps, step),
            messages=(*state.messages, message),
        )

    def _is_far(self, state: State) -> bool:
        """Whether the loss or the outputs of the first samples are far from the base network's."""
        assert self.base is not None
        distance = Distance()
        outputs = self.problem.outputs_by_batch(state.vector_P, self._few)
        for (batch, y), (_, of_base) in zip(outputs, self.base.over(self._raw_few), strict=True):
            distance.add(of_base, y)
            distance.add_losses(*(self.problem.scores(each, batch.target) for each in (of_base, y)))
        return distance.is_far

    @cached_property
    def _outputs_each(self) -> int:
        outputs = self.problem.outputs(self.problem.coordinates.read(), self.samples.fitted.part(0, 1))
        return max(1, outputs.numel())

    def _count_of(self, numbers: int) -> int:
        """How many samples have so many outputs: FEW at most, and LEAST_FEW in any case."""
        return max(LEAST_FEW, min(FEW, numbers // self._outputs_each))

    @property
    def _few(self) -> Batch:
        return self.samples.fitted.part(0, self._count_of(MOST_NUMBERS))

    @property
    def _raw_few(self) -> Batch:
        return self.samples.raw.part(0, self._count_of(MOST_NUMBERS))

    def _heldout(self, vector_P: Tensor) -> tuple[float, float]:
        return measured(self.problem, vector_P, self.samples.heldout)


TARGETS = ("labels", "logits", "activations")
CURVATURES = ("exact", "sampled")
ENOUGH = 2  # images for each parameter: with fewer the labels' noise is fitted, too


def identify(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    base: nn.Module | None = None,
    target: str = "labels",
    output: Output | None = None,
    loss: LossLike | None = None,
    steps: int = 30,
    heldout: float = 0.2,
    curvature: str = "sampled",
    ridge: float = 0.0,
    budget: float = 0.005,
    memory: int = 2 << 30,
    batch_size: int | None = None,
    precision: str = "float32",
    seed: int = 0,
    errors: bool = True,
    state: State | None = None,
    after_step: Callable[[State], None] | None = None,
) -> Identification:
    """Identify the adaptive activations of `net`, in place, from a few thousand images, in a few steps.

    Minimises the mean loss over the images by its adaptive parameters alone, in evaluation mode, by Gauss-Newton with
    Levenberg-Marquardt damping: with J the Jacobian of the outputs and H the Hessian of the loss by the outputs, a step
    d solves (J^T H J + damping diag(J^T H J)) d = -gradient. Take images that the network was not trained on, or
    augmented ones: it has memorised the others. The result depends on the arguments alone, and on nothing drawn
    elsewhere.

    Args:
        net: a network with adaptive activations.
        batches: of samples, gone through once: (inputs, labels), dictionaries with "labels", or what a tokenizer gives,
            see `aafit.networks.batches.as_batch`; of sequences all of one length.
        base: the network that `net` was made from. With it a start that is far from it is first brought near, layer by
            layer from the input on, which needs no labels.
        target: "labels"; "logits" (the outputs of `base`, whatever they are, without labels); "activations" (those of
            `base`, layer by layer, and nothing after that).
        output: from what the network returns to its outputs, as `lambda out: out.last_hidden_state`: (B, K), (B, T, K)
            or (B, C, H, W).
        loss: CROSS_ENTROPY, SQUARED_ERROR, their names, one made by `loss_with_hessian`, or a function of outputs and
            target that gives a number for each sample. By default the cross-entropy; where the target is the base's and
            the batches have no classes as labels, the squared error. A sample's loss is the mean over its positions;
            labels of -100 do not count.
        steps: joint steps at most.
        heldout: share of the images held out: no step is kept that does worse on them.
        curvature: "exact", with a backward pass for each output, or "sampled": right on average, with one.
        ridge: weight of half the squared distance from the start, in the coordinates of the steps.
        budget: how much a steepness that cannot move may be lowered, see `smooth_start`; 0 leaves it.
        memory: bytes that the images and the outputs of the frozen prefix may take.
        batch_size: samples at once; by default as many as the largest of the batches has, at most 128.
        precision: of the forward passes, as for `tune`.
        seed: of the order of the images and the random columns.
        errors: whether to find the standard errors, which takes two evaluations of the images for each parameter, on
            large networks longer than the search.
        state: where an earlier call was, given by its `after_step`; all other arguments must be as they were then.
        after_step: called with the state after each step.

    Raises:
        UserError: nothing to identify, a scripted network, no images or fewer than 4 held out, images that are not
            finite or that the network refuses, labels that do not fit its outputs, an unknown word, a loss without a
            Hessian, a target that needs a base where there is none.

    Warns:
        UserWarning: there are fewer than two samples to fit on for each parameter.
    """
    check_name("target", target, TARGETS)
    check_name("curvature", curvature, CURVATURES)
    check_count("number of steps", steps, least=0)
    if batch_size is not None:
        check_count("batch size", batch_size)
    if loss is not None:
        loss = as_loss(loss)
    if base is None and target != "labels":
        raise UserError(f"The target {target!r} is the base network's: give the network as base=.")
    net = unwrapped(net)
    coordinates = Coordinates(net)
    train_only_activations(net)
    began = time.perf_counter()
    with own_modes(net, *([] if base is None else [base])):
        net.eval()
        if base is not None:
            base = with_matching_modules(unwrapped(base), net).eval()
        predictor = Predictor(net, output, precision, batch_size)
        of_base = None if base is None else predictor.of(base)
        samples = prepare(predictor, batches, None if target == "labels" else of_base, loss, heldout, memory, seed)
        of_base = None if base is None else predictor.of(base)  # with the batch size of the samples
        problem = Problem(samples.predictor, coordinates, samples.loss)
        problem.check(samples.fitted)
        problem.check(samples.heldout)
        if target == "labels" and len(samples.fitted) < ENOUGH * len(coordinates):
            warnings.warn(
                f"{len(coordinates)} parameters are identified from {len(samples.fitted)} images, which can fit their "
                f"noise: give at least {ENOUGH} images for each parameter, or share the parameters.",
                stacklevel=2,
            )
        columns = None if curvature == "exact" else 1
        identifier = Identifier(net, of_base, target, samples, problem, steps, columns, ridge, budget, seed, errors)
        if state is None:
            state = identifier.start(began)
        while True:
            coordinates.write(state.vector_P)
            if after_step:
                after_step(state)
            if state.phase == "done":
                return identifier.result(state)
            state = identifier.advance(state)
