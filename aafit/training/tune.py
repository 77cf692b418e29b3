"""Tuning by gradient steps."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer, RMSprop

from aafit.errors import UserError, check_name
from aafit.networks.adaptive import adaptive_activations, train_only_activations, training_mode
from aafit.networks.batches import Batch, Output, as_batch, each_batch, run
from aafit.networks.running import evaluation_mode, fork_rng, own_modes
from aafit.training.distance import Distance
from aafit.training.evaluate import Batches
from aafit.training.losses import (
    Loss,
    LossFunction,
    any_counts,
    check_counted,
    check_loss,
    class_axis,
    objective,
    with_classes,
)
from aafit.training.precision import autocast

OPTIMIZERS = ("adam", "rmsprop")
LEARNING_RATES = {"adam": 1e-3, "rmsprop": 1e-4}
# p24sl: the offsets p2 and p4 of LEAF learn slower, by a factor that depends on the optimizer.
SLOWED = {"adam": 1000.0, "rmsprop": 10.0}
CROSS_ENTROPY = objective("cross-entropy")


def make_optimizers(
    net: nn.Module,
    optimizer: str = "adam",
    lr: float | None = None,
    p24sl: bool = False,
    dspu4: bool = False,
) -> list[Optimizer]:
    """Optimizers for the parameters of `net` that require a gradient, and for no others.

    One optimizer for all; with `dspu4` (2SPU-4, the dual-step procedure) two: the first for the adaptive activations,
    the second for everything else. Adam has PyTorch's defaults, RMSprop alpha 0.9 and eps 1e-7. With `p24sl` LEAF's p2
    and p4 learn at lr/1000 under Adam and lr/10 under RMSprop.

    Raises:
        UserError: nothing to train, an unknown optimizer, a learning rate that is not above 0, or `dspu4` without both
            kinds of parameters.
    """
    check_name("optimizer", optimizer, OPTIMIZERS)
    lr = LEARNING_RATES[optimizer] if lr is None else lr
    if not 0 < lr < math.inf:
        raise UserError(f"The learning rate {lr} cannot be used; give a number above 0.")
    slow: list[Parameter] = []
    adaptive: list[Parameter] = []
    for activation in adaptive_activations(net).values():
        for name, parameter in activation.named_parameters(recurse=False):
            if parameter.requires_grad:
                (slow if p24sl and name in activation.slow_parameters else adaptive).append(parameter)
    known = {id(parameter) for parameter in (*slow, *adaptive)}
    others = [parameter for parameter in net.parameters() if parameter.requires_grad and id(parameter) not in known]
    steps = [[(adaptive, lr), (slow, lr / SLOWED[optimizer])], [(others, lr)]]
    if not dspu4:
        steps = [steps[0] + steps[1]]
    groups = [[{"params": params, "lr": rate} for params, rate in step if params] for step in steps]
    if not all(groups):
        raise UserError(
            "There is nothing to train." if not dspu4 else "2SPU-4 needs both adaptive and other parameters to train."
        )
    return [_optimizer(optimizer, group) for group in groups]


def _optimizer(name: str, groups: list[dict[str, object]]) -> Optimizer:
    if name == "adam":
        return Adam(groups, fused=True)
    return RMSprop(groups, alpha=0.9, eps=1e-7)


def train_epoch(
    net: nn.Module, batches: Batches, optimizers: Sequence[Optimizer], precision: str = "float32"
) -> tuple[float, float]:
    """Go once through `batches` of (images, labels); the mean and the variance of the minibatches' losses.

    For each minibatch and each optimizer: a forward pass, the gradients of that optimizer's parameters alone, a step.
    With one optimizer this is the standard procedure, with two it is 2SPU-4. The loss noted is that of the first
    forward pass, before the minibatch has changed anything.
    """
    trained = trained_by(optimizers)
    training_mode(net)
    steps = [train_step(net, as_batch(batch), optimizers, trained, precision) for batch in batches]
    return mean_and_variance(steps)


def trained_by(optimizers: Sequence[Optimizer]) -> list[list[Parameter]]:
    """The parameters of each optimizer."""
    return [
        [parameter for group in optimizer.param_groups for parameter in group["params"]] for optimizer in optimizers
    ]


def train_step(
    net: nn.Module,
    batch: Batch,
    optimizers: Sequence[Optimizer],
    trained: Sequence[Sequence[Parameter]],
    precision: str,
    output: Output | None = None,
    loss: LossFunction = CROSS_ENTROPY,
) -> Tensor:
    """One minibatch of `train_epoch`: its loss before anything has changed, left on the device."""
    losses: list[Tensor] = []
    for optimizer, parameters in zip(optimizers, trained, strict=True):
        with autocast(precision, batch.device):
            value = loss(run(net, batch, output), batch.target)
        optimizer.zero_grad(set_to_none=True)
        value.backward(inputs=parameters)
        optimizer.step()
        losses.append(value.detach())
    return losses[0]


def mean_and_variance(losses: Sequence[Tensor]) -> tuple[float, float]:
    """Of an epoch's losses, read once: reading a loss makes a GPU wait."""
    if not losses:
        raise UserError("There is nothing to train on: the batches hold no image.")
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
    loss: Loss | None = None,
    base: nn.Module | None = None,
) -> list[float]:
    """Tune the adaptive activations of `net`, in place, by gradient steps with everything else frozen.

    While they train, what is frozen stays as it is: a batch norm keeps its statistics and uses them, as in evaluation.
    Dropout is active, as it was when the network was trained; but not where the outputs of a base are matched, which
    have none: there `net` is in evaluation mode throughout. With labels, too, tuning can end better without it: set the
    `p` of its modules to 0 (docs/how-to/choose.md).

    A start that is far from its base may stay far: gradient steps need not bring it near. With a base, the start is
    judged once, on the first batch before any step, by the measure of `identify`: by the outputs, and where the loss is
    a cross-entropy by that too. No other loss is looked at: the mean squared error of the base from its own outputs is
    0, and any difference would be far from that.

    Args:
        net: a network with adaptive activations; its mode, training or evaluation, is left as it was.
        batches: gone through once an epoch: an iterable of (images, labels), or of any other form that `as_batch`
            takes, that can be iterated again, such as a list or a DataLoader; or a function from the epoch's number
            to one.
        epochs: how often.
        optimizer: "adam" or "rmsprop".
        lr: the learning rate, by default that of the optimizer.
        p24sl: whether LEAF's p2 and p4 learn slower.
        precision: "bf16" for forward passes under autocast, else the type that `net` has.
        after_epoch: called as after_epoch(epoch, loss) after each epoch.
        output: from what the network returns to the tensor that is meant, where it returns an object.
        loss: as for `evaluate`; by default cross-entropy, or the mean squared error from the outputs of `base`.
        base: the network whose outputs for the same inputs are the target, instead of labels; "cross-entropy" is then
            that from its probabilities.

    Returns:
        The mean training loss of every epoch.

    Raises:
        UserError: no adaptive activation in `net`, a scripted network, no images, an iterator that is exhausted after
            one epoch, batches without target and no base, a target that does not fit the output, labels of which
            none counts, or an option that is out of range.

    Warns:
        UserWarning: a base is given, and the start is far from it.
    """
    if not callable(batches) and isinstance(batches, Iterator):
        raise UserError(
            "The batches can be gone through only once; give a list, a DataLoader or a function of the epoch."
        )
    check_name("optimizer", optimizer, OPTIMIZERS)
    loss = check_loss(loss or ("cross-entropy" if base is None else "mean squared error"))
    check_tunable(net, epochs, base)
    train_only_activations(net)
    optimizers = make_optimizers(net, optimizer, lr, p24sl)
    trained = trained_by(optimizers)
    history = []
    with own_modes(net):
        for epoch in range(epochs):
            training_mode(net)
            if base is not None:
                net.eval()
            # Labels are the same ones in each epoch: checked once, where that makes a device wait.
            aim = objective(loss, check=epoch == 0)
            losses: list[Tensor] = []
            counted: list[Tensor] = []
            for batch in each_batch(batches(epoch) if callable(batches) else batches):
                step_aim = aim
                if base is not None:
                    of_base = _outputs_of(base, batch, output, precision)
                    batch = Batch(batch.args, batch.kwargs, _target_of(of_base, loss))
                    if epoch == 0 and not losses:
                        step_aim = _judging_the_start(aim, loss, of_base)
                elif batch.target is None:
                    raise UserError(
                        "The batches have no target to tune by: give (inputs, labels), or base= to match its outputs."
                    )
                losses.append(train_step(net, batch, optimizers, trained, precision, output, step_aim))
                if epoch == 0 and loss == "cross-entropy" and isinstance(batch.target, Tensor):
                    counted.append(any_counts(batch.target))
            check_counted(counted)
            mean, _ = mean_and_variance(losses)
            history.append(mean)
            if after_epoch:
                after_epoch(epoch, mean)
    return history


