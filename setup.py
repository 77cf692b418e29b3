"""The description on a package index: README.md with absolute links. Everything else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def with_absolute_links(text: str) -> str:
    """Return the Markdown with links to files, and sources of images, in the repository."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", text)


readme = (ROOT / "README.md").read_text(encoding="utf-8")
setup(long_description=with_absolute_links(readme), long_description_content_type="text/markdown")
