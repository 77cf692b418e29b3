"""What one step of an optimizer does to the elements of a parameter, and in words."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.training.tune import make_optimizers

MINIBATCH = 128
MEASURABLE = 1e-6
MANY_STEPS = 10_000

# What becomes of an element, in the order in which it is asked: said of one, and of several.
STATES = {
    "not finite": ("stuck: its value is not finite", "stuck: their values are not finite"),
    "not called": ("stuck: the forward pass does not call it", "stuck: the forward pass does not call them"),
    "unknown": ("unknown: a value or the output is not finite", "unknown: a value or the output is not finite"),
    "rounds away": (
        "stuck: a step of {full:.2g} is less than half the spacing {spacing:.2g} of {dtype} at {value:.6g}",
        "stuck: steps of {full:.2g} are less than half the {dtype} spacing",
    ),
    "no input": ("stuck: no input reaches it", "stuck: no input reaches them"),
    "no gradient": ("stuck: its gradient is too small to matter", "stuck: their gradients are too small to matter"),
    "tiny step": (
        "stuck: its gradient is far below {optimizer}'s eps, and the step left, {step:.2g}, rounds away",
        "stuck: gradients far below {optimizer}'s eps, and the steps left round away",
    ),
    "weak": (
        "hardly moves: its gradient is below {optimizer}'s eps, which leaves a step of {step:.2g}",
        "hardly move: gradients below {optimizer}'s eps, which leaves less than half a step",
    ),
    "slow": (
        "hardly moves: a change of {way:.2g} takes {steps:,.0f} steps of {step:.2g}",
        "hardly move: they need over 10,000 steps of {step:.2g}",
    ),
    "moves": ("moves", "move"),
}
STUCK = ("not finite", "not called", "rounds away", "no input", "no gradient", "tiny step")


@dataclass(frozen=True)
class Setting:
    """How a parameter is stepped: the optimizer's name, the settings of its group; what was seen on how many images."""

    optimizer: str
    group: Mapping[str, Any]
    images: int
    finite: bool
    called: bool


@dataclass(frozen=True)
class Elements:
    """What was found of one parameter: float64 tensors of its shape on the CPU, and a key of STATES for each element.

    Attributes:
        step: The first of the optimizer.
        full: The same without eps, a bound of `step`.
        spacing: The distance to the next larger value, in size, that the parameter's dtype has.
        way: How far the element has to go, to its own optimum or by its own size.
        states: In flat order.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor
    step: Tensor
    full: float
    spacing: Tensor
    way: Tensor
    states: tuple[str, ...]


def step_settings(
    activations: Mapping[str, AdaptiveActivation], optimizer: str, lr: float | None, p24sl: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """The settings with which `tune`'s optimizer would step each parameter, by path and name."""
    copies = nn.ModuleList([deepcopy(activation) for activation in activations.values()]).requires_grad_(True)
    (made,) = make_optimizers(copies, optimizer, lr, p24sl)
    of = {parameter: group for group in made.param_groups for parameter in group["params"]}
    return {
        (path, own): of[parameter]
        for path, copied in zip(activations, copies, strict=True)
        for own, parameter in copied.named_parameters(recurse=False)
    }


def spacing_at(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from a value to the next larger one, in size, that the dtype has; in float64."""
    info = torch.finfo(dtype)
    exponent = value.double().abs().clamp(min=info.tiny).frexp().exponent
    return torch.ldexp(torch.full_like(value, info.eps, dtype=torch.float64), exponent - 1)


def examined(parameter: Tensor, sums: Tensor | None, membership: Tensor | None, setting: Setting) -> Elements:
    """What becomes of each element of a parameter, see `aafit.audit`.

    Args:
        parameter: as it is.
        sums: over the images, of the gradients, their squares, and the squares of the curvature's columns, (3, ...);
            None where they are not known.
        membership: of an F-Neuron's weights, summed over all inputs.
        setting: of the step.
    """
    value, dtype, group = parameter.detach().double().cpu(), parameter.dtype, setting.group
    known = torch.full((3, *value.shape), torch.nan, dtype=torch.float64) if sums is None else sums
    gradient, squares, curvature = known / setting.images
    variance = (squares - gradient.square()).clamp(min=0)
    typical = (gradient.square() + variance / MINIBATCH).sqrt()
    # RMSprop's first mean of squares is (1 - alpha) g^2; Adam makes up for that.
    share = (1 - group["alpha"]) ** 0.5 if "alpha" in group else 1.0
    full = group["lr"] / share
    step = group["lr"] * typical / (share * typical + group["eps"])
    size = value.abs().clamp(min=1)
    way = torch.minimum(gradient.abs() / curvature, size)
    towards = torch.where(gradient == 0, value.sign(), -gradient.sign())

    def same(change: Tensor | float) -> Tensor:
        return (value + towards * change).to(dtype) == value.to(dtype)

    never, always = torch.zeros_like(value, dtype=torch.bool), torch.ones_like(value, dtype=torch.bool)
    masks = {
        "not finite": ~value.isfinite(),
        "not called": never if setting.called else always,
        "unknown": never if setting.finite else always,
        "rounds away": same(full) & (full < spacing_at(value, dtype) / 2),
        "no input": never if membership is None else membership == 0,
        "no gradient": (typical * size < MEASURABLE) & (curvature * size.square() / 2 < MEASURABLE),
        "tiny step": same(step),
        "weak": step < full / 2,
        "slow": (way > MANY_STEPS * step) & (gradient.abs() > 2 * (variance / setting.images).sqrt()),
        "moves": always,
    }
    order = list(STATES)
    first = torch.stack([masks[state].flatten() for state in order]).int().argmax(0)
    states = tuple(order[index] for index in first.tolist())
    return Elements(value, gradient, curvature, step, full, spacing_at(value, dtype), way, states)


def verdict(found: Elements, dtype: torch.dtype, optimizer: str) -> str:
    """In words: of one element a sentence, of several how many do what, with semicolons between."""
    count = Counter(found.states)
    if len(found.states) == count["moves"]:
        return "moves"
    numbers = {
        "full": found.full,
        "step": found.step.max().item(),
        "way": found.way.max().item(),
        "steps": (found.way / found.step).max().item(),
        "spacing": found.spacing.max().item(),
        "value": found.value.flatten()[0].item(),
        "dtype": type_name(dtype),
        "optimizer": {"adam": "Adam", "rmsprop": "RMSprop"}[optimizer],
    }
    if len(found.states) == 1:
        return STATES[found.states[0]][0].format(**numbers)
    said = [
        f"{'all' if count[state] == len(found.states) else format(count[state], ',')} {several.format(**numbers)}"
        for state, (_, several) in STATES.items()
        if count[state] and state != "moves"
    ]
    return "; ".join(said + ["the others move"] * (count["moves"] > 0))


def type_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")
