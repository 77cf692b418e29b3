"""What takes the place of an activation: a copy, something made for its shape, or something fitted to it.

Axes in names: E input, S set of parameters that the activation has, as a PReLU with one slope for each channel.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, Histogram, Residual
from aafit.errors import UserError
from aafit.networks.batches import as_inputs, without_padding
from aafit.networks.find import Found, FoundActivation
from aafit.networks.kinds import activation_name
from aafit.networks.running import forward_of_sample, probe_of, receiving
from aafit.networks.select import EVERYTHING, Key

NewActivation = nn.Module | type[AdaptiveActivation] | Callable[..., nn.Module]
VALUES = (
    "give a module, as LEAF.like('ReLU') or nn.SiLU(), a class that is fitted, as LEAF, a function of (function, "
    "histogram) that fits, as LEAF.fit, or a function that is called as make(shape=...)"
)


def is_fit(replacement: NewActivation) -> bool:
    """Whether a replacement is fitted: a class of adaptive activations, or a function of (function, histogram)."""
    if isinstance(replacement, type):
        return issubclass(replacement, AdaptiveActivation)
    arguments = {} if isinstance(replacement, nn.Module) else _arguments(replacement)
    needed = [one for one in arguments.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return "histogram" in arguments or (len(needed) == 2 and "shape" not in arguments)


def leave_out_what_has_no_fit(
    found: Found, key_of: dict[str, Key], replacements: Mapping[Any, NewActivation]
) -> dict[str, str]:
    """Take out of `key_of` what the sample does not reach, and what "*" would fit to one value alone; why, by path.

    Raises:
        UserError: a path names what the sample does not reach, another key than "*" asks for a fit to one value, or
            nothing is left.
    """
    why: dict[str, str] = {}
    for path, key in list(key_of.items()):
        low, high = found[path].range or (0.0, 1.0)
        unreached = found[path].calls == 0
        if not is_fit(replacements[key]) or not (low == high or unreached):
            continue
        reason = "the sample does not reach it" if unreached else f"in the sample it receives {low:g} only"
        why[path] = f"{reason}: there is nothing to fit to"
        del key_of[path]
        if key == path or not (unreached or key == EVERYTHING) or not key_of:
            raise UserError(
                f"{path!r} cannot be fitted: {reason}. Give another sample, or an activation, as LEAF.like('ReLU')."
            )
    return why


def make_activation(
    key: str,
    replacement: NewActivation,
    row: FoundActivation,
    shape: tuple[int, ...],
    old: nn.Module,
    histogram: Histogram | None,
) -> nn.Module:
    """The module that takes the place of `old`, with parameters of the shape `shape` where it is adaptive.

    Raises:
        UserError: the replacement is of another kind, or a function returned no module; a fit has no histogram, or
            cannot be made.
    """
    if is_fit(replacement):
        if histogram is None:
            raise UserError(
                f"{key} is to be fitted, which needs the inputs of that layer: give an input of the network that "
                "reaches it as sample=."
            )
        fit: Any = getattr(replacement, "fit", None) if isinstance(replacement, type) else replacement
        try:
            return _fitted(key, fit, row, shape, old, histogram)
        except UserError as error:
            raise UserError(f"{row.path!r} cannot be replaced by a fit. {error}") from error
    if isinstance(replacement, AdaptiveActivation):
        return replacement.reshaped(shape)
    if isinstance(replacement, nn.Module):
        return deepcopy(replacement)
    arguments = _arguments(replacement)
    takes_shape = "shape" in arguments or any(one.kind is one.VAR_KEYWORD for one in arguments.values())
    if isinstance(replacement, type) or not takes_shape:
        raise UserError(f"{key} is to be replaced by {replacement!r}: {VALUES}.")
    return _module(key, replacement(shape=shape), shape)


def sets_of(module: nn.Module) -> tuple[int, ...]:
    """The shape of one parameter of an activation: (1,) where it computes one function for all that it receives."""
    if isinstance(module, nn.PReLU):
        return (module.weight.numel(),)
    return module.shape if isinstance(module, AdaptiveActivation) else (1,)


def as_functions(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The functions that a module computes, u -> y of shape (*u.shape, S), in float64 on the CPU.

    There is one for each set of its parameters.

    Raises:
        UserError: (when called) the module fails, or computes no function element by element.
    """
    own, shape = deepcopy(module).to("cpu", torch.float64).eval(), sets_of(module)
    name = activation_name(module)

    def functions(given: Tensor) -> Tensor:
        u = given if shape == (1,) else given.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
        try:
            with torch.no_grad():
                y = own(u.clone())
        # Of whatever kind: its program is not ours.
        except Exception as error:
            raise UserError(
                f"The {name} there fails with {given.numel()} numbers ({type(error).__name__}: {error}): give an "
                "activation, as LEAF.like('ReLU'), and nothing that is fitted."
            ) from error
        if not isinstance(y, Tensor) or y.shape != u.shape:
            raise UserError(f"Only an elementwise function of a tensor can be fitted; {name} is none.")
        return y.reshape(*given.shape, -1)

    return functions


