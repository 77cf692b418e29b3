"""The error of an activation as an approximation of a function, in each data type."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.activations.interval import check_interval
from aafit.errors import UserError

CURVE_POINTS = 4001


@dataclass(frozen=True)
class CurveError:
    """Error of an activation over an interval of inputs, computed in one data type.

    Attributes:
        dtype: Name of the data type, such as "float32".
        max: Largest absolute error.
        mean_squared: Mean squared error.
        interval: The interval of inputs.
    """

    dtype: str
    max: float
    mean_squared: float
    interval: tuple[float, float]


def curve_errors(
    activation: nn.Module,
    function: Callable[[Tensor], Tensor],
    interval: tuple[float, float] = (-8.0, 8.0),
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32, torch.float64),
) -> list[CurveError]:
    """Return the largest and the mean squared error of an activation as an approximation of a function.

    The mean is taken over a uniform grid; the largest error also over points that approach 0, where steep sigmoids
    differ most. The activation is computed in each of `dtypes` on inputs rounded to that type, and the function in
    float64 on the same rounded inputs, so that the errors are those of the activation alone.

    Args:
        activation: activation with any sharing of parameters; it is evaluated for all channels or neurons.
        function: elementwise function.
        interval: (left, right) of the inputs.
        dtypes: data types to compute in; those that the device does not support are left out.

    Returns:
        The errors in each data type.

    Raises:
        UserError: the activation is no module, the function cannot be called, or the interval is not usable.

    Example:
        >>> errors = aafit.curve_errors(aafit.LEAF.like("SiLU"), torch.nn.functional.silu)
        >>> [error.dtype for error in errors]
        ['float16', 'bfloat16', 'float32', 'float64']
    """
    if not isinstance(activation, nn.Module):
        raise UserError(
            f"The activation is a {type(activation).__name__}: give a module, such as aafit.LEAF.like('ReLU')."
        )
    if not callable(function):
        raise UserError(f"The function is a {type(function).__name__}: give a callable, such as torch.tanh.")
    interval = check_interval(interval, type(activation).__name__)
    device = next(iter(activation.parameters()), torch.empty(0)).device
    shape = activation.shape if isinstance(activation, AdaptiveActivation) else (1,)
    # With parameters for each neuron every one of them gets the whole grid, so that fewer points have to do.
    points = max(33, min(CURVE_POINTS, 400_000 // max(1, torch.Size(shape).numel())))
    grid = torch.linspace(*interval, points, dtype=torch.float64, device=device)
    small = torch.logspace(-8, 0, points // 10, dtype=torch.float64, device=device) * max(map(abs, interval))
    near = torch.cat([-small, small])
    grid = torch.cat([grid, near[(near >= interval[0]) & (near <= interval[1])]])
    grid = grid.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    errors = []
    for dtype in dtypes:
        inputs = grid.to(dtype)
        try:
            with torch.no_grad():
                output = activation(inputs)
                difference = output.double() - function(inputs.double())
        except (RuntimeError, TypeError):
            continue
        name = str(dtype).removeprefix("torch.")
        mean_squared = difference[:points].square().mean().item()
        errors.append(CurveError(name, difference.abs().max().item(), mean_squared, interval))
    return errors
