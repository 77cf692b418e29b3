"""How far an activation is from the function it stands for, in each arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation

CURVE_POINTS = 4001


@dataclass(frozen=True)
class CurveError:
    """How far an activation is from the function it stands for, over an interval of inputs, in one arithmetic."""

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
    """Largest and mean squared error of `activation` against `function` over `interval`.

    The mean is taken over an even grid; the largest error also over points that come ever nearer to 0, where steep
    sigmoids differ most. The activation computes in each of `dtypes`, on inputs rounded to that type; `function`
    computes in float64 on the same rounded inputs, so that the errors are those of the activation alone. A type that
    the device cannot compute in is left out.

    Args:
        activation: of any sharing; one with parameters of its own for each channel or neuron is evaluated for all.
        function: what it is held against, elementwise on a tensor of any shape.
        interval: (left, right) of the inputs.
        dtypes: types to compute in.

    Returns:
        A row for each of `dtypes` that was computed.
    """
    device = next(iter(activation.parameters()), torch.empty(0)).device
    shape = activation.shape if isinstance(activation, AdaptiveActivation) else (1,)
    # Per-neuron parameters: every neuron gets the whole grid, in as many points as keep it quick.
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
