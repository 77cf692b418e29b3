"""Build the module that replaces an activation: a copy, one made for its shape, or one fitted to it.

Axes in names: E input, C channel, S set of parameters of the original activation (a PReLU may have one a channel).
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, Histogram, Residual, fit_from_text, from_text
from aafit.activations.base import curve_values, parameter_shape
from aafit.errors import UserError
from aafit.networks.batches import as_inputs, without_padding
from aafit.networks.find import Found, FoundActivation
from aafit.networks.kinds import activation_name
from aafit.networks.running import forward_of_sample, probe_of, receiving
from aafit.networks.select import EVERYTHING, Key

NewActivation = str | nn.Module | type[AdaptiveActivation] | Callable[..., nn.Module]
VALUES = (
    "give a text, as 'LEAF as ReLU', a module, as LEAF.like('ReLU') or nn.SiLU(), a class that is fitted, as LEAF, a "
    "function of (function, histogram) that fits, as LEAF.fit, or a function that is called as make(shape=...)"
)

SAMPLED = 4096
"""The most inputs of each channel and call from which the channel's interval is determined."""
QUANTILES = 512
"""The number of evenly spaced quantiles of these inputs to which an activation is fitted."""


def is_fit(replacement: NewActivation) -> bool:
    """Return whether a replacement is fitted: a family, by its class or name, or a function of two arguments."""
    if isinstance(replacement, str):
        return fit_from_text(replacement) is not None
    if isinstance(replacement, type):
        return issubclass(replacement, AdaptiveActivation)
    arguments = {} if isinstance(replacement, nn.Module) else _arguments(replacement)
    needed = [one for one in arguments.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return "histogram" in arguments or (len(needed) == 2 and "shape" not in arguments)


def leave_out_unfittable(
    found: Found, key_of: dict[str, Key], replacements: Mapping[Any, NewActivation]
) -> dict[str, str]:
    """Remove activations from `key_of` that cannot be fitted, and return the reasons by path.

    An activation cannot be fitted if the sample does not reach it, or if it receives a single value.

    Raises:
        UserError: the key is the path of an activation that the sample does not reach; another key than "*" asks for a
            fit to a single value; nothing is left.
    """
    reasons: dict[str, str] = {}
    for path, key in list(key_of.items()):
        low, high = found[path].range or (0.0, 1.0)
        unreached = found[path].calls == 0
        if not is_fit(replacements[key]) or not (low == high or unreached):
            continue
        reason = "the sample does not reach it" if unreached else f"in the sample it receives {low:g} only"
        reasons[path] = f"{reason}: there is nothing to fit to"
        del key_of[path]
        if key == path or not (unreached or key == EVERYTHING) or not key_of:
            raise UserError(
                f"{path!r} cannot be fitted: {reason}. Give another sample, or an activation, as LEAF.like('ReLU')."
            )
    return reasons


def make_activation(
    key: str,
    replacement: NewActivation,
    row: FoundActivation,
    shape: tuple[int, ...],
    old: nn.Module,
    histogram: Histogram | None,
    inputs_CE: Tensor | None = None,
) -> nn.Module:
    """Return the module that replaces `old`, with parameters of the shape `shape` if it is adaptive.

    Args:
        key: the key in messages.
        replacement: the value that the user gave for it.
        row: the activation.
        shape: shape of one parameter.
        old: the original activation.
        histogram: its inputs in the sample, for a fit.
        inputs_CE: inputs of each channel, for a fit with an interval for each channel.

    Raises:
        UserError: the replacement has another form, or a function returned no module; a fit has no histogram, or fails.
    """
    if is_fit(replacement):
        if histogram is None:
            raise UserError(
                f"{key} is to be fitted, which needs the inputs of that layer: give an input of the network that "
                "reaches it as sample=."
            )
        try:
            if inputs_CE is not None and (fit_each := fit_by_channel(replacement)) is not None:
                return _fitted_by_channel(fit_each, row, shape, old, inputs_CE)
            fit = _fit_of(replacement)
            return _fitted(key, fit, row, shape, old, histogram)
        except UserError as error:
            raise UserError(f"{row.path!r} cannot be replaced by a fit. {error}") from error
    if isinstance(replacement, str):
        return from_text(replacement, shape)
    if isinstance(replacement, AdaptiveActivation):
        return replacement.reshaped(shape)
    if isinstance(replacement, nn.Module):
        return deepcopy(replacement)
    arguments = _arguments(replacement)
    takes_shape = "shape" in arguments or any(one.kind is one.VAR_KEYWORD for one in arguments.values())
    if isinstance(replacement, type) or not takes_shape:
        raise UserError(f"{key} is to be replaced by {replacement!r}: {VALUES}.")
    made = replacement(shape=shape)
    if not isinstance(made, nn.Module):
        raise UserError(f"The function given for {key} returned {made!r} for shape={shape}: let it return a module.")
    return made


def fit_by_channel(replacement: NewActivation) -> Callable[..., FNeuron] | None:
    """Return the fit that determines a separate interval for each channel.

    Returns:
        The fit; None unless the replacement is a fit of F-Neurons whose interval is not given.
    """
    fit, options = _fit_of(replacement), dict[str, Any]()
    if isinstance(fit, partial) and not fit.args:
        options, fit = fit.keywords, fit.func
    family = getattr(fit, "__self__", None)
    if not (isinstance(family, type) and issubclass(family, FNeuron)) or fit != family.fit or "interval" in options:
        return None
    return partial(family.fit_each, **options)


def _fit_of(replacement: NewActivation) -> Any:
    """Return the fit that a family, by its class or name, or a function asks for."""
    if isinstance(replacement, str):
        return fit_from_text(replacement)
    return getattr(replacement, "fit", None) if isinstance(replacement, type) else replacement


def as_functions(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the functions that a module computes, one for each set S of its parameters.

    Returns:
        A function u -> y of shape (*u.shape, S), in float64 on the CPU.

    Raises:
        UserError: (when called) the module fails, or computes no elementwise function.
    """
    name = activation_name(module)

    def functions(inputs: Tensor) -> Tensor:
        try:
            return curve_values(module, inputs.flatten()).reshape(*inputs.shape, -1)
        except UserError as error:
            raise UserError(f"Only an elementwise function of a tensor can be fitted; {name} is none.") from error
        # The error may be of any type: the module's program is the user's.
        except Exception as error:
            raise UserError(
                f"The {name} there fails for a vector of {inputs.numel()} inputs ({type(error).__name__}: {error}): "
                "give an activation, as LEAF.like('ReLU'), and nothing that is fitted."
            ) from error

    return functions


def input_histograms(net: nn.Module, sample: Any, paths: Collection[str]) -> dict[str, Histogram]:
    """Return the histogram of each module's inputs in a forward of the sample, by path, without padding.

    Modules that the forward does not call are left out.

    Raises:
        UserError: a module receives NaN or infinity.
    """
    if sample is None or not paths:
        return {}
    histograms: dict[str, Histogram] = {}
    probe, batch = probe_of(net), as_inputs(sample)

    def see(path: str, u: Tensor) -> None:
        u = without_padding(u, batch)
        try:
            histogram = Histogram.of(u)
        except UserError as error:
            raise UserError(f"Nothing can be fitted at {path!r}. {error}") from error
        histograms[path] = histograms[path].merged(histogram) if path in histograms else histogram

    forward_of_sample(probe, sample, receiving(probe, paths, see))
    return histograms


def channel_inputs(net: nn.Module, sample: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return inputs of each channel of modules in a forward of the sample, (C, E) by path, without padding.

    Args:
        net: the network.
        sample: an input.
        shapes: shape of a parameter for each channel, by path of the module.
    """
    if not shapes:
        return {}
    received: dict[str, list[Tensor]] = {}
    probe, batch = probe_of(net), as_inputs(sample)

    def see(path: str, u: Tensor) -> None:
        shape = shapes[path]
        inputs_Cn = without_padding(u, batch, shape).detach().movedim(-len(shape), 0).reshape(shape[0], -1)
        if inputs_Cn.shape[1] > SAMPLED:
            chosen = torch.randint(inputs_Cn.shape[1], (SAMPLED,), generator=torch.Generator().manual_seed(0))
            inputs_Cn = inputs_Cn[:, chosen.to(u.device)]
        received.setdefault(path, []).append(inputs_Cn.double().cpu())

    forward_of_sample(probe, sample, receiving(probe, shapes, see))
    return {path: _quantiles(torch.cat(parts, 1)) for path, parts in received.items()}


def _quantiles(inputs_CE: Tensor) -> Tensor:
    count = inputs_CE.shape[1]
    at = torch.linspace(0, count - 1, min(count, QUANTILES), dtype=torch.float64).round().long()
    return inputs_CE.sort(1).values[:, at]


def _fitted_by_channel(
    fit_each: Callable[..., FNeuron], row: FoundActivation, shape: tuple[int, ...], old: nn.Module, inputs_CE: Tensor
) -> FNeuron:
    """Fit an F-Neuron to the function that `old` computes, for each channel to its inputs."""
    functions, sets = as_functions(old), torch.Size(parameter_shape(old)).numel()
    which = [0] * len(inputs_CE) if sets == 1 else _set_of_each(old, row, shape).flatten().tolist()

    def function(u_CE: Tensor) -> Tensor:
        if sets == 1:
            return functions(u_CE)[..., 0]
        return torch.stack([functions(u_E)[..., at] for u_E, at in zip(u_CE, which, strict=True)])

    function.__name__ = activation_name(old)
    return fit_each(function, inputs_CE, shape)


def _fitted(
    key: str, fit: Any, row: FoundActivation, shape: tuple[int, ...], old: nn.Module, histogram: Histogram
) -> AdaptiveActivation:
    """Fit to the function that `old` computes.

    If it computes several, fit to their mean, or to each of them if the new parameters are not shared by layer.
    """
    functions, sets = as_functions(old), torch.Size(parameter_shape(old)).numel()

    def fitted(function: Callable[[Tensor], Tensor], **options: Any) -> AdaptiveActivation:
        function.__name__ = activation_name(old)
        made = fit(function, histogram, **options)
        if not isinstance(made, AdaptiveActivation):
            raise UserError(f"The fit given for {key} returned {made!r}: let it return an adaptive activation.")
        return made

    made = fitted(lambda u: functions(u).mean(-1))
    if sets == 1:
        return made.reshaped(shape)
    if shape == (1,):
        made.residual = _residual(made, functions, histogram)
        return made
    which = _set_of_each(old, row, shape)
    # All share one interval and its knots: an activation has one only.
    shared = [name for name in ("interval", "knots") if hasattr(made, name) and name in _arguments(fit)]
    same = {name: getattr(made, name) for name in shared}
    each = [fitted(lambda u, at=at: functions(u)[..., at], **same) for at in range(sets)]  # type: ignore[misc]
    kinds = [{name: value for name, value in own.settings().items() if name != "start"} for own in each]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError(
            f"It computes {sets} functions, and fits to them differ in more than their parameters (in an F-Neuron's "
            "interval): share by layer, or give FNeuron or functools.partial(FNeuron.fit, ...)."
        )
    # One that equals a known function is named for that; the others for the original activation.
    joined = max(each, key=lambda own: own.start not in own.likes).reshaped(shape)
    with torch.no_grad():
        for name, parameter in joined.named_parameters():
            parameter.copy_(torch.cat([own.get_parameter(name) for own in each])[which])
    left = [own.residual for own in each if own.residual is not None]
    joined.residual = Residual(*(max(values) for values in zip(*map(astuple, left), strict=True))) if left else None
    return joined


def _residual(made: AdaptiveActivation, functions: Callable[[Tensor], Tensor], histogram: Histogram) -> Residual:
    """Return the residual of one function as the fit to several."""
    u_E, weight_E = histogram.points()
    y_ES = functions(u_E)
    with torch.no_grad():
        error_ES = made(u_E).double()[:, None] - y_ES
    left, right = histogram.bulk()
    return Residual.of(error_ES, y_ES, weight_E, (u_E >= left) & (u_E <= right))


def _set_of_each(old: nn.Module, row: FoundActivation, shape: tuple[int, ...]) -> Tensor:
    """Return, for each element of a parameter of the shape `shape`, the index of the set of `old` that it replaces."""
    sets = parameter_shape(old)
    if isinstance(old, nn.PReLU):
        # Its slopes lie along axis 1.
        sets = (*sets, *[1] * (len(row.shape or ()) - 2))
    try:
        return torch.arange(torch.Size(sets).numel()).reshape(sets).expand(shape)
    except RuntimeError:
        raise UserError(
            f"It computes a function for each of {'x'.join(map(str, sets))} parts of its input, which parameters of "
            f"shape {shape} do not tell apart: share by layer."
        ) from None


def _arguments(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the function's parameters by name; empty if it has no signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
