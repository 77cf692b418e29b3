"""What a process of this program takes from its environment, where it starts."""

import os
from contextlib import AbstractContextManager

from aafit.activations.compiled import compiled_loops


def compiling_as_told() -> AbstractContextManager[None]:
    """`compiled_loops`, off where the environment variable AAFIT_COMPILE is 0."""
    return compiled_loops(os.environ.get("AAFIT_COMPILE") != "0")
