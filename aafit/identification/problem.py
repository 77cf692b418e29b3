"""Loss, gradient and Gauss-Newton curvature of a network with respect to its adaptive parameters.

Read `Problem.rows` first: per-sample gradients and probes of the curvature come from it. The loss is the mean over the
labelled positions, as in `evaluate`. Axes in names: N sample of all, B sample of a batch, P coordinate.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aafit.activations import AdaptiveActivation
from aafit.activations.elementwise import dual_numbers
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.hessian import gradient_of, hessian_vector_product, probes_of, wide_target
from aafit.identification.per_sample import Placement, placements
from aafit.networks.batches import Batch
from aafit.networks.running import evaluation_mode
from aafit.training.losses import (
    IGNORED,
    Loss,
    Positions,
    Scores,
    check_any_labelled,
    check_labels,
    check_probabilities,
    has_labels,
    predictions,
    scores,
)
from aafit.training.predictor import NO_GRADIENT, Predictor, check_not_inference

log = logging.getLogger(__name__)

EXACT_OUTPUTS = 16  # outputs per sample up to which the curvature is exact, with one backward pass for each output
PROBES = 8  # random probes of the curvature for each sample with more outputs
MANY_OUTPUTS = 4_096  # outputs per sample above which two probes suffice, since each is a sum over all outputs


@dataclass(frozen=True)
class Quadratic:
    """Quadratic model of the loss near a vector t: loss + gradient . d + d . curvature . d / 2.

    Attributes:
        loss: Mean loss over the labelled positions.
        gradient_P: Gradient of this loss with respect to the coordinates.
        curvature_PP: Generalized Gauss-Newton matrix: the mean of J^T H J, with J the Jacobian of the outputs and H the
            Hessian of the loss with respect to the outputs.
        scatter_PP: Mean over the samples of the outer products of their gradients, scaled so that `gradient_P` is
            the mean of these gradients.
        samples: Number of samples.
    """

    loss: float
    gradient_P: Tensor
    curvature_PP: Tensor
    scatter_PP: Tensor
    samples: int


@dataclass(frozen=True)
class Rows:
    """Derivatives of a batch with respect to the parameters themselves, not the coordinates.

    Attributes:
        loss: Sum of the losses of the labelled positions.
        labelled: Number of labelled positions.
        gradients: Returns the gradient of the loss of each sample, (B, P), by a backward pass at each call.
        probes: Yields, for each probe of the curvature, its product with the Jacobian of each sample, (B, P). Each
            takes a backward pass when it is requested.
    """

    loss: float
    labelled: int
    gradients: Callable[[], Tensor]
    probes: Iterator[Tensor]


class Problem:
    """The loss of a network as a function of its adaptive parameters, with everything else frozen.

    Args:
        predictor: runs the network, or the part of it behind the frozen prefix, in its current training mode.
        coordinates: the coordinates of its adaptive parameters.
        loss: the loss of the outputs.

    Raises:
        UserError: torch.inference_mode is enabled, in which there are no gradients.
    """

    def __init__(self, predictor: Predictor, coordinates: Coordinates, loss: Loss) -> None:
        check_not_inference()
        self.predictor, self.coordinates, self.loss = predictor, coordinates, loss
        self._names = coordinates.names_in(predictor.net)
        self._placements: dict[str, Placement] | None = None
        self._one_at_a_time: bool | None = None

    def check(self, samples: Batch) -> None:
        """Check that the network runs on the samples and that their targets fit its outputs.

        Raises:
            UserError: the network fails on the samples, or for the reasons of `check_targets` and `check_gradient`.
        """
        check_targets(self.loss, self.predictor.outputs(samples.part(0, 2)), samples.target)
        self.check_gradient(samples)
        self._find_placements(samples)

    def check_gradient(self, samples: Batch) -> None:
        """Check that the outputs have a gradient with respect to the parameters.

        Raises:
            UserError: they have none.
        """
        parameters = {name: p.detach().requires_grad_() for name, p in self.coordinates.parameters.items()}
        with evaluation_mode(self.predictor.net), torch.enable_grad():
            outputs = self.predictor(samples.part(0, 2), self._named(parameters))
            if outputs.requires_grad:
                found = torch.autograd.grad(outputs.sum(), list(parameters.values()), allow_unused=True)
                if any(gradient is not None for gradient in found):
                    return
        raise UserError(NO_GRADIENT)

    def outputs(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """Return the outputs of the network with the parameters of a vector, (N, ...), without gradients."""
        return self.predictor.outputs(samples, self._parameters(vector_P))

    def outputs_by_batch(self, vector_P: Tensor, samples: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches and their outputs at a vector, without gradients, so that not all need to be in memory."""
        return self.predictor.over(samples, self._parameters(vector_P))

    def scores(self, outputs: Tensor, target: Any) -> Scores:
        """Return the per-sample losses in float64."""
        return scores(self.loss, outputs.double(), wide_target(target))

    def quadratic(self, vector_P: Tensor, samples: Batch, probes: int | None = None, seed: int = 0) -> Quadratic:
        """Return the quadratic model of the loss at a vector.

        It takes one backward pass for the gradient and one for each probe of the curvature.

        Args:
            vector_P: the coordinates, in float64.
            samples: the samples.
            probes: None for the exact curvature, with as many probes as a sample has outputs; else the number of
                random probes per sample of an unbiased estimate.
            seed: seed of the random probes.
        """
        P, total, labelled = len(self.coordinates), 0.0, 0
        derivatives_P = self.coordinates.derivatives(vector_P)
        generator = torch.Generator().manual_seed(seed)
        gradient_P, curvature_PP, scatter_PP = torch.zeros(P).double(), *torch.zeros(2, P, P).double()
        for batch in self.predictor.batches(samples):
            rows = self.rows(vector_P, batch, probes, generator)
            gradients_BP = rows.gradients() * derivatives_P
            total += rows.loss
            labelled += rows.labelled
            gradient_P += gradients_BP.sum(0)
            scatter_PP += gradients_BP.T @ gradients_BP
            for probe_BP in rows.probes:
                probe_BP = probe_BP * derivatives_P
                curvature_PP += probe_BP.T @ probe_BP
        n = len(samples)
        return Quadratic(
            total / labelled, gradient_P / labelled, curvature_PP / labelled, scatter_PP * n / labelled**2, n
        )

    def gradients(self, vector_P: Tensor, samples: Batch) -> Tensor:
        """Return the per-sample gradients, (N, P), scaled so that their mean is the gradient of the loss."""
        generator, labelled, parts = torch.Generator(), 0, []
        for batch in self.predictor.batches(samples):
            rows = self.rows(vector_P, batch, 1, generator)
            labelled += rows.labelled
            parts.append(rows.gradients())
        return torch.cat(parts) * self.coordinates.derivatives(vector_P) * len(samples) / labelled

    def gradient(self, vector_P: Tensor, samples: Batch) -> tuple[float, Tensor]:
        """Return the loss and its gradient with respect to the coordinates, (P,), without per-sample gradients."""
        derivatives_P, total, labelled = self.coordinates.derivatives(vector_P), 0.0, 0
        gradient_P = torch.zeros(len(self.coordinates)).double()
        tensors = self.coordinates.tensors(vector_P)
        for batch in self.predictor.batches(samples):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                found = self.scores(self.predictor(batch, self._named(leaves)), batch.target)
                loss = found.loss_B.sum()
            total += loss.item()
            labelled += int(found.labelled_B.sum())
            gradient_P += _flat(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        return total / labelled, gradient_P * derivatives_P / labelled

    def diagonal(self, vector_P: Tensor, samples: Batch, seed: int = 0) -> Tensor:
        """Return an estimate of the curvature's diagonal, (P,), from one random probe per sample."""
        derivatives_P, total_P = self.coordinates.derivatives(vector_P), torch.zeros(len(self.coordinates)).double()
        generator, labelled = torch.Generator().manual_seed(seed), 0
        for batch in self.predictor.batches(samples):
            rows = self.rows(vector_P, batch, 1, generator)
            labelled += rows.labelled
            total_P += sum((probe_BP.square().sum(0) for probe_BP in rows.probes), torch.zeros_like(total_P))
        return total_P * derivatives_P.square() / labelled

    def product(self, vector_P: Tensor, samples: Batch, direction_P: Tensor) -> Tensor:
        """Return the curvature times a direction, (P,), without computing the matrix.

        J d is computed by forward-mode differentiation, and the product with J^T by a backward pass.
        """
        derivatives_P = self.coordinates.derivatives(vector_P)
        tensors = self.coordinates.tensors(vector_P)
        pieces = (direction_P * derivatives_P).split([tensor.numel() for tensor in tensors.values()])
        tangents = {
            name: piece.reshape(tensor.shape).to(tensor)
            for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
        }
        product_P, labelled = torch.zeros(len(self.coordinates)).double(), 0
        for batch in self.predictor.batches(samples):
            with dual_numbers():
                duals = {name: forward_ad.make_dual(tensor, tangents[name]) for name, tensor in tensors.items()}
                outputs, change = forward_ad.unpack_dual(self.predictor(batch, self._named(duals)))
                change = torch.zeros_like(outputs) if change is None else change
                cotangent = hessian_vector_product(self.loss, outputs, batch.target, change)
                labelled += int(self.scores(outputs, batch.target).labelled_B.sum())
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
            with torch.enable_grad():
                outputs = self.predictor(batch, self._named(leaves))
            by_leaves = torch.autograd.grad(
                outputs, list(leaves.values()), cotangent.to(outputs), materialize_grads=True
            )
            product_P += _flat(by_leaves)
        return product_P * derivatives_P / labelled

    def rows(self, vector_P: Tensor, batch: Batch, probes: int | None, generator: torch.Generator) -> Rows:
        """Return per-sample gradients and probes of the curvature of a batch.

        Each sample gets its own copy of the parameters, so that one backward pass yields the gradients of all samples,
        each summed over the sample's positions. If an activation does not receive the samples along one axis, the
        samples are run one at a time.

        Args:
            vector_P: the coordinates, in float64.
            batch: the samples.
            probes: number of random probes per sample; None for the exact curvature.
            generator: random number generator of the probes.
        """
        if self._one_at_a_time is None:
            self._find_placements(batch)
        if self._one_at_a_time and len(batch) > 1:
            return self._rows_one_at_a_time(vector_P, batch, probes, generator)
        own, repeated, places = {}, {}, {}
        with torch.enable_grad():
            for name, tensor in self.coordinates.tensors(vector_P).items():
                activation, places[name] = self._place(name)
                place = places[name]
                copies = tensor.clone() if place is None else place.own(activation, tensor, len(batch))
                own[name] = copies.requires_grad_()
                repeated[name] = copies if place is None else place.repeat(copies)
            outputs = self.predictor(batch, self._named(repeated))
        loss, labelled, gradient = gradient_of(self.loss, outputs, batch.target)

        def by_parameters(cotangent: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                outputs,
                list(own.values()),
                cotangent.to(outputs),
                retain_graph=True,
                # An activation that the forward pass does not call has no effect.
                materialize_grads=True,
            )
            rows = [_rows(places[name], gradient) for name, gradient in zip(own, gradients, strict=True)]
            return torch.cat(rows, 1).double().cpu()

        columns = probes_of(self.loss, outputs, batch.target, probes, generator)
        return Rows(loss, labelled, partial(by_parameters, gradient), map(by_parameters, columns))

    def _find_placements(self, samples: Batch) -> None:
        self._placements = placements(self.predictor, samples)
        self._one_at_a_time = self._placements is None
        if self._one_at_a_time:
            log.info("the samples are not on one axis of all activations' inputs: they are run one at a time")

    def _rows_one_at_a_time(
        self, vector_P: Tensor, batch: Batch, probes: int | None, generator: torch.Generator
    ) -> Rows:
        rows = [self.rows(vector_P, one, probes, generator) for one in batch.batches(1)]
        return Rows(
            sum(row.loss for row in rows),
            sum(row.labelled for row in rows),
            lambda: torch.cat([row.gradients() for row in rows]),
            # Strict: samples with different numbers of outputs would have different numbers of exact probes.
            (torch.cat(each) for each in zip(*(row.probes for row in rows), strict=True)),
        )

    def _place(self, name: str) -> tuple[AdaptiveActivation, Placement | None]:
        """Return the activation that a parameter belongs to, and the sample axis of its input."""
        path = self._names[name].rpartition(".")[0]
        activation = self.predictor.net.get_submodule(path)
        assert isinstance(activation, AdaptiveActivation)
        if self._one_at_a_time:
            return activation, None
        sets = len(activation.shape) if activation.shape != (1,) else 0
        return activation, (self._placements or {}).get(path, Placement(1 + sets))

    def _parameters(self, vector_P: Tensor) -> dict[str, Tensor]:
        return self._named(self.coordinates.tensors(vector_P))

    def _named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._names[name]: tensor for name, tensor in tensors.items()}


