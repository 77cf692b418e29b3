"""Compare a network with the one whose activations were replaced: at each replaced activation and at the outputs.

Read `compare` first. Both networks run on the same batches; the base's inputs and outputs of the replaced activations
are recorded in groups of layers that fit into memory, and compared while the other network runs.
"""

import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.batches import Batch, each_batch
from aafit.networks.running import (
    check_not_scripted,
    evaluation_mode,
    fork_rng,
    receiving,
    replaced_paths,
    watched,
    with_matching_modules,
)
from aafit.tables import fit_for_json, table
from aafit.training.distance import Gap, InputRange
from aafit.training.evaluate import Batches, Evaluation, Tally
from aafit.training.losses import CROSS_ENTROPY, IGNORED, Loss, LossLike, Metric, as_loss, class_axis, has_labels
from aafit.training.predictor import Output, Predictor, unwrapped

LOGITS = "logits"
RECORDED = 1 << 27  # bytes of inputs and outputs of the base's activations that are recorded at once


@dataclass(frozen=True)
class Reference:
    """The same difference between copies of the networks in a reference precision, and the rounding errors.

    Attributes:
        max_abs, mean_abs: Largest and mean absolute difference in the reference precision: the effect of the functions.
        base_rounding, replaced_rounding: Largest absolute difference of each network's outputs from its own in the
            reference precision: the effect of rounding.
    """

    max_abs: float
    mean_abs: float
    base_rounding: float
    replaced_rounding: float


@dataclass(frozen=True)
class Difference:
    """Difference of the outputs of a layer, or of the network, between two networks over all samples.

    A relative difference is the Euclidean norm of the difference over that of the base's values.

    Attributes:
        path: Path of the activation; "logits" for the outputs of the network.
        max_abs, mean_abs, relative: Largest, mean and relative difference of the outputs.
        amplification: Relative difference of the inputs over that of the outputs of the activation called before:
            above 1 if the layers in between amplify differences. NaN for the first activation, and where the activation
            before has no difference.
        reference: The same in the reference precision; None without one.
    """

    path: str
    max_abs: float
    mean_abs: float
    relative: float
    amplification: float
    reference: Reference | None


@dataclass(frozen=True)
class LayerDifference(Difference):
    """Difference at one replaced activation.

    Attributes:
        inputs: Inputs of the base's activation: minimum, 1% quantile, 99% quantile, maximum. The quantiles are those of
            a random sample.
        local_max_abs, local_mean_abs, local_relative: Local error: difference from the base's activation for the same
            inputs.
        input_relative: Input error: relative difference of the inputs, caused by the activations before.
    """

    inputs: tuple[float, float, float, float]
    local_max_abs: float
    local_mean_abs: float
    local_relative: float
    input_relative: float


