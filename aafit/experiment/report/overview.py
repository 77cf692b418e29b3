"""The picture of a suite's first screen: of each run the accuracy of its base, just replaced, and tuned."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aafit.experiment.report.summary import Row, Spread, activations
from aafit.plots.svg import ticks

SHOWN = 60
"""Runs in the picture."""
MARKS = ("base", "replaced", "tuned")


@dataclass(frozen=True)
class Strip:
    """One run: its marks and where they stand, in percent of the strip's width.

    Attributes:
        name: Of the run.
        fragment: Of its section in the page; empty: it has none.
        activations: In words.
        marks: (kind, place), the kind one of `MARKS`; only what is known.
        span: Left end and width of the line from the replaced to the tuned network; None where there is none.
        text: The values in words.
    """

    name: str
    fragment: str
    activations: str
    marks: tuple[tuple[str, float], ...]
    span: tuple[float, float] | None
    text: str


@dataclass(frozen=True)
class Strips:
    """The strips of runs, the places of round percentages on their axis, and how many runs are not shown."""

    rows: tuple[Strip, ...]
    scale: tuple[tuple[str, float], ...]
    more: int = 0


def strips(rows: Sequence[Row], anchors: Mapping[str, str]) -> Strips:
    """The strips of the first rows of the results table that have an accuracy.

    Args:
        rows: of the table.
        anchors: the fragment of each run that has a section in the page, by its name.
    """
    there = [row for row in rows if _values(row)]
    known = there[:SHOWN]
    values = [100 * value for row in known for value in _values(row).values()]
    if not values:
        return Strips((), ())
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), 0.5)
    low, high = max(0.0, low - room), min(100.0, high + room)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return Strips(
        tuple(_strip(row, anchors.get(row.settings.name, ""), place) for row in known),
        tuple((f"{value:g}%", place(value)) for value in ticks(low, high, 5)),
        len(there) - len(known),
    )


def _strip(row: Row, fragment: str, place: Callable[[float], float]) -> Strip:
    values = {kind: 100 * value for kind, value in _values(row).items()}
    span = None
    if "replaced" in values and "tuned" in values:
        left, right = sorted((place(values["replaced"]), place(values["tuned"])))
        span = left, round(right - left, 2)
    words = {"base": "base", "replaced": "just replaced", "tuned": "tuned" if "replaced" in values else "trained"}
    return Strip(
        row.settings.name,
        fragment,
        ", ".join(activations(row.settings)),
        tuple((kind, place(value)) for kind, value in values.items()),
        span,
        ", ".join(f"{words[kind]} {value:.2f}%" for kind, value in values.items()),
    )


def _values(row: Row) -> dict[str, float]:
    found: dict[str, Spread | None] = dict(zip(MARKS, (row.base, row.replaced, row.last), strict=True))
    return {kind: spread.mean for kind, spread in found.items() if spread is not None and math.isfinite(spread.mean)}
