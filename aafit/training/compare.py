"""What a replacement of activations changes: at each of them, at the logits, in the predictions."""

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.as_modules import like_for_like
from aafit.networks.inputs import Batch, each_batch
from aafit.networks.modes import evaluation_mode, random_numbers_from
from aafit.networks.outputs import Output, run
from aafit.training.comparison import Comparison, Difference, LayerDifference, Reference
from aafit.training.evaluate import Batches, finite_rows
from aafit.training.losses import (
    IGNORED,
    Loss,
    Metric,
    check_labels,
    check_loss,
    class_axis,
    score,
    total_metric,
)
from aafit.training.precision import autocast
from aafit.training.watched import Gap, Range, Recorder

LOGITS = "logits"


def replaced_paths(base: nn.Module, net: nn.Module) -> list[str]:
    """The paths at which `net` has another kind of module than `base`, or an adaptive one.

    Raises:
        UserError: the two networks are not built alike.
    """
    before, after = dict(base.named_modules()), dict(net.named_modules())
    replaced = [
        path
        for path, module in after.items()
        if path in before
        and path
        and (type(module) is not type(before[path]) or isinstance(module, AdaptiveActivation))
    ]
    within = tuple(f"{path}." for path in replaced)
    unmatched = sorted(path for path in before.keys() ^ after.keys() if not path.startswith(within))
    if unmatched:
        raise UserError(f"The two networks are not built alike: only one of them has {', '.join(unmatched[:5])}.")
    return [path for path in replaced if not path.startswith(within)]


def compare(
    base: nn.Module,
    net: nn.Module,
    batches: Batches,
    precision: str = "float32",
    *,
    output: Output | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    reference: torch.dtype | None = None,
) -> Comparison:
    """How `net`, made from `base` by replacing activations, differs from it on `batches`.

    Differences are taken at the output of every replaced activation that the networks call, over all its calls (with
    everything before it replaced too, and once more on the inputs that it has in the base: its own difference), and at
    the outputs. Both networks run in evaluation mode and are left in the mode they were in; with precision "bf16" they
    run under autocast, else in the type that they have. If they draw random numbers, both draw the same. Memory: the
    inputs and outputs of all replaced activations for one batch, of each network.

    Args:
        base: the network before.
        net: the network after.
        batches: of (images, labels), or of any other form that `as_batch` takes.
        precision: "bf16", or the type that the networks have.
        output: from what the networks return to the tensor that is meant, where they return an object.
        loss: as for `evaluate`; by default cross-entropy where there are labels. "cross-entropy" without labels says
            that the outputs are of classes, so that their predictions are counted.
        metric: as for `evaluate`, of either network.
        reference: a finer type, as torch.float64, in which copies of both networks run too, to tell what the functions
            change from what rounding does.

    Raises:
        UserError: the networks are not built alike, one is scripted, or there is no image in `batches`; or as
            `evaluate`.
    """
    if loss is not None:
        loss = check_loss(loss)
    for which in (base, net):
        if isinstance(which, torch.jit.ScriptModule):
            raise UserError("A ScriptModule has its activations compiled in: compare the networks that it was made of.")
    twin = like_for_like(base, net)
    paths = replaced_paths(twin, net)
    found, outputs = _Layers(net, paths), _Outputs(loss, metric)
    finer = None if reference is None else _Finer(twin, net, paths, reference)
    recorders = Recorder(twin, paths), Recorder(net, paths)
    try:
        with evaluation_mode(twin, net):
            for number, batch in enumerate(each_batch(batches)):
                with autocast(precision, batch.device):
                    results = _run(twin, batch, output, number), _run(net, batch, output, number)
                    if results[0].shape != results[1].shape:
                        shapes = " and ".join(str(tuple(result.shape)) for result in results)
                        raise UserError(f"The networks cannot be compared: they give outputs of the shapes {shapes}.")
                    kept = [recorder.taken() for recorder in recorders]
                    found.add(kept[0], kept[1])
                if finer is not None:
                    finer.add(batch, output, number, kept, results)
                found.outputs.add(*results)
                outputs.add(batch, results)
    finally:
        for recorder in recorders:
            recorder.remove()
    if outputs.images == 0:
        raise UserError("There is nothing to compare on: the batches hold no image.")
    references = {} if finer is None else finer.found()
    return outputs.comparison(*found.rows(references))