def check_tunable(net: nn.Module, epochs: int, base: nn.Module | None) -> None:
    """
    Raises:
        UserError: the network is scripted or the base itself, or `epochs` is no number of epochs.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise UserError(f"epochs={epochs!r} cannot be used; give a whole number from 0.")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(
            "The network is a ScriptModule, whose activations are compiled in: give the one it was made of."
        )
    if base is net:
        raise UserError("The base is the network itself: give the one that its activations were replaced in.")


def _outputs_of(base: nn.Module, batch: Batch, output: Output | None, precision: str) -> Tensor:
    # If it draws random numbers, they are those that the other network draws next.
    with evaluation_mode(base), autocast(precision, batch.device), fork_rng(None):
        # Cloned: the first activation may work in place.
        outputs = run(base, batch.cloned(), output)
    return outputs


def _target_of(of_base: Tensor, loss: Loss) -> Tensor:
    """The target: the outputs of a base, or its probabilities where the loss is a cross-entropy."""
    if loss != "cross-entropy":
        return of_base
    axis = class_axis(of_base.shape)
    if axis is None:
        raise UserError(f"The base's outputs of shape {tuple(of_base.shape)} have no axis of classes.")
    return of_base.softmax(axis)


def _judging_the_start(aim: LossFunction, loss: Loss, of_base: Tensor) -> LossFunction:
    """The same loss, which also warns where the output is far from the base's.

    The start is so judged by a forward that is done anyway: another one could change what the network remembers, or
    the random numbers that it draws.
    """

    def judging(output: Tensor, target: Tensor) -> Tensor:
        comparable = output.shape == of_base.shape and output.is_floating_point() and output.numel() > 1
        start = _distance(loss, of_base, output.detach(), target) if comparable else None
        if start is not None and start.is_far:
            warnings.warn(
                f"The start is far from the base: on the first batch {start}. Gradient steps may leave it far: first "
                'match it layer by layer, identify(net, batches, base=base, target="activations"), or let '
                "replace_activations fit it to the inputs of each layer (a class, as LEAF, with sample=).",
                stacklevel=4,  # of what calls `tune`
            )
        return aim(output, target)

    return judging


def _distance(loss: Loss, of_base: Tensor, output: Tensor, target: Tensor) -> Distance:
    distance = Distance()
    distance.add(of_base, output)
    if loss == "cross-entropy" and len(output) > 1:
        both = (_cross_entropies(logits, target) for logits in (of_base, output))
        distance.add_losses(*both)
    return distance


def _cross_entropies(output: Tensor, target: Tensor) -> Tensor:
    """The loss of each sample, (B,) in float64 on the CPU: the mean over its positions."""
    logits, target = with_classes(output.double(), target.double())
    return F.cross_entropy(logits, target, reduction="none").reshape(len(output), -1).mean(1).cpu()
