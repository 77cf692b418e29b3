"""Least-squares fits of F-Neurons to functions, for many parameter sets at once, in float64.

Axes in names: S parameter set, E input, N knot. An interval of each set is `ends_2S`, its left and its right end.
"""

import torch
from torch import Tensor

PRIOR = 1e-6
"""Weight of all of the function's own values at the knots together, relative to the inputs."""
TAILS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Shares of the inputs that `fit_intervals` tries to leave out at either end."""
SHRINKS = 12
NARROWEST = 1e-3
"""The least width of an interval, relative to the range of the inputs."""


def knots_between(ends_2S: Tensor, size: int) -> Tensor:
    """Return evenly spaced knots from the left to the right end of each set, (S, N)."""
    left_S, right_S = ends_2S
    part_N = torch.linspace(0, 1, size, dtype=torch.float64)
    knots_SN: Tensor = left_S[:, None] + (right_S - left_S)[:, None] * part_N
    return knots_SN


def fit_linear_spline(
    u_SE: Tensor, y_SE: Tensor, weight_SE: Tensor, ends_2S: Tensor, extrapolates: bool, own_SN: Tensor
) -> Tensor:
    """Return the values at the knots (S, N) with the least weighted squared error.

    Args:
        u_SE: Inputs.
        y_SE: The function's values there.
        weight_SE: The shares of the inputs.
        ends_2S: The first and the last knot.
        extrapolates: Whether the first and the last segment continue beyond them.
        own_SN: The function's values at the knots, which a knot without inputs keeps (a weak prior).
    """
    sets, size = own_SN.shape
    place_SE, part_SE = _segments(u_SE, ends_2S, size, extrapolates)
    ends_2SE = torch.stack([1 - part_SE, part_SE])
    rows_2SE = torch.stack([place_SE, place_SE + 1])
    # The matrix is tridiagonal, but too small for that to matter.
    matrix = torch.zeros(sets, size * size, dtype=torch.float64)
    for one in range(2):
        for other in range(2):
            at_SE = rows_2SE[one] * size + rows_2SE[other]
            matrix.scatter_add_(1, at_SE, weight_SE * ends_2SE[one] * ends_2SE[other])
    right_SN = torch.zeros(sets, size, dtype=torch.float64)
    error_SE = weight_SE * (y_SE - _interpolated(own_SN, place_SE, part_SE))
    for one in range(2):
        right_SN.scatter_add_(1, rows_2SE[one], ends_2SE[one] * error_SE)
    prior = PRIOR / size * torch.eye(size, dtype=torch.float64)
    change_SN: Tensor = torch.linalg.solve(matrix.reshape(sets, size, size) + prior, right_SN)
    return own_SN + change_SN


def spline_values(u_SE: Tensor, values_SN: Tensor, ends_2S: Tensor, extrapolates: bool) -> Tensor:
    """Return the values of the splines with these values at the knots, (S, E)."""
    return _interpolated(values_SN, *_segments(u_SE, ends_2S, values_SN.shape[1], extrapolates))


def fit_intervals(u_SE: Tensor, y_SE: Tensor, weight_SE: Tensor, size: int, extrapolates: bool) -> Tensor:
    """Return the interval of each set, within its inputs, on which `size` knots leave the least squared error, (2, S).

    Intervals without some share of the inputs at either end are tried first; then the ends move in shrinking steps.

    Args:
        u_SE: Inputs in ascending order, with at least two different ones in each set.
        y_SE: The function's values there.
        weight_SE: The shares of the inputs; they sum to 1.
        size: The number of knots.
        extrapolates: Whether the first and the last segment continue beyond the interval.
    """
    below_SE, above_SE = weight_SE.cumsum(1), weight_SE.flip(1).cumsum(1)
    last = u_SE.shape[1] - 1
    width_S = u_SE[:, -1] - u_SE[:, 0]

    def end(at_S: Tensor) -> Tensor:
        return u_SE.gather(1, at_S.clamp(0, last)[:, None])[:, 0]

    def errors(ends_2S: Tensor) -> Tensor:
        usable_S = ends_2S[1] - ends_2S[0] >= NARROWEST * width_S
        ends_2S = torch.where(usable_S, ends_2S, torch.stack([u_SE[:, 0], u_SE[:, -1]]))
        own_SN = _known_values(u_SE, y_SE, knots_between(ends_2S, size))
        values_SN = fit_linear_spline(u_SE, y_SE, weight_SE, ends_2S, extrapolates, own_SN)
        error_SE = spline_values(u_SE, values_SN, ends_2S, extrapolates) - y_SE
        return torch.where(usable_S, (weight_SE * error_SE.square()).sum(1), torch.inf)

    best_2S = torch.stack([u_SE[:, 0], u_SE[:, -1]])
    least_S = torch.full_like(width_S, torch.inf)

    def consider(ends_2S: Tensor) -> None:
        nonlocal best_2S, least_S
        error_S = errors(ends_2S)
        best_2S = torch.where(error_S < least_S, ends_2S, best_2S)
        least_S = torch.minimum(error_S, least_S)

    lefts = torch.stack([end((below_SE <= share).sum(1)) for share in TAILS]).unique(dim=0)
    rights = torch.stack([end(last - (above_SE <= share).sum(1)) for share in TAILS]).unique(dim=0)
    for left_S in lefts:
        for right_S in rights:
            consider(torch.stack([left_S, right_S]))
    step_S = (best_2S[1] - best_2S[0]) / size
    for _ in range(SHRINKS):
        # One end, both outwards or inwards, or both in one direction.
        for move in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)):
            for sign in (1, -1):
                consider(best_2S + sign * step_S * torch.tensor(move, dtype=torch.float64)[:, None])
        step_S = step_S / 2
    # Most functions with a kink have it at 0: try a knot there.
    left_S, right_S = best_2S
    radius_S = (right_S - left_S) / (size - 1)
    offset_S = -(-left_S / radius_S).round() * radius_S - left_S
    consider(torch.where((left_S < 0) & (right_S > 0), best_2S + offset_S, best_2S))
    return best_2S


def _interpolated(values_SN: Tensor, place_SE: Tensor, part_SE: Tensor) -> Tensor:
    """Return the values at positions `part_SE` of the segments `place_SE`."""
    return values_SN.gather(1, place_SE) * (1 - part_SE) + values_SN.gather(1, place_SE + 1) * part_SE


def _segments(u_SE: Tensor, ends_2S: Tensor, size: int, extrapolates: bool) -> tuple[Tensor, Tensor]:
    """Return the segment of each input, and the position in it from 0 to 1 (beyond, if the line extrapolates)."""
    left_S, right_S = ends_2S
    at_SE = (u_SE - left_S[:, None]) * ((size - 1) / (right_S - left_S))[:, None]
    if not extrapolates:
        at_SE = at_SE.clamp(0, size - 1)
    place_SE = at_SE.floor().clamp(0, size - 2).to(torch.int64)
    return place_SE, at_SE - place_SE


def _known_values(u_SE: Tensor, y_SE: Tensor, at_SN: Tensor) -> Tensor:
    """Return the functions' values at `at_SN`, interpolated linearly between the inputs."""
    above_SN = torch.searchsorted(u_SE, at_SN).clamp(1, u_SE.shape[1] - 1)
    low_SN, high_SN = u_SE.gather(1, above_SN - 1), u_SE.gather(1, above_SN)
    # Equal inputs are 0 / 0 apart.
    part_SN = ((at_SN - low_SN) / (high_SN - low_SN)).nan_to_num(0.0).clamp(0, 1)
    y_low_SN = y_SE.gather(1, above_SN - 1)
    return y_low_SN + part_SN * (y_SE.gather(1, above_SN) - y_low_SN)
