"""F-Neuron nearest to a function on the inputs that a layer sees: a linear problem for its weights, and its interval.

Axes in names: E input, N value between two of which a line is straight.
"""

import torch
from torch import Tensor

from aafit.activations.piecewise_linear import Line

PRIOR = 1e-6
"""What all of the function's own values at the centres weigh together, beside inputs that weigh 1."""
TAILS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Shares of the inputs that are tried as left out at one end."""
SHRINKS = 12


def tent_weights(u_E: Tensor, y_E: Tensor, weight_E: Tensor, line: Line, own_N: Tensor) -> Tensor:
    """The values (N,) with the least weighted squared error, drawn a little to the function's own, `own_N`."""
    place_E, part_E = _along(u_E, line, len(own_N))
    ends_2E = torch.stack([1 - part_E, part_E])
    rows_2E = torch.stack([place_E, place_E + 1])
    size = len(own_N)
    # Each input concerns two neighbours: the matrix is banded, but so small that it is kept whole.
    matrix = torch.zeros(size * size, dtype=torch.float64)
    for one in range(2):
        for other in range(2):
            matrix.index_add_(0, rows_2E[one] * size + rows_2E[other], weight_E * ends_2E[one] * ends_2E[other])
    right_N = torch.zeros(size, dtype=torch.float64).index_add_(
        0, rows_2E.flatten(), (ends_2E * (weight_E * (y_E - _lines(place_E, part_E, own_N)))).flatten()
    )
    prior = PRIOR / size * torch.eye(size, dtype=torch.float64)
    change_N: Tensor = torch.linalg.solve(matrix.reshape(size, size) + prior, right_N)
    return own_N + change_N


def best_interval(u_E: Tensor, y_E: Tensor, weight_E: Tensor, size: int, extended: bool) -> tuple[float, float]:
    """The interval on which `size` values give the least squared error, within that of the inputs.

    Some shares of the inputs are tried as left out at either end; then the ends move in steps that become smaller.
    """
    below_E, above_E = weight_E.cumsum(0), weight_E.flip(0).cumsum(0)
    last = len(u_E) - 1
    lefts = {u_E[min(last, int((below_E <= share).sum()))].item() for share in TAILS}
    rights = {u_E[max(0, last - int((above_E <= share).sum()))].item() for share in TAILS}

    def error(interval: tuple[float, float]) -> float:
        left, right = interval
        if right - left < 1e-3 * width:
            return float("inf")
        place_E, part_E = _along(u_E, Line(left, right, extended), size)
        own_N = _own_values(u_E, y_E, torch.linspace(left, right, size, dtype=torch.float64))
        values_N = tent_weights(u_E, y_E, weight_E, Line(left, right, extended), own_N)
        return (weight_E * (_lines(place_E, part_E, values_N) - y_E).square()).sum().item()

    width = (u_E[-1] - u_E[0]).item()
    tried = {(left, right): error((left, right)) for left in lefts for right in rights if left < right}
    if not tried:
        return u_E[0].item(), u_E[-1].item()
    best = min(tried, key=tried.__getitem__)
    least = tried[best]
    step = (best[1] - best[0]) / size
    for _ in range(SHRINKS):
        # Either end, both apart, or both alike.
        for move in ((step, 0.0), (0.0, step), (step, step), (step, -step)):
            for sign in (1, -1):
                trial = best[0] + sign * move[0], best[1] + sign * move[1]
                if (trial_error := error(trial)) < least:
                    best, least = trial, trial_error
        step /= 2
    # Most functions with a kink have it at 0.
    left, right = best
    radius = (right - left) / (size - 1)
    offset = -round(-left / radius) * radius - left
    at_zero = left + offset, right + offset
    return at_zero if left < 0 < right and error(at_zero) < least else best


def _along(u_E: Tensor, line: Line, size: int) -> tuple[Tensor, Tensor]:
    at_E = (u_E - line.left) * ((size - 1) / (line.right - line.left))
    if not line.extended:
        at_E = at_E.clamp(0, size - 1)
    place_E = at_E.floor().clamp(0, size - 2).to(torch.int64)
    return place_E, at_E - place_E


def _lines(place_E: Tensor, part_E: Tensor, values_N: Tensor) -> Tensor:
    return values_N[place_E] * (1 - part_E) + values_N[place_E + 1] * part_E


def _own_values(u_E: Tensor, y_E: Tensor, at_N: Tensor) -> Tensor:
    """The function's values between inputs where it is known, by straight lines."""
    above_N = torch.searchsorted(u_E, at_N).clamp(1, len(u_E) - 1)
    low_N, high_N = u_E[above_N - 1], u_E[above_N]
    part_N = ((at_N - low_N) / (high_N - low_N)).clamp(0, 1)
    return y_E[above_N - 1] + part_N * (y_E[above_N] - y_E[above_N - 1])
