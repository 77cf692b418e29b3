"""Identify the adaptive activations of a network by Gauss-Newton, with everything else frozen.

`identify` prepares the samples, and takes the steps of `aafit.identification.identifier` to the end.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from aafit.errors import LARGEST, Stopped, UserError, check_count, check_name, check_seed, is_number
from aafit.identification.coordinates import Coordinates
from aafit.identification.identifier import FOLDS, Identifier
from aafit.identification.objective import Objective
from aafit.identification.problem import Problem
from aafit.identification.result import HEADER, Identification, State
from aafit.identification.samples import ENOUGH_TO_HOLD_OUT, prepare
from aafit.networks.adaptive import train_only_activations
from aafit.networks.running import own_modes, replaced_paths, with_matching_modules
from aafit.progress import ShowProgress, progress
from aafit.training.losses import LossLike, as_loss
from aafit.training.predictor import Output, Predictor, unwrapped

TARGETS = ("labels", "logits", "activations")
CURVATURES = ("exact", "sampled")

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

    by damped Gauss-Newton steps, with t the coordinates of the parameters, n the number of samples, and m and A the
    prior's mean and precision. The prior keeps an activation near the original function where the samples do not
    determine it; see `aafit.identification.prior`. Use samples that the network was not trained on, or augmented ones:
    on its training samples the network is overfitted. The result depends on the arguments only. The initial parameters
    are restored if the result is significantly worse on the held-out samples, or no better by the leave-one-out
    estimate of the loss and not significantly better on the held-out samples. With target="activations" there are no
    joint steps, and so no judgement, gain or standard errors.

    Args:
        net: a network with adaptive activations.
        batches: samples, iterated once: (inputs, labels), dictionaries with "labels", or the output of a tokenizer,
            see `aafit.networks.batches.as_batch`; sequences must have one length. Samples count as independent: with
            several copies of each, augmented or not, standard errors are too small and gains too certain.
        base: the network that `net` was made from. The prior's mean is then its activations, as near as the family
            can represent them (but the initial ones if the target is labels and these are better), and a poor
            initialization is first matched to it layer by layer, without labels.
        target: "labels"; "logits" (the outputs of `base`, whatever they are, without labels); "activations" (those of
            `base`, layer by layer, without joint steps).
        output: selects the output tensor of what the network returns, such as `lambda out: out.last_hidden_state`:
            (B, K), (B, T, K) or (B, C, H, W).
        loss: CROSS_ENTROPY, SQUARED_ERROR, their names, one made by `loss_with_hessian`, or a function of outputs and
            target that returns the loss of each sample, (B,). Default: cross-entropy; squared error if the targets are
            the base network's outputs and the batches have no class labels. For the cross-entropy positions with the
            label -100 do not count, and samples without any other label are left out. A function is called with outputs
            in float64, or in float32 if it fails on these.
        prior: "auto" (its weight is selected by the leave-one-out estimate of the loss), a weight (a change of an
            activation by its standard deviation counts as much as that many samples; 1 is weak), or None for none.
        steps: maximum number of joint steps. If they do not suffice, the weight of the prior is not selected.
        heldout: share of the samples held out. The result is evaluated on them once. It is rejected if it is
            significantly worse there, and accepted if it is significantly better; apart from that they have no
            influence. 0 for none: the gain is then the leave-one-out estimate. Default: 0.2 of 500 samples or more, 0
            of fewer. With this default, 10 to 499 samples and target="labels" the gain comes from 5-fold
            cross-validation, which takes up to five times as long as the identification.
        curvature: how to compute the curvature on all samples: "exact", with one backward pass for each output, or
            "sampled", from two random probes per sample, which is exact in expectation. For up to 1,000 samples
            and 2,000 parameters "sampled" takes 8 probes, or 2 above 4,096 outputs, and is exact for up to 16 outputs.
            Steps on a subset always take two probes.
        budget: how much the outputs may change when slopes are lowered, see `smooth_start`; 0 keeps the slopes.
        memory: bytes that the samples and the outputs of the frozen prefix may take.
        batch_size: samples per forward pass; by default the size of the largest batch, at most 128.
        precision: precision of the forward passes, as for `tune`.
        seed: seed of the order of the samples and of the random probes.
        errors: whether to compute standard errors, for up to 2,000 parameters. They take a curvature of up to 2,000
            samples, or 20 for each parameter if that is more, with the probes that `curvature` says.
        state: the state to resume from, as `after_step` received it; all other arguments must be the same.
        after_step: called with the state before the first step and after each.
        verbose: whether to show the progress: a bar on a terminal and in a notebook, a line a step elsewhere.

    Returns:
        The steps, the gain, the parameters and their standard errors.

    Raises:
        UserError: the network has no adaptive activation or is scripted; there are no samples or too few held out, they
            are not finite, or the network fails on them; labels do not fit its outputs; an argument has an unknown
            value; the loss has no Hessian, or is not finite; the target needs a base network and none is given; the
            base is `net` itself, or `net` was not made from it; the state is of another identification; the weight of
            the prior is not above 0.
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
        few = 2 * FOLDS <= len(samples.fitted) < ENOUGH_TO_HOLD_OUT
        folds = FOLDS if few and heldout is None and target == "labels" and not len(samples.heldout) else 0
        identifier = Identifier(objective, target, prior, steps, budget, errors, folds)
        try:
            if state is None:
                state = identifier.start(began)
                logger.info("%s\n%s", HEADER, state.steps[-1])
            while True:
                coordinates.write(state.vector_P)
                _show(state, show, steps)
                if after_step:
                    after_step(state)
                if state.phase == "done":
                    return identifier.result(state)
                before, state = state, identifier.advance(state)
                _log(before, state)
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
    done = steps if state.phase == "done" else max(0, min(joint, steps - 1))
    text = f"step {last.number} ({last.phase}), {last.samples} samples: loss {last.loss:.5g}"
    if state.phase == "validation" and len(state.folds) < FOLDS:
        text = f"cross-validation, fold {len(state.folds) + 1} of {FOLDS}"
    show(done, text)


def _log(before: State, state: State) -> None:
    """Log what a state has in addition to the one before it."""
    for name in ("steps", "messages", "gains"):
        for new in getattr(state, name)[len(getattr(before, name)) :]:
            logger.info("%s", new)


def _check_prior(prior: float | str | None) -> None:
    if isinstance(prior, str):
        check_name("prior", prior, ("auto",))
    elif prior is not None and not (is_number(prior) and 0 < prior <= LARGEST):
        raise UserError(
            f'The weight of the prior must be a number above 0 and at most {LARGEST}, "auto", or None for no prior; '
            f"got {prior!r}."
        )
