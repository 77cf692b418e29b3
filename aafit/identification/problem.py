"""Loss, gradient and Gauss-Newton curvature of a network by its adaptive parameters, on given images.

Axes in names: N image of all, B image of a batch, K output, R column of the curvature's factor, P coordinate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.losses import Loss, check_targets
from aafit.identification.watch import watched
from aafit.networks.adaptive import adaptive_activations
from aafit.training.precision import autocast


@dataclass(frozen=True)
class Images:
    """What a network, or the part of it behind the frozen prefix, receives, a row an image, and the targets."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, start: int, stop: int) -> "Images":
        return Images(tuple(x[start:stop] for x in self.inputs), self.targets[start:stop])

    def batches(self, size: int) -> Iterator["Images"]:
        return (self.part(start, start + size) for start in range(0, len(self), size))


@dataclass(frozen=True)
class Quadratic:
    """The loss near a vector t: loss + gradient . d + d . curvature . d / 2, the mean over the images.

    Attributes:
        loss: Mean over the images.
        gradient_P: By the coordinates.
        curvature_PP: Generalised Gauss-Newton: the mean of J^T H J, with J the Jacobian of the outputs and H the
            Hessian of the loss by the outputs.
        scatter_PP: Mean of the outer products of the images' own gradients.
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
        batch_size: images at once.
        precision: of the forward passes, as for `aafit.tune`.
    """

    def __init__(
        self, net: nn.Module, coordinates: Coordinates, loss: Loss, batch_size: int = 128, precision: str = "float32"
    ) -> None:
        self.net, self.coordinates, self.loss = net, coordinates, loss
        self.batch_size, self.precision = batch_size, precision
        self._names = coordinates.names_in(net)
        self._ranks: dict[str, int] | None = None
        self._in_place: bool | None = None

    def check(self, images: Images) -> None:
        """
        Raises:
            UserError: the network does not run on the images, or their targets do not fit its outputs.
        """
        few = images.part(0, 2)
        try:
            outputs_BK = self.outputs(self.coordinates.read(), few)
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            shapes = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in few.inputs)
            raise UserError(f"The network does not run on such inputs, {shapes}: {error}") from error
        check_targets(self.loss, outputs_BK, images.targets)

    def outputs(self, vector_P: Tensor, images: Images) -> Tensor:
        """The outputs of the network at a vector, (N, K), without gradients."""
        tensors = self._named(self.coordinates.tensors(vector_P))
        with torch.no_grad():
            return torch.cat([self._run(tensors, batch) for batch in images.batches(self.batch_size)])

    def losses(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, (N,) in float64 on the CPU."""
        return self.loss.value(outputs_NK.double(), _wide(targets)).cpu()

    def quadratic(self, vector_P: Tensor, images: Images, columns: int | None = None, seed: int = 0) -> Quadratic:
        """The loss near a vector, from a backward pass for the gradient and one for each column of the curvature.

        Args:
            columns: None for the exact curvature, whose columns are as many as the outputs; else so many columns that
                are drawn at random, from `seed`, such that the curvature is right on average.
        """
        P, total = len(self.coordinates), 0.0
        slopes_P = self.coordinates.slopes(vector_P)
        generator = torch.Generator().manual_seed(seed)
        gradient_P, curvature_PP, scatter_PP = torch.zeros(P).double(), *torch.zeros(2, P, P).double()
        for batch in images.batches(self.batch_size):
            loss, gradients_BP, factors = self.rows(vector_P, batch, columns, generator)
            gradients_BP = gradients_BP * slopes_P
            total += loss
            gradient_P += gradients_BP.sum(0)
            scatter_PP += gradients_BP.T @ gradients_BP
            for rows_BP in factors:
                rows_BP = rows_BP * slopes_P
                curvature_PP += rows_BP.T @ rows_BP
        n = len(images)
        return Quadratic(total / n, gradient_P / n, curvature_PP / n, scatter_PP / n, n)

    def gradient(self, vector_P: Tensor, images: Images) -> tuple[float, Tensor]:
        """The mean loss and its gradient by the coordinates, (P,), without a row for each image."""
        slopes_P, total = self.coordinates.slopes(vector_P), 0.0
        gradient_P = torch.zeros(len(self.coordinates)).double()
        tensors = self.coordinates.tensors(vector_P)
        for batch in images.batches(self.batch_size):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                loss = self.loss.value(self._run(self._named(leaves), batch).double(), _wide(batch.targets)).sum()
            total += loss.item()
            gradient_P += _flat(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        return total / len(images), gradient_P * slopes_P / len(images)

    def diagonal(self, vector_P: Tensor, images: Images, seed: int = 0) -> Tensor:
        """An estimate of the curvature's diagonal, (P,), from one random column an image."""
        slopes_P, total_P = self.coordinates.slopes(vector_P), torch.zeros(len(self.coordinates)).double()
        generator = torch.Generator().manual_seed(seed)
        for batch in images.batches(self.batch_size):
            _, _, factors = self.rows(vector_P, batch, 1, generator)
            total_P += sum((rows_BP.square().sum(0) for rows_BP in factors), torch.zeros_like(total_P))
        return total_P * slopes_P.square() / len(images)

    def product(self, vector_P: Tensor, images: Images, direction_P: Tensor) -> Tensor:
        """The curvature times a direction, (P,), without the matrix: forward-mode for J d, a backward pass for J^T."""
        slopes_P = self.coordinates.slopes(vector_P)
        tensors = self.coordinates.tensors(vector_P)
        pieces = (direction_P * slopes_P).split([tensor.numel() for tensor in tensors.values()])
        tangents = {
            name: piece.reshape(tensor.shape).to(tensor)
            for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
        }
        product_P = torch.zeros(len(self.coordinates)).double()
        for batch in images.batches(self.batch_size):
            with torch.no_grad(), forward_ad.dual_level():
                duals = {name: forward_ad.make_dual(tensor, tangents[name]) for name, tensor in tensors.items()}
                outputs_BK, change_BK = forward_ad.unpack_dual(self._run(self._named(duals), batch))
                change_BK = torch.zeros_like(outputs_BK) if change_BK is None else change_BK
                factor_BKR = self.loss.factor(outputs_BK.double(), _wide(batch.targets))
                weighted_BR1 = factor_BKR.mT @ change_BK.double().unsqueeze(2)
                cotangent_BK = (factor_BKR @ weighted_BR1).squeeze(2)
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                outputs_BK = self._run(self._named(leaves), batch)
            by_leaves = torch.autograd.grad(
                outputs_BK, list(leaves.values()), cotangent_BK.to(outputs_BK), materialize_grads=True
            )
            product_P += _flat(by_leaves)
        return product_P * slopes_P / len(images)

    def rows(
        self, vector_P: Tensor, batch: Images, columns: int | None, generator: torch.Generator
    ) -> tuple[float, Tensor, Iterator[Tensor]]:
        """Of a batch: the sum of its losses, the gradient of each image, and the factor's columns times the Jacobian.

        The latter two are by the parameters themselves, before slopes: (B, P), and as many (B, P) as there are columns,
        computed one after the other. Every image gets parameters of its own, so that one backward pass gives the
        gradients of all images apart.
        """
        with torch.enable_grad():
            own = self._own_parameters(self.coordinates.tensors(vector_P), batch)
            outputs_BK = self._run(self._named(own), batch)
        loss, gradient_BK = self._output_gradient(outputs_BK, batch.targets)
        wide_BK, targets = outputs_BK.detach().double(), _wide(batch.targets)
        if columns is not None and self.loss.sampled is not None and columns < outputs_BK.shape[1]:
            factor_BKR = self.loss.sampled(wide_BK, targets, columns, generator)
        else:
            factor_BKR = self.loss.factor(wide_BK, targets)
        parameters = list(own.values())

        def by_parameters(cotangent_BK: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                outputs_BK,
                parameters,
                cotangent_BK.to(outputs_BK),
                retain_graph=True,
                # An activation that a forward does not call has no say.
                materialize_grads=True,
            )
            return torch.cat([g.reshape(len(batch), -1) for g in gradients], 1).double().cpu()

        return loss, by_parameters(gradient_BK), map(by_parameters, factor_BKR.unbind(2))

    def _output_gradient(self, outputs_BK: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        wide_BK = outputs_BK.detach().double().requires_grad_()
        with torch.enable_grad():
            loss = self.loss.value(wide_BK, _wide(targets)).sum()
        (gradient_BK,) = torch.autograd.grad(loss, wide_BK)
        return loss.item(), gradient_BK

    def _own_parameters(self, tensors: dict[str, Tensor], batch: Images) -> dict[str, Tensor]:
        """The parameters repeated for each image, (B, ...), as broadcasts against what the activation receives."""
        if self._ranks is None:
            self._ranks = self._seen_ranks(batch)
        own = {}
        for name, tensor in tensors.items():
            path, activation = self._activation_of(name)
            sets, beyond = tensor.shape[: len(activation.shape)], tensor.shape[len(activation.shape) :]
            sets = torch.Size() if sets == (1,) else sets
            rank = self._ranks.get(path, 1 + len(sets))
            full = (len(batch), *[1] * (rank - 1 - len(sets)), *sets, *beyond)
            own[name] = tensor.expand(full).clone().requires_grad_()
        return own

    def _seen_ranks(self, batch: Images) -> dict[str, int]:
        """The number of dimensions of what each activation receives."""
        ranks: dict[str, int] = {}
        few = batch.part(0, 2)

        def see(path: str, u: Tensor, y: Tensor) -> None:
            if u.ndim == 0 or len(u) != len(few):
                raise UserError(
                    f"The activation {path!r} receives {tuple(u.shape)} for {len(few)} images: its first dimension "
                    "must be the images, or the gradients of the images cannot be told apart."
                )
            ranks[path] = u.ndim

        with watched(self.net, adaptive_activations(self.net), see), torch.no_grad():
            self._run({}, few)
        return ranks

    def _activation_of(self, name: str) -> tuple[str, AdaptiveActivation]:
        path = self._names[name].rpartition(".")[0]
        activation = self.net.get_submodule(path)
        assert isinstance(activation, AdaptiveActivation)
        return path, activation

    def _run(self, tensors: dict[str, Tensor], batch: Images) -> Tensor:
        if self._in_place is None:
            self._in_place = self._works_in_place(batch.part(0, 2))
        inputs = tuple(x.clone() for x in batch.inputs) if self._in_place else batch.inputs
        with autocast(self.precision, batch.targets.device):
            outputs_BK: Tensor = functional_call(self.net, tensors, inputs)
        return outputs_BK if outputs_BK.dtype == torch.float64 else outputs_BK.float()

    def _works_in_place(self, few: Images) -> bool:
        """Whether the network changes what it receives, which is needed again."""
        inputs = tuple(x.clone() for x in few.inputs)
        with torch.no_grad(), autocast(self.precision, few.targets.device):
            self.net(*inputs)
        return not all(map(torch.equal, inputs, few.inputs))

    def _named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._names[name]: tensor for name, tensor in tensors.items()}


def _wide(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).double().cpu()
