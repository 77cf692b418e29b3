"""The table of docs/networks says of each form of writing what the tests of call sites hold."""

import re
from pathlib import Path

import pytest
from written import FORMS, NOT_FOUND

TEXT = (Path(__file__).parents[2] / "docs" / "networks" / "README.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> dict[str, str]:
    """The second cell of each row by the first, in the table after this heading."""
    table = TEXT[TEXT.index(heading) :].split("\n\n")
    lines = next(part for part in table if part.startswith("|")).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1] for row in cells}


@pytest.mark.parametrize(("heading", "forms"), [("### Found", FORMS), ("### Not found", NOT_FOUND)])
def test_each_form_has_a_row_and_each_row_a_test(heading: str, forms) -> None:
    rows = rows_of(heading)
    assert [*rows] == [*forms]
    for form, cell in rows.items():
        paths = [row[1] for row in forms[form][1]]
        assert re.findall(r"`(\w+)`", cell) == paths, form
