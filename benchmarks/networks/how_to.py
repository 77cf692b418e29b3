"""Write the tables of measurements into the how-to pages, from the JSON files of docs/networks.

./run_experiment.sh benchmarks/networks/how_to.py

A page says `<!-- tables: few_segments.json -->` where those of docs/networks/few_segments.json begin; they reach to
`<!-- end of tables -->`.
"""

import json
import re

import click

from benchmarks.harness import ROOT, Command, in_markdown

DOCS = ROOT / "docs"
PAGES = tuple(DOCS / "how-to" / f"{name}.md" for name in ("hardware", "plain-relu", "encrypted"))
TABLES = re.compile(r"<!-- tables: (\S+) -->\n.*?<!-- end of tables -->", re.DOTALL)


def with_tables(page: str) -> str:
    """Return the text of a page with its tables as the JSON files have them now."""

    def tables(found: re.Match[str]) -> str:
        content = json.loads((DOCS / "networks" / found[1]).read_text())
        rows = f"[The rows as JSON](../networks/{found[1]})"
        return f"<!-- tables: {found[1]} -->\n\n{in_markdown(content)}{rows}\n\n<!-- end of tables -->"

    return TABLES.sub(tables, page)


@click.command(cls=Command)
def main() -> None:
    """Write the tables of measurements into the how-to pages."""
    for path in PAGES:
        text = path.read_text()
        new = with_tables(text)
        click.echo(f"{path.relative_to(ROOT)}: {'as before' if new == text else 'written'}")
        path.write_text(new)


if __name__ == "__main__":
    main()