def inputs_seen(net: nn.Module, sample: Any, paths: Collection[str]) -> dict[str, Histogram]:
    """By path, the histogram of what a module receives in a forward of the sample, padding left out.

    Paths of modules that the forward does not call are left out.

    Raises:
        UserError: a module receives NaN or infinity.
    """
    if sample is None or not paths:
        return {}
    seen: dict[str, Histogram] = {}
    probe, batch = probe_of(net), as_inputs(sample)

    def see(path: str, u: Tensor) -> None:
        u = without_padding(u, batch)
        try:
            histogram = _one_value(u) or Histogram.of(u)
        except UserError as error:
            raise UserError(f"Nothing can be fitted at {path!r}. {error}") from error
        seen[path] = seen[path].merged(histogram) if path in seen else histogram

    forward_of_sample(probe, sample, receiving(probe, paths, see))
    return seen


def _one_value(u: Tensor) -> Histogram | None:
    """The histogram of a tensor of one value only: other calls of the same activation may bring more."""
    if not u.numel() or not u.isfinite().all() or u.min() != u.max():
        return None
    value = u.flatten()[0].item()
    half = max(abs(value), 1.0) * 2.0**-20
    return Histogram(torch.tensor([value - half, value + half]).double(), torch.tensor([float(u.numel())]))


def _fitted(
    key: str, fit: Any, row: FoundActivation, shape: tuple[int, ...], old: nn.Module, histogram: Histogram
) -> AdaptiveActivation:
    """What is fitted to the function that `old` computes; where it computes several, to each or to their mean."""
    functions, sets = as_functions(old), torch.Size(sets_of(old)).numel()

    def fitted(of: Callable[[Tensor], Tensor], **options: Any) -> AdaptiveActivation:
        of.__name__ = activation_name(old)
        made = fit(of, histogram, **options)
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
    # One interval for all: an F-Neuron has one alone.
    same = {"interval": made.interval} if hasattr(made, "interval") and "interval" in _arguments(fit) else {}
    each = [fitted(lambda u, at=at: functions(u)[..., at], **same) for at in range(sets)]  # type: ignore[misc]
    if any(own.settings() != each[0].settings() for own in each):
        raise UserError(
            f"It computes {sets} functions, and fits to them differ in more than their parameters (in an F-Neuron's "
            "interval): share by layer, or give FNeuron or functools.partial(FNeuron.fit, ...)."
        )
    joined = each[0].reshaped(shape)
    with torch.no_grad():
        for name, parameter in joined.named_parameters():
            parameter.copy_(torch.cat([own.get_parameter(name) for own in each])[which])
    left = [own.residual for own in each if own.residual is not None]
    joined.residual = Residual(max(own.rms for own in left), max(own.largest for own in left)) if left else None
    return joined


def _residual(made: AdaptiveActivation, functions: Callable[[Tensor], Tensor], histogram: Histogram) -> Residual:
    """What one function leaves of several."""
    u_E, weight_E = histogram.points()
    y_ES = functions(u_E)
    with torch.no_grad():
        error_ES = made(u_E).double()[:, None] - y_ES
    spread = (weight_E @ (y_ES - weight_E @ y_ES).square()).mean().sqrt().item()
    rms = (weight_E @ error_ES.square()).mean().sqrt().item()
    return Residual(rms / spread if spread else float("inf") if rms else 0.0, error_ES.abs().max().item())


def _set_of_each(old: nn.Module, row: FoundActivation, shape: tuple[int, ...]) -> Tensor:
    """Which set of the parameters of `old` holds where one of a parameter of the shape `shape` does."""
    sets = sets_of(old)
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
    """Those of a function by name; none of what is no function, or does not tell them."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _module(key: str, made: Any, shape: tuple[int, ...]) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UserError(f"The function given for {key} returned {made!r} for shape={shape}: let it return a module.")
    return made
