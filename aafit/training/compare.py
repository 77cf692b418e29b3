"""What a replacement of activations changes: at each of them, at the logits, in the predictions.

What `compare` found: where two networks differ, and by how much.

What the activations of a network receive and give, and how far that is from another network's.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.as_modules import with_matching_modules
from aafit.networks.batches import Batch, Output, each_batch, run
from aafit.networks.running import evaluation_mode, fork_rng, receiving, watched
from aafit.tables import fit_for_json, table
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


@dataclass(frozen=True)
class Difference:
    """Largest and mean absolute difference of one layer's output between two networks, over all images.

    Relative ones are Euclidean norms: that of the difference by that of the base's values, over everything.

    Attributes:
        path: of the activation; "logits" for the output of the network.
        max_abs: the largest difference of the outputs.
        mean_abs: the mean difference of the outputs.
        relative: the relative difference of the outputs.
        carried: the relative difference that arrives here, by the one that left the activation called before: above 1
            where differences were amplified between the two, below where they died out; NaN at the first, and where
            none had left.
        reference: in a reference arithmetic, None where none was asked for.
    """

    path: str
    max_abs: float
    mean_abs: float
    relative: float
    carried: float
    reference: "Reference | None"


@dataclass(frozen=True)
class Reference:
    """The same difference in a finer arithmetic, and what rounding makes of it in the network's own.

    Attributes:
        max_abs, mean_abs: of the outputs that both networks have in the finer arithmetic: what the functions do.
        base_rounding, replaced_rounding: the largest difference of either network's outputs from its own in the finer
            arithmetic: what rounding does.
    """

    max_abs: float
    mean_abs: float
    base_rounding: float
    replaced_rounding: float


@dataclass(frozen=True)
class LayerDifference(Difference):
    """One replaced activation.

    Attributes:
        inputs: what the base's activation receives: least, 1% quantile, 99% quantile, largest; the quantiles are those
            of a sample.
        own_max_abs, own_mean_abs, own_relative: its own difference: from the base's activation on the same inputs.
        arriving: the relative difference of the inputs, which those before it have made.
    """

    inputs: tuple[float, float, float, float]
    own_max_abs: float
    own_mean_abs: float
    own_relative: float
    arriving: float


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images: the base and the one whose activations were replaced.

    NaN stands for what there is not: agreement and accuracies where there are no classes, losses without a target,
    metrics where none was given. An image whose outputs are NaN or infinite is predicted by neither network: it counts
    as wrong, and as not equal. `base_not_finite` and `replaced_not_finite` are the numbers of such images.

    Attributes:
        layers: the replaced activations, in the order of the network.
        logits: the outputs of the network.
        agreement: share of equal predictions.
        cosine: the mean over the images of the cosine between the two outputs.
        least_cosine: the least of these.
    """

    layers: tuple[LayerDifference, ...]
    logits: Difference
    agreement: float
    base_accuracy: float
    base_loss: float
    replaced_accuracy: float
    replaced_loss: float
    images: int
    base_not_finite: int
    replaced_not_finite: int
    cosine: float
    least_cosine: float
    base_metric: float
    replaced_metric: float

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON: None for what is not a finite number."""
        return fit_for_json(asdict(self))

    def __str__(self) -> str:
        rows = (*self.layers, self.logits)
        header = ["output of", "largest difference", "mean difference", "relative"]
        cells = [[row.path, f"{row.max_abs:.4g}", f"{row.mean_abs:.4g}", f"{row.relative:.2e}"] for row in rows]
        if any(row.reference for row in rows):
            header += ["in reference", "rounding"]
            for line, row in zip(cells, rows, strict=True):
                found = row.reference
                rounding = max(found.base_rounding, found.replaced_rounding) if found else math.nan
                line += [f"{found.max_abs:.4g}" if found else "", f"{rounding:.4g}" if found else ""]
        if self.layers:
            header += ["its own", "arriving", "carried", "inputs (1% to 99%)"]
            for line, layer in zip(cells, self.layers, strict=False):
                least, low, high, most = layer.inputs
                span = f"{least:.3g} ({low:.3g} to {high:.3g}) {most:.3g}"
                line += [f"{layer.own_relative:.2e}", f"{layer.arriving:.2e}", _times(layer.carried), span]
            cells[-1] += ["", "", _times(self.logits.carried), ""]
        return "\n".join([table(header, cells), self._outputs(), *self._diverged()])

    def _outputs(self) -> str:
        parts = (
            [] if math.isnan(self.agreement) else [f"equal predictions {self.agreement:.2%} of {self.images} images"]
        )
        if not math.isnan(self.base_accuracy):
            parts.append(f"accuracy {self.base_accuracy:.2%} -> {self.replaced_accuracy:.2%}")
        if not math.isnan(self.base_loss):
            parts.append(f"loss {self.base_loss:.4f} -> {self.replaced_loss:.4f}")
        if not math.isnan(self.base_metric):
            parts.append(f"metric {self.base_metric:.4g} -> {self.replaced_metric:.4g}")
        parts.append(f"cosine of the outputs {self.cosine:.6f}, at least {self.least_cosine:.6f}")
        if math.isnan(self.agreement):
            parts.append(f"{self.images} images")
        return "; ".join(parts)

    def _diverged(self) -> list[str]:
        counts = (("base", self.base_not_finite), ("replaced", self.replaced_not_finite))
        return [
            f"DIVERGED: the {which} network gives NaN or infinity for {count} of {self.images} images"
            for which, count in counts
            if count
        ]


def _times(factor: float) -> str:
    return "" if math.isnan(factor) else f"x {factor:.3g}"


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
    twin = with_matching_modules(base, net)
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
    with fork_rng(number):
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
