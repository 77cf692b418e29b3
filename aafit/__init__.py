"""Learn the activation functions of an already trained PyTorch network, with error bars on the result.

Replace the activations of a trained network by trainable ones, see what that changed, fit their parameters with every
weight frozen, and look at the learned activations.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aafit.version import __version__

if TYPE_CHECKING:
    from aafit.activations import (
        AHAF,
        LEAF,
        XIELU,
        AdaptiveActivation,
        Affine,
        FNeuron,
        Histogram,
        PiecewiseLinear,
        Polynomial,
        Rational,
    )
    from aafit.errors import Stopped, UserError
    from aafit.experiment.authors_checkpoint import load_authors_checkpoint
    from aafit.experiment.runs.start import load_run
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
        train_only_activations,
    )
    from aafit.networks.batches import Batch
    from aafit.networks.find import find_activations
    from aafit.networks.fold import Fold, fold_activations
    from aafit.networks.freeze import Freeze, freeze_activations
    from aafit.networks.polynomials import PolynomialExport, export_polynomials
    from aafit.networks.saving import load_activations, save_activations
    from aafit.networks.surgery import Replacement, replace_activations, restore_activations
    from aafit.plots.activations import plot_activations
    from aafit.studies.families import FamilyComparison, compare_families
    from aafit.studies.figures import plot_families, plot_study
    from aafit.studies.result import Study
    from aafit.studies.study import study
    from aafit.training.compare import Comparison, compare
    from aafit.training.curve_errors import CurveError, curve_errors
    from aafit.training.evaluate import Evaluation, evaluate
    from aafit.training.tune import tune

__all__ = [
    "AHAF",
    "CROSS_ENTROPY",
    "LEAF",
    "SQUARED_ERROR",
    "XIELU",
    "AdaptiveActivation",
    "Affine",
    "Audit",
    "Batch",
    "Comparison",
    "CurveError",
    "Evaluation",
    "FNeuron",
    "FamilyComparison",
    "Fold",
    "Freeze",
    "Histogram",
    "Identification",
    "Importance",
    "Loss",
    "PiecewiseLinear",
    "Polynomial",
    "PolynomialExport",
    "Rational",
    "Replacement",
    "Stopped",
    "Study",
    "UserError",
    "__version__",
    "adaptive_activations",
    "adaptive_parameters",
    "audit",
    "compare",
    "compare_families",
    "curve_errors",
    "evaluate",
    "export_polynomials",
    "find_activations",
    "fold_activations",
    "freeze_activations",
    "identify",
    "importance",
    "load_activations",
    "load_authors_checkpoint",
    "load_run",
    "loss_with_hessian",
    "plot_activations",
    "plot_families",
    "plot_study",
    "replace_activations",
    "restore_activations",
    "save_activations",
    "smooth_start",
    "study",
    "train_only_activations",
    "tune",
]

# Public names are imported when they are first used. Importing torch takes seconds: meanwhile a command must be able to
# handle Ctrl-C, and `aafit --help` need not wait for it.
_MODULES = {
    "aafit.activations": (
        "AHAF",
        "AdaptiveActivation",
        "Affine",
        "FNeuron",
        "Histogram",
        "LEAF",
        "PiecewiseLinear",
        "Polynomial",
        "Rational",
        "XIELU",
    ),
    "aafit.errors": ("Stopped", "UserError"),
    "aafit.experiment.authors_checkpoint": ("load_authors_checkpoint",),
    "aafit.experiment.runs.start": ("load_run",),
    "aafit.identification": (
        "Audit",
        "CROSS_ENTROPY",
        "Identification",
        "Importance",
        "Loss",
        "SQUARED_ERROR",
        "loss_with_hessian",
        "smooth_start",
    ),
    "aafit.identification.audit": ("audit",),
    "aafit.identification.identify": ("identify",),
    "aafit.identification.importance": ("importance",),
    "aafit.networks.adaptive": (
        "adaptive_activations",
        "adaptive_parameters",
        "train_only_activations",
    ),
    "aafit.networks.batches": ("Batch",),
    "aafit.networks.find": ("find_activations",),
    "aafit.networks.freeze": ("Freeze", "freeze_activations"),
    "aafit.networks.polynomials": ("PolynomialExport", "export_polynomials"),
    "aafit.networks.saving": ("load_activations", "save_activations"),
    "aafit.networks.surgery": ("Replacement", "replace_activations", "restore_activations"),
    "aafit.plots.activations": ("plot_activations",),
    "aafit.studies.figures": ("plot_families", "plot_study"),
    "aafit.studies.result": ("Study",),
    "aafit.studies.study": ("study",),
    "aafit.training.compare": ("Comparison", "compare"),
    "aafit.training.curve_errors": ("CurveError", "curve_errors"),
    "aafit.training.evaluate": ("Evaluation", "evaluate"),
    "aafit.training.tune": ("tune",),
    "aafit.networks.fold": ("Fold", "fold_activations"),
    "aafit.studies.families": ("FamilyComparison", "compare_families"),
}
_FOLDERS = ("activations", "identification", "networks", "studies", "training")
_EXTRAS = {
    "aafit.experiment.authors_checkpoint": "experiment",
    "aafit.experiment.runs.start": "experiment",
    "aafit.plots.activations": "plots",
    "aafit.studies.figures": "plots",
}
"""The extra that installs what a module needs besides torch, numpy and safetensors."""


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if name in _FOLDERS:
        return import_module(f"aafit.{name}")
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if module in _EXTRAS:
        from aafit.errors import needs_extra

        with needs_extra(f"aafit.{name}", _EXTRAS[module]):
            import_module(module)
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
