"""The examples of docs/reference/inputs.md run as they stand."""

import re
from pathlib import Path

import aafit

PAGE = Path(aafit.__file__).parents[1] / "docs" / "reference" / "inputs.md"


def test_the_examples_run(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    exec("\n".join(blocks), {"__name__": "examples"})
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("amplification", "accuracy", "metric", "in reference", "Table with 514 knots")
    )
