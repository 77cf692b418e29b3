"""Losses, correct predictions and metrics of network outputs of any shape.

Read `Loss` and `scores` first. A sample's outputs are M positions of K outputs each: one position in (B, K), T in
(B, T, K), H W in (B, C, H, W). Axes in names: B sample, M position, K output or class, R row (one position of one
sample), C column of a factor.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from aafit.errors import UserError, check_name

Metric = Callable[..., Tensor | float]
"""A function of outputs and target, or of the outputs alone where there is no target. It returns one value for the
batch or one for each sample."""

IGNORED = -100
"""The label of positions that do not count, as in F.cross_entropy."""

ROUNDING = 0.01
"""Tolerance for the sum of class probabilities, which bfloat16 holds to three digits."""

MOST_OUTPUTS = 512
"""Outputs of a sample up to which a Hessian is computed by automatic differentiation."""


@dataclass(frozen=True)
class Loss:
    """A loss that is convex in the network's outputs, with the Hessian that Gauss-Newton needs.

    Calling it returns the loss of each sample, (B,). `evaluate`, `compare`, `tune`, `identify`, `audit` and
    `importance` all take it.

    Attributes:
        name: Name of the loss.
        value: (outputs_RK, targets) -> loss_R; with `whole`, (outputs, targets) -> (B,) or (B, ...).
        factor: (outputs_RK, targets) -> F_RKC with F F^T the Hessian of each row's loss with respect to its outputs.
        sampled: (outputs_RK, targets, probes, generator) -> F_RKC with a random column for each probe, such that the
            Hessian is the expectation of F F^T; None if there is no cheap sampler.
        whole: Whether the loss takes the outputs of a sample as the network returns them; K then counts all of them.
        axis: Class axis of the outputs; None to infer it, see `class_axis`.
    """

    name: str
    value: Callable[[Tensor, Any], Tensor]
    factor: Callable[[Tensor, Any], Tensor]
    sampled: Callable[[Tensor, Any, int, torch.Generator], Tensor] | None = None
    whole: bool = False
    axis: int | None = None

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the loss of each row, (R,)."""
        values = self.value(outputs, targets)
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(outputs):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise UserError(
                f"The loss {self.name!r} returned {given} for {len(outputs)} samples. Return one value for each "
                'sample, as the losses of torch do with reduction="none".'
            )
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    @property
    def is_cross_entropy(self) -> bool:
        """Whether this is the cross-entropy, which takes labels or class probabilities as targets."""
        return self.value is _cross_entropy

    @property
    def is_squared_error(self) -> bool:
        """Whether this is the mean squared error."""
        return self.value is _squared_error


LossLike = Loss | str | Callable[[Tensor, Any], Tensor]
"""A `Loss`, the name of one in `LOSSES`, or a function of outputs and target."""


