"""What `compare` found: where two networks differ, and by how much."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from aafit.tables import fit_for_json, table


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
