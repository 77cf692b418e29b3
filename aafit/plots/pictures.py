"""The curves of an activation as inline SVG for a page, over the density of their inputs."""

from markupsafe import Markup

from aafit.activations import Histogram
from aafit.plots.curves import Curves, drawn_bars, faded, vertical_range
from aafit.plots.svg import Frame, axes, picture

BARS = 50


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
