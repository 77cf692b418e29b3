"""A page of one file: a template with its style and script in it, and nothing from anywhere else."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aafit.version import __version__

Cell = Any
"""A value, (text, what it is sorted by), or markup."""


@dataclass(frozen=True)
class PageTable:
    """A table that its reader can sort and filter.

    Attributes:
        anchor: Its id in the page.
        caption: What it shows.
        columns: (heading, classes): "number" is set to the right, "optional" is left out on a telephone.
        rows: A cell for each column.
        search: The label of the field that filters it; empty: it has none.
    """

    anchor: str
    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    search: str = ""

    @classmethod
    def filled(
        cls,
        anchor: str,
        caption: str,
        columns: Sequence[tuple[str, str]],
        rows: Sequence[Sequence[Cell]],
        search: str = "",
    ) -> "PageTable":
        """A table without the columns in which every cell is empty."""
        kept = [at for at in range(len(columns)) if not rows or any(row[at] != "" for row in rows)]
        return cls(
            anchor,
            caption,
            tuple(columns[at] for at in kept),
            tuple(tuple(row[at] for at in kept) for row in rows),
            search,
        )


def rendered(template: str, **values: Any) -> str:
    """The template of `aafit/plots/templates` with these values."""
    environment = Environment(
        loader=PackageLoader("aafit.plots", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(version=__version__, **values)


def breakable(path: str) -> Markup:
    """The path of a layer, which may go on in another line after each of its names."""
    return Markup("").join(
        part if part not in "._" else Markup("{}<wbr>").format(part) for part in re.split("([._])", path)
    )


def embedded_json(content: Any) -> Markup:
    """JSON that can stand in a script element: no text in it can end that."""
    return Markup(json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