@dataclass(frozen=True)
class Comparison:
    """The effect of a replacement of activations; prints as a table.

    NaN stands for what is not defined: agreement and accuracies without classes, losses without a target, metrics
    without a metric. Outputs that are NaN or infinite count as wrong, and as no agreement.

    Attributes:
        layers: The replaced activations, in the order of their first calls.
        logits: The outputs of the networks.
        agreement: Prediction agreement: share of positions for which both networks predict the same class.
        base_accuracy, base_loss, base_metric, base_not_finite: As in `Evaluation`, of the base network.
        replaced_accuracy, replaced_loss, replaced_metric, replaced_not_finite: The same of the other network.
        samples: Number of samples.
        cosine, least_cosine: Mean and smallest cosine similarity of the two outputs of a sample.
    """

    layers: tuple[LayerDifference, ...]
    logits: Difference
    agreement: float
    base_accuracy: float
    base_loss: float
    replaced_accuracy: float
    replaced_loss: float
    samples: int
    base_not_finite: int
    replaced_not_finite: int
    cosine: float
    least_cosine: float
    base_metric: float
    replaced_metric: float

    def as_dict(self) -> dict[str, Any]:
        """Return the same for JSON, with None for what is not finite."""
        return fit_for_json(asdict(self))

    def __str__(self) -> str:
        rows = (*self.layers, self.logits)
        header = ["output of", "largest difference", "mean difference", "relative"]
        cells = [[row.path, f"{row.max_abs:.4g}", f"{row.mean_abs:.4g}", f"{row.relative:.2e}"] for row in rows]
        if any(row.reference for row in rows):
            header += ["in reference", "rounding"]
            for line, row in zip(cells, rows, strict=True):
                exact = row.reference
                rounding = max(exact.base_rounding, exact.replaced_rounding) if exact else math.nan
                line += [f"{exact.max_abs:.4g}" if exact else "", f"{rounding:.4g}" if exact else ""]
        if self.layers:
            header += ["local error", "input error", "amplification", "inputs (1% to 99%)"]
            for line, layer in zip(cells, self.layers, strict=False):
                least, low, high, most = layer.inputs
                span = f"{least:.3g} ({low:.3g} to {high:.3g}) {most:.3g}"
                line += [f"{layer.local_relative:.2e}", f"{layer.input_relative:.2e}", _times(layer), span]
            cells[-1] += ["", "", _times(self.logits), ""]
        return "\n".join([table(header, cells), self._outputs(), *self._diverged()])

    def _outputs(self) -> str:
        pairs = {
            "accuracy {:.2%} -> {:.2%}": (self.base_accuracy, self.replaced_accuracy),
            "loss {:.4f} -> {:.4f}": (self.base_loss, self.replaced_loss),
            "metric {:.4g} -> {:.4g}": (self.base_metric, self.replaced_metric),
        }
        parts = [text.format(*pair) for text, pair in pairs.items() if not math.isnan(pair[0])]
        if not math.isnan(self.agreement):
            parts.insert(0, f"prediction agreement {self.agreement:.2%}")
        parts.append(f"cosine similarity of the outputs {self.cosine:.6f}, at least {self.least_cosine:.6f}")
        return "; ".join([*parts, f"{self.samples} samples"])

    def _diverged(self) -> list[str]:
        counts = (("base", self.base_not_finite), ("replaced", self.replaced_not_finite))
        return [
            f"DIVERGED: the {which} network has NaN or infinite outputs for {count} of {self.samples} samples"
            for which, count in counts
            if count
        ]


def _times(row: Difference) -> str:
    return "" if math.isnan(row.amplification) else f"x {row.amplification:.3g}"


def compare(
    base: nn.Module,
    net: nn.Module,
    batches: Batches,
    precision: str = "float32",
    *,
    output: Output | None = None,
    loss: LossLike | None = None,
    metric: Metric | None = None,
    reference: torch.dtype | None = None,
) -> Comparison:
    """Compare `net`, made from `base` by replacing activations, with `base`.

    Differences are measured at the outputs of every replaced activation, over all its calls, and at the outputs of the
    networks. At an activation they are measured twice: with all activations before it replaced, and for the inputs that
    it has in the base network (local error). Both networks run in evaluation mode, draw the same random numbers, and
    are left as they were.

    Memory: the inputs and outputs of the base's activations are recorded for one batch, for as many layers at once as
    take 128 MiB; more layers take further forward passes.

    Args:
        base: the network before the replacement.
        net: the network after it.
        batches: (inputs, labels), or any other form that `aafit.networks.batches.as_batch` takes.
        precision: "bf16" for autocast; otherwise the networks compute in the data type of their parameters.
        output: function that selects the output tensor from what the networks return.
        loss: as for `evaluate`; by default the cross-entropy if there are labels. "cross-entropy" without labels states
            that the outputs are of classes, so that prediction agreement is counted.
        metric: as for `evaluate`, computed for both networks.
        reference: a more precise data type, such as torch.float64, in which copies of both networks run too, to
            separate the effect of the functions from that of rounding.

    Raises:
        UserError: the networks have different modules, one is scripted, their outputs have different shapes, or the
            batches hold no sample; or as `evaluate`.

    Example:
        >>> base = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3))
        >>> net, _ = aafit.replace_activations(base, {"SiLU": aafit.LEAF.like("SiLU")})
        >>> print(aafit.compare(base, net, [torch.randn(64, 4)]))
    """
    made = None if loss is None else as_loss(loss)
    for which in (base, net):
        check_not_scripted(which)
    base, net = unwrapped(base), unwrapped(net)
    twin = with_matching_modules(base, net)
    layers = _Layers(Predictor(twin, output, precision), Predictor(net, output, precision), reference)
    outputs = _Outputs(made, metric)
    with evaluation_mode(twin, net):
        for batch in each_batch(batches):
            outputs.add(batch, *layers.add(batch))
    before, after = (tally.evaluation("compare") for tally in outputs.tallies)
    return outputs.comparison(before, after, layers.rows(), layers.outputs())


