"""The F-Neuron activation: a piecewise-linear function whose values at equal distances are learnt."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from aafit.activations.base import AdaptiveActivation, check_shape, fitted, parameter
from aafit.activations.elementwise import check_input
from aafit.activations.fixed import FUNCTIONS
from aafit.activations.piecewise_linear import interpolate
from aafit.errors import UserError, check_name


class FNeuron(AdaptiveActivation):
    """The F-Neuron activation, the sum of weight_i * membership_i(u) over n + 2 fuzzy sets on [left, right].

    The centres are left + i * r for i = 0..n+1 with the radius r = (right - left) / (n + 1), n = `pieces`. The n inner
    memberships are triangles max(0, 1 - |u - centre| / r), the two outer ones stay 1 beyond the interval. Their sum is
    1, so the function is the straight line between the weights of the two nearest centres, and flat outside the
    interval: it is computed as that, at a cost that does not depend on n. The gradient by u is 0 where it is flat.

    Input (B, *...) of any floating-point dtype, output of the same shape and dtype. `weight` has the shape
    (*shape, n + 2), with the shape (1,) where a layer shares it, else one that broadcasts against the input's trailing
    dimensions.

    As f it equals f at the centres; inside the interval it differs by at most r^2 / 8 * max|f''| for a smooth f, and by
    r / 4 * |jump of f'| at a kink midway between two centres; outside by |f(u) - f(end)|. On [-4, 4] with 16 pieces
    that is at most, for any input, Tanh 0.0192, Sigmoid 0.018 (inside the interval 0.0027), HardTanh 0.111,
    HardSigmoid 0.0086, and inside the interval only ReLU 0.118, SiLU 0.0138; float16 and bfloat16 add one rounding.

    Source: Bodyanskiy & Kostiuk (2022), Deep neural network based on F-neurons and its learning,
    https://doi.org/10.21203/rs.3.rs-2032768/v1

    Raises:
        UserError: the interval is not finite or is empty, the weights are fewer than three or not finite, or (when
            called) they do not fit the input.
    """

    family: ClassVar[str] = "F-Neuron"
    likes: ClassVar[tuple[str, ...]] = tuple(FUNCTIONS)
    others: ClassVar[tuple[str, ...]] = ("random", "ramp", "constant")
    _own_dims: ClassVar[int] = 1

    def __init__(self, weight: Tensor, interval: tuple[float, float] = (-4.0, 4.0), start: str = "custom") -> None:
        super().__init__(start)
        self.interval = _check_interval(interval)
        self.weight = parameter(weight, "F-Neuron's weight")
        if self.weight.ndim < 2 or self.weight.shape[-1] < 3:
            raise UserError(
                "F-Neuron's weight must have the shape (*shape, pieces + 2) with at least one piece, e.g. (1, 18); "
                f"got {tuple(self.weight.shape)}."
            )

    @property
    def pieces(self) -> int:
        """The number n of inner membership functions."""
        return self.weight.shape[-1] - 2

    @property
    def centres(self) -> Tensor:
        """The n + 2 centres, in float64 on the CPU."""
        return centres(self.interval, self.pieces)

    @classmethod
    def like(
        cls,
        function: str | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] = (1,),
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int = 16,
    ) -> Self:
        """F-Neuron that starts with the values of a function at its centres.

        Args:
            function: "ReLU", "SiLU", "Tanh", "Sigmoid", "HardTanh", "HardSigmoid", or any elementwise function of a
                tensor, such as torch.sin.
            shape: Shape of one parameter set, see the class.
            interval: (left, right).
            pieces: Number of inner membership functions.

        Raises:
            UserError: an unknown name, a function that is not elementwise or not finite, or a bad shape, interval or
                number of pieces.
        """
        at = centres(interval, pieces)
        if isinstance(function, str):
            name = check_name("start of F-Neuron", function, cls.likes)
            values = FUNCTIONS[name](at)
        elif callable(function):
            name = getattr(function, "__name__", type(function).__name__)
            values = function(at)
            if not isinstance(values, Tensor) or values.shape != at.shape:
                raise UserError(f"F-Neuron can start only as an elementwise function of a tensor; {name} is none.")
        else:
            raise UserError(f"F-Neuron can start as the name of a function or as a function; got {function!r}.")
        return cls._repeated(values.detach(), shape, interval, name)

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...] = (1,),
        generator: torch.Generator | None = None,
        interval: tuple[float, float] = (-4.0, 4.0),
        pieces: int = 16,
    ) -> Self:
        """F-Neuron with weights uniform in [-1, 1), drawn from the CPU `generator`."""
        size = len(centres(interval, pieces))
        return cls(torch.rand((*check_shape(shape), size), generator=generator) * 2 - 1, interval, "random")

    @classmethod
    def ramp(cls, shape: tuple[int, ...] = (1,), interval: tuple[float, float] = (-4.0, 4.0), pieces: int = 16) -> Self:
        """F-Neuron whose weights rise evenly from -1 to 1."""
        size = len(centres(interval, pieces))
        return cls._repeated(torch.linspace(-1, 1, size, dtype=torch.float64), shape, interval, "ramp")

    @classmethod
    def constant(
        cls, shape: tuple[int, ...] = (1,), interval: tuple[float, float] = (-4.0, 4.0), pieces: int = 16
    ) -> Self:
        """F-Neuron whose weights are all 1."""
        size = len(centres(interval, pieces))
        return cls._repeated(torch.ones(size, dtype=torch.float64), shape, interval, "constant")

    @classmethod
    def _repeated(cls, values: Tensor, shape: tuple[int, ...], interval: tuple[float, float], start: str) -> Self:
        repeated = values.expand((*check_shape(shape), len(values)))
        return cls(fitted(repeated, torch.get_default_dtype(), "F-Neuron's weight"), interval, start)

    def settings(self) -> dict[str, Any]:
        """All that rebuilds it, by `from_settings`, except for the weights' values; fit for JSON."""
        return {**super().settings(), "interval": list(self.interval), "pieces": self.pieces}

    def extra_repr(self) -> str:
        """The start, the interval and the number of pieces."""
        return f"{super().extra_repr()}, interval={self.interval}, pieces={self.pieces}"

    def forward(self, u: Tensor) -> Tensor:
        """F-Neuron(u), elementwise."""
        check_input(u, self.shape, self.family)
        return interpolate(u, self.weight, *self.interval)


def centres(interval: tuple[float, float], pieces: int) -> Tensor:
    """The centres of F-Neuron's membership functions, shape (pieces + 2,), in float64.

    Raises:
        UserError: the interval is not finite or is empty, or pieces is not a positive integer.
    """
    left, right = _check_interval(interval)
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1:
        raise UserError(f"F-Neuron needs at least 1 piece, a whole number; got {pieces!r}.")
    return torch.linspace(left, right, pieces + 2, dtype=torch.float64)


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    try:
        left, right = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise UserError(f"F-Neuron's interval must be two numbers (left, right); got {interval!r}.") from None
    if not (math.isfinite(left) and math.isfinite(right) and left < right):
        raise UserError(f"F-Neuron's interval needs finite ends with left < right; got ({left:g}, {right:g}).")
    return left, right
