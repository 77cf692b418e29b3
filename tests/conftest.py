"""What all tests share in a process."""

import copy
from collections.abc import Iterator
from functools import cache

import pytest

from aafit.experiment.data import datasets


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once() -> Iterator[None]:
    """Reading MNIST-5k takes half a second, in each of some hundred runs."""
    read = cache(datasets._load_mnist5k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_load_mnist5k", lambda: copy.deepcopy(read()))
        yield
