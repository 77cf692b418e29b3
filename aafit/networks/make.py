"""What takes the place of an activation: a copy, something made for its shape, or something fitted to it."""

import inspect
from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, Histogram
from aafit.errors import UserError
from aafit.networks.hooks import receiving
from aafit.networks.inputs import as_inputs
from aafit.networks.kinds import activation_name
from aafit.networks.padding import without_padding
from aafit.networks.probe import forward_of_sample, probe_of

Replacement = nn.Module | type[AdaptiveActivation] | Callable[..., nn.Module]


def is_fit(replacement: Replacement) -> bool:
    """Whether a replacement is fitted: a class of adaptive activations, or a function with an argument `histogram`."""
    if isinstance(replacement, type):
        return issubclass(replacement, AdaptiveActivation)
    if isinstance(replacement, nn.Module) or not callable(replacement):
        return False
    return "histogram" in inspect.signature(replacement).parameters


def make_activation(
    key: str, replacement: Replacement, shape: tuple[int, ...], old: nn.Module, histogram: Histogram | None
) -> nn.Module:
    """The module that takes the place of `old`, with parameters of the shape `shape` where it is adaptive.

    Raises:
        UserError: the replacement is of another kind, or a function returned no module; a fit has no histogram.
    """
    if is_fit(replacement):
        if histogram is None:
            raise UserError(
                f"{key!r} is to be fitted, which needs the inputs of that layer: give an input of the network that "
                "reaches it as sample=."
            )
        fit: Any = getattr(replacement, "fit", None) if isinstance(replacement, type) else replacement
        made = fit(as_function(old), histogram)
        if not isinstance(made, AdaptiveActivation):
            raise UserError(f"The fit given for {key!r} returned {made!r}: let it return an adaptive activation.")
        return made.reshaped(shape)
    if isinstance(replacement, AdaptiveActivation):
        return replacement.reshaped(shape)
    if isinstance(replacement, nn.Module):
        return deepcopy(replacement)
    if isinstance(replacement, type) or not callable(replacement):
        raise UserError(
            f"{key!r} is to be replaced by {replacement!r}: give a module, as LEAF.like('ReLU') or nn.SiLU(), a class "
            "that is fitted, as LEAF, or a function that is called as make(shape=...)."
        )
    return _module(key, replacement(shape=shape), shape)


def as_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function that a module computes, in float64 on the CPU."""
    own = deepcopy(module).to("cpu", torch.float64).eval()

    def function(u: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = own(u.clone())
        return y

    function.__name__ = activation_name(module)
    return function


def inputs_seen(net: nn.Module, sample: Any, paths: Collection[str]) -> dict[str, Histogram]:
    """By path, the histogram of what a module receives in a forward of the sample, padding left out.

    Paths of modules that the forward does not call are left out.
    """
    if sample is None or not paths:
        return {}
    seen: dict[str, Histogram] = {}
    probe, batch = probe_of(net), as_inputs(sample)

    def see(path: str, u: Tensor) -> None:
        histogram = Histogram.of(without_padding(u, batch))
        seen[path] = seen[path].merged(histogram) if path in seen else histogram

    forward_of_sample(probe, sample, receiving(probe, paths, see))
    return seen


def _module(key: str, made: Any, shape: tuple[int, ...]) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UserError(f"The function given for {key!r} returned {made!r} for shape={shape}: let it return a module.")
    return made
