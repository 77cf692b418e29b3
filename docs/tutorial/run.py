"""Execute the notebook of the tutorial and store its outputs: ./run_experiment.sh docs/tutorial/run.py"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("own-network.ipynb")


def execute(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the cells of code in order, store what each prints and the figure it ends with, and return their names."""
    names: dict[str, Any] = {"__name__": "notebook"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = None if last is None else eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        cell |= {"outputs": outputs(printed.getvalue(), value, number), "execution_count": number}
    return names


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """Return the outputs of a cell in the notebook's format."""
    found: list[dict[str, Any]] = []
    if printed:
        found.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if hasattr(value, "savefig"):
        content = io.StringIO()
        value.savefig(content, format="svg", metadata={"Date": None})
        data = {"image/svg+xml": content.getvalue().splitlines(keepends=True)}
        found.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return found


if __name__ == "__main__":
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        execute(notebook["cells"])
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Executed {NOTEBOOK}", file=sys.stderr)
