"""Find the adaptive activations of a network, and train them alone."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.nn import Parameter

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.call_sites import join_path
from aafit.networks.running import check_module


def adaptive_activations(net: nn.Module) -> dict[str, AdaptiveActivation]:
    """Return the adaptive activations of `net` by path, in the order of their calls.

    Where that is not known, without a sample in `replace_activations`, it is the order of the network's modules.

    Raises:
        UserError: `net` is no network.

    Example:
        >>> aafit.adaptive_activations(nn.Sequential(nn.Linear(4, 8), aafit.LEAF.like("ReLU")))
    """
    check_module(net)
    found = {path: module for path, module in net.named_modules() if isinstance(module, AdaptiveActivation)}
    return dict(sorted(found.items(), key=lambda item: item[1].call_position))


def adaptive_parameters(net: nn.Module) -> dict[str, Parameter]:
    """Return the parameters of the adaptive activations of `net` by name in its state dict, as "act1.p1".

    The shape of each is that of the sharing: (1,) for a layer, (C, 1, 1) or (C,) for a channel.

    Raises:
        UserError: `net` is no network.

    Example:
        >>> sum(parameter.numel() for parameter in aafit.adaptive_parameters(net).values())
    """
    return {
        join_path(path, name): parameter
        for path, activation in adaptive_activations(net).items()
        for name, parameter in activation.named_parameters(recurse=False)
    }


def train_only_activations(net: nn.Module) -> list[Parameter]:
    """Freeze all of `net` but its adaptive activations, in place.

    No other tensor changes in training, in any training loop: `net.train()` leaves a frozen module that has buffers in
    evaluation mode, since a batch norm in training mode updates its running statistics even if its weights are frozen.
    Dropout is active in training mode. `net.requires_grad_(True)` undoes all of it.

    Returns:
        The parameters that require gradients.

    Raises:
        UserError: the network has no adaptive activation.

    Example:
        >>> optimizer = torch.optim.Adam(aafit.train_only_activations(net), lr=1e-3)
    """
    adaptive = list(adaptive_parameters(net).values())
    if not adaptive:
        raise UserError("The network has no adaptive activation to train: put some in with replace_activations first.")
    net.requires_grad_(False)
    for parameter in adaptive:
        parameter.requires_grad_(True)
    others = _other_parameters(net)
    for module in net.modules():
        if _owns_buffers(module):
            vars(module)["train"] = partial(_train_unless_frozen, module, others)
    return adaptive


def training_mode(net: nn.Module) -> None:
    """Put `net` into training mode, but leave frozen modules that have buffers in evaluation mode.

    A module is frozen if none of its direct parameters requires a gradient. A module without direct parameters is
    frozen if no parameter of the network requires a gradient, apart from those of adaptive activations.
    """
    others = _other_parameters(net)
    net.train()
    for module in net.modules():
        if _owns_buffers(module) and not _trains(module, others):
            # Not module.eval(), which would reach the modules below it.
            module.training = False


def _train_unless_frozen(module: nn.Module, others: Sequence[Parameter], mode: bool = True) -> nn.Module:
    """Do what `module.train(mode)` does, but keep the module itself in evaluation mode while it is frozen."""
    type(module).train(module, mode)
    module.training = mode and _trains(module, others)
    return module


def _trains(module: nn.Module, others: Sequence[Parameter]) -> bool:
    own = list(module.parameters(recurse=False))
    return any(parameter.requires_grad for parameter in (own or others))


def _owns_buffers(module: nn.Module) -> bool:
    return any(True for _ in module.buffers(recurse=False))


def _other_parameters(net: nn.Module) -> list[Parameter]:
    adaptive = set(adaptive_parameters(net).values())
    return [parameter for parameter in net.parameters() if parameter not in adaptive]
