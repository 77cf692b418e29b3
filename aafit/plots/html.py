"""HTML pages of a single file, rendered from templates that contain their style and script."""

import base64
import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aafit.version import __version__


def rendered(template: str, **values: Any) -> str:
    """Render a template of `aafit/plots/templates`."""
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
    """Return the path of a layer with line breaks allowed after each name."""
    return Markup("").join(
        part if part not in "._" else Markup("{}<wbr>").format(part) for part in re.split("([._])", path)
    )


def embedded_json(content: Any) -> Markup:
    """Return JSON for a script element, with every "<" escaped so that no text can end the element."""
    return Markup(json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def svg_url(content: bytes) -> str:
    """Return the data URL of an SVG file: as an image of its own, its ids cannot clash with those of others."""
    return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
