"""What is adapted: AHAF, LEAF and F-Neuron, and the fixed functions they start from.

Begin with leaf.py and base.py, which say what an adaptive activation is; elementwise.py and piecewise_linear.py have
the loops that compute it, compiled.py and memory_layout.py make them fast. A short text names each activation: "ReLU",
"AHAF as SiLU", "LEAF as Tanh", "LEAF random", "F-Neuron ramp".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from aafit.activations.ahaf import AHAF
from aafit.activations.base import AdaptiveActivation, check_shape
from aafit.activations.fitting import Residual
from aafit.activations.fixed import FIXED, FUNCTIONS, SiLU
from aafit.activations.fneuron import INTERVAL, KNOTS, FNeuron
from aafit.activations.histogram import Histogram
from aafit.activations.leaf import LEAF
from aafit.errors import UserError, check_name, nearest

__all__ = [
    "ADAPTIVE",
    "AHAF",
    "FIXED",
    "FUNCTIONS",
    "LEAF",
    "AdaptiveActivation",
    "FNeuron",
    "Histogram",
    "Residual",
    "SiLU",
    "check_text",
    "from_settings",
    "from_text",
    "is_adaptive",
]

ADAPTIVE: dict[str, type[AdaptiveActivation]] = {cls.family: cls for cls in (AHAF, LEAF, FNeuron)}


def check_text(text: str) -> None:
    """Nothing, where `text` names an activation.

    Raises:
        UserError: it does not; the message names the nearest that does.
    """
    words = text.split(" ") if isinstance(text, str) else [repr(text)]
    name = words[0]
    if len(words) == 1 and name in ADAPTIVE:
        raise UserError(f"Activation {text!r} does not say how it starts. Valid: {', '.join(_texts(name))}.")
    check_name("activation", name, [*FIXED, *ADAPTIVE])
    if name in FIXED:
        if len(words) > 1:
            raise UserError(f"Activation {text!r}: {name} is a fixed function and takes no start; write {name!r}.")
        return
    check_name("activation", text, _texts(name))


def from_text(
    text: str,
    shape: tuple[int, ...] = (1,),
    generator: torch.Generator | None = None,
    interval: tuple[float, float] = INTERVAL,
    knots: int = KNOTS,
    pieces: int | None = None,
) -> nn.Module:
    """The activation that `text` names.

    Args:
        text: A fixed function ("ReLU"), or a family with its start ("AHAF as ReLU", "LEAF random", "F-Neuron ramp").
        shape: Shape of one adaptive parameter; (1,) is shared by the layer.
        generator: What random starts draw from; torch's own where there is none.
        interval: F-Neuron's (left, right).
        knots: F-Neuron's number of knots.
        pieces: No longer in use; the error names the number of knots.

    Raises:
        UserError: `text` names none (the message has the nearest), or another value cannot be used.
    """
    check_text(text)
    if text in FIXED:
        return FIXED[text]()
    family, _, start = text.partition(" ")
    options: dict[str, Any] = {"shape": shape}
    if family == FNeuron.family:
        options |= {"interval": interval, "knots": knots, "pieces": pieces}
    if start == "random":
        options["generator"] = generator
    cls: Any = ADAPTIVE[family]
    made: nn.Module = (
        cls.like(start.removeprefix("as "), **options) if start.startswith("as ") else getattr(cls, start)(**options)
    )
    return made


def is_adaptive(text: str) -> bool:
    """Whether `text` names an adaptive activation.

    Raises:
        UserError: it names none at all.
    """
    check_text(text)
    return text not in FIXED


def from_settings(settings: Mapping[str, Any], families: Iterable[type[AdaptiveActivation]] = ()) -> AdaptiveActivation:
    """The activation with these `settings()`; its parameters are NaN until their values are loaded.

    Args:
        settings: What `settings()` gave; its "family" names the class.
        families: Classes beside those of this package: an activation of one's own is not found by its name alone.

    Raises:
        UserError: the settings are not those of an adaptive activation, or of a class that is not given.
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
    except (KeyError, TypeError) as error:
        raise UserError(f"These are not the settings of an adaptive activation: {settings!r}.") from error
    for parameter in made.parameters():
        nn.init.constant_(parameter, float("nan"))
    return made


def _texts(family: str) -> list[str]:
    cls = ADAPTIVE[family]
    return [f"{family} as {name}" for name in cls.likes] + [f"{family} {name}" for name in cls.others]
