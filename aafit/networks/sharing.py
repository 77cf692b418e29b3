"""What has parameters of its own: the shape of an adaptive parameter, and whether it fits all that a layer receives."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from aafit.activations.elementwise import fits
from aafit.errors import UserError
from aafit.networks.found import FoundActivation
from aafit.networks.hooks import receiving
from aafit.networks.probe import forward_of_sample, probe_of

Sharing = Literal["layer", "channel", "neuron"]
SHARINGS: tuple[Sharing, ...] = ("layer", "channel", "neuron")


def parameter_shape(row: FoundActivation, sharing: Sharing, channel_axis: int | None) -> tuple[int, ...]:
    """The shape of a parameter of what takes the place of `row`, see `replace_activations`.

    Raises:
        UserError: the layer's shape is not known, it has no batch axis, or the axis of its channels cannot be told.
    """
    if sharing == "layer":
        return (1,)
    if row.shape is None:
        raise UserError(
            f"The forward of the sample does not call {row.path!r}, so its shape is unknown: share by layer."
        )
    rank, receives = len(row.shape), f"{row.path!r} receives a tensor of shape {row.shape}"
    if rank < 2 or row.channel_axis == 0:
        raise UserError(f"{receives}, which has no batch axis: give a sample with a batch axis.")
    if sharing == "neuron":
        return row.shape[1:]
    told = 1 if rank == 2 else row.channel_axis
    axis = channel_axis if told is None else told
    if axis is None:
        raise UserError(
            f"{receives}, and the layer before it does not tell which axis the channels are: give channel_axis=, or "
            "share by layer or by neuron."
        )
    if not (-rank < axis < rank and axis % rank > 0):
        raise UserError(f"{receives}, which has no channel_axis {axis}: give 1 to {rank - 1}, or -1 for the last.")
    return (row.shape[axis], *[1] * (rank - 1 - axis % rank))


def check_inputs_fit(net: nn.Module, sample: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless parameters of these shapes, by path, fit all that each activation receives from the sample.

    Raises:
        UserError: an activation receives several shapes, as one that is called after layers of different widths does.
    """
    probe = probe_of(net)

    def see(path: str, u: Tensor) -> None:
        if not fits(shapes[path], u):
            raise UserError(
                f"{path!r} receives tensors of several shapes, such as {tuple(u.shape)}, and parameters of shape "
                f"{shapes[path]} do not fit them all: share by layer, or do not replace it."
            )

    forward_of_sample(probe, sample, receiving(probe, shapes, see))
