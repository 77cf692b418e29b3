"""What the settings of a run can be, beside the rules that a suite file shows (see test_suite.py)."""

from typing import get_args

import pytest

from aafit.experiment.runs.config import RunConfig
from aafit.identification.identify import TARGETS
from aafit.networks.select import SHARINGS
from aafit.training.precision import PRECISIONS


@pytest.mark.parametrize(
    ("setting", "of_the_library"), [("sharing", SHARINGS), ("target", TARGETS), ("precision", PRECISIONS)]
)
def test_a_run_can_be_set_to_all_that_the_library_can_do(setting: str, of_the_library: tuple[str, ...]) -> None:
    assert get_args(RunConfig.model_fields[setting].annotation) == of_the_library
