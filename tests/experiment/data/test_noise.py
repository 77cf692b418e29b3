"""Noise in the form of a data set."""

import pytest
import torch

from aafit.experiment.data.datasets import DATASETS, SIZES
from aafit.experiment.data.noise import noise_like


@pytest.mark.parametrize("name", DATASETS)
def test_noise_has_the_form_of_the_data_set_and_is_the_same_at_each_call(name: str) -> None:
    data, again = noise_like(name, 30, 20), noise_like(name, 30, 20)
    assert (data.name, data.in_shape, data.classes) == (name, SIZES[name].in_shape, 10)
    assert (len(data.train), len(data.test), data.heldout) == (30, 20, None)
    assert data.train.images_BHWC.dtype == torch.uint8
    assert data.train.images_BHWC.max() > 200
    assert torch.equal(data.train.images_BHWC, again.train.images_BHWC)
    assert torch.equal(data.test.labels_B, again.test.labels_B)
