"""Plot a comparison of families: the gain of each against its number of parameters."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from aafit.errors import UserError
from aafit.plots.panels import add_legend, panel_grid
from aafit.plots.style import BASE_LINE, line, look
from aafit.studies.families import FamilyComparison

COLUMNS = 3
SIZE = 2.6, 1.9
"""Inches of a panel."""
WIDEST = 40
"""Characters of a path that fit over a panel."""


def plot_families(comparison: FamilyComparison) -> Figure:
    """Draw the gain of each family against its number of parameters, a panel for each place.

    The bars are two standard errors to each side; a filled marker is significant after the adjustment, and the line at
    0 is the base network.

    Args:
        comparison: what `compare_families` returned.

    Returns:
        A matplotlib figure, not registered with pyplot.

    Raises:
        UserError: `comparison` is not a `FamilyComparison`.

    Example:
        >>> found = aafit.compare_families(net, batches)  # doctest: +SKIP
        >>> aafit.plot_families(found).savefig("families.svg")  # doctest: +SKIP
    """
    if not isinstance(comparison, FamilyComparison):
        raise UserError(f"This is a {type(comparison).__name__}: give what aafit.compare_families returned.")
    places = list(dict.fromkeys(row.place for row in comparison.rows))
    families = list(dict.fromkeys(row.family for row in comparison.rows))
    columns = min(COLUMNS, len(places))
    figure, panels = panel_grid(len(places), columns, SIZE, (0.75, 0.1, 0.5, 0.35), foot=0.6)
    with look():
        for panel, place in zip(panels, places, strict=False):
            rows = [row for row in comparison.rows if row.place == place]
            panel.axhline(0, color=BASE_LINE.color, linewidth=0.8)
            for row in rows:
                style = line(families.index(row.family))
                panel.errorbar(
                    row.parameters,
                    row.gain,
                    2 * row.error,
                    color=style.color,
                    marker=style.marker,
                    markersize=5,
                    markerfacecolor=style.color if row.significant else "white",
                    linestyle="none",
                    capsize=2,
                    label=row.family,
                )
            panel.set_xscale("log")
            counts = sorted({row.parameters for row in rows})
            panel.set_xticks(counts)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xlim(counts[0] / 1.4, counts[-1] * 1.4)
            shown = place if len(place) <= WIDEST else f"{place[: WIDEST // 2]}…{place[-WIDEST // 2 :]}"
            panel.set_title(shown, fontsize=8, fontweight="normal")
            panel.tick_params(labelsize=7)
            panel.set_xlabel("parameters", fontsize=7)
        panels[0].set_ylabel("held-out gain in loss, ± 2 SE", fontsize=7)
    add_legend(figure, panels, len(places), families, size=7)
    return figure
