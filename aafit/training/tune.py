"""Gradient steps: tune adaptive activations, and the training steps of the experiment.

Read `tune` first, then `train_epoch`, which trains whatever its optimizers hold.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer, RMSprop

from aafit.errors import Stopped, UserError, check_count, check_name, is_number, short_message
from aafit.networks.adaptive import (
    adaptive_activations,
    adaptive_parameters,
    train_only_activations,
    training_mode,
)
from aafit.networks.batches import Batch, as_batch, each_batch
from aafit.networks.running import check_module, check_not_scripted, evaluation_mode, fork_rng, own_modes
from aafit.progress import progress
from aafit.tables import listed
from aafit.training.distance import Distance
from aafit.training.evaluate import Batches
from aafit.training.losses import (
    CROSS_ENTROPY,
    IGNORED,
    SQUARED_ERROR,
    Loss,
    LossLike,
    as_loss,
    check_any_labelled,
    check_labels,
    mean_loss,
    predictions,
    scores,
    with_class_axis,
)
from aafit.training.predictor import NO_GRADIENT, Output, Predictor, check_not_inference

OPTIMIZERS = ("adam", "rmsprop")
LEARNING_RATES = {"adam": 1e-3, "rmsprop": 1e-4}
# p24sl: the offsets p2 and p4 of LEAF learn slower, by a factor that depends on the optimizer.
SLOWED = {"adam": 1000.0, "rmsprop": 10.0}

log = logging.getLogger(__name__)

BatchLoss = Callable[[Tensor, Batch], Tensor]
"""Returns the loss of the outputs for a batch, to minimize."""


def make_optimizers(
    net: nn.Module,
    optimizer: str = "adam",
    lr: float | None = None,
    p24sl: bool = False,
    dspu4: bool = False,
) -> list[Optimizer]:
    """Return optimizers for the parameters of `net` that require a gradient.

    Adam has PyTorch's defaults, RMSprop alpha 0.9 and eps 1e-7.

    Args:
        net: the network.
        optimizer: "adam" or "rmsprop".
        lr: learning rate; by default 1e-3 for Adam and 1e-4 for RMSprop.
        p24sl: whether LEAF's p2 and p4 learn slower, at lr/1000 with Adam and lr/10 with RMSprop.
        dspu4: whether to return two optimizers (2SPU-4, the dual-step procedure): the first for the adaptive
            activations, the second for everything else.

    Raises:
        UserError: nothing requires a gradient, the optimizer is unknown, the learning rate is not positive, or `dspu4`
            is given without both kinds of parameters.
    """
    check_name("optimizer", optimizer, OPTIMIZERS)
    lr = LEARNING_RATES[optimizer] if lr is None else lr
    if not (is_number(lr) and lr > 0):
        raise UserError(f"The learning rate must be a positive number; got {lr}.")
    slow: list[Parameter] = []
    adaptive: list[Parameter] = []
    for activation in adaptive_activations(net).values():
        for name, parameter in activation.named_parameters(recurse=False):
            if parameter.requires_grad:
                (slow if p24sl and name in activation.slow_parameters else adaptive).append(parameter)
    listed = {id(parameter) for parameter in (*slow, *adaptive)}
    others = [parameter for parameter in net.parameters() if parameter.requires_grad and id(parameter) not in listed]
    steps = [[(adaptive, lr), (slow, lr / SLOWED[optimizer])], [(others, lr)]]
    if not dspu4:
        steps = [steps[0] + steps[1]]
    groups = [[{"params": params, "lr": rate} for params, rate in step if params] for step in steps]
    if not all(groups):
        raise UserError(
            "No parameter requires a gradient."
            if not dspu4
            else "2SPU-4 needs both adaptive and other parameters to train."
        )
    return [_optimizer(optimizer, group) for group in groups]


def _optimizer(name: str, groups: list[dict[str, object]]) -> Optimizer:
    if name == "adam":
        return Adam(groups, fused=True)
    return RMSprop(groups, alpha=0.9, eps=1e-7)


def train_epoch(
    net: nn.Module, batches: Batches, optimizers: Sequence[Optimizer], precision: str = "float32"
) -> tuple[float, float]:
    """Train for one epoch on (inputs, labels), and return mean and variance of the minibatch losses.

    Each optimizer takes its own step on a minibatch: a forward pass, the gradients of its parameters, an update. With
    one optimizer this is the standard procedure, with two it is 2SPU-4. The loss of a minibatch is that of its first
    forward pass, before any update.
    """
    trained, predictor = trained_by(optimizers), Predictor(net, precision=precision)
    training_mode(net)
    losses = [train_step(predictor, as_batch(batch), optimizers, trained) for batch in batches]
    return mean_and_variance(losses)


def trained_by(optimizers: Sequence[Optimizer]) -> list[list[Parameter]]:
    """Return the parameters of each optimizer."""
    return [
        [parameter for group in optimizer.param_groups for parameter in group["params"]] for optimizer in optimizers
    ]


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of outputs (B, K) with labels (B,), none of which is ignored.

    Labels are checked on a CPU only: elsewhere that would wait for the device in every step.
    """
    labels: Tensor = batch.target  # type: ignore[assignment]
    if outputs.ndim != 2 or labels.ndim != 1:
        return mean_loss(CROSS_ENTROPY, outputs, labels)[0]
    if outputs.device.type == "cpu":
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= outputs.shape[1]))
        check_labels(wrong.sum(), outputs.shape[1])
    return F.cross_entropy(outputs, labels)


