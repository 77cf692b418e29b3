"""Networks that differ in their adaptive activations alone, trained in lockstep: what lies below is computed once.

For each minibatch the frozen prefix runs once, then each network takes its own step from there, with the same random
numbers as if it were on its own: so each gets the same bits as alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from aafit.networks.adaptive import training_mode
from aafit.networks.batches import Batch, as_batch
from aafit.networks.frozen_prefix import split_network
from aafit.networks.running import evaluation_mode
from aafit.training.evaluate import Batches
from aafit.training.precision import autocast
from aafit.training.predictor import Predictor
from aafit.training.tune import mean_and_variance, train_step, trained_by


@dataclass(frozen=True)
class Lockstep:
    """The common frozen prefix of some networks, and what is left of each; all share the modules of the networks."""

    nets: tuple[nn.Module, ...]
    prefix: nn.Module
    rests: tuple[nn.Module, ...]

    @classmethod
    def of(cls, nets: Sequence[nn.Module], x_B: Tensor) -> "Lockstep | None":
        """The networks in two parts each; None where their first parts are not the same, or hold nothing.

        `x_B` are a few images to try the parts on.
        """
        parts = []
        for net in nets:
            with evaluation_mode(net):
                prefix, rest = split_network(net, (x_B,))
                if prefix is None or len(prefix(x_B)) != 1:
                    return None
                parts.append((prefix, rest))
        first, *others = (prefix for prefix, _ in parts)
        same = all(_same(first, other) for other in others)
        return cls(tuple(nets), first, tuple(rest for _, rest in parts)) if same else None

    def part(self, places: Sequence[int]) -> "Lockstep":
        """The networks at these places alone."""
        return Lockstep(tuple(self.nets[at] for at in places), self.prefix, tuple(self.rests[at] for at in places))

    def train_epoch(
        self, batches: Batches, optimizers: Sequence[Sequence[Optimizer]], precision: str = "float32"
    ) -> list[tuple[float, float]]:
        """As `train_epoch` of each network on these batches, to the last bit: mean and variance of its losses."""
        trained: list[list[list[Parameter]]] = [trained_by(own) for own in optimizers]
        losses: list[list[Tensor]] = [[] for _ in self.rests]
        for net in self.nets:
            training_mode(net)
        predictors = [Predictor(rest, precision=precision) for rest in self.rests]
        last = len(self.rests) - 1
        for batch in map(as_batch, batches):
            with torch.no_grad(), autocast(precision, batch.device):
                (between_B,) = self.prefix(*batch.args)
            between = Batch((between_B,), {}, batch.target)
            devices = [batch.device] if batch.first.is_cuda else []
            for at, predictor in enumerate(predictors):
                # Each draws its dropout from where the prefix left the generator; the last one moves it on.
                with torch.random.fork_rng(devices, enabled=at < last):
                    losses[at].append(train_step(predictor, between, optimizers[at], trained[at]))
        return [mean_and_variance(own) for own in losses]


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two prefixes are the same program with the same weights."""
    ours, theirs = one.state_dict(), other.state_dict()
    return str(one) == str(other) and all(torch.equal(ours[name], theirs[name]) for name in ours)
