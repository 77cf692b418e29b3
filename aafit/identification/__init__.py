"""Parametric identification: the optimum of a network's adaptive activations from a few Gauss-Newton steps.

Begin with identify.py, the map of an identification; objective.py is what it minimizes. problem.py has gradients and
curvature, coordinates.py what is moved, gauss_newton.py the steps, layerwise.py what brings a far start near. audit.py,
uncertainty.py and importance.py tell what can move, how sure it is, and what is worth it.
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