def train_step(
    predictor: Predictor,
    batch: Batch,
    optimizers: Sequence[Optimizer],
    trained: Sequence[Sequence[Parameter]],
    loss: BatchLoss = cross_entropy,
) -> Tensor:
    """Take one step of `train_epoch`, and return the loss before it, left on the device."""
    losses: list[Tensor] = []
    for optimizer, parameters in zip(optimizers, trained, strict=True):
        value = loss(predictor(batch, seed=None), batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward(inputs=parameters)
        optimizer.step()
        losses.append(value.detach())
    return losses[0]


def mean_and_variance(losses: Sequence[Tensor]) -> tuple[float, float]:
    """Return mean and variance of an epoch's losses; they are read once, since that makes a GPU wait."""
    if not losses:
        raise UserError("There is nothing to train on: the batches hold no sample.")
    all_losses = torch.stack(list(losses)).double()
    return all_losses.mean().item(), all_losses.var(correction=0).item()


def tune(
    net: nn.Module,
    batches: Batches | Callable[[int], Batches],
    epochs: int = 10,
    optimizer: str = "adam",
    lr: float | None = None,
    p24sl: bool = False,
    precision: str = "float32",
    after_epoch: Callable[[int, float], None] | None = None,
    *,
    output: Output | None = None,
    loss: LossLike | None = None,
    base: nn.Module | None = None,
    verbose: bool = True,
) -> list[float]:
    """Tune the adaptive activations of `net` in place by gradient steps, with every other parameter frozen.

    Frozen batch norms keep and use their running statistics. Dropout is active, as in the training of the network;
    with `base`, whose outputs have none, `net` is in evaluation mode throughout. Tuning on labels, too, may end better
    without dropout: set the `p` of its modules to 0 (docs/how-to/choose.md).

    Gradient steps may not recover from a poor initialization. With `base`, the initial outputs are compared with its
    outputs on the first batch, and so is the loss if it is a cross-entropy. Other losses are not compared: the mean
    squared error of `base` from its own outputs is 0, which makes every difference a large one.

    Args:
        net: a network with adaptive activations; its mode is left as it was.
        batches: (inputs, labels), or any other form that `aafit.networks.batches.as_batch` takes, in an iterable that
            can be iterated once an epoch, such as a list or a DataLoader; or a function from the epoch's number to one.
        epochs: number of epochs.
        optimizer: "adam" or "rmsprop".
        lr: learning rate; by default 1e-3 for Adam and 1e-4 for RMSprop.
        p24sl: whether LEAF's p2 and p4 learn slower.
        precision: "bf16" for autocast; otherwise the network computes in the data type of its parameters. The optimizer
            steps float32 copies of parameters in half precision.
        after_epoch: called as after_epoch(epoch, loss) after each epoch.
        output: function that selects the output tensor from what the network returns.
        loss: as for `evaluate`; by default the cross-entropy, or with `base` the mean squared error.
        base: network whose outputs are the target in place of labels. With "cross-entropy" the target is its class
            probabilities.
        verbose: whether to show the progress: a bar on a terminal and in a notebook, a line an epoch elsewhere.

    Returns:
        The mean training loss of each epoch over the labelled positions.

    Raises:
        UserError: `net` has no adaptive activation or is scripted; the batches hold no sample, are an iterator that can
            be used only once, or have no target without `base`; the target does not fit the outputs; no position is
            labelled; or an option is out of range.
        Stopped: Ctrl-C; the network keeps the parameters of the last step.

    Warns:
        UserWarning: with `base`, if the initial outputs are far from those of `base`; if the loss has no gradient with
            respect to some parameter; if a loss or gradient is not finite, in which case no step is taken on that
            batch, and the loss of the epoch is NaN; if some parameter ends unchanged.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3))
        >>> net, _ = aafit.replace_activations(net, {"SiLU": aafit.LEAF.like("SiLU")})
        >>> history = aafit.tune(net, [(torch.randn(64, 4), torch.randint(3, (64,)))], epochs=5)
    """
    if isinstance(batches, (nn.Module, type)):
        what = batches.__name__ if isinstance(batches, type) else type(batches).__name__
        raise UserError(f"The batches given are a {what}: give a list of batches or a DataLoader.")
    if not callable(batches) and isinstance(batches, Iterator):
        raise UserError(
            "The batches can be iterated only once; give a list, a DataLoader or a function of the epoch's number."
        )
    check_name("optimizer", optimizer, OPTIMIZERS)
    check_count("number of epochs", epochs, least=0)
    made = as_loss(loss or (CROSS_ENTROPY if base is None else SQUARED_ERROR))
    check_not_scripted(net)
    if base is not None:
        check_module(base)
    if base is net:
        raise UserError("The base is the network itself: give the one in which activations were replaced.")
    check_not_inference()
    train_only_activations(net)
    (stepper,) = make_optimizers(net, optimizer, lr, p24sl)
    parameters, predictor = trained_by([stepper])[0], Predictor(net, output, precision)
    _keep_float32_copies(stepper)
    initial = [parameter.detach().clone() for parameter in parameters]
    history: list[float] = []
    with own_modes(net), torch.enable_grad(), _resumable(history, epochs), progress("tune", epochs, verbose) as show:
        for epoch in range(epochs):
            training_mode(net)
            if base is not None:
                net.eval()
            objective = _Objective(made, base is not None, first=epoch == 0)
            for number, batch in enumerate(each_batch(batches(epoch) if callable(batches) else batches)):
                show(epoch, f"epoch {epoch + 1} of {epochs}, batch {number + 1}{_last_loss(history)}")
                if base is not None:
                    of_base = _base_outputs(predictor.of(base), batch)
                    objective.loss = with_class_axis(made, of_base, batch.target)
                    batch = replace(batch, target=of_base)
                elif batch.target is None:
                    raise UserError("The batches have no target to tune with; give (inputs, labels), or base=.")
                objective.step(predictor, batch, stepper, parameters)
            history.append(objective.mean())
            log.info("epoch %d of %d: loss %.5g", epoch + 1, epochs, history[-1])
            show(epoch + 1, f"epoch {epoch + 1} of {epochs}{_last_loss(history)}")
            if epoch == 0:
                _warn_of_missing_gradients(net, objective.without_gradient)
            if after_epoch:
                after_epoch(epoch, history[-1])
    if epochs:
        _warn_of_unchanged(net, parameters, initial)
    return history


def _last_loss(history: Sequence[float]) -> str:
    return f"; loss of epoch {len(history)}: {history[-1]:.5g}" if history else ""


@contextmanager
def _resumable(history: Sequence[float], epochs: int) -> Iterator[None]:
    """Turn Ctrl-C within the block into a message that says how to continue; `history` has the completed epochs."""
    try:
        yield
    except KeyboardInterrupt:
        left = epochs - len(history)
        raise Stopped(
            f"Stopped after {len(history)} of {epochs} epochs: the network keeps the parameters of the last step. To "
            f"continue from there, call tune with epochs={left}; the optimizer starts from its initial state."
        ) from None


def _keep_float32_copies(optimizer: Optimizer) -> None:
    """Let an optimizer step float32 copies of its half-precision parameters.

    A step of 1e-3 on a value of 1 rounds away in bfloat16, however often it is repeated.
    """
    copies: list[tuple[Parameter, Parameter]] = []
    for group in optimizer.param_groups:
        for at, parameter in enumerate(group["params"]):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                copies.append((parameter, Parameter(parameter.detach().float())))
                group["params"][at] = copies[-1][1]

    def before(*_: Any) -> None:
        for parameter, copy in copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def after(*_: Any) -> None:
        for parameter, copy in copies:
            parameter.copy_(copy)

    if copies:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def _names(net: nn.Module, parameters: Sequence[Parameter]) -> str:
    names = {id(parameter): name for name, parameter in adaptive_parameters(net).items()}
    return listed([names[id(parameter)] for parameter in parameters])


def _warn_of_missing_gradients(net: nn.Module, parameters: Sequence[Parameter]) -> None:
    if parameters:
        warnings.warn(
            f"The loss has no gradient with respect to {_names(net, parameters)}: the forward pass does not use these "
            "parameters, or detaches what depends on them (detach, torch.no_grad, re-entrant checkpointing).",
            stacklevel=3,  # the caller of `tune`
        )


def _warn_of_unchanged(net: nn.Module, parameters: Sequence[Parameter], initial: Sequence[Tensor]) -> None:
    pairs = zip(parameters, initial, strict=True)
    unchanged = [p for p, before in pairs if p.grad is not None and torch.equal(p.detach(), before)]
    if unchanged:
        warnings.warn(
            f"Tuning left {_names(net, unchanged)} unchanged: the steps round away or the gradients are 0. audit "
            "reports why; smooth_start lowers slopes that are too steep.",
            stacklevel=3,  # the caller of `tune`
        )


def _base_outputs(predictor: Predictor, batch: Batch) -> Tensor:
    # With the random numbers that the tuned network draws next.
    with evaluation_mode(predictor.net), fork_rng(None):
        return predictor(batch, seed=None)


class _Objective:
    """The loss of each batch of an epoch, and the mean over the epoch's labelled positions.

    Args:
        loss: what is minimized.
        matches_base: whether a batch's target is the outputs of the base network.
        first: whether this is the first epoch: labels are checked, and the initial outputs compared with the base's.
    """

    def __init__(self, loss: Loss, matches_base: bool, first: bool) -> None:
        self.loss, self.matches_base, self.first = loss, matches_base, first
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []
        self.without_gradient: list[Parameter] = []

    def step(self, predictor: Predictor, batch: Batch, optimizer: Optimizer, parameters: Sequence[Parameter]) -> None:
        """Take one step, unless the loss or a gradient is not finite.

        Raises:
            UserError: the loss depends on no parameter, or the backward pass fails.
        """
        value = self(predictor(batch, seed=None), batch)
        if not value.requires_grad:
            raise UserError(NO_GRADIENT)
        for parameter in parameters:
            parameter.grad = None
        try:
            value.backward(inputs=list(parameters))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(f"The backward pass of the network failed: {short_message(error)}") from error
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(bool(each.isfinite().all()) for each in (value, *gradients)):
            self._skip()
            return
        optimizer.step()
        if self.first and len(self._sums) == 1:
            self.without_gradient = [parameter for parameter in parameters if parameter.grad is None]

    def _skip(self) -> None:
        """Leave out a step that would make parameters NaN, and make the mean of the epoch NaN."""
        self._sums.append(torch.full_like(self._sums[-1], torch.nan))
        self._counts.append(torch.zeros_like(self._counts[-1]))
        warnings.warn(
            "The loss or a gradient of a batch is NaN or infinite: no step was taken on it. Check the batch for such "
            "values, or take a smaller learning rate.",
            stacklevel=4,  # the caller of `tune`
        )

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        target: Any = batch.target
        if self.matches_base:
            if self.first and not self._sums:
                self._compare(outputs.detach(), target)
            target = predictions(self.loss, target).to(target.dtype)
        mean, count = mean_loss(self.loss, outputs, target, check=self.first)
        self._sums.append(mean.detach().double() * count)
        self._counts.append(count)
        return mean

    def mean(self) -> float:
        """Return the mean loss of the epoch.

        Raises:
            UserError: there was no sample, or no labelled position.
        """
        if not self._sums:
            raise UserError("There is nothing to train on: the batches hold no sample.")
        count = int(torch.stack(self._counts).sum())
        check_any_labelled(count)
        return torch.stack(self._sums).sum().item() / count

    def _compare(self, outputs: Tensor, of_base: Tensor) -> None:
        """Warn if the initial outputs are far from those of the base network.

        The forward pass of the first step is used: another one could change what the network stores, or the random
        numbers that it draws.
        """
        if outputs.shape != of_base.shape or not outputs.is_floating_point() or outputs.numel() < 2:
            return
        distance = Distance()
        distance.add(of_base, outputs)
        if self.loss.is_cross_entropy and len(outputs) > 1:
            target = predictions(self.loss, of_base)
            distance.add_losses(*(scores(self.loss, each.double(), target) for each in (of_base, outputs)))
        if distance.is_far:
            warnings.warn(
                f"The initial outputs are far from the base network's: on the first batch {distance}. Gradient steps "
                "may not recover from that. First initialize the activations layer by layer with identify(net, "
                'batches, base=base, target="activations"), or let replace_activations fit them to the inputs of each '
                "layer (a class such as LEAF, with sample=).",
                stacklevel=5,  # the caller of `tune`
            )
