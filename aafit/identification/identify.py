"""Identify the adaptive activations of a network by Gauss-Newton, with everything else frozen.

The map: images in two parts, one to fit and one held out -> the frozen prefix, once -> a steepness that can move ->
where a base network is given and the start is far from it, layer by layer -> all together, in damped steps on a growing
sample, until a step is worth less than the noise of the images -> standard errors.
"""

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from aafit.errors import UserError, check_count, check_name
from aafit.identification.coordinates import Coordinates
from aafit.identification.identifier import Identifier
from aafit.identification.losses import Loss, as_loss
from aafit.identification.problem import Problem
from aafit.identification.result import Identification, State
from aafit.identification.samples import prepare
from aafit.networks.adaptive import train_only_activations
from aafit.networks.as_modules import like_for_like
from aafit.networks.modes import own_modes
from aafit.networks.outputs import Output

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
    loss: Loss | str | Callable[[Tensor, Tensor], Tensor] | None = None,
    steps: int = 30,
    heldout: float = 0.2,
    curvature: str = "sampled",
    ridge: float = 0.0,
    budget: float = 0.005,
    memory: int = 2 << 30,
    batch_size: int = 128,
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
            see `aafit.networks.inputs.as_batch`; of sequences all of one length.
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
        batch_size: samples at once.
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
    check_count("batch size", batch_size)
    if loss is not None:
        loss = as_loss(loss)
    if base is None and target != "labels":
        raise UserError(f"The target {target!r} is the base network's: give the network as base=.")
    coordinates = Coordinates(net)
    train_only_activations(net)
    began = time.perf_counter()
    with own_modes(net, *([] if base is None else [base])):
        net.eval()
        if base is not None:
            base = like_for_like(base, net).eval()
        of_base = None if target == "labels" else base
        samples = prepare(net, batches, of_base, loss, heldout, memory, batch_size, precision, seed, output)
        problem = Problem(samples.rest, coordinates, samples.loss, batch_size, precision, output)
        problem.check(samples.fitted)
        problem.check(samples.heldout)
        if target == "labels" and len(samples.fitted) < ENOUGH * len(coordinates):
            warnings.warn(
                f"{len(coordinates)} parameters are identified from {len(samples.fitted)} images, which can fit their "
                f"noise: give at least {ENOUGH} images for each parameter, or share the parameters.",
                stacklevel=2,
            )
        columns = None if curvature == "exact" else 1
        identifier = Identifier(net, base, target, samples, problem, steps, columns, ridge, budget, seed, errors)
        if state is None:
            state = identifier.start(began)
        while True:
            coordinates.write(state.vector_P)
            if after_step:
                after_step(state)
            if state.phase == "done":
                return identifier.result(state)
            state = identifier.advance(state)
