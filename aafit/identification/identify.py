"""Identify the adaptive activations of a network by Gauss-Newton, with everything else frozen.

The map: images in two parts, one to fit and one held out -> the frozen prefix, once -> a sharpness that can move ->
where a base network is given and the start is far from it, layer by layer -> all together, in damped steps on a growing
sample, until a step is worth less than the noise of the images -> standard errors.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_name
from aafit.evaluate import Batches, own_modes
from aafit.identification.collapse import collapsed, variation
from aafit.identification.coordinates import Coordinates
from aafit.identification.data import Parts, prepare
from aafit.identification.descent import DENSE, Descent, looked_at
from aafit.identification.layers import match_layers
from aafit.identification.losses import CROSS_ENTROPY, LOSSES, Loss
from aafit.identification.problem import Problem
from aafit.identification.result import HEADER, Identification, State, Step
from aafit.identification.sharpness import logits_changed, smoothest
from aafit.identification.uncertainty import uncertainty
from aafit.trainable import train_only_activations

log = logging.getLogger(__name__)

TARGETS = ("labels", "logits", "activations")
CURVATURES = ("exact", "sampled")
FEW = 256  # images are enough to match a layer, or to find what a sharpness changes
FIRST_SAMPLE = 500
FOR_ERRORS = 1000
FIRST_DAMPING = 1e-3


def identify(
    net: nn.Module,
    batches: Batches,
    *,
    base: nn.Module | None = None,
    target: str = "labels",
    loss: Loss | str = CROSS_ENTROPY,
    steps: int = 30,
    heldout: float = 0.2,
    curvature: str = "sampled",
    ridge: float = 0.0,
    budget: float = 0.005,
    memory: int = 2 << 30,
    batch_size: int = 128,
    precision: str = "float32",
    seed: int = 0,
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
        net: a network with adaptive activations, whose first dimension is the images.
        batches: (images, labels); gone through once.
        base: the network that `net` was made from. With it a start that is far from it is first brought near, layer by
            layer from the input on, which needs no labels.
        target: "labels"; "logits" (the outputs of `base`; no labels are looked at); "activations" (those of `base`,
            layer by layer, and nothing after that).
        loss: CROSS_ENTROPY, SQUARED_ERROR, their names, or one made by `loss_with_hessian`.
        steps: joint steps at most.
        heldout: share of the images held out: no step is kept that does worse on them.
        curvature: "exact", with a backward pass for each output, or "sampled": right on average, with one.
        ridge: weight of half the squared distance from the start, in the coordinates of the steps.
        budget: how much a sharpness that cannot move may be lowered, see `smooth_start`; 0 leaves it.
        memory: bytes that the images and the outputs of the frozen prefix may take.
        batch_size: images at once.
        precision: of the forward passes, as for `tune`.
        seed: of the order of the images and the random columns.
        state: where an earlier call was, given by its `after_step`; all other arguments must be as they were then.
        after_step: called with the state after each step.

    Raises:
        UserError: nothing to identify, no images or none held out, images that are not finite, an unknown word, a loss
            without a Hessian, a target that needs a base where there is none.
    """
    check_name("target", target, TARGETS)
    check_name("curvature", curvature, CURVATURES)
    loss = _loss(loss)
    if base is None and target != "labels":
        raise UserError(f"The target {target!r} is the base network's: give the network as base=.")
    train_only_activations(net)
    coordinates = Coordinates(net)
    began = time.perf_counter()
    with own_modes(net, *([] if base is None else [base])):
        net.eval()
        if base is not None:
            base.eval()
        of_base = None if target == "labels" else base
        probabilities = loss is CROSS_ENTROPY
        parts = prepare(net, batches, of_base, probabilities, heldout, memory, batch_size, precision, seed)
        problem = Problem(parts.rest, coordinates, loss, batch_size, precision)
        columns = None if curvature == "exact" else 1
        run = _Run(net, base, target, parts, problem, steps, columns, ridge, budget, seed)
        state = run.start(began) if state is None else state
        while True:
            coordinates.write(state.vector_P)
            if after_step:
                after_step(state)
            if state.phase == "done":
                return run.result(state)
            state = run.advance(state)


