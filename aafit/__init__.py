"""Adaptive activation functions, identified in trained networks.

Replace the activations of a trained network by adaptive ones, see what that changed, tune only those few numbers with
all else frozen, and look at the shapes they took.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron, Histogram
from aafit.errors import UserError, needs_extra
from aafit.identification import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    Audit,
    Identification,
    Importance,
    Loss,
    loss_with_hessian,
    smooth_start,
)
from aafit.identification.audit import audit
from aafit.identification.identify import identify
from aafit.identification.importance import importance
from aafit.networks.adaptive import (
    adaptive_activations,
    adaptive_parameters,
    load_activations,
    save_activations,
    train_only_activations,
)
from aafit.networks.batches import Batch
from aafit.networks.find import find_activations
from aafit.networks.freeze import Freeze, freeze_activations
from aafit.networks.surgery import Replacement, replace_activations, restore_activations
from aafit.studies.result import Study
from aafit.studies.study import study
from aafit.training.compare import Comparison, compare
from aafit.training.curve_errors import CurveError, curve_errors
from aafit.training.evaluate import Evaluation, evaluate
from aafit.training.tune import tune
from aafit.version import __version__

if TYPE_CHECKING:
    from aafit.experiment.authors_checkpoint import load_authors_checkpoint
    from aafit.experiment.runs.start import load_run
    from aafit.plots.activations import plot_activations
    from aafit.studies.figure import plot_study

__all__ = [
    "AHAF",
    "CROSS_ENTROPY",
    "LEAF",
    "SQUARED_ERROR",
    "AdaptiveActivation",
    "Audit",
    "Batch",
    "Comparison",
    "CurveError",
    "Evaluation",
    "FNeuron",
    "Freeze",
    "Histogram",
    "Identification",
    "Importance",
    "Loss",
    "Replacement",
    "Study",
    "UserError",
    "__version__",
    "adaptive_activations",
    "adaptive_parameters",
    "audit",
    "compare",
    "curve_errors",
    "evaluate",
    "find_activations",
    "freeze_activations",
    "identify",
    "importance",
    "load_activations",
    "load_authors_checkpoint",
    "load_run",
    "loss_with_hessian",
    "plot_activations",
    "plot_study",
    "replace_activations",
    "restore_activations",
    "save_activations",
    "smooth_start",
    "study",
    "train_only_activations",
    "tune",
]


# What needs more than torch, numpy and safetensors is imported when it is first asked for: where it is, and in which
# extra its packages are.
_ON_DEMAND = {
    "load_authors_checkpoint": ("aafit.experiment.authors_checkpoint", "experiment"),
    "load_run": ("aafit.experiment.runs.start", "experiment"),
    "plot_activations": ("aafit.plots.activations", "plots"),
    "plot_study": ("aafit.studies.figure", "plots"),
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _ON_DEMAND[name]
    with needs_extra(f"aafit.{name}", extra):
        return getattr(import_module(module), name)
