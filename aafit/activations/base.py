"""What all adaptive activations have in common."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aafit.errors import UserError


class AdaptiveActivation(nn.Module):
    """An activation function whose own parameters are learnt.

    Every parameter has the shape `shape`: (1,) where a layer shares it, (C, 1, 1) or (F,) for one a channel,
    (C, H, W) or (F,) for one a neuron; it broadcasts against the trailing dimensions of an input (B, *...). The
    arithmetic is done in at least float32 whatever the dtype of the input, which is also that of the output.

    Attributes:
        family: Name of the kind of function, e.g. "LEAF".
        likes: Names of the fixed functions that `like` can start from.
        others: Further starts: "random", and what the family has beside.
        slow_parameters: Names of the parameters that the p24sl procedure trains at a lower rate.
        steepness_parameters: Names of the parameters that multiply the input inside a sigmoid.
        start: What it was constructed as: "ReLU", "random", ...
    """

    family: ClassVar[str]
    likes: ClassVar[tuple[str, ...]]
    others: ClassVar[tuple[str, ...]] = ("random",)
    slow_parameters: ClassVar[tuple[str, ...]] = ()
    steepness_parameters: ClassVar[tuple[str, ...]] = ()
    # Dimensions of a parameter beyond `shape`: one for F-Neuron's table of weights.
    _own_dims: ClassVar[int] = 0

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start
        # The name of the activation that it took the place of, where it took one.
        self.replaced: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one parameter; (1,) means shared by the layer."""
        parameter = next(self.parameters())
        return tuple(parameter.shape[: parameter.ndim - self._own_dims])

    @property
    def text(self) -> str:
        """How `from_text` calls it: "LEAF as Tanh", "F-Neuron random"."""
        return f"{self.family} {self.start}" if self.start in self.others else f"{self.family} as {self.start}"

    def settings(self) -> dict[str, Any]:
        """All that rebuilds it, by `from_settings`, except for the parameters' values; fit for JSON."""
        return {"family": self.family, "start": self.start, "shape": list(self.shape)}

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        """A copy whose parameters have another shape, each repeating this one's.

        Raises:
            UserError: the parameters are not shared by the layer, or `shape` is not one of positive integers.
        """
        if self.shape != (1,):
            raise UserError(
                f"Only an activation shared by its layer (shape (1,)) can be reshaped; this {self.text} has shape "
                f"{self.shape}."
            )
        shape = check_shape(shape)
        copied = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            own = parameter.shape[1:]
            repeated = parameter.detach().reshape((1,) * len(shape) + own).expand(shape + own).clone()
            setattr(copied, name, nn.Parameter(repeated, requires_grad=parameter.requires_grad))
        return copied

    def extra_repr(self) -> str:
        """The start and, where the layer shares them, the values."""
        if self.shape != (1,) or self._own_dims:
            return f"{self.start}, shape={self.shape}"
        return ", ".join([self.start, *(f"{name}={p.item():.6g}" for name, p in self.named_parameters())])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: parameter.detach() for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype != before[name].dtype:
                with torch.no_grad():
                    parameter.copy_(fitted(before[name].to(parameter.device), parameter.dtype, f"{self.text}: {name}"))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype != parameter.dtype:
                state_dict[prefix + name] = fitted(given, parameter.dtype, f"{self.text}: {name}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` as a tuple.

    Raises:
        UserError: it is not a non-empty sequence of positive integers.
    """
    given = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if not given or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in given):
        raise UserError(f"The shape of a parameter must be one or more positive integers, e.g. (1,); got {shape!r}.")
    return given


def fitted(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """`values` in another dtype; the finite ones too large for it become the largest power of two that fits.

    Infinity is no stand-in for a large number here: 0 * inf is NaN. A UserWarning says what was replaced.
    """
    converted = values.to(dtype)
    overflowed = converted.isinf() & values.isfinite()
    if not overflowed.any():
        return converted
    largest = 2.0 ** (torch.tensor(torch.finfo(dtype).max, dtype=torch.float64).frexp().exponent.item() - 1)
    warnings.warn(
        f"{what} = {values[overflowed][0].item():g} does not fit {dtype}; {largest:g} is used instead.", stacklevel=3
    )
    return torch.where(overflowed, values.sign().to(dtype) * largest, converted)


def filled(shape: tuple[int, ...], value: float, what: str) -> Tensor:
    """A tensor of one value, in torch's default dtype.

    Raises:
        UserError: `shape` is not one of positive integers.
    """
    return fitted(torch.full(check_shape(shape), value, dtype=torch.float64), torch.get_default_dtype(), what)


def parameter(values: Tensor | float, what: str) -> nn.Parameter:
    """A parameter from a number or from a tensor, which is copied; numbers take torch's default dtype.

    Raises:
        UserError: a value is not finite, or a tensor is not floating-point or is empty.
    """
    tensor = values.detach().clone() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise UserError(f"{what} must be a number or a tensor of floating-point numbers; got {values!r}.")
    if not tensor.isfinite().all():
        raise UserError(f"{what} must be finite; got {values!r}.")
    if not isinstance(values, Tensor):
        tensor = fitted(tensor, torch.get_default_dtype(), what)
    return nn.Parameter(tensor.reshape(1) if tensor.ndim == 0 else tensor)
