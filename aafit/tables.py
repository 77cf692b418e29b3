"""Plain-text tables, and values fit for JSON."""

import math
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Return an aligned table.

    Args:
        header: names of the columns.
        rows: the cells.
        numbers: whether the columns between the first and the last are aligned to the right.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for line in (header, *rows):
        inner = [
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width in zip(line[1:-1], widths[1:-1], strict=True)
        ]
        lines.append("  ".join([line[0].ljust(widths[0]), *inner, line[-1]]).rstrip())
    return "\n".join(lines)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return the first names as a text: "a, b, c and 5 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a text: "0-4, 7" for 0, 1, 2, 3, 4, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def fit_for_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with lists for tuples, and None for numbers that are not finite, which JSON does not have."""
    return {key: _fit(item) for key, item in content.items()}


def _fit(item: Any) -> Any:
    if isinstance(item, dict):
        return fit_for_json(item)
    if isinstance(item, (list, tuple)):
        return [_fit(part) for part in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item
