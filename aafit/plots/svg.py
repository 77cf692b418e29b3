"""Inline SVG for pages, coloured by the page's style sheet and changed by its script.

`curves_picture` and `thumbnail` draw the curves of an activation, `line_picture` values over steps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aafit.activations import Histogram
from aafit.plots.curves import Curves, drawn_bars, faded, vertical_range

BARS = 50


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


def curves_picture(curves: Curves, inputs: Histogram, index: int, label: str) -> Markup:
    """Return the picture of the curves with axes.

    Args:
        curves: The curves.
        inputs: The histogram of their inputs.
        index: Number of the layer in the data of the page's script, which moves the tuned curve.
        label: Text for screen readers.
    """
    frame = _frame(curves, inputs, 60, 10, 420, 240)
    inside = [_bars(frame, inputs, 0.45), axes(frame, ("input", "output")), _paths(curves, inputs, frame, True)]
    return picture("form", (490, 290), inside, label, frame, index)


def thumbnail(curves: Curves, inputs: Histogram, index: int, label: str) -> Markup:
    """Return a small picture of the curves without axes or standard errors; the arguments are as above."""
    frame = _frame(curves, inputs, 2, 2, 116, 76)
    x, y = frame.at(0, 0)
    zero = f'<path class="zero" d="M2 {y:.1f}H118{f"M{x:.1f} 2V78" if 2 < x < 118 else ""}"/>'
    inside = [_bars(frame, inputs, 0.5), zero, _paths(curves, inputs, frame, False)]
    return picture("small", (120, 80), inside, label, frame, index)


def _frame(curves: Curves, inputs: Histogram, left: float, top: float, width: float, height: float) -> Frame:
    across = curves.u_U[0].item(), curves.u_U[-1].item()
    return Frame(across, vertical_range(curves, inputs), left, top, width, height)


def _paths(curves: Curves, inputs: Histogram, frame: Frame, with_error: bool) -> str:
    """Return the curves and bands, each of the class that is its key in `LABELS`, clipped to the frame.

    A veil lies over what no input reaches, and where the samples do not determine the tuned curve.
    """
    u, parts = curves.u_U.tolist(), []
    if curves.low_U is not None and curves.high_U is not None:
        band = frame.band(u, curves.low_U.tolist(), curves.high_U.tolist())
        parts.append(f'<path class="quantiles" d="{band}"/>')
    if with_error and curves.error_U is not None:
        low_U, high_U = (curves.tuned_U + sign * curves.error_U for sign in (-2, 2))
        parts.append(f'<path class="error" d="{frame.band(u, low_U.tolist(), high_U.tolist())}"/>')
    # The dashed initial curve is above the thick tuned one, so that both are visible where they coincide.
    for name, curve in (("original", curves.original_U), ("tuned", curves.tuned_U), ("initial", curves.initial_U)):
        if curve is not None:
            parts.append(f'<path class="{name}" d="{frame.path(u, curve.tolist())}"/>')
    parts.append(f'<path class="veil" d="{_veil(curves, inputs, frame)}"/>')
    box = f"{frame.left} {frame.top} {frame.width} {frame.height}"
    size = f'width="{frame.width}" height="{frame.height}"'
    return f'<svg x="{frame.left}" y="{frame.top}" {size} viewBox="{box}">{"".join(parts)}</svg>'


def _veil(curves: Curves, inputs: Histogram, frame: Frame) -> str:
    half = (curves.u_U[1] - curves.u_U[0]).item() / 2
    top, bottom = frame.top, frame.top + frame.height
    parts = []
    for u in curves.u_U[faded(curves, inputs)].tolist():
        (left, _), (right, _) = frame.at(u - half, 0), frame.at(u + half, 0)
        parts.append(f"M{left:.1f} {top}H{right:.1f}V{bottom}H{left:.1f}Z")
    return "".join(parts)


def _bars(frame: Frame, inputs: Histogram, share: float) -> str:
    """Return the histogram as one area; its highest bar takes this share of the frame's height."""
    edges, densities = (values.tolist() for values in drawn_bars(inputs, BARS))
    most, bottom = max(densities), frame.top + frame.height
    parts = []
    for left, right, density in zip(edges, edges[1:], densities, strict=False):
        (x, _), (end, _) = frame.at(left, 0), frame.at(right, 0)
        parts.append(
            f"M{x:.1f} {bottom:.1f}V{bottom - share * frame.height * density / most:.1f}H{end:.1f}V{bottom:.1f}Z"
        )
    return f'<path class="inputs" d="{"".join(parts)}"/>'


def line_picture(
    xs: Sequence[float], ys: Sequence[float], label: str, labels: tuple[str, str], log: bool = False
) -> Markup:
    """Return a line with markers over integers."""
    ys = [math.log10(y) if log and y > 0 else y for y in ys]
    finite = [y for y in ys if math.isfinite(y)] or [0.0]
    room = 0.08 * (max(finite) - min(finite)) or abs(max(finite)) * 0.1 or 1.0
    frame = Frame((min(xs), max(max(xs), min(xs) + 1)), (min(finite) - room, max(finite) + room), 66, 10, 414, 190)
    inside = [axes(frame, labels, log, whole=True), f'<path class="line tuned" d="{frame.path(xs, ys)}"/>']
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            px, py = frame.at(x, y)
            inside.append(f'<circle class="tuned" cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
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


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers within an interval."""
    for exponent in range(math.floor(math.log10((high - low) / most)), 40):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [index * step for index in range(first, last + 1)]
    return []


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
