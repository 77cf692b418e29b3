"""A training method: everything in which one way of finding a run's parameters differs from the others.

The methods are gradient.py and gauss_newton.py. A new one is one file beside them and an entry in METHODS; the settings
that it alone reads are fields of `RunConfig`. The files are imported when a run is trained: a report reads run folders
without what trains them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aafit.errors import UserError

if TYPE_CHECKING:
    from aafit.experiment.runs.config import RunConfig
    from aafit.experiment.runs.job import Job

LogOf = Callable[["Job"], AbstractContextManager[object]]


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        name: as the setting `method` spells it.
        module: name of its file in this folder. Its `prepare(run)` makes the run's optimizers, if any, and restores
            the state that the run was stopped in. Its `train(runs, data, log_of)` trains the runs to their end, each
            measured after every epoch; `log_of` redirects output to a run's log.
        check: raises a UserError if the method cannot train a run with these settings.
        settings: settings that this method alone reads.
        takes_gradient_steps: whether an optimizer of `RunConfig.optimizer` trains on the train images.
        activations_only: whether it can train nothing but activations.
        ends_early: whether a run may end before its last epoch, having converged.
        folder_mark: word for it in the name of a folder, where the name is made from settings.
    """

    name: str
    module: str
    check: Callable[["RunConfig"], None]
    settings: tuple[str, ...] = ()
    takes_gradient_steps: bool = False
    activations_only: bool = False
    ends_early: bool = False
    folder_mark: str = ""

    @property
    def implementation(self) -> Any:
        """The module of the method's file."""
        return import_module(f"{__package__}.{self.module}")


def _check_identifies(run: "RunConfig") -> None:
    if run.train != "activations":
        raise UserError(
            f"method = 'gauss-newton' identifies adaptive activations only, but train is {run.train!r}: set "
            "train = 'activations'."
        )
    if not run.epochs:
        raise UserError("method = 'gauss-newton' needs at least one step, but epochs = 0: set epochs to 1 or more.")


METHODS = {
    method.name: method
    for method in (
        Method("gradient", "gradient", lambda run: None, takes_gradient_steps=True),
        Method(
            "gauss-newton",
            "gauss_newton",
            _check_identifies,
            settings=("target", "heldout", "curvature", "prior", "budget"),
            activations_only=True,
            ends_early=True,
            folder_mark="identified",
        ),
    )
}
