"""What the processes of the command line read from environment variables as they start."""

import os
from contextlib import AbstractContextManager

from aafit.activations.compiled import compiled_loops


def compiling_as_told() -> AbstractContextManager[None]:
    """A block of `compiled_loops`: off if the environment variable AAFIT_COMPILE is 0, else on."""
    return compiled_loops(os.environ.get("AAFIT_COMPILE") != "0")
