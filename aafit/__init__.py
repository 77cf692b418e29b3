"""Adaptive activation functions, identified in trained networks.

Replace the activations of a trained network by adaptive ones, see what that changed, tune only those few numbers with
all else frozen, and look at the shapes they took.
"""

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.authors import load_authors_checkpoint
from aafit.compare import Comparison, CurveError, compare, curve_errors
from aafit.errors import UserError
from aafit.evaluate import Evaluation, evaluate
from aafit.gradient import tune
from aafit.report import plot_activations
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

__all__ = [
    "AHAF",
    "LEAF",
    "AdaptiveActivation",
    "Comparison",
    "CurveError",
    "Evaluation",
    "FNeuron",
    "Swap",
    "UserError",
    "__version__",
    "adaptive_activations",
    "adaptive_parameters",
    "compare",
    "curve_errors",
    "evaluate",
    "load_activations",
    "load_authors_checkpoint",
    "load_run",
    "plot_activations",
    "replace_activations",
    "restore_activations",
    "save_activations",
    "train_only_activations",
    "tune",
]