def _run(net: nn.Module, batch: Batch, output: Output | None, number: int) -> Tensor:
    """The outputs for one batch; a network that draws random numbers draws the same ones as the others do for it."""
    with random_numbers_from(number):
        # Cloned: the first activation may work in place.
        return run(net, batch.cloned(), output)


class _Layers:
    """The differences at each replaced activation, and at the outputs."""

    def __init__(self, net: nn.Module, paths: Sequence[str]) -> None:
        self.net, self.paths = net, paths
        self.after = {path: Gap() for path in paths}
        self.own = {path: Gap() for path in paths}
        self.arriving = {path: Gap() for path in paths}
        self.inputs = {path: Range() for path in paths}
        self.outputs = Gap()
        self.order: list[str] = []

    def add(self, base: dict[str, list[tuple[Tensor, Tensor]]], net: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        for path, calls in base.items():
            if path not in net or not calls[0][0].numel():
                continue
            if path not in self.order:
                self.order.append(path)
            # What is called is the forward, past the hooks that record.
            module = self.net.get_submodule(path)
            for (u, y), (v, z) in zip(calls, net[path], strict=False):
                self.inputs[path].add(u)
                self.arriving[path].add(u, v)
                self.own[path].add(y, module.forward(u))
                self.after[path].add(y, z)

    def rows(self, references: dict[str, Reference]) -> tuple[tuple[LayerDifference, ...], Difference]:
        carried, left = {}, 0.0
        for path in self.order:
            carried[path] = self.arriving[path].relative / left if left else math.nan
            left = self.after[path].relative
        layers = tuple(
            LayerDifference(
                path=path,
                max_abs=self.after[path].max_abs,
                mean_abs=self.after[path].mean_abs,
                relative=self.after[path].relative,
                carried=carried[path],
                reference=references.get(path),
                inputs=self.inputs[path].found(),
                own_max_abs=self.own[path].max_abs,
                own_mean_abs=self.own[path].mean_abs,
                own_relative=self.own[path].relative,
                arriving=self.arriving[path].relative,
            )
            for path in self.paths
            if path in carried
        )
        gap = self.outputs
        last = gap.relative / left if left else math.nan
        return layers, Difference(LOGITS, gap.max_abs, gap.mean_abs, gap.relative, last, references.get(LOGITS))


class _Finer:
    """Both networks in a finer arithmetic."""

    def __init__(self, base: nn.Module, net: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UserError(f"reference={dtype!r} is no floating-point type: give torch.float64.")
        self.dtype = dtype
        self.nets = [deepcopy(one).to(dtype).eval() for one in (base, net)]
        self.recorders = [Recorder(one, paths) for one in self.nets]
        self.gaps: dict[str, tuple[Gap, Gap, Gap]] = {}

    def add(
        self,
        batch: Batch,
        output: Output | None,
        number: int,
        kept: Sequence[dict[str, list[tuple[Tensor, Tensor]]]],
        results: tuple[Tensor, Tensor],
    ) -> None:
        fine = [_run(one, batch.floating(self.dtype), output, number) for one in self.nets]
        calls = [recorder.taken() for recorder in self.recorders]
        for path in kept[0].keys() & kept[1].keys() & calls[0].keys() & calls[1].keys():
            for four in zip(calls[0][path], calls[1][path], kept[0][path], kept[1][path], strict=False):
                self._add(path, [y for _, y in four])
        self._add(LOGITS, [*fine, *results])

    def _add(self, path: str, four: Sequence[Tensor]) -> None:
        fine_base, fine_net, base, net = four
        gaps = self.gaps.setdefault(path, (Gap(), Gap(), Gap()))
        for gap, pair in zip(gaps, ((fine_base, fine_net), (fine_base, base), (fine_net, net)), strict=True):
            gap.add(*pair)

    def found(self) -> dict[str, Reference]:
        return {
            path: Reference(change.max_abs, change.mean_abs, of_base.max_abs, of_net.max_abs)
            for path, (change, of_base, of_net) in self.gaps.items()
        }


class _Outputs:
    """Accuracy, loss, metric, agreement and cosine of the outputs."""

    def __init__(self, loss: Loss | None, metric: Metric | None) -> None:
        self.loss, self.metric = loss, metric
        self.images = 0
        self.broken = [0, 0]
        self.sums: dict[str, list[float]] = {}
        self.least_cosine = math.inf

    def add(self, batch: Batch, results: tuple[Tensor, Tensor]) -> None:
        finite = [finite_rows(result) for result in results]
        self.images += len(batch)
        for which, name in enumerate(("base", "replaced")):
            self.broken[which] += int((~finite[which]).sum())
            wide = results[which].double()
            if batch.target is not None:
                of = score(self.loss or "cross-entropy", wide, batch.target)
                self._sum(f"{name} loss", of.loss, of.count)
                if of.right is not None and of.labelled is not None and of.outside is not None:
                    check_labels(of.outside, of.classes)
                    self._sum(f"{name} right", of.right, of.labelled)
            if self.metric is not None:
                self._sum(f"{name} metric", *total_metric(self.metric, results[which], batch.target))
        self._agreement(batch, results)
        cosine_B = _cosines(*results)
        self._sum("cosine", cosine_B.sum(), len(cosine_B))
        self.least_cosine = float(np.minimum(self.least_cosine, cosine_B.min().item()))

    def _agreement(self, batch: Batch, results: tuple[Tensor, Tensor]) -> None:
        target = batch.target
        labels = target if isinstance(target, Tensor) and not target.is_floating_point() else None
        if labels is None and self.loss != "cross-entropy" and (self.loss is not None or target is None):
            return
        axis = class_axis(results[0].shape, None if labels is None else labels.shape)
        if axis is None:
            return
        predicted = [result.argmax(axis) for result in results]
        finite = results[0].isfinite().all(axis) & results[1].isfinite().all(axis)
        counted = torch.ones_like(finite) if labels is None else labels != IGNORED
        self._sum("agreed", ((predicted[0] == predicted[1]) & finite & counted).sum(), counted.sum())

    def _sum(self, name: str, value: Tensor, count: Tensor | int) -> None:
        kept = self.sums.setdefault(name, [0.0, 0.0])
        kept[0] += value.item()
        kept[1] += count if isinstance(count, int) else count.item()

    def _mean(self, name: str) -> float:
        total, count = self.sums.get(name, (0.0, 0.0))
        return total / count if count else math.nan

    def comparison(self, layers: tuple[LayerDifference, ...], logits: Difference) -> Comparison:
        return Comparison(
            layers=layers,
            logits=logits,
            agreement=self._mean("agreed"),
            base_accuracy=self._mean("base right"),
            base_loss=self._mean("base loss"),
            replaced_accuracy=self._mean("replaced right"),
            replaced_loss=self._mean("replaced loss"),
            images=self.images,
            base_not_finite=self.broken[0],
            replaced_not_finite=self.broken[1],
            cosine=self._mean("cosine"),
            least_cosine=self.least_cosine,
            base_metric=self._mean("base metric"),
            replaced_metric=self._mean("replaced metric"),
        )


def _cosines(before: Tensor, after: Tensor) -> Tensor:
    """The cosine between the outputs of each row, (B,); 1 where both are 0."""
    one, other = (output.double().reshape(len(output), -1) for output in (before, after))
    both_zero = (one == 0).all(1) & (other == 0).all(1)
    return torch.where(both_zero, 1.0, F.cosine_similarity(one, other, dim=1))
