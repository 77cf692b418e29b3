"""Find the activations of any torch network that are modules."""

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules import activation as torch_activations

from aafit.activations import FIXED, AdaptiveActivation
from aafit.errors import UserError, nearest

_ACTIVATIONS = (
    AdaptiveActivation,
    *FIXED.values(),
    *(getattr(torch_activations, name) for name in torch_activations.__all__ if name != "MultiheadAttention"),
)
_NOT_ELEMENTWISE = (nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.GLU)


def is_activation(module: nn.Module) -> bool:
    """Whether the module is known to be an activation: one of torch's, or one of this package's."""
    return isinstance(module, _ACTIVATIONS)


def is_elementwise(module: nn.Module) -> bool:
    """Whether the module is known to be an activation that works on each element alone (a softmax does not)."""
    return is_activation(module) and not isinstance(module, _NOT_ELEMENTWISE)


def activation_name(module: nn.Module) -> str:
    """How a module is called in reports: "LEAF as ReLU", "F-Neuron random", or the name of its class."""
    return module.text if isinstance(module, AdaptiveActivation) else type(module).__name__


def find_module(net: nn.Module, path: str) -> nn.Module:
    """The module at `path`.

    Raises:
        UserError: there is none; the message names the nearest path of an activation.
    """
    try:
        return net.get_submodule(path)
    except AttributeError:
        there = [known for known, module in net.named_modules() if known and is_activation(module)]
        hint = nearest(path, there) if there else "It has no activation that is a module."
        raise UserError(f"The network has no module at {path!r}. {hint}") from None


def match_activations(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """The key that matches each module to replace, by path, in the order of the model.

    Args:
        model: any network.
        keys: class names, module paths, or patterns of paths; see `replace_activations`.

    Raises:
        UserError: no key, a key that matches nothing, a module matched by two, or one that cannot be replaced.
    """
    wanted = list(keys)
    keys_of: defaultdict[str, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        for key in wanted:
            if any(character in key for character in "*?["):
                matches = fnmatchcase(path, key) and is_elementwise(module)
            else:
                matches = key in (path, type(module).__name__)
            if matches:
                keys_of[path].append(key)
    unused = [key for key in wanted if not any(key in used for used in keys_of.values())]
    if unused or not wanted:
        what = f"{unused[0]!r} matches no activation of the network." if unused else "Nothing to replace was given."
        raise UserError(f"{what} {_what_there_is(model, unused)}")
    for path, used in keys_of.items():
        if len(used) > 1:
            raise UserError(f"{path!r} is matched by {' and by '.join(map(repr, used))}: let only one key match it.")
        check_replaceable(model, path)
    return {path: used[0] for path, used in keys_of.items()}


def check_replaceable(model: nn.Module, path: str) -> None:
    """Check that another activation can take the place of the module at `path`.

    Raises:
        UserError: there is none; it is not an elementwise activation; it is at several paths; or the layer around it
            would not call what takes its place.
    """
    module = find_module(model, path)
    name = activation_name(module)
    if module is model:
        raise UserError(f"The network itself is a {name}: put it into an nn.Sequential, so that it can be replaced.")
    of_torch = type(module).__module__.startswith("torch.nn.")
    if of_torch and not is_elementwise(module) and not isinstance(module, nn.Identity):
        raise UserError(f"{path!r} is a {name}, not an elementwise activation: only those can be replaced.")
    paths = [known for known, other in model.named_modules(remove_duplicate=False) if other is module]
    if len(paths) > 1:
        raise UserError(
            f"One {name} object is at several places ({', '.join(paths)}): each place needs an activation of its own, "
            "so give the network a module for each."
        )
    around = model.get_submodule(path.rpartition(".")[0])
    if isinstance(around, nn.TransformerEncoderLayer) and around.activation_relu_or_gelu:
        raise UserError(
            f"{path!r} belongs to a TransformerEncoderLayer, which in eval mode computes {name} in a fused step and "
            "would not call what replaces it: set activation_relu_or_gelu = 0 on that layer first."
        )


def _what_there_is(model: nn.Module, unused: list[str]) -> str:
    there = [(path, type(module).__name__) for path, module in model.named_modules() if path and is_activation(module)]
    listed = ", ".join(f"{path} ({name})" for path, name in there)
    words = dict.fromkeys(word for path, name in there for word in (name, path))
    hint, _, _ = nearest(unused[0], words).rpartition("Valid:") if unused else ("", "", "")
    return (
        f"{hint}It has: {listed or 'none'}. An activation called as a function in forward (F.relu) cannot be "
        "replaced: make it a module first."
    )
