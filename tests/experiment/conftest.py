"""Runs compute their activations by torch's operations, except in tests of the compiler."""

from collections.abc import Iterator

import pytest

from aafit.activations.compiled import compiled_loops


@pytest.fixture(scope="module", autouse=True)
def nothing_compiled() -> Iterator[None]:
    """The compiler takes seconds in each process; compiled runs are in tests/test_any_device.py."""
    with pytest.MonkeyPatch.context() as patch, compiled_loops(False):
        patch.setenv("AAFIT_COMPILE", "0")
        yield
