"""The form of a layer as inline SVG: its curves and their band over the histogram of its inputs."""

import math

from markupsafe import Markup

from aafit.plots.svg import Frame, axes, picture
from aafit.studies.inputs import InputDistribution
from aafit.studies.shapes import LearnedShape

BARS = 50
RARE = 0.005
"""The share of the inputs at each end on which a curve does not count for the height of its picture."""


def form_frame(
    form: LearnedShape, seen: InputDistribution, left: float, top: float, width: float, height: float
) -> Frame:
    """The frame of one form: all its inputs, and what all curves reach on all but the rarest of them."""
    below = seen.weights.cumsum(0)
    first, last = (seen.centres[int((below < share).sum().clamp(max=len(below) - 1))] for share in (RARE, 1 - RARE))
    inner = (form.u_U >= first) & (form.u_U <= last)
    curves = [form.original_U[inner], form.initial_U[inner], form.tuned_U[inner]]
    curves += [each[inner] for each in (form.low_U, form.high_U) if each is not None]
    finite = [value for curve in curves for value in curve.tolist() if math.isfinite(value)] or [0.0]
    low, high = min(*finite, 0.0), max(*finite, 0.0)
    room = 0.08 * (high - low) or 1.0
    return Frame((form.u_U[0].item(), form.u_U[-1].item()), (low - room, high + room), left, top, width, height)


def form_picture(form: LearnedShape, seen: InputDistribution, index: int, label: str) -> Markup:
    """The form of a layer over the histogram of its inputs, with axes."""
    frame = form_frame(form, seen, 46, 10, 420, 240)
    inside = [_bars(frame, seen, 0.45), axes(frame), *_curves(form, frame, True)]
    return picture("form", (476, 290), inside, label, frame, index)


def small_picture(form: LearnedShape, seen: InputDistribution, index: int, label: str) -> Markup:
    """The same as a small picture without numbers."""
    frame = form_frame(form, seen, 2, 2, 116, 76)
    x, y = frame.at(0, 0)
    zero = f'<path class="zero" d="M2 {y:.1f}H118{f"M{x:.1f} 2V78" if 2 < x < 118 else ""}"/>'
    return picture(
        "small", (120, 80), [_bars(frame, seen, 0.5), zero, *_curves(form, frame, False)], label, frame, index
    )


def _curves(form: LearnedShape, frame: Frame, with_error: bool) -> list[str]:
    u = form.u_U.tolist()
    parts = []
    if form.low_U is not None and form.high_U is not None:
        parts.append(f'<path class="spread" d="{frame.band(u, form.low_U.tolist(), form.high_U.tolist())}"/>')
    if with_error and form.error_U is not None:
        low, high = (form.tuned_U + sign * form.error_U for sign in (-2, 2))
        parts.append(f'<path class="band" d="{frame.band(u, low.tolist(), high.tolist())}"/>')
    parts += [
        f'<path class="{name}" d="{frame.path(u, curve.tolist())}"/>'
        # The dashes over the thick line, so that both are seen where they are the same.
        for name, curve in (("replaced", form.original_U), ("tuned", form.tuned_U), ("start", form.initial_U))
    ]
    return [
        f'<svg x="{frame.left}" y="{frame.top}" width="{frame.width}" height="{frame.height}" '
        f'viewBox="{frame.left} {frame.top} {frame.width} {frame.height}">{"".join(parts)}</svg>'
    ]


def _bars(frame: Frame, seen: InputDistribution, share: float) -> str:
    """The histogram as one area, its highest bar so much of the plot's height."""
    edges, counts = seen.edges.tolist(), seen.counts.tolist()
    several = -(-len(counts) // BARS)
    tall = [sum(counts[at : at + several]) / len(counts[at : at + several]) for at in range(0, len(counts), several)]
    most, bottom = max(tall) or 1.0, frame.top + frame.height
    words = []
    for index, count in enumerate(tall):
        left, _ = frame.at(edges[index * several], 0)
        right, _ = frame.at(edges[min((index + 1) * several, len(counts))], 0)
        words.append(
            f"M{left:.1f} {bottom:.1f}V{bottom - share * frame.height * count / most:.1f}H{right:.1f}V{bottom:.1f}Z"
        )
    return f'<path class="inputs" d="{"".join(words)}"/>'
