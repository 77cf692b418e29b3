"""The tables of the how-to pages are those of the JSON files."""

from pathlib import Path

import pytest

from benchmarks.networks.how_to import PAGES, TABLES, with_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_files(page: Path) -> None:
    text = page.read_text()
    assert len(TABLES.findall(text)) == text.count("<!-- tables: ") > 0
    assert with_tables(text) == text


def test_a_table_that_was_edited_by_hand_is_found() -> None:
    text = PAGES[0].read_text()
    assert with_tables(text.replace("| step |", "| steps |", 1)) == text
