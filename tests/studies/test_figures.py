"""The activations of a study in one figure."""

from pathlib import Path

import numpy as np
import pytest
from study_helpers import studied

import aafit
from aafit.errors import UserError
from aafit.studies.figures import write_figure


def test_the_forms_of_a_study_in_one_figure() -> None:
    found = studied(steps=1)
    figure = aafit.plot_study(found)
    for form, axes in zip(found.shapes, figure.axes, strict=False):
        tuned = next(line for line in axes.lines if line.get_label() == "tuned")
        assert np.array_equal(np.asarray(tuned.get_ydata()), form.tuned_U.numpy())
        assert form.path in axes.get_title(loc="left")


def test_a_figure_of_a_study_is_a_file_that_is_not_overwritten(tmp_path: Path) -> None:
    found = studied(steps=1)
    made = write_figure(found, tmp_path / "new" / "forms.svg")
    assert write_figure(found, made) == made
    made.write_text("mine")
    with pytest.raises(UserError, match="is not this figure"):
        write_figure(found, made)
    assert made.read_text() == "mine"
