"""Plain text tables, and numbers fit for JSON."""

import math
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """An aligned table: columns to the left, but to the right those of `numbers` between the first and the last."""
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
    """ "a, b, c and 5 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def ranges(numbers: Sequence[int]) -> str:
    """ "0-4, 7" of 0, 1, 2, 3, 4, 7, which rise."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def fit_for_json(content: dict[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples and None for numbers that are not finite, which JSON does not have."""
    return {key: _fit(item) for key, item in content.items()}


def _fit(item: Any) -> Any:
    if isinstance(item, dict):
        return fit_for_json(item)
    if isinstance(item, (list, tuple)):
        return [_fit(part) for part in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item