def _rows(place: Placement | None, gradient: Tensor) -> Tensor:
    return gradient.reshape(1, -1) if place is None else place.rows(gradient)


def check_targets(loss: Loss, outputs: Tensor, target: Any) -> None:
    """Check that the targets of all samples fit the outputs, given for the first ones.

    Raises:
        UserError: there are no targets; they do not fit the outputs, or are neither class labels nor probabilities
            where the loss needs them; none of them is labelled; the loss fails.
    """
    if not isinstance(target, Tensor):
        raise UserError(
            "The batches have no target, or one that is no tensor: give it as the last element of a tuple or under the "
            'key "labels". Without labels give the network that this one was made from as base=, and to identify also '
            'target="logits".'
        )
    few = target[: len(outputs)]
    if loss.whole:
        loss(outputs.double(), wide_target(few))
        return
    predictions(loss, outputs)
    positions = Positions.of(loss, outputs, few)
    if has_labels(outputs, few):
        classes = positions.outputs_BMK.shape[2]
        check_labels((((target < 0) | (target >= classes)) & (target != IGNORED)).sum(), classes)
        check_any_labelled((target != IGNORED).sum())
    elif loss.is_cross_entropy:
        check_probabilities(target, positions.axis)


def probes_for(problem: Problem, vector_P: Tensor, samples: Batch) -> int | None:
    """Return the number of random probes per sample of the curvature; None, for exact, if there are few outputs."""
    outputs = problem.outputs(vector_P, samples.part(0, 1)).numel()
    return None if outputs <= EXACT_OUTPUTS else PROBES if outputs <= MANY_OUTPUTS else 2


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).double().cpu()
