"""A training method: everything in which one way of finding a run's parameters differs from the others.

The methods are gradient.py and gauss_newton.py. A new one is one file beside them, named in METHODS of config.py; the
settings that it alone reads are fields of `RunConfig`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aafit.experiment.data.datasets import Dataset
    from aafit.experiment.runs.active import ActiveRun
    from aafit.experiment.runs.config import RunConfig
    from aafit.experiment.runs.job import Job

LogOf = Callable[["Job"], AbstractContextManager[object]]


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        name: as the setting `method` spells it.
        check: raises a UserError if the method cannot train a run with these settings.
        prepare: makes a run's optimizers and restores the state that it was stopped in.
        train: trains the runs to their end, each measured after every epoch; `LogOf` redirects output to a run's log.
        settings: settings that this method alone reads.
        takes_gradient_steps: whether an optimizer of `RunConfig.optimizer` trains on the train images.
        activations_only: whether it can train nothing but activations.
        ends_early: whether a run may end before its last epoch, having converged.
        folder_mark: word for it in the name of a folder, where the name is made from settings.
    """

    name: str
    check: Callable[["RunConfig"], None]
    prepare: Callable[["ActiveRun"], None]
    train: Callable[[Sequence["ActiveRun"], "Dataset", LogOf], None]
    settings: tuple[str, ...] = ()
    takes_gradient_steps: bool = False
    activations_only: bool = False
    ends_early: bool = False
    folder_mark: str = ""
