"""Turn tuned adaptive activations into fixed functions or fixed tables, which have nothing left to train."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron
from aafit.errors import UserError, check_name
from aafit.networks.kinds import KNOWN, activation_name, nearest_functions
from aafit.networks.running import copied, forward_of_sample, probe_of, receiving
from aafit.networks.surgery import call_position, put_activation
from aafit.tables import table

WAYS = ("function", "table")
GRID = 4001
SEGMENTS = 512
MOST_INPUTS = 1 << 18  # inputs of an activation at most


@dataclass(frozen=True)
class FrozenActivation:
    """What an adaptive activation became.

    `rms` and `max_abs` are the root of the mean squared and the largest difference between the two, over `inputs`
    numbers from `least` to `largest`: those of the sample, or an even grid.
    """

    path: str
    old: str
    new: str
    rms: float
    max_abs: float
    inputs: int
    least: float
    largest: float


@dataclass(frozen=True)
class Freeze:
    """What `freeze_activations` did: prints as a table.

    Attributes:
        rows: one for each adaptive activation of the network, in the order of their calls.
        sampled: whether errors are over the inputs that each had in a sample; else over an even grid.
    """

    rows: tuple[FrozenActivation, ...]
    sampled: bool

    def __str__(self) -> str:
        header = ("frozen", "was", "is", "rms error", "largest error", "on inputs")
        cells = [
            (
                row.path,
                row.old,
                row.new,
                f"{row.rms:.3g}",
                f"{row.max_abs:.3g}",
                f"{row.least:.3g} to {row.largest:.3g}",
            )
            for row in self.rows
        ]
        where = "the inputs that each had in the sample" if self.sampled else "an even grid"
        return f"{table(header, cells, numbers=False)}\nErrors are over {where}."


class Table(nn.Module):
    """A fixed piecewise-linear function: values at equal distances over [left, right], straight lines beyond.

    Input (B, *...) of any floating-point dtype, output of the same shape and dtype. There are no parameters, and plain
    operations alone, so that it exports. NaN stays NaN.

    Args:
        values: (*shape, points), where shape is (1,) or broadcasts against the input's trailing dimensions.
        interval: (left, right).
        slopes: the slopes below left and above right, each of shape `shape`.
    """

    values: Tensor
    slopes: Tensor
    starts: Tensor

    def __init__(self, values: Tensor, interval: tuple[float, float], slopes: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.left, self.right = interval
        self.segments = values.shape[-1] - 1
        sets = values.shape[:-1]
        self.register_buffer("values", values.reshape(-1).clone())
        self.register_buffer("slopes", torch.stack(slopes).reshape(2, *sets).clone())
        starts = torch.arange(sets.numel(), device=values.device).mul(values.shape[-1]).reshape(sets)
        self.register_buffer("starts", starts)

    def forward(self, input: Tensor) -> Tensor:
        """The function of input, elementwise."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        x, values, slopes = input.to(dtype), self.values.to(dtype), self.slopes.to(dtype)
        at = ((x - self.left) * (self.segments / (self.right - self.left))).clamp(0, self.segments)
        # A comparison with NaN is false: it takes segment 0, and how far along it is stays NaN.
        segment = torch.where(at > 0, at, 0.0).floor().clamp(max=self.segments - 1)
        place = segment.to(torch.int64) + self.starts
        begin, end = values[place], values[place + 1]
        inside = begin + (at - segment) * (end - begin)
        below = (x - self.left).clamp(max=0) * slopes[0]
        above = (x - self.right).clamp(min=0) * slopes[1]
        return (inside + below + above).to(input.dtype)

    def extra_repr(self) -> str:
        """The interval, the segments, and for what there are several."""
        return f"[{self.left:g}, {self.right:g}], segments={self.segments}, shape={tuple(self.starts.shape)}"


