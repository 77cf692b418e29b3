"""log.txt, what a run printed: of a process with several runs each has its own."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from aafit.experiment.runs.documents import LOG
from aafit.experiment.runs.job import Job
from aafit.files import make_folder

log = logging.getLogger("aafit")


@contextmanager
def printing_to_log(job: Job) -> Iterator[None]:
    """What this process prints meanwhile goes to the run's log.txt."""
    with (job.folder / LOG).open("ab") as file, ExitStack() as undo:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            before = os.dup(number)
            undo.callback(os.close, before)
            undo.callback(os.dup2, before, number)
            os.dup2(file.fileno(), number)
        undo.callback(sys.stderr.flush)
        undo.callback(sys.stdout.flush)
        yield


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """What this program logs meanwhile goes to the run's log.txt too.

    Raises:
        UserError: the folder cannot be made.
    """
    to_file = logging.FileHandler(make_folder(job.folder) / LOG)
    to_file.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(to_file)
    try:
        yield
    finally:
        log.removeHandler(to_file)
        to_file.close()
