"""The adaptive activations, a file for each family, and the fixed functions that they start from.

Begin with leaf.py, then base.py, the class of all adaptive activations. elementwise.py and linear_spline.py compute
them, compiled.py makes that fast, fitting.py fits them to functions. A text form names each activation: "ReLU",
"AHAF as SiLU", "LEAF random", "F-Neuron ramp", "Affine(ReLU) as SiLU", "Polynomial(degree=4) as ReLU".
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

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
from aafit.activations.piecewise_linear import PiecewiseLinear
from aafit.activations.polynomial import Polynomial
from aafit.activations.rational import Rational
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
    "fit_from_text",
    "from_settings",
    "from_text",
    "is_adaptive",
    "parse_text",
]

_FAMILIES: tuple[type[AdaptiveActivation], ...] = (AHAF, LEAF, FNeuron, PiecewiseLinear, Polynomial, Rational, XIELU)
ADAPTIVE: dict[str, type[AdaptiveActivation]] = {cls.family: cls for cls in _FAMILIES}
ADAPTIVE |= {cls.family: cls for offset in (True, False) for cls in (Affine(name, offset) for name in FIXED)}


class TextForm(NamedTuple):
    """The parts of a text form, as "Polynomial(degree=4) as ReLU".

    Attributes:
        family: "Polynomial"; of a fixed function its name.
        options: {"degree": 4}, the arguments of the family's `like` and `fit`.
        start: "as ReLU"; empty if the text does not say how the activation starts.
    """

    family: str
    options: dict[str, Any]
    start: str


def parse_text(text: str) -> TextForm:
    """Return the parts of a text form, or of a family alone, as "Polynomial(degree=4)"; the start is not checked.

    Raises:
        UserError: There is no such family, or its option is not valid; the message suggests the nearest right one.
    """
    given = text if isinstance(text, str) else repr(text)
    name, start = re.match(r"([^\s(]*(?:\(.*\))?[^\s]*) ?(.*)", given, re.DOTALL).groups()  # type: ignore[union-attr]
    family = name.partition("(")[0]
    if name in ADAPTIVE or family == name or family not in ADAPTIVE:
        return TextForm(check_name("activation", name, [*FIXED, *ADAPTIVE]), {}, start)
    option = ADAPTIVE[family].text_option
    if option is None:
        raise UserError(f"Activation {text!r}: {family} takes no option; write {f'{family} {start}'.strip()!r}.")
    several = isinstance(option.default, tuple)
    default = option.default if isinstance(option.default, tuple) else (option.default,)
    found = [int(digits) for digits in re.findall(r"-?\d{1,9}", name.removeprefix(family))][: len(default)]
    numbers = tuple(max(option.least, min(option.most, number)) for number in (*found, *default[len(found) :]))
    value = numbers if several else numbers[0]
    if name != (right := family + option.written(value)):
        what = f"{len(default)} integers" if several else "an integer"
        raise UserError(
            f"Activation {text!r}: {family} takes the option {option.name}, {what} from {option.least} to "
            f"{option.most:,}. Did you mean {f'{right} {start}'.strip()!r}?"
        )
    return TextForm(family, {option.name: value}, start)


def check_text(text: str) -> str:
    """Return `text` if it is the text form of an activation.

    Raises:
        UserError: It is not; the message suggests the nearest valid one.
    """
    family, _, start = parse_text(text)
    if family not in FIXED:
        if not start:
            raise UserError(f"Activation {text!r} does not say how it starts. Valid: {', '.join(_texts(text))}.")
        check_name("activation", text, _texts(text.removesuffix(f" {start}")))
    elif start:
        raise UserError(f"Activation {text!r}: {family} is a fixed function and takes no start; write {family!r}.")
    return text


def fit_from_text(text: str) -> Callable[..., AdaptiveActivation] | None:
    """Return the fit that a family alone stands for, as "LEAF" or "Polynomial(degree=4)"; None for other texts.

    Raises:
        UserError: The family's option is not valid.
    """
    if not {text, text.partition("(")[0]} & ADAPTIVE.keys():
        return None
    family, options, start = parse_text(text)
    if start:
        return None
    return partial(ADAPTIVE[family].fit, **options) if options else ADAPTIVE[family].fit


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
            After a family's name its option may stand: "Polynomial(degree=4) as ReLU", "Rational(degrees=5,4) as GELU",
            "PiecewiseLinear(segments=8) as SiLU", "F-Neuron(knots=34) as Tanh".
        shape: Shape of one parameter of an adaptive activation; (1,) is shared by the layer.
        generator: The CPU generator of random starts; by default torch's own.
        interval: (left, right) of an F-Neuron, a polynomial, a rational or a piecewise linear function.
        knots: F-Neuron's number of knots, if the text does not give it.
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
    family, options, start = parse_text(text)
    cls = ADAPTIVE[family]
    given = {"shape": shape, "generator": generator, "interval": interval, "knots": knots, "pieces": pieces} | options
    make: Any = partial(cls.like, start.removeprefix("as ")) if start.startswith("as ") else getattr(cls, start)
    accepted = inspect.signature(make).parameters
    made: nn.Module = make(**{name: value for name, value in given.items() if name in accepted or name in options})
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


def _texts(name: str) -> list[str]:
    """Return the text forms that begin with a family, with its option or without."""
    cls = ADAPTIVE[parse_text(name).family]
    return [f"{name} as {start}" for start in cls.likes] + [f"{name} {start}" for start in cls.others]
