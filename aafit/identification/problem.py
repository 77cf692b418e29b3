"""Loss, gradient and Gauss-Newton curvature of a network by its adaptive parameters, on given samples.

Axes in names: N sample of all, B sample of a batch, P coordinate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from aafit.activations import AdaptiveActivation
from aafit.identification.coordinates import Coordinates
from aafit.identification.losses import Loss
from aafit.identification.outputs import check_targets, columns_of, gradient_of, hessian_vector_product, losses_of
from aafit.identification.per_sample import Placement, placements
from aafit.networks.batches import Batch, Output, run
from aafit.networks.running import fork_rng
from aafit.training.precision import autocast

EXACT_OUTPUTS = 16  # of a sample: for up to so many the curvature is exact, with a backward pass for each
DRAWS = 8  # random columns of the curvature for each sample, where it has more outputs
MANY_OUTPUTS = 4_096  # of a sample: for more than that two columns do, since each is a sum over all outputs


@dataclass(frozen=True)
class Quadratic:
    """The loss near a vector t: loss + gradient . d + d . curvature . d / 2, the mean over the samples.

    Attributes:
        loss: Mean over the samples.
        gradient_P: By the coordinates.
        curvature_PP: Generalised Gauss-Newton: the mean of J^T H J, with J the Jacobian of the outputs and H the
            Hessian of the loss by the outputs.
        scatter_PP: Mean of the outer products of the samples' own gradients.
        images: How many.
    """

    loss: float
    gradient_P: Tensor
    curvature_PP: Tensor
    scatter_PP: Tensor
    images: int


class Problem:
    """The loss of a network by its adaptive parameters, with all else frozen, in the mode that it is in.

    Args:
        net: the network, or the part of it behind the frozen prefix.
        coordinates: of its adaptive parameters.
        loss: of the outputs.
        batch_size: samples at once.
        precision: of the forward passes, as for `aafit.tune`.
        output: from what the network returns to its outputs, as for `aafit.networks.batches.run`.
    """

    def __init__(
        self,
        net: nn.Module,
        coordinates: Coordinates,
        loss: Loss,
        batch_size: int = 128,
        precision: str = "float32",
        output: Output | None = None,
    ) -> None:
        self.net, self.coordinates, self.loss = net, coordinates, loss
        self.batch_size, self.precision, self.output = batch_size, precision, output
        self._called = _Called(net, output)
        self._names = coordinates.names_in(net)
        self._placements: dict[str, Placement] | None = None

    def check(self, samples: Batch) -> None:
        """Check that the network runs on the samples and that their targets fit its outputs.

        Raises:
            UserError: they do not.
        """
        check_targets(self.loss, self.outputs(self.coordinates.read(), samples.part(0, 2)), samples.target)

    def outputs(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """The outputs of the network at a vector, (N, ...), without gradients."""
        return torch.cat([outputs for _, outputs in self.outputs_by_batch(vector_P, samples)])

    def outputs_by_batch(self, vector_P: Tensor, samples: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """The same batch after batch, so that not all need to be in memory."""
        tensors = self._named(self.coordinates.tensors(vector_P))
        for batch in samples.batches(self.batch_size):
            with torch.no_grad():
                outputs = self._run(tensors, batch)
            yield batch, outputs

    def losses(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss of each sample, (N,) in float64 on the CPU."""
        return losses_of(self.loss, outputs, targets).cpu()

    def quadratic(self, vector_P: Tensor, samples: Batch, columns: int | None = None, seed: int = 0) -> Quadratic:
        """The loss near a vector, from a backward pass for the gradient and one for each column of the curvature.

        Args:
            columns: None for the exact curvature, whose columns are as many as a sample's outputs; else so many columns
                that are drawn at random, from `seed`, such that the curvature is right on average.
        """
        P, total = len(self.coordinates), 0.0
        slopes_P = self.coordinates.slopes(vector_P)
        generator = torch.Generator().manual_seed(seed)
        gradient_P, curvature_PP, scatter_PP = torch.zeros(P).double(), *torch.zeros(2, P, P).double()
        for batch in samples.batches(self.batch_size):
            loss, gradients_BP, factors = self.rows(vector_P, batch, columns, generator)
            gradients_BP = gradients_BP * slopes_P
            total += loss
            gradient_P += gradients_BP.sum(0)
            scatter_PP += gradients_BP.T @ gradients_BP
            for rows_BP in factors:
                rows_BP = rows_BP * slopes_P
                curvature_PP += rows_BP.T @ rows_BP
        n = len(samples)
        return Quadratic(total / n, gradient_P / n, curvature_PP / n, scatter_PP / n, n)

    def gradients(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """The gradient of each sample's loss by the coordinates, (N, P)."""
        generator = torch.Generator()
        rows = [self.rows(vector_P, batch, 1, generator)[1] for batch in samples.batches(self.batch_size)]
        return torch.cat(rows) * self.coordinates.slopes(vector_P)

    def gradient(self, vector_P: Tensor, samples: Batch) -> tuple[float, Tensor]:
        """The mean loss and its gradient by the coordinates, (P,), without a row for each sample."""
        slopes_P, total = self.coordinates.slopes(vector_P), 0.0
        gradient_P = torch.zeros(len(self.coordinates)).double()
        tensors = self.coordinates.tensors(vector_P)
        for batch in samples.batches(self.batch_size):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                loss = losses_of(self.loss, self._run(self._named(leaves), batch), batch.target).sum()
            total += loss.item()
            gradient_P += _flat(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        return total / len(samples), gradient_P * slopes_P / len(samples)

    def diagonal(self, vector_P: Tensor, samples: Batch, seed: int = 0) -> Tensor:
        """An estimate of the curvature's diagonal, (P,), from one random column a sample."""
        slopes_P, total_P = self.coordinates.slopes(vector_P), torch.zeros(len(self.coordinates)).double()
        generator = torch.Generator().manual_seed(seed)
        for batch in samples.batches(self.batch_size):
            _, _, factors = self.rows(vector_P, batch, 1, generator)
            total_P += sum((rows_BP.square().sum(0) for rows_BP in factors), torch.zeros_like(total_P))
        return total_P * slopes_P.square() / len(samples)

    def product(self, vector_P: Tensor, samples: Batch, direction_P: Tensor) -> Tensor:
        """The curvature times a direction, (P,), without the matrix: forward-mode for J d, a backward pass for J^T."""
        slopes_P = self.coordinates.slopes(vector_P)
        tensors = self.coordinates.tensors(vector_P)
        pieces = (direction_P * slopes_P).split([tensor.numel() for tensor in tensors.values()])
        tangents = {
            name: piece.reshape(tensor.shape).to(tensor)
            for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
        }
        product_P = torch.zeros(len(self.coordinates)).double()
        for batch in samples.batches(self.batch_size):
            with torch.no_grad(), forward_ad.dual_level():
                duals = {name: forward_ad.make_dual(tensor, tangents[name]) for name, tensor in tensors.items()}
                outputs, change = forward_ad.unpack_dual(self._run(self._named(duals), batch))
                change = torch.zeros_like(outputs) if change is None else change
                cotangent = hessian_vector_product(self.loss, outputs, batch.target, change)
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                outputs = self._run(self._named(leaves), batch)
            by_leaves = torch.autograd.grad(
                outputs, list(leaves.values()), cotangent.to(outputs), materialize_grads=True
            )
            product_P += _flat(by_leaves)
        return product_P * slopes_P / len(samples)

    def rows(
        self, vector_P: Tensor, batch: Batch, columns: int | None, generator: torch.Generator
    ) -> tuple[float, Tensor, Iterator[Tensor]]:
        """Of a batch: the sum of its losses, the gradient of each sample, and the factor's columns times the Jacobian.

        The latter two are by the parameters themselves, before slopes: (B, P), and as many (B, P) as there are columns,
        computed one after the other. Every sample gets parameters of its own, so that one backward pass gives the
        gradients of all samples apart, summed over their positions.
        """
        own, spread, places = {}, {}, {}
        with torch.enable_grad():
            for name, tensor in self.coordinates.tensors(vector_P).items():
                activation, places[name] = self._place(name, batch)
                own[name] = places[name].own(activation, tensor, len(batch)).requires_grad_()
                spread[name] = places[name].spread(own[name])
            outputs = self._run(self._named(spread), batch)
        loss, gradient = gradient_of(self.loss, outputs, batch.target)

        def by_parameters(cotangent: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                outputs,
                list(own.values()),
                cotangent.to(outputs),
                retain_graph=True,
                # An activation that a forward does not call has no say.
                materialize_grads=True,
            )
            rows = [places[name].rows(g) for name, g in zip(own, gradients, strict=True)]
            return torch.cat(rows, 1).double().cpu()

        factors = columns_of(self.loss, outputs, batch.target, columns, generator)
        return loss, by_parameters(gradient), map(by_parameters, factors)

    def _place(self, name: str, batch: Batch) -> tuple[AdaptiveActivation, Placement]:
        """The activation that a parameter belongs to, and where the samples are in what it receives."""
        if self._placements is None:
            self._placements = placements(self.net, batch, lambda few: self._run({}, few))
        path = self._names[name].rpartition(".")[0]
        activation = self.net.get_submodule(path)
        assert isinstance(activation, AdaptiveActivation)
        sets = len(activation.shape) if activation.shape != (1,) else 0
        return activation, self._placements.get(path, Placement(1 + sets))

    def _run(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        # Cloned: a network may work in place on what it receives, which is needed again.
        inputs = Batch(batch.args, batch.kwargs).cloned()
        named = {f"net.{name}": tensor for name, tensor in tensors.items()}
        # A network that draws random numbers draws the same ones each time, as `outputs_of` lets its base do.
        with autocast(self.precision, batch.device), fork_rng(0):
            outputs: Tensor = functional_call(self._called, named, (inputs,))
        return outputs if outputs.dtype == torch.float64 else outputs.float()

    def _named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._names[name]: tensor for name, tensor in tensors.items()}


class _Called(nn.Module):
    """`run` as a module, so that functional_call can give its network other parameters."""

    def __init__(self, net: nn.Module, output: Output | None) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, batch: Batch) -> Tensor:
        return run(self.net, batch, self.output)


def draws_for(problem: Problem, vector_P: Tensor, samples: Batch) -> int | None:
    """How many random columns of the curvature to draw for a sample; None where its outputs are few enough for all."""
    outputs = problem.outputs(vector_P, samples.part(0, 1)).numel()
    return None if outputs <= EXACT_OUTPUTS else DRAWS if outputs <= MANY_OUTPUTS else 2


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).double().cpu()
