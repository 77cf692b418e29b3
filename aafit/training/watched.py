"""What the activations of a network receive and give, and how far that is from another network's."""

import math
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from aafit.networks.hooks import receiving, watched

EACH_CALL = 4096  # values of a sample that one call adds
SAMPLED = 1 << 17  # values of a sample at most


class Recorder:
    """Keeps the inputs and the outputs of some modules of a network, in the order of their calls."""

    def __init__(self, net: nn.Module, paths: Sequence[str]) -> None:
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._hooks = ExitStack()
        self._hooks.enter_context(receiving(net, paths, self._before))
        self._hooks.enter_context(watched(net, paths, self._after))

    def _before(self, path: str, u: Tensor) -> None:
        # Cloned: the module, or what comes next, may work in place.
        self._inputs[path] = u.clone()

    def _after(self, path: str, u: Tensor, y: Tensor) -> None:
        self.calls.setdefault(path, []).append((self._inputs.pop(path), y.clone()))

    def taken(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """What was kept, by path; then it is forgotten."""
        kept, self.calls = self.calls, {}
        return kept

    def remove(self) -> None:
        """Take the hooks away."""
        self._hooks.close()


class Gap:
    """The difference between two tensors, over all those that were added."""

    def __init__(self) -> None:
        self.max_abs = self._total = self._squares = self._of_base = 0.0
        self._count = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add a tensor of the base, and the one that stands against it."""
        base = before.double()
        difference = (after.double() - base).abs()
        # Not Python's max, which loses NaN: the largest of 0 and NaN is 0 there.
        self.max_abs = float(np.maximum(self.max_abs, difference.max().item()))
        self._total += difference.sum().item()
        self._squares += difference.square().sum().item()
        self._of_base += base.square().sum().item()
        self._count += difference.numel()

    @property
    def mean_abs(self) -> float:
        return self._total / self._count

    @property
    def relative(self) -> float:
        """The norm of the difference by that of the base; infinite where only the base is 0."""
        if self._of_base == 0:
            return math.inf if self._squares else 0.0
        return math.sqrt(self._squares / self._of_base)


class Range:
    """Least and largest of all values added, and two quantiles of a sample of them, which is bounded."""

    def __init__(self) -> None:
        self._least, self._largest = math.inf, -math.inf
        self._generator = torch.Generator().manual_seed(0)
        self._sample: list[Tensor] = []
        self._each = EACH_CALL

    def add(self, values: Tensor) -> None:
        """Add the values of a tensor: all to the ends, a few drawn at random to the sample."""
        least, largest = values.double().aminmax()
        self._least = float(np.minimum(self._least, least.item()))
        self._largest = float(np.maximum(self._largest, largest.item()))
        flat = values.reshape(-1)
        if len(flat) > self._each:
            flat = flat[torch.randint(len(flat), (self._each,), generator=self._generator).to(flat.device)]
        self._sample.append(flat.double().cpu())
        if sum(map(len, self._sample)) > SAMPLED:
            # From here on a call adds half as many, so that each of them counts the same.
            self._sample, self._each = [torch.cat(self._sample)[::2]], max(1, self._each // 2)

    def found(self) -> tuple[float, float, float, float]:
        """Least, 1% quantile, 99% quantile, largest."""
        with np.errstate(invalid="ignore"):  # between infinite values
            low, high = np.quantile(torch.cat(self._sample).numpy(), [0.01, 0.99])
        return self._least, float(low), float(high), self._largest