def as_loss(loss: LossLike) -> Loss:
    """Return the loss with a given name, or the loss that a function of outputs and target computes.

    Raises:
        UserError: `loss` is neither.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, type):
        raise UserError(f"The loss is the class {loss.__name__}: give an object of it, {loss.__name__}(...).")
    if callable(loss):
        return _of_function(getattr(loss, "__name__", type(loss).__name__), loss, None)
    if not isinstance(loss, str):
        names = " or ".join(map(repr, LOSSES))
        raise UserError(f"The loss {loss!r} cannot be used: give {names}, or a function of outputs and target.")
    return LOSSES[check_name("loss", loss, LOSSES)]


def loss_with_hessian(
    name: str,
    value: Callable[[Tensor, Tensor], Tensor],
    hessian: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Loss:
    """Return a loss for `identify`, `audit` and `importance` from a function and its Hessian.

    A Hessian that is not positive semidefinite is replaced by its positive part, as Gauss-Newton requires.

    Args:
        name: name of the loss, other than those that exist.
        value: (outputs, target) -> losses of shape (B,), or (B, ...), of which the mean over a sample is taken.
        hessian: (outputs, target) -> (B, K, K), the Hessian with respect to all K outputs of each sample. By default it
            is computed by automatic differentiation, for up to 512 outputs.

    Raises:
        UserError: the name is taken; when called, the function returns one value for a whole batch, or there are too
            many outputs for automatic differentiation.

    Example:
        >>> huber = lambda out, y: torch.nn.functional.huber_loss(out, y, reduction="none")
        >>> loss = aafit.loss_with_hessian("Huber", huber)
        >>> loss(torch.tensor([[0.0], [3.0]]), torch.zeros(2, 1))
        tensor([0.0000, 2.5000])
    """
    if not (isinstance(name, str) and callable(value) and (hessian is None or callable(hessian))):
        raise UserError(
            "loss_with_hessian takes a name and functions of outputs and target; got "
            f"{name!r}, {value!r} and {hessian!r}."
        )
    if name in LOSSES:
        raise UserError(f"There is a loss named {name!r} already; give this one another name.")
    return _of_function(name, value, hessian)


def _of_function(
    name: str, value: Callable[[Tensor, Any], Tensor], hessian: Callable[[Tensor, Any], Tensor] | None
) -> Loss:
    def factor(outputs: Tensor, targets: Any) -> Tensor:
        if hessian is None:
            hessian_BKK = _hessian(loss, outputs, targets)
        else:
            hessian_BKK = _called(hessian, f"Hessian of the loss {name!r}", outputs, targets).to(outputs.dtype)
        values_BK, vectors_BKK = torch.linalg.eigh(hessian_BKK)
        factor_BKC: Tensor = vectors_BKK * values_BK.clamp(min=0).sqrt().unsqueeze(1)
        return factor_BKC

    def guarded(outputs: Tensor, targets: Any) -> Tensor:
        values: Tensor = _called(value, f"loss {name!r}", outputs, targets)
        return values.double() if _is_double(outputs) and isinstance(values, Tensor) else values

    loss = Loss(name, guarded, factor, whole=True)
    return loss


def _called(function: Callable[..., Any], what: str, *args: Any) -> Any:
    """Return what a user's function of outputs and target returns.

    An identification calls it with outputs in float64. A function that holds float32 tensors, such as class weights,
    fails on these, and is then called with float32 in place of float64.

    Raises:
        UserError: it fails; the error is the cause.
    """
    try:
        return function(*args)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(map(_is_double, args)):
            with suppress(Exception):
                return function(*(arg.float() if _is_double(arg) else arg for arg in args))
        given = " and a target of ".join(_described(arg) for arg in args)
        raise UserError(f"The {what} failed on outputs of {given}: {type(error).__name__}: {error}") from error


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"


def _hessian(loss: Loss, outputs: Tensor, targets: Any) -> Tensor:
    """Return the Hessian of each sample's loss, (B, K, K), from one backward pass for each output."""
    size = outputs[0].numel()
    if size > MOST_OUTPUTS:
        raise UserError(
            f"The Hessian of a loss given as a function is computed for up to {MOST_OUTPUTS} outputs of a sample, and "
            f"the network has {size}. Give the Hessian to loss_with_hessian, or use a loss by name."
        )
    leaf_BK = outputs.detach().reshape(len(outputs), -1).requires_grad_()
    with torch.enable_grad():
        total = loss(leaf_BK.reshape(outputs.shape), targets).sum()
        (gradient_BK,) = torch.autograd.grad(total, leaf_BK, create_graph=True)
        if not gradient_BK.requires_grad:  # linear in the outputs
            return leaf_BK.new_zeros(len(leaf_BK), size, size)
        columns = [
            torch.autograd.grad(gradient_BK[:, k].sum(), leaf_BK, retain_graph=True, materialize_grads=True)[0]
            for k in range(size)
        ]
    return torch.stack(columns, 2)


def _cross_entropy(outputs_RK: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs_RK, targets, reduction="none", ignore_index=IGNORED)


def _cross_entropy_factor(outputs_RK: Tensor, targets: Tensor) -> Tensor:
    """Return F = diag(sqrt p) - p sqrt(p)^T, for which F F^T = diag(p) - p p^T."""
    p_RK = outputs_RK.softmax(1)
    root_RK = p_RK.sqrt()
    return torch.diag_embed(root_RK) - p_RK.unsqueeze(2) * root_RK.unsqueeze(1)