def _loss(loss: Loss | str) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise UserError(f"The loss {loss!r} has no Hessian by the outputs: make it one with loss_with_hessian.")
    return LOSSES[check_name("loss", loss, LOSSES)]


@dataclass(frozen=True)
class _Run:
    """One identification: from each state to the next. The fields are those of `identify`, or made from them."""

    net: nn.Module
    base: nn.Module | None
    target: str
    parts: Parts
    problem: Problem
    steps: int
    columns: int | None
    ridge: float
    budget: float
    seed: int

    def start(self, began: float) -> State:
        """The state before any step."""
        vector_P = self.problem.coordinates.read()
        few = self.parts.fitted.part(0, FEW)
        heldout_loss, depends = self._heldout(vector_P)
        if self.base is not None:
            # The base's outputs depend on the images as they should, those of a far start perhaps no longer.
            depends = variation(self._base_outputs(), self._probabilities)
        loss, _ = looked_at(self.problem, vector_P, few)
        step = Step(0, "start", len(few), loss, heldout_loss, seconds=time.perf_counter() - began)
        log.info("%s\n%s", HEADER, step)
        return State("sharpness", vector_P, vector_P, depends, FIRST_DAMPING, FIRST_SAMPLE, (step,), (vector_P,))

    def advance(self, state: State) -> State:
        """Do what the state's phase says."""
        began = time.perf_counter()
        phases = {"sharpness": self._sharpness, "layers": self._layers, "joint": self._joint}
        further = phases[state.phase](state)
        last = replace(further.steps[-1], seconds=state.steps[-1].seconds + time.perf_counter() - began)
        further = replace(further, steps=(*further.steps[:-1], last))
        if len(further.steps) > len(state.steps):
            log.info("%s", last)
        for message in further.messages[len(state.messages) :]:
            log.info("%s", message)
        return further

    def result(self, state: State) -> Identification:
        """What is known at the end."""
        coordinates = self.problem.coordinates
        errors = None
        if len(coordinates) <= DENSE and self.target != "activations":
            # The matrices of some images are as good as those of all; the number of all is what the errors depend on.
            some = self.parts.fitted.part(0, FOR_ERRORS)
            model = self.problem.quadratic(state.vector_P, some, self.columns, self.seed)
            model = replace(model, images=len(self.parts.fitted))
            ridge_P = torch.full((len(coordinates),), self.ridge, dtype=torch.float64)
            errors = uncertainty(model, coordinates, state.vector_P, ridge_P)
        return Identification(
            state=state,
            names=tuple(coordinates.names),
            start=tuple(coordinates.values(state.start_P).tolist()),
            values=tuple(coordinates.values(state.vector_P).tolist()),
            uncertainty=errors,
            images=len(self.parts.fitted),
            heldout_images=len(self.parts.heldout),
            memory=self.parts.memory,
            collapsed=collapsed(self._heldout(state.vector_P)[1], state.variation),
        )

    def _sharpness(self, state: State) -> State:
        """Lower a sharpness that cannot move, as far as the outputs stay what they are."""
        following = replace(state, phase="layers")
        if not self.budget:
            return following
        few, coordinates = self.parts.fitted.part(0, FEW), self.problem.coordinates

        def outputs(vector_P: Tensor) -> Tensor:
            return self.problem.outputs(vector_P, few)

        vector_P, ceiling = smoothest(coordinates, state.vector_P, outputs, self.budget, logits_changed)
        if ceiling is None:
            return following
        message = (
            f"sharpness: lowered to at most {ceiling:.4g}, where it can move; the outputs change by "
            f"{logits_changed(outputs(state.vector_P), outputs(vector_P)):.2%} of their standard deviation"
        )
        return self._moved(following, "sharpness", vector_P, len(few), message)

    def _layers(self, state: State) -> State:
        """Match a far start to the base network, layer by layer."""
        after = replace(state, phase="done" if self.target == "activations" else "joint")
        if self.base is None or not (self.target == "activations" or self._is_far(state)):
            return after
        raw = self.parts.raw[:FEW].split(self.problem.batch_size)
        self.problem.coordinates.write(state.vector_P)
        matched = tuple(match_layers(self.net, self.base, raw, self.seed))
        vector_P = self.problem.coordinates.read()
        heldout_loss, depends = self._heldout(vector_P)
        if self.target != "activations" and not (
            heldout_loss < state.steps[-1].heldout_loss and not collapsed(depends, state.variation)
        ):
            return replace(after, messages=(*state.messages, "layers: matching them did not bring the start nearer"))
        worst = max(matched, key=lambda row: row.after)
        message = (
            "layers: the start is far from the base network, so each activation was matched to it from the input on; "
            f"what is left is at most {worst.after:.2%} of a layer's standard deviation ({worst.path})"
        )
        return self._moved(replace(after, matched=matched), "layers", vector_P, len(self.parts.raw[:FEW]), message)

    def _joint(self, state: State) -> State:
        """One damped step of all parameters together, or a larger sample to look for one on."""
        done = sum(step.phase == "joint" for step in state.steps)
        if done >= self.steps:
            return self._best(state, f"stopped after {done} steps, as asked for")
        descent = Descent(self.problem, self.parts.heldout, self.columns, self.ridge, state.start_P, state.variation)
        images = min(state.images, len(self.parts.fitted))
        sample = self.parts.fitted.part(0, images)
        outcome = descent.step(
            state.vector_P, sample, state.damping, state.steps[-1].heldout_loss, self.seed + len(state.steps)
        )
        larger = 2 * images if outcome.predicted < outcome.noise or not outcome.moved else images
        messages = state.messages
        if outcome.collapsed:
            messages = (*messages, "joint: refused a step whose outputs hardly depended on the images any more")
        whole = images == len(self.parts.fitted)
        if not outcome.moved:
            state = replace(state, messages=messages, images=larger, damping=FIRST_DAMPING)
            return self._best(state) if whole else state
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
            vectors=(*state.vectors, outcome.vector_P),
            messages=messages,
        )
        # Steps converge quadratically: after one that was worth less than the noise the next is worth nothing.
        return self._best(state) if whole and outcome.predicted < outcome.noise else state

    def _best(self, state: State, *messages: str) -> State:
        """The end: where it is, or where it began if that does better on the images held out."""
        state = replace(state, phase="done", messages=(*state.messages, *messages))
        if state.steps[-1].heldout_loss <= state.steps[0].heldout_loss:
            return state
        message = "nothing did better on the held-out images: back to the start"
        return self._moved(state, "start", state.start_P, state.steps[0].images, message)

    def _moved(self, state: State, phase: str, vector_P: Tensor, images: int, message: str) -> State:
        loss, _ = looked_at(self.problem, vector_P, self.parts.fitted.part(0, images))
        step = Step(len(state.steps), phase, images, loss, self._heldout(vector_P)[0])
        return replace(
            state,
            vector_P=vector_P,
            steps=(*state.steps, step),
            vectors=(*state.vectors, vector_P),
            messages=(*state.messages, message),
        )

    def _is_far(self, state: State) -> bool:
        """Whether the base network does better on the first images by more than twice the standard error of that."""
        few = self.parts.fitted.part(0, FEW)
        own_N = self.problem.losses(self.problem.outputs(state.vector_P, few), few.targets)
        excess_N = own_N - self.problem.losses(self._base_outputs(), few.targets)
        return not excess_N.mean().item() <= 2 * excess_N.std().item() / len(few) ** 0.5

    def _base_outputs(self) -> Tensor:
        assert self.base is not None
        with torch.no_grad():
            return torch.cat([self.base(x_B) for x_B in self.parts.raw[:FEW].split(self.problem.batch_size)])

    def _heldout(self, vector_P: Tensor) -> tuple[float, float]:
        return looked_at(self.problem, vector_P, self.parts.heldout)

    @property
    def _probabilities(self) -> bool:
        return self.problem.loss is CROSS_ENTROPY
