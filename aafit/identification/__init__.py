"""Parametric identification: the optimum of a network's adaptive activations from a few Gauss-Newton steps.

Begin with identify.py, then identifier.py, which has the phases; objective.py has the function that they minimize.
problem.py computes gradients and curvature, coordinates.py maps the parameters to a vector, gauss_newton.py takes the
steps, and layerwise.py improves a poor initialization. audit.py reports which parameters are trainable, uncertainty.py
their standard errors, and importance.py the gain that each layer can be expected to give.
"""

from aafit.identification.audit import Audit, audit
from aafit.identification.identify import identify
from aafit.identification.importance import Importance, importance
from aafit.identification.result import Identification, State
from aafit.identification.slope import smooth_start
from aafit.training.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss, loss_with_hessian

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED_ERROR",
    "Audit",
    "Identification",
    "Importance",
    "Loss",
    "State",
    "audit",
    "identify",
    "importance",
    "loss_with_hessian",
    "smooth_start",
]
