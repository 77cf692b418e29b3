"""Tables of few linear segments in integers, as hardware computes activations from.

Axes in names: K segment, N knot, S parameter set, E input.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, FNeuron, Histogram, PiecewiseLinear
from aafit.activations.base import curve_values
from aafit.activations.piecewise_linear import least_squares_values
from aafit.errors import UserError

LEAST_BITS, MOST_BITS = 4, 16


class SegmentTable(nn.Module):
    """A fixed piecewise linear function of K segments, whose table holds integers of at most 16 bits.

    y = slope_j * u + offset_j for the segment j of the input u, which is the number of knots up to u. Each table entry
    is an integer times a power of two: one power for the knots, one for the slopes and one for the offsets. The
    arithmetic itself is in floating point. An infinite input counts as 3e35 in size, NaN gives NaN.

    Shape: input (B, *...) of any floating-point dtype; the output has the same shape and dtype. There are no
    parameters, and the operations are plain ones that export. Everything is in the state_dict.

    Args:
        knots: Between the segments, (K - 1,) integers in ascending order.
        slopes: (*shape, K) integers, where `shape` is (1,) or broadcasts against the trailing dimensions of the input.
        offsets: (*shape, K) integers.
        steps: The powers of two (of the knots, the slopes, the offsets).
        bits: Bits of an entry, with its sign.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["shape", "segments", "nbytes"]
    knots: Tensor
    slopes: Tensor
    offsets: Tensor
    steps: Tensor

    def __init__(
        self, knots: Tensor, slopes: Tensor, offsets: Tensor, steps: tuple[float, float, float], bits: int
    ) -> None:
        super().__init__()
        dtype = torch.int8 if bits <= 8 else torch.int16
        self.register_buffer("knots", knots.to(dtype))
        self.register_buffer("slopes", slopes.to(dtype))
        self.register_buffer("offsets", offsets.to(dtype))
        self.register_buffer("steps", torch.tensor(steps, dtype=torch.float32, device=slopes.device))
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the sets of segments; (1,) if the layer shares one function."""
        return tuple(self.slopes.shape[:-1])

    @property
    def segments(self) -> int:
        """The number of segments K."""
        return self.slopes.shape[-1]

    @property
    def nbytes(self) -> int:
        """The size of the table's integers in bytes, at `bits` bits each."""
        return math.ceil((self.knots.numel() + self.slopes.numel() + self.offsets.numel()) * self.bits / 8)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function elementwise."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        u = input.to(dtype).clamp(-3e35, 3e35)
        steps = self.steps.to(dtype)
        knots = self.knots.to(dtype) * steps[0]
        slopes, offsets = self.slopes.to(dtype) * steps[1], self.offsets.to(dtype) * steps[2]
        slope, offset = slopes[..., 0], offsets[..., 0]
        for j in range(1, self.segments):
            right = u >= knots[j - 1]
            slope, offset = torch.where(right, slopes[..., j], slope), torch.where(right, offsets[..., j], offset)
        return (slope * u + offset).to(input.dtype)

    def extra_repr(self) -> str:
        return f"segments={self.segments}, bits={self.bits}, shape={self.shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SegmentTable":
        steps = self.steps
        super()._apply(fn, recurse)
        # In float16 a power of two may underflow.
        self.steps = steps.to(self.steps.device)
        return self


def segment_table(
    activation: AdaptiveActivation, histogram: Histogram, path: str, segments: int, bits: int
) -> SegmentTable:
    """Return a table of at most `segments` segments for an activation.

    A `PiecewiseLinear` or a linearly extrapolated F-Neuron that has no more segments keeps its own knots. For another
    activation they are placed for the mean of its parameter sets over the inputs.

    Args:
        activation: In float64; it is left unchanged.
        histogram: Its inputs.
        path: For messages.
        segments: The most segments.
        bits: Bits of an entry of the table, from 4 to 16.

    Raises:
        UserError: The entries have too few bits to distinguish the knots.
    """
    knots_N, values_SN = _own(activation, segments) or _fitted(activation, histogram, segments)
    knots_N, values_SN = knots_N.double().cpu(), values_SN.double().cpu()
    slopes_SK = values_SN.diff(dim=-1) / knots_N.diff()
    inner = knots_N[1:-1]
    most = 2 ** (bits - 1) - 1
    step_t, step_s = _step(inner, most), _step(slopes_SK, most)
    whole_knots, whole_slopes = (inner / step_t).round(), (slopes_SK / step_s).round()
    if not (whole_knots.diff() > 0).all():
        shown = ", ".join(f"{knot:.4g}" for knot in inner.tolist())
        raise UserError(
            f"{bits} bits do not distinguish the knots {shown} of {path!r}: give more bits or fewer segments."
        )
    # With rounded slopes, the offsets that keep the function continuous at the rounded knots, and unchanged in the
    # middle of the inputs.
    rounded_SK = whole_slopes * step_s
    jumps_S = -rounded_SK.diff(dim=-1) * (whole_knots * step_t)
    offsets_SK = torch.cat([torch.zeros_like(rounded_SK[..., :1]), jumps_S.cumsum(-1)], -1)
    u_E, weight_E = histogram.points()
    middle = u_E[int((weight_E.cumsum(0) < 0.5).sum().clamp(max=len(u_E) - 1))]
    at = int((middle >= whole_knots * step_t).sum())
    left, right = knots_N[at].item(), knots_N[at + 1].item()
    centre = min(max(middle.item(), left), right)
    wanted_S = values_SN[..., at] + slopes_SK[..., at] * (centre - left)
    offsets_SK = offsets_SK + (wanted_S - rounded_SK[..., at] * centre - offsets_SK[..., at]).unsqueeze(-1)
    step_c = _step(offsets_SK, most)
    device = next(activation.parameters()).device
    whole_offsets = (offsets_SK / step_c).round()
    knots, slopes, offsets = (x.to(device) for x in (whole_knots, whole_slopes, whole_offsets))
    return SegmentTable(knots, slopes, offsets, (step_t, step_s, step_c), bits)


def _own(activation: AdaptiveActivation, segments: int) -> tuple[Tensor, Tensor] | None:
    """Return the knots (N,) and the values (*shape, N) that an activation has itself, if they are few enough."""
    if isinstance(activation, PiecewiseLinear) and activation.segments <= segments:
        return torch.tensor(activation.knots, dtype=torch.float64), activation.values.detach()
    if isinstance(activation, FNeuron) and activation.outside == "linear" and activation.knots - 1 <= segments:
        return activation.knot_positions, activation.weight.detach()
    return None


def _fitted(activation: AdaptiveActivation, histogram: Histogram, segments: int) -> tuple[Tensor, Tensor]:
    def mean(u: Tensor) -> Tensor:
        return curve_values(activation, u).mean(1)

    knots = PiecewiseLinear.fit(mean, histogram, segments=segments).knots
    at_N = torch.tensor(knots, dtype=torch.float64)
    u_E, weight_E = histogram.between(*histogram.bulk()).points()
    y_ES, own_NS = curve_values(activation, u_E), curve_values(activation, at_N)
    values_NS = least_squares_values(at_N, u_E, y_ES, weight_E, own_NS)
    return at_N, values_NS.T.reshape(*activation.shape, len(at_N))


def _step(values: Tensor, most: int) -> float:
    """Return the smallest power of two such that all values are at most `most` times it, after rounding."""
    largest = values.abs().max().item() if values.numel() else 0.0
    return 2.0 ** math.ceil(math.log2(largest / (most + 0.49))) if largest > 0 else 1.0
