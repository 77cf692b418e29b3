"""A page of one file: a template with its style and script in it, and nothing from anywhere else."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aafit.version import __version__


def rendered(template: str, **values: Any) -> str:
    """The template of `aafit/pages/templates` with these values."""
    environment = Environment(
        loader=PackageLoader("aafit.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def embedded_json(content: Any) -> Markup:
    """JSON that can stand in a script element: no text in it can end that."""
    return Markup(json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