class _Layer:
    """Differences at one replaced activation, or at the outputs."""

    def __init__(self) -> None:
        self.outputs, self.local, self.inputs, self.range = Gap(), Gap(), Gap(), InputRange()
        self.exact, self.base_rounding, self.replaced_rounding = Gap(), Gap(), Gap()

    def add_exact(self, base: Tensor, net: Tensor, fine_base: Tensor, fine_net: Tensor) -> None:
        """Add outputs of both networks in the network's and in the reference precision."""
        self.exact.add(fine_base, fine_net)
        self.base_rounding.add(fine_base, base)
        self.replaced_rounding.add(fine_net, net)

    def difference(self, path: str, input_relative: float, previous: float) -> Difference:
        outputs, exact, reference = self.outputs, self.exact, None
        if exact.count:
            rounding = self.base_rounding.max_abs, self.replaced_rounding.max_abs
            reference = Reference(exact.max_abs, exact.mean_abs, *rounding)
        amplification = input_relative / previous if previous else math.nan
        return Difference(path, outputs.max_abs, outputs.mean_abs, outputs.relative, amplification, reference)


class _Layers:
    """The differences at each replaced activation, and at the outputs."""

    def __init__(self, base: Predictor, net: Predictor, reference: torch.dtype | None) -> None:
        self.base, self.net, self.reference = base, net, reference
        self.paths = replaced_paths(base.net, net.net)
        self.layers: dict[str, _Layer] = {}  # in the order of their first calls
        self.last = _Layer()
        self._largest = 0
        self._groups: list[list[str]] = []
        if reference is not None:
            if not isinstance(reference, torch.dtype) or not reference.is_floating_point:
                raise UserError(f"reference={reference!r} is no floating-point type: give torch.float64.")
            self.fine = [Predictor(deepcopy(one.net).to(reference).eval(), one.output) for one in (base, net)]

    def add(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add a batch; returns the outputs of both networks."""
        results: tuple[Tensor, Tensor] | None = None
        for group in self._groups_for(batch):
            found = self._add(batch, group, first=results is None)
            results = results or found
        assert results is not None
        return results

    def _groups_for(self, batch: Batch) -> list[list[str]]:
        """Return the paths in groups whose inputs and outputs take at most `RECORDED` bytes for a batch."""
        if len(batch) <= self._largest:
            return self._groups
        self._largest, sizes = len(batch), Counter[str]()

        def see(path: str, u: Tensor, y: Tensor) -> None:
            sizes[path] += u.nbytes + y.nbytes

        with watched(self.base.net, self.paths, see):
            self.base.forward(batch)
        groups: list[list[str]] = [[]]
        used = 0
        for path, size in sizes.items():
            if used + size > RECORDED and groups[-1]:
                groups.append([])
                used = 0
            groups[-1].append(path)
            used += size
        self._groups = groups
        return groups

    def _add(self, batch: Batch, group: list[str], first: bool) -> tuple[Tensor, Tensor]:
        recorded, base_outputs = self._record(self.base, batch, group)
        calls: Counter[str] = Counter()
        of_net: dict[str, list[Tensor]] = {path: [] for path in group}

        def of_base(path: str) -> tuple[Tensor, Tensor] | None:
            """Return the input and output of the base's activation in the same call, if there was one."""
            pairs = recorded[path][calls[path] :][:1]
            return pairs[0] if pairs and pairs[0][0].numel() else None

        def before(path: str, v: Tensor) -> None:
            if pair := of_base(path):
                layer = self.layers.setdefault(path, _Layer())
                layer.range.add(pair[0])
                layer.inputs.add(pair[0], v)

        def after(path: str, v: Tensor, z: Tensor) -> None:
            pair = of_base(path)
            calls[path] += 1
            if pair:
                u, y = pair
                layer = self.layers[path]
                layer.outputs.add(y, z)
                with fork_rng(None):  # The network itself draws the random numbers that come next.
                    # The forward is called directly, so that no hook runs.
                    layer.local.add(y, self.net.net.get_submodule(path).forward(u))
            if self.reference is not None:
                of_net[path].append(z.clone())

        with receiving(self.net.net, group, before), watched(self.net.net, group, after):
            net_outputs = self.net(batch)
        if base_outputs.shape != net_outputs.shape:
            shapes = f"{tuple(base_outputs.shape)} and {tuple(net_outputs.shape)}"
            raise UserError(f"The networks cannot be compared: their outputs have shapes {shapes}.")
        if first:
            self.last.outputs.add(base_outputs, net_outputs)
        if self.reference is not None:
            fine = [self._record(one, batch.floating(self.reference), group) for one in self.fine]
            for path in group:
                outputs = [[y for _, y in own[path]] for own in (recorded, fine[0][0], fine[1][0])]
                for y, z, *both in zip(outputs[0], of_net[path], *outputs[1:], strict=False):
                    if y.numel():
                        self.layers[path].add_exact(y, z, *both)
            if first:
                self.last.add_exact(base_outputs, net_outputs, fine[0][1], fine[1][1])
        return base_outputs, net_outputs

    @staticmethod
    def _record(
        predictor: Predictor, batch: Batch, paths: Sequence[str]
    ) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Tensor]:
        """Return copies of the inputs and outputs of some modules, call by call, and the outputs of the network."""
        inputs: dict[str, Tensor] = {}
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}

        def before(path: str, u: Tensor) -> None:
            # Cloned: the module, or what comes next, may work in place.
            inputs[path] = u.clone()

        def after(path: str, u: Tensor, y: Tensor) -> None:
            calls[path].append((inputs.pop(path), y.clone()))

        with receiving(predictor.net, paths, before), watched(predictor.net, paths, after):
            outputs = predictor(batch)
        return calls, outputs

    def rows(self) -> tuple[LayerDifference, ...]:
        rows, previous = [], 0.0
        for path, layer in self.layers.items():
            common = layer.difference(path, layer.inputs.relative, previous)
            rows.append(
                LayerDifference(
                    **vars(common),
                    inputs=layer.range.quantiles(),
                    local_max_abs=layer.local.max_abs,
                    local_mean_abs=layer.local.mean_abs,
                    local_relative=layer.local.relative,
                    input_relative=layer.inputs.relative,
                )
            )
            previous = layer.outputs.relative
        return tuple(rows)

    def outputs(self) -> Difference:
        previous = [layer.outputs.relative for layer in self.layers.values()][-1:] or [0.0]
        return self.last.difference(LOGITS, self.last.outputs.relative, previous[0])


