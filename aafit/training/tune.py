"""Tuning by gradient steps."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer, RMSprop

from aafit.errors import UserError, check_name
from aafit.networks.adaptive import adaptive_activations, train_only_activations, training_mode
from aafit.training.evaluate import Batches, own_modes
from aafit.training.precision import autocast

OPTIMIZERS = ("adam", "rmsprop")
LEARNING_RATES = {"adam": 1e-3, "rmsprop": 1e-4}
# p24sl: the offsets p2 and p4 of LEAF learn slower, by a factor that depends on the optimizer.
SLOWED = {"adam": 1000.0, "rmsprop": 10.0}


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
    return mean_and_variance([train_step(net, x_B, y_B, optimizers, trained, precision) for x_B, y_B in batches])


def trained_by(optimizers: Sequence[Optimizer]) -> list[list[Parameter]]:
    """The parameters of each optimizer."""
    return [
        [parameter for group in optimizer.param_groups for parameter in group["params"]] for optimizer in optimizers
    ]


def train_step(
    net: nn.Module,
    x_B: Tensor,
    y_B: Tensor,
    optimizers: Sequence[Optimizer],
    trained: Sequence[Sequence[Parameter]],
    precision: str,
) -> Tensor:
    """One minibatch of `train_epoch`: its loss before anything has changed, left on the device."""
    losses: list[Tensor] = []
    for optimizer, parameters in zip(optimizers, trained, strict=True):
        with autocast(precision, x_B.device):
            loss = F.cross_entropy(net(x_B), y_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        optimizer.step()
        losses.append(loss.detach())
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
) -> list[float]:
    """Tune the adaptive activations of `net`, in place, by gradient steps with everything else frozen.

    `batches` is gone through once an epoch: an iterable of (images, labels) that can be iterated again, such as a list
    or a DataLoader, or a function from the epoch's number to one. With precision "bf16" the forward passes run under
    autocast, else in the type that `net` has. `after_epoch(epoch, loss)` is called after each epoch. The network's
    mode, training or evaluation, is left as it was. Returns the mean training loss of every epoch.

    Raises:
        UserError: no adaptive activation in `net`, no images, or an iterator that is exhausted after one epoch.
    """
    if not callable(batches) and iter(batches) is batches:
        raise UserError(
            "The batches can be gone through only once; give a list, a DataLoader or a function of the epoch."
        )
    check_name("optimizer", optimizer, OPTIMIZERS)
    train_only_activations(net)
    optimizers = make_optimizers(net, optimizer, lr, p24sl)
    history = []
    with own_modes(net):
        for epoch in range(epochs):
            loss, _ = train_epoch(net, batches(epoch) if callable(batches) else batches, optimizers, precision)
            history.append(loss)
            if after_epoch:
                after_epoch(epoch, loss)
    return history
