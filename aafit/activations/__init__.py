"""The adaptive activations, a file for each family, and the fixed functions that they start from.

Begin with leaf.py, then base.py, the class of all adaptive activations. elementwise.py and piecewise_linear.py compute
them, compiled.py makes that fast, fitting.py fits them to functions. A text form names each activation: "ReLU",
"AHAF as SiLU", "LEAF random", "F-Neuron ramp", "Affine(ReLU) as SiLU".
"""

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from aafit.activations.affine import Affine, AffineActivation
from aafit.activations.ahaf import AHAF
from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.fitting import Residual
from aafit.activations.fixed import FIXED, FUNCTIONS, SiLU
from aafit.activations.fneuron import KNOTS, FNeuron
from aafit.activations.histogram import Histogram
from aafit.activations.interval import INTERVAL, IntervalActivation
from aafit.activations.leaf import LEAF
from aafit.activations.polynomial import Polynomial
from aafit.activations.rational import Rational
from aafit.activations.segments import PiecewiseLinear
from aafit.activations.xielu import XIELU
from aafit.errors import UserError, check_name, nearest

__all__ = [
    "ADAPTIVE",
    "AHAF",
    "FIXED",
    "FUNCTIONS",
    "LEAF",
    "XIELU",
    "AdaptiveActivation",
    "Affine",
    "AffineActivation",
    "FNeuron",
    "Histogram",
    "IntervalActivation",
    "PiecewiseLinear",
    "Polynomial",
    "Rational",
    "Residual",
    "SiLU",
    "check_text",
    "from_settings",
    "from_text",
    "is_adaptive",
]

_FAMILIES: tuple[type[AdaptiveActivation], ...] = (AHAF, LEAF, FNeuron, PiecewiseLinear, Polynomial, Rational, XIELU)
ADAPTIVE: dict[str, type[AdaptiveActivation]] = {cls.family: cls for cls in _FAMILIES}
ADAPTIVE |= {cls.family: cls for offset in (True, False) for cls in (Affine(name, offset) for name in FIXED)}


def check_text(text: str) -> str:
    """Return `text` if it is the text form of an activation.

    Raises:
        UserError: It is not; the message suggests the nearest valid one.
    """
    words = text.split(" ") if isinstance(text, str) else [repr(text)]
    name = words[0]
    if len(words) == 1 and name in ADAPTIVE:
        raise UserError(f"Activation {text!r} does not say how it starts. Valid: {', '.join(_texts(name))}.")
    check_name("activation", name, [*FIXED, *ADAPTIVE])
    if name not in FIXED:
        check_name("activation", text, _texts(name))
    elif len(words) > 1:
        raise UserError(f"Activation {text!r}: {name} is a fixed function and takes no start; write {name!r}.")
    return text


def from_text(
    text: str,
    shape: tuple[int, ...] = (1,),
    generator: torch.Generator | None = None,
    interval: tuple[float, float] = INTERVAL,
    knots: int = KNOTS,
    pieces: int | None = None,
) -> nn.Module:
    """Return the activation with a text form.

    Args:
        text: A fixed function ("ReLU"), or a family with its start ("AHAF as ReLU", "LEAF random", "F-Neuron ramp").
        shape: Shape of one parameter of an adaptive activation; (1,) is shared by the layer.
        generator: The CPU generator of random starts; by default torch's own.
        interval: F-Neuron's (left, right).
        knots: F-Neuron's number of knots.
        pieces: No longer in use; the error names the number of knots.

    Raises:
        UserError: `text` is no text form (the message suggests the nearest), or another argument is not valid.

    Example:
        >>> from_text("LEAF as Tanh", shape=(16, 1, 1))
        LEAF(Tanh, shape=(16, 1, 1))
    """
    check_text(text)
    if text in FIXED:
        return FIXED[text]()
    family, _, start = text.partition(" ")
    cls = ADAPTIVE[family]
    given = {"shape": shape, "generator": generator, "interval": interval, "knots": knots, "pieces": pieces}
    make: Any = partial(cls.like, start.removeprefix("as ")) if start.startswith("as ") else getattr(cls, start)
    accepted = inspect.signature(make).parameters
    made: nn.Module = make(**{name: value for name, value in given.items() if name in accepted})
    return made


def is_adaptive(text: str) -> bool:
    """Return whether `text` is the text form of an adaptive activation.

    Raises:
        UserError: It is no text form at all.
    """
    check_text(text)
    return text not in FIXED


def from_settings(settings: Mapping[str, Any], families: Iterable[type[AdaptiveActivation]] = ()) -> AdaptiveActivation:
    """Return the activation with these `settings()`; its parameters are NaN until their values are loaded.

    Args:
        settings: The result of `settings()`; its "family" names the class.
        families: Classes other than those of this package: a class of your own is not found by its name alone.

    Raises:
        UserError: These are not the settings of an adaptive activation, or its class is not given.
    """
    known = dict(ADAPTIVE)
    for family in families:
        if known.setdefault(family.family, family) is not family:
            raise UserError(f"Two different classes are called {family.family!r}: give each a family name of its own.")
    try:
        family_name = str(settings["family"])
        if family_name not in known:
            raise UserError(
                f"Unknown family of activations {family_name!r}. {nearest(family_name, known)} "
                "If it is a class of your own, give the class, as families=[TheClass]."
            )
        cls = known[family_name]
        made = cls.blank({**settings, "shape": check_shape(settings["shape"])})
        made.start = settings["start"]
    except (LookupError, RuntimeError, TypeError) as error:  # RuntimeError: a shape that no memory holds
        raise UserError(f"These are not the settings of an adaptive activation: {settings!r}.") from error
    for parameter in made.parameters():
        nn.init.constant_(parameter, float("nan"))
    return made


def _texts(family: str) -> list[str]:
    cls = ADAPTIVE[family]
    return [f"{family} as {name}" for name in cls.likes] + [f"{family} {name}" for name in cls.others]
