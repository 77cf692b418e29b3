"""Inline SVG for pages, coloured by the page's style sheet and changed by its script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Frame:
    """The map from data to pixels: the ranges of both axes, and the position of the plot in its picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    width: float
    height: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point; points far outside the plot are clipped to one height above or below it."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        share = min(2.0, max(-1.0, share))
        return (
            self.left + self.width * (x - self.x[0]) / (self.x[1] - self.x[0]),
            self.top + self.height * (1 - share),
        )

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        """Return the `d` attribute of a line with gaps at values that are not finite."""
        words, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen = "M"
                continue
            px, py = self.at(x, y)
            words.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        return "".join(words)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
        """Return the `d` attribute of the area between two lines, wherever both are finite."""
        parts, start = [], 0
        known = [math.isfinite(a) and math.isfinite(b) for a, b in zip(low, high, strict=True)] + [False]
        for index, here in enumerate(known):
            if not here:
                if index - start > 1:
                    there = self.path(xs[start:index], high[start:index])
                    back = self.path(xs[start:index][::-1], low[start:index][::-1])
                    parts.append(f"{there}L{back[1:]}Z")
                start = index + 1
        return "".join(parts)

    @property
    def numbers(self) -> str:
        """All values, for the script."""
        return " ".join(f"{value:.6g}" for value in (*self.x, *self.y, self.left, self.top, self.width, self.height))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers within an interval."""
    for exponent in range(math.floor(math.log10((high - low) / most)), 40):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [index * step for index in range(first, last + 1)]
    return []


def line_picture(
    xs: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float]]],
    label: str,
    labels: tuple[str, str],
    log: bool = False,
) -> Markup:
    """Return lines with markers over integers, each with a class of the page's style sheet."""
    scaled = [(name, [math.log10(y) if log and y > 0 else y for y in ys]) for name, ys in lines]
    finite = [y for _, ys in scaled for y in ys if math.isfinite(y)] or [0.0]
    room = 0.08 * (max(finite) - min(finite)) or abs(max(finite)) * 0.1 or 1.0
    frame = Frame((min(xs), max(max(xs), min(xs) + 1)), (min(finite) - room, max(finite) + room), 66, 10, 414, 190)
    inside = [axes(frame, labels, log, whole=True)]
    for name, ys in scaled:
        inside.append(f'<path class="line {name}" d="{frame.path(xs, ys)}"/>')
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                px, py = frame.at(x, y)
                inside.append(f'<circle class="{name}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
    inside.append('<circle class="now" r="6.5"/>')
    return picture("lines", (490, 240), inside, label, frame, None)


def picture(
    kind: str, size: tuple[int, int], inside: Iterable[str], label: str, frame: Frame, index: int | None
) -> Markup:
    """Return an SVG element; `index` is the layer that its script moves, None for none."""
    # Only the label needs escaping: the rest is generated.
    layer = "" if index is None else f' data-layer="{index}" data-frame="{frame.numbers}"'
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(kind, *size, label)
    return head + Markup(f"{layer}>{''.join(inside)}</svg>")


def axes(frame: Frame, labels: tuple[str, str], log: bool = False, whole: bool = False) -> str:
    """Return the grid, the tick labels and the labels of both axes.

    Args:
        frame: The frame of the plot.
        labels: Labels of the horizontal and the vertical axis.
        log: Whether the vertical values are base-10 logarithms.
        whole: Whether the horizontal axis has ticks at integers only.
    """
    bottom, right = frame.top + frame.height, frame.left + frame.width
    parts = []
    for x in ticks(*frame.x):
        if whole and x != round(x):
            continue
        px, _ = frame.at(x, 0)
        zero = ' class="zero"' if x == 0 else ""
        parts.append(
            f'<path{zero} d="M{px:.1f} {frame.top}V{bottom}"/><text x="{px:.1f}" y="{bottom + 17}">{x:g}</text>'
        )
    for y in ticks(*frame.y, 3 if log else 6):
        _, py = frame.at(0, y)
        zero = ' class="zero"' if y == 0 and not log else ""
        shown = f"{10**y:.3g}" if log else f"{y:.6g}"
        parts.append(f'<path{zero} d="M{frame.left} {py:.1f}H{right}"/>')
        parts.append(f'<text class="side" x="{frame.left - 7}" y="{py + 4:.1f}">{shown}</text>')
    across, middle = frame.left + frame.width / 2, frame.top + frame.height / 2
    parts.append(f'<text x="{across}" y="{bottom + 34}">{labels[0]}</text>')
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)">{labels[1]}</text>')
    return f'<g class="axes">{"".join(parts)}</g>'
