"""Hooks of the site: the notebook becomes a page, and the examples of docstrings become blocks of code."""

import json
from pathlib import Path
from typing import Any

from griffe import Extension
from mkdocs.structure.files import File

NOTEBOOK = "tutorial/own-network"


class Examples(Extension):
    """Render a section `Example:` of a docstring as code; griffe knows `Examples:` only."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def on_files(files: Any, config: Any) -> Any:
    """Add the page of the notebook, and its figures."""
    notebook = json.loads((Path(config["docs_dir"]) / f"{NOTEBOOK}.ipynb").read_text(encoding="utf-8"))
    parts, figures = [], 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/svg+xml" in output.get("data", {}):
                figures += 1
                name = f"{NOTEBOOK}-{figures}.svg"
                files.append(File.generated(config, name, content="".join(output["data"]["image/svg+xml"])))
                parts.append(f"![Output of the cell]({Path(name).name})")
    files.append(File.generated(config, f"{NOTEBOOK}.md", content="\n\n".join(parts) + "\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to the notebook lead to its page."""
    return markdown.replace(".ipynb)", ".md)")