def _cross_entropy_sampled(outputs_RK: Tensor, targets: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Return gradients e_k - p of random labels k, scaled so that their outer products average diag(p) - p p^T.

    A label is drawn with probability proportional to p_k |e_k - p|^2, and its gradient is scaled to the square root of
    the Hessian's trace, so that every draw has the right trace. With probability p_k instead, a confident network
    would hardly ever draw another label than the predicted one, although nearly all of the curvature comes from those.
    """
    p_RK = outputs_RK.softmax(1)
    square_RK = 1 - 2 * p_RK + p_RK.square().sum(1, keepdim=True)
    share_RK = (p_RK * square_RK.clamp(min=0)).double()
    trace_R1 = share_RK.sum(1, keepdim=True)
    # Drawn on the CPU from uniform numbers, so that every device draws the same labels.
    uniform_RC = torch.rand(len(p_RK), probes, generator=generator, dtype=torch.float64).to(p_RK.device)
    labels_RC = torch.searchsorted(share_RK.cumsum(1), uniform_RC * trace_R1).clamp(max=p_RK.shape[1] - 1)
    gradient_RCK = F.one_hot(labels_RC, p_RK.shape[1]).to(p_RK.dtype) - p_RK.unsqueeze(1)
    length_RC1 = gradient_RCK.square().sum(2, keepdim=True).sqrt()
    unit_RCK = torch.where(length_RC1 > 0, gradient_RCK / length_RC1, 0)
    factor_RKC: Tensor = unit_RCK.mT * (trace_R1.to(p_RK) / probes).sqrt().unsqueeze(2)
    return factor_RKC


def _squared_error(outputs_RK: Tensor, targets_RK: Tensor) -> Tensor:
    return (outputs_RK - targets_RK).square().mean(1)


def _squared_error_factor(outputs_RK: Tensor, targets_RK: Tensor) -> Tensor:
    outputs = outputs_RK.shape[1]
    return (
        torch.eye(outputs, dtype=outputs_RK.dtype, device=outputs_RK.device)
        .mul((2 / outputs) ** 0.5)
        .expand(len(outputs_RK), -1, -1)
    )


def _squared_error_sampled(outputs_RK: Tensor, targets_RK: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    R, K = outputs_RK.shape
    signs_RKC = torch.randint(0, 2, (R, K, probes), generator=generator) * 2 - 1
    scale: float = (2 / K / probes) ** 0.5
    return signs_RKC.to(outputs_RK) * scale


CROSS_ENTROPY = Loss("cross-entropy", _cross_entropy, _cross_entropy_factor, _cross_entropy_sampled)
"""F.cross_entropy, in nats. Targets are labels (R,) or class probabilities (R, K)."""

SQUARED_ERROR = Loss("mean squared error", _squared_error, _squared_error_factor, _squared_error_sampled)
"""The mean over the outputs of their squared differences from the targets, (R, K)."""

LOSSES = {loss.name: loss for loss in (CROSS_ENTROPY, SQUARED_ERROR)}


def class_axis(shape: Size, labels: Size | None = None) -> int | None:
    """Return the class axis of outputs, which the labels' shape lacks; None without one.

    It is the last axis of (B, K) and (B, T, K), and axis 1 of (B, C, H, W) and of outputs with more axes, or the other
    one of these two if only that one fits the labels. Without labels the first rule alone decides.
    """
    if len(shape) < 2:
        return None
    axes = (len(shape) - 1, 1) if len(shape) <= 3 else (1, len(shape) - 1)
    if labels is None:
        return axes[0]
    return next((axis for axis in axes if labels == shape[:axis] + shape[axis + 1 :]), None)


def has_labels(outputs: Tensor, target: Any) -> bool:
    """Return whether the target has an integer label for each position of the outputs."""
    return (
        isinstance(target, Tensor)
        and not target.is_floating_point()
        and not target.is_complex()
        and class_axis(outputs.shape, target.shape) is not None
    )


@dataclass(frozen=True)
class Positions:
    """Outputs and targets by position.

    Attributes:
        outputs_BMK: The outputs.
        targets: Labels (B, M), or values (B, M, K).
        labelled_BM: Which positions count: those whose label is not `IGNORED`.
        outside: How many labels are no class. They count as ignored here.
        axis: The axis of the outputs that is K.
    """

    outputs_BMK: Tensor
    targets: Tensor
    labelled_BM: Tensor
    outside: Tensor | int
    axis: int

    @classmethod
    def of(cls, loss: Loss, outputs: Tensor, target: Any) -> "Positions":
        """Bring outputs and target of a row-wise loss to this form.

        Raises:
            UserError: there is no target, or it does not fit the outputs.
        """
        axis = _target_axis(loss, outputs, target)
        outputs_BMK = by_position(outputs, axis)
        B, M, K = outputs_BMK.shape
        if target.shape == outputs.shape and not has_labels(outputs, target):
            targets_BMK = by_position(target.to(outputs.dtype), axis)
            return cls(outputs_BMK, targets_BMK, torch.ones_like(outputs_BMK[..., 0], dtype=torch.bool), 0, axis)
        labels_BM = target.reshape(B, M).long()
        labelled_BM = (labels_BM >= 0) & (labels_BM < K)
        outside = ((labels_BM != IGNORED) & ~labelled_BM).sum()
        # F.cross_entropy leaves ignored labels out itself, gradients included.
        labels_BM = labels_BM.where(labelled_BM, IGNORED if loss.is_cross_entropy else 0)
        return cls(outputs_BMK, labels_BM, labelled_BM, outside, axis)


def by_position(outputs: Tensor, axis: int) -> Tensor:
    """Return outputs with a given class axis as (B, M, K); outputs (B,) have one position of one output."""
    if outputs.ndim == 1:
        return outputs.reshape(-1, 1, 1)
    last = outputs.movedim(axis, -1)
    return last.reshape(len(outputs), -1, last.shape[-1])


def _target_axis(loss: Loss, outputs: Tensor, target: Any) -> int:
    """Return the class axis of outputs for a row-wise loss and its target.

    Raises:
        UserError: there is no target, or it does not fit the outputs.
    """
    if not isinstance(target, Tensor):
        what = "there are none" if target is None else f"they are a {type(target).__name__}, not a tensor"
        raise UserError(f"The loss {loss.name!r} needs targets, and {what}.")
    shape, inferred = tuple(outputs.shape), class_axis(outputs.shape)
    if not loss.is_squared_error and not target.is_floating_point() and not target.is_complex():
        axis = class_axis(outputs.shape, target.shape)
    elif target.shape == outputs.shape:
        axis = loss.axis if loss.axis is not None else inferred
        axis = 0 if axis is None and not loss.is_cross_entropy else axis  # (B,): one output of each sample
    else:
        axis = None
    if axis is not None:
        return axis
    if not loss.is_cross_entropy:
        raise UserError(
            f"The {loss.name} needs a target of the shape of the outputs, {shape}; it has shape {tuple(target.shape)}."
        )
    wanted = " or ".join(str(shape[:at] + shape[at + 1 :]) for at in sorted({1, len(shape) - 1}) if at > 0)
    raise UserError(
        f"Labels of shape {tuple(target.shape)} and type {str(target.dtype).removeprefix('torch.')} do not fit outputs "
        f"of shape {shape}. Cross-entropy takes integers of shape {wanted or '(B,) with outputs (B, K)'}, or class "
        f'probabilities of shape {shape}; for a regression give loss="mean squared error".'
    )


def with_class_axis(loss: Loss, outputs: Tensor, labels: Any) -> Loss:
    """Return a cross-entropy whose class axis is the one that the labels imply; any other loss as it is."""
    if not loss.is_cross_entropy or not has_labels(outputs, labels):
        return loss
    return replace(loss, axis=class_axis(outputs.shape, labels.shape))


def predictions(loss: Loss, outputs: Tensor) -> Tensor:
    """Return what a loss compares with its targets, in float64: class probabilities for a cross-entropy, else outputs.

    Raises:
        UserError: the loss is a cross-entropy, and the outputs have no class axis.
    """
    if not loss.is_cross_entropy:
        return outputs.double()
    axis = loss.axis if loss.axis is not None else class_axis(outputs.shape)
    if axis is None:
        raise UserError(
            f"Cross-entropy needs one output for each class, and the outputs have shape {tuple(outputs.shape)}. Select "
            'others with output=, or give loss="mean squared error" for a regression.'
        )
    return outputs.double().softmax(axis)


def one_hot(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return labels (N, ...) as probabilities of the shape of the outputs, in float64; 0 where the label is ignored."""
    axis = class_axis(Size((len(labels), *outputs.shape[1:])), labels.shape)
    assert axis is not None  # `Problem.check` has seen to it
    classes = torch.arange(outputs.shape[axis], device=labels.device)
    return (labels.unsqueeze(axis) == classes.reshape(-1, *[1] * (outputs.ndim - 1 - axis))).double()


def check_labels(outside: Tensor | int, classes: int) -> None:
    """Check that no label lies outside the classes.

    Raises:
        UserError: some do.
    """
    if count := int(outside):
        raise UserError(
            f"{count} of the labels are no class: the network has {classes} classes, so labels are 0 to "
            f"{classes - 1}, or {IGNORED} for positions that do not count."
        )


def check_any_labelled(labelled: Tensor | int) -> None:
    """Check that at least one position is labelled.

    Raises:
        UserError: none is.
    """
    if not int(labelled):
        raise UserError(f"No position is labelled: all labels are {IGNORED}.")


def check_probabilities(target: Tensor, axis: int = 1) -> None:
    """Check that a target has a probability for each class on `axis`. NaN is left to show in the loss.

    Raises:
        UserError: some are negative or do not sum to 1, or there is one class only, whose cross-entropy is always 0.
    """
    wide = target.float()
    wrong = (wide < 0).any(axis) | ((wide.sum(axis) - 1).abs() > ROUNDING)
    count = wrong.numel() if target.shape[axis] == 1 else int(wrong.sum())
    if count:
        raise UserError(
            f"{count} of {wrong.numel()} targets are no probabilities of several classes, which are 0 or more and sum "
            'to 1, as cross-entropy takes them. For a regression give loss="mean squared error", for several labels at '
            "once a function of outputs and target, such as F.binary_cross_entropy_with_logits."
        )


@dataclass(frozen=True)
class Scores:
    """Losses and correct predictions of a batch, for each of its B samples, left on the device.

    The loss of a set of samples is the sum of `loss_B` over the sum of `labelled_B`, its accuracy the sum of
    `correct_B` over the sum of `labelled_B`.

    Attributes:
        loss_B: Sum of the losses over the labelled positions of a sample.
        labelled_B: How many positions of a sample are labelled; 1 for losses of whole samples.
        finite_B: Whether all outputs of a sample are finite.
        correct_B: How many labelled positions are predicted correctly; None without classes. A prediction from outputs
            that are not finite is not correct.
        with_class_B: How many positions have a class label; None without classes.
        outside: How many labels are no class, see `check_labels`.
        classes: How many classes there are; 0 without classes.
    """

    loss_B: Tensor
    labelled_B: Tensor
    finite_B: Tensor
    correct_B: Tensor | None = None
    with_class_B: Tensor | None = None
    outside: Tensor | int = 0
    classes: int = 0


def scores(loss: Loss, outputs: Tensor, target: Any) -> Scores:
    """Return the per-sample losses and correct predictions of a batch.

    Args:
        loss: any loss.
        outputs: (B, ...), as the network returns them.
        target: labels, class probabilities or values, as the loss takes them.

    Raises:
        UserError: there is no target, it does not fit the outputs, or the function given as loss returned no tensor.
    """
    classes = loss.is_cross_entropy or has_labels(outputs, target)
    positions = Positions.of(CROSS_ENTROPY if loss.whole else loss, outputs, target) if classes else None
    if loss.whole:
        loss_B = _whole_losses(loss, outputs, target)
        labelled_B = torch.ones_like(loss_B, dtype=torch.long)
    else:
        positions = positions or Positions.of(loss, outputs, target)
        loss_BM, labelled_B = losses_by_position(loss, positions), positions.labelled_BM.sum(1)
        loss_B = loss_BM.sum(1)
    if not classes or positions is None:
        return Scores(loss_B, labelled_B, finite_samples(outputs))
    classes_BM, labelled_BM = positions.targets, positions.labelled_BM
    if classes_BM.ndim == 3:
        check_probabilities(classes_BM, 2)
        classes_BM = classes_BM.argmax(2)
    finite_BM = positions.outputs_BMK.isfinite().all(2)
    correct_BM = (positions.outputs_BMK.argmax(2) == classes_BM) & labelled_BM & finite_BM
    return Scores(
        loss_B,
        labelled_B,
        finite_BM.all(1),
        correct_BM.sum(1),
        labelled_BM.sum(1) if loss.whole else labelled_B,
        positions.outside,
        positions.outputs_BMK.shape[2],
    )


def losses_by_position(loss: Loss, positions: Positions) -> Tensor:
    """Return the loss of each position, (B, M); 0 where it is not labelled."""
    values_R = loss.value(positions.outputs_BMK.flatten(0, 1), positions.targets.flatten(0, 1))
    values_BM = values_R.reshape(positions.labelled_BM.shape)
    return values_BM if loss.is_cross_entropy else values_BM.where(positions.labelled_BM, 0)


def finite_samples(outputs: Tensor) -> Tensor:
    """Return whether all outputs of a sample are finite, (B,)."""
    return outputs.isfinite().flatten(1).all(1) if outputs.ndim > 1 else outputs.isfinite()


def _whole_losses(loss: Loss, outputs: Tensor, target: Any) -> Tensor:
    """Return the loss of each sample from a user's function; a single value counts for each sample of the batch."""
    values = _as_tensor(loss.value(outputs, target), "loss")
    if values.ndim == 0:
        return values.expand(len(outputs))
    if len(values) == len(outputs):
        return values.flatten(1).mean(1) if values.ndim > 1 else values
    return values.flatten()  # such as one value for each labelled position of the batch


def _as_tensor(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"The function given as {what} returned a {type(value).__name__}; it has to return a tensor.")
    return value


def mean_loss(loss: Loss, outputs: Tensor, target: Any, check: bool = False) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the labelled positions of a batch, for gradient steps, and how many there are.

    The mean of a batch without labelled positions is 0, with gradients of 0.

    Args:
        loss: any loss.
        outputs: (B, ...), as the network returns them.
        target: labels, class probabilities or values, as the loss takes them.
        check: whether to check labels and probabilities on every device. On a CPU they always are; elsewhere the check
            waits for the device.

    Raises:
        UserError: as `scores`; or the labels are no classes, or the targets no probabilities.
    """
    if loss.is_cross_entropy:
        positions = Positions.of(loss, outputs, target)
        if check or outputs.device.type == "cpu":
            if positions.targets.ndim == 3:
                check_probabilities(positions.targets, 2)
            check_labels(positions.outside, positions.outputs_BMK.shape[2])
        logits_RK, targets = positions.outputs_BMK.flatten(0, 1), positions.targets.flatten(0, 1)
        count = positions.labelled_BM.sum()
        total = F.cross_entropy(logits_RK, targets, reduction="sum", ignore_index=IGNORED)
        return total / count.clamp(min=1), count
    found = scores(loss, outputs, target)
    count = found.labelled_B.sum()
    return found.loss_B.sum() / count.clamp(min=1), count


def total_metric(metric: Metric, outputs: Tensor, target: Any) -> tuple[Tensor, int]:
    """Return the sum of a user's metric over a batch, and over how many values; a single one counts for each sample.

    Raises:
        UserError: the metric is no function, fails, or returns neither a number nor a tensor.
    """
    if not callable(metric) or isinstance(metric, type):
        raise UserError(f"The metric is {metric!r}: give a function of outputs and target.")
    value = _called(metric, "metric", outputs, *([] if target is None else [target]))
    value = _as_tensor(torch.as_tensor(value) if isinstance(value, (int, float)) else value, "metric").double()
    return (value * len(outputs), len(outputs)) if value.ndim == 0 else (value.sum(), value.numel())
