"""The description on a package index, made from README.md. Everything else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Repository")


def description(text: str, repository: str | None) -> str:
    """Return the Markdown with links to files, and sources of images, in the repository.

    A package index cannot show relative ones: without a repository, images are left out and such links become text.
    """
    image = r"!\[([^\]]*)\]\((?!https?:|#)([^)]*)\)"
    link = r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)"
    text = re.sub(image, rf"![\1]({repository}/raw/main/\2)" if repository else "", text)
    return re.sub(link, rf"[\1]({repository}/blob/main/\2)" if repository else r"\1", text)


readme = (ROOT / "README.md").read_text(encoding="utf-8")
setup(long_description=description(readme, REPOSITORY), long_description_content_type="text/markdown")