def freeze_activations(
    net: nn.Module, as_: str = "function", sample: Any = None, interval: tuple[float, float] = (-8.0, 8.0)
) -> tuple[nn.Module, Freeze]:
    """A copy of `net` whose adaptive activations are fixed, and the report of what they became, with the errors.

    As "function", each becomes the function nearest to it in the mean square, of those that torch has (`KNOWN`): one
    for the whole layer, however its parameters are shared. As "table", each becomes a `Table` of 512 segments with the
    sharing that it had; an F-Neuron becomes its own table, the same function to rounding. `net` itself is left as it
    was.

    Args:
        net: a network with adaptive activations.
        as_: "function" or "table".
        sample: an input of the network, as for `replace_activations`: errors are those on what each activation
            receives, and tables span that.
        interval: where errors are taken, and what tables span, without a sample and for what the sample does not call.

    Raises:
        UserError: the network has no adaptive activation; an unknown way; an interval that is empty or not finite; a
            sample that the network refuses, or on which an activation receives or gives NaN or infinity.
    """
    if not isinstance(as_, str):
        raise UserError(f'as_= is "function" or "table", not a {type(as_).__name__}: an input is given as sample=.')
    check_name("way to freeze", as_, WAYS)
    try:
        left, right = interval
        usable = -float("inf") < left < right < float("inf")
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise UserError(f"The interval {interval} cannot be used; give (left, right) with left < right.")
    frozen = copied(net)
    # With duplicates: one activation may be at several paths.
    named = frozen.named_modules(remove_duplicate=False)
    found = [(path, module) for path, module in named if isinstance(module, AdaptiveActivation)]
    activations = dict(sorted(found, key=lambda item: call_position(item[1])))
    if not activations:
        raise UserError("There is nothing to freeze: the network has no adaptive activation.")
    if "" in activations:
        raise UserError("The network itself is an adaptive activation: put it into an nn.Sequential to freeze it.")
    seen = {} if sample is None else _inputs(net, sample, activations)
    rows, made = [], dict[int, nn.Module]()
    for path, activation in activations.items():
        wide = deepcopy(activation).double()
        inputs = seen.get(path)
        u = _grid(activation, interval) if inputs is None else inputs
        with torch.no_grad():
            y = wide(u)
            if not (u.isfinite().all() and y.isfinite().all()):
                raise UserError(f"{path!r} ({activation.text}) receives or gives NaN or infinity: it cannot be frozen.")
            ends = (u.min().item(), u.max().item())
            if id(activation) not in made:
                made[id(activation)] = _nearest(u, y) if as_ == "function" else _tabulated(wide, ends)
            new = made[id(activation)]
            error = deepcopy(new).double()(u) - y
        rows.append(
            FrozenActivation(
                path,
                activation_name(activation),
                _name(new),
                error.square().mean().sqrt().item(),
                error.abs().max().item(),
                u.numel(),
                *ends,
            )
        )
        put_activation(frozen, path, new)
    return frozen, Freeze(tuple(rows), sample is not None)


def _inputs(net: nn.Module, sample: Any, activations: Mapping[str, AdaptiveActivation]) -> dict[str, Tensor]:
    """What the activations receive in a forward of the sample: at most `MOST_INPUTS` numbers of each, in float64."""
    seen: dict[str, list[Tensor]] = {}

    def see(path: str, u: Tensor) -> None:
        u = u.detach().double()
        if activations[path].shape == (1,):
            u = u.reshape(-1)
        kept = seen.setdefault(path, [])
        left = MOST_INPUTS - sum(map(torch.numel, kept))
        rows = min(len(u), left // max(1, u[:1].numel()))
        if rows > 0 or not kept:
            # Spread over all rows, not the first of them.
            kept.append(u[torch.linspace(0, len(u) - 1, max(1, rows), device=u.device).long()])

    probe = probe_of(net)
    forward_of_sample(probe, sample, receiving(probe, activations, see))
    return {path: torch.cat(kept) for path, kept in seen.items()}


def _grid(activation: AdaptiveActivation, interval: tuple[float, float]) -> Tensor:
    shape = activation.shape
    points = max(33, min(GRID, MOST_INPUTS // torch.Size(shape).numel()))
    device = next(activation.parameters()).device
    grid = torch.linspace(*interval, points, dtype=torch.float64, device=device)
    return grid.reshape(-1, *[1] * len(shape)).expand(-1, *shape)


def _nearest(u: Tensor, y: Tensor) -> nn.Module:
    return deepcopy(KNOWN[nearest_functions(u, y)[0].name])


def _tabulated(activation: AdaptiveActivation, ends: tuple[float, float]) -> Table:
    """A table over the interval between `ends`, with the slope over the next unit beyond it."""
    shape, segments = activation.shape, SEGMENTS
    if isinstance(activation, FNeuron):
        ends, segments = activation.interval, activation.knots - 1
    elif ends[0] == ends[1]:
        ends = ends[0] - 1, ends[1] + 1
    device = next(activation.parameters()).device

    def of(points: Tensor) -> Tensor:
        values: Tensor = activation(points.reshape(-1, *[1] * len(shape)).expand(-1, *shape))
        return values

    values = of(torch.linspace(*ends, segments + 1, dtype=torch.float64, device=device))
    below, above = (of(torch.tensor([end - 1, end + 1], dtype=torch.float64, device=device)) for end in ends)
    made = Table(values.movedim(0, -1), ends, (values[0] - below[0], above[1] - values[-1]))
    return made.to(torch.get_default_dtype())


def _name(module: nn.Module) -> str:
    if isinstance(module, Table):
        return f"Table of {module.segments} segments"
    return "GELU (tanh)" if isinstance(module, nn.GELU) and module.approximate == "tanh" else type(module).__name__