class _Outputs:
    """Scores of both networks, prediction agreement, and cosine similarity of the outputs."""

    def __init__(self, loss: Loss | None, metric: Metric | None) -> None:
        self.loss = loss
        self.tallies = [Tally(loss or CROSS_ENTROPY, metric) for _ in range(2)]
        self._agreed = self._predicted = 0
        self._cosines: list[Tensor] = []

    def add(self, batch: Batch, before: Tensor, after: Tensor) -> None:
        for tally, outputs in zip(self.tallies, (before, after), strict=True):
            tally.add(batch, outputs)
        one, other = (outputs.double().reshape(len(outputs), -1) for outputs in (before, after))
        both_zero = (one == 0).all(1) & (other == 0).all(1)
        self._cosines.append(torch.where(both_zero, 1.0, F.cosine_similarity(one, other, dim=1)).cpu())
        labels = batch.target if has_labels(before, batch.target) else None
        of_classes = self.loss.is_cross_entropy if self.loss is not None else batch.target is not None
        if labels is None and not of_classes:
            return
        axis = class_axis(before.shape, None if labels is None else labels.shape)
        if axis is None:
            return
        finite = before.isfinite().all(axis) & after.isfinite().all(axis)
        counted = torch.ones_like(finite) if labels is None else labels != IGNORED
        self._agreed += int(((before.argmax(axis) == after.argmax(axis)) & finite & counted).sum())
        self._predicted += int(counted.sum())

    def comparison(
        self, before: Evaluation, after: Evaluation, layers: tuple[LayerDifference, ...], logits: Difference
    ) -> Comparison:
        cosine_N = torch.cat(self._cosines)
        return Comparison(
            layers=layers,
            logits=logits,
            agreement=self._agreed / self._predicted if self._predicted else math.nan,
            base_accuracy=before.accuracy,
            base_loss=before.loss,
            replaced_accuracy=after.accuracy,
            replaced_loss=after.loss,
            samples=before.samples,
            base_not_finite=before.not_finite,
            replaced_not_finite=after.not_finite,
            cosine=cosine_N.mean().item(),
            least_cosine=cosine_N.min().item(),
            base_metric=before.metric,
            replaced_metric=after.metric,
        )
