"""Adaptive activation functions, identified in trained networks.

Replace the activations of a trained network by adaptive ones, see what that changed, tune only those few numbers with
all else frozen, and look at the shapes they took.
"""

from typing import TYPE_CHECKING, Any

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.authors import load_authors_checkpoint
from aafit.compare import Comparison, CurveError, compare, curve_errors
from aafit.errors import UserError
from aafit.evaluate import Evaluation, evaluate
from aafit.gradient import tune
from aafit.identification import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    Audit,
    Identification,
    Importance,
    Loss,
    audit,
    identify,
    importance,
    loss_with_hessian,
    smooth_start,
)
from aafit.start import load_run
from aafit.surgery import Swap, replace_activations, restore_activations
from aafit.trainable import (
    adaptive_activations,
    adaptive_parameters,
    load_activations,
    save_activations,
    train_only_activations,
)
from aafit.version import __version__

if TYPE_CHECKING:
    from aafit.report import plot_activations

__all__ = [
    "AHAF",
    "CROSS_ENTROPY",
    "LEAF",
    "SQUARED_ERROR",
    "AdaptiveActivation",
    "Audit",
    "Comparison",
    "CurveError",
    "Evaluation",
    "FNeuron",
    "Identification",
    "Importance",
    "Loss",
    "Swap",
    "UserError",
    "__version__",
    "adaptive_activations",
    "adaptive_parameters",
    "audit",
    "compare",
    "curve_errors",
    "evaluate",
    "identify",
    "importance",
    "load_activations",
    "load_authors_checkpoint",
    "load_run",
    "loss_with_hessian",
    "plot_activations",
    "replace_activations",
    "restore_activations",
    "save_activations",
    "smooth_start",
    "train_only_activations",
    "tune",
]


def __getattr__(name: str) -> Any:
    # matplotlib takes most of a second to import, in every process of a suite, and most of them draw nothing.
    if name == "plot_activations":
        from aafit.report import plot_activations

        return plot_activations
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
