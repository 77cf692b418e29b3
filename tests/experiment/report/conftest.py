"""A small suite of runs with made-up values, and its report."""

from pathlib import Path

import pytest
from fake_runs import write_suite

from aafit.experiment.report.page import Report, write_report


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="session")
def report(suite: Path) -> Report:
    return write_report(suite)
