"""A worker process: does one run, or several in lockstep. An engine starts it, see engines/.

`python -m aafit.experiment.scheduling.worker` reads a list of jobs as one line of JSON from standard input. It ends
when that input is closed, so that it does not outlive the program that started it. With `--patience 120` it waits up to
120 seconds for the lock of a folder that another process has not released yet.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from aafit.errors import UserError
from aafit.experiment.devices import compilation_from_environment
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _exit_with_input() -> None:
    """End this process at once when its standard input is closed; a run can be stopped at any moment."""
    sys.stdin.read()
    os._exit(128 + signal.SIGTERM)


def main() -> int:
    """Do the jobs on standard input.

    Returns:
        0 when they are done, 2 for an error that the user can fix; signal n exits with 128 + n.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_on_signal)
    parser = argparse.ArgumentParser()
    parser.add_argument("--patience", type=float, default=0.0)
    patience = parser.parse_args().patience
    try:
        jobs = TypeAdapter(Annotated[list[Job], Field(min_length=1)]).validate_json(sys.stdin.readline())
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        print(f"This is not a list of jobs: {why}. `aafit run` and `aafit train` make jobs.", file=sys.stderr)
        return 2
    threading.Thread(target=_exit_with_input, daemon=True).start()
    try:
        with compilation_from_environment():
            execute(*jobs, patience=patience)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
