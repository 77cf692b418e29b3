"""The result of a study, and its verdict in three sentences."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aafit.identification import Audit, Identification, Importance
from aafit.networks.find import FoundActivation
from aafit.networks.surgery import Replaced, Skipped
from aafit.studies.families import FamilyComparison
from aafit.studies.inputs import InputDistribution
from aafit.studies.scores import PairedGain, StudyScores
from aafit.studies.shapes import NEAR, LearnedShape
from aafit.tables import fit_for_json, listed, table
from aafit.training.compare import Comparison

FOUND = ("path", "kind", "line", "calls", "shape", "after", "gate")


@dataclass(frozen=True)
class Study:
    """The result of `aafit.study`; prints as its verdict and a table of the layers.

    Rows about layers are in the order of their first calls, those that are not called last.

    Attributes:
        found: The activations of the network.
        replaced: The activations that were replaced.
        skipped: Those that were not, each with its reason.
        inputs: The distributions of the replaced activations' inputs in the base network.
        audit: Which initial parameters gradient steps can move.
        importance: The expected gain of adapting each layer alone, before tuning.
        identification: The steps of the identification, and the parameters with their standard errors.
        initial: Comparison of the base network with the network before tuning, layer by layer.
        tuned: Comparison of the base network with the tuned network.
        scores: Loss and accuracy of the three networks, and the gain of the tuned one.
        shapes: The learned shape of each layer, with the nearest known functions.
        families: Comparison of families of activations; None: none was requested.
        provenance: Network, data, arguments, versions and machine, by name.
        seconds: Time by part.
        net: The tuned network.
        base: The base network with its activations as modules, at the same paths as in `net`.
        page: The page; None: none was requested.
        folder: The folder of the saved parts; None: they were not saved.

    Example:
        >>> study = aafit.study(net, batches, heldout=more)  # doctest: +SKIP
        >>> for shape in study.shapes:  # doctest: +SKIP
        ...     print(shape.path, shape.nearest_text(), shape.changed)
        >>> aafit.save_activations(study.net, "tuned.safetensors")  # doctest: +SKIP
    """

    found: tuple[FoundActivation, ...]
    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    inputs: tuple[InputDistribution, ...]
    audit: Audit
    importance: Importance
    identification: Identification
    initial: Comparison
    tuned: Comparison
    scores: StudyScores
    shapes: tuple[LearnedShape, ...]
    provenance: dict[str, str]
    seconds: dict[str, float]
    net: nn.Module = field(repr=False, compare=False)
    base: nn.Module = field(repr=False, compare=False)
    families: FamilyComparison | None = None
    page: Path | None = None
    folder: Path | None = None

    @property
    def verdict(self) -> tuple[str, str, str]:
        """Three sentences: the cost of the replacement, the gain of tuning, and the learned shapes."""
        return _replacement_sentence(self), _tuning_sentence(self), _shapes_sentence(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the results fit for JSON; values that are not finite become None."""
        parts = ("audit", "importance", "identification", "initial", "tuned", "scores")
        return fit_for_json(
            {
                "verdict": list(self.verdict),
                "found": [{name: getattr(row, name) for name in FOUND} for row in self.found],
                "replaced": [vars(row) for row in self.replaced],
                "skipped": [vars(row) for row in self.skipped],
                "inputs": [_lists(row) for row in self.inputs],
                **{name: getattr(self, name).as_dict() for name in parts},
                "shapes": [{**_lists(row), "nearest": [vars(near) for near in row.nearest]} for row in self.shapes],
                "families": None if self.families is None else self.families.as_dict(),
                "provenance": self.provenance,
                "seconds": self.seconds,
            }
        )

    def __str__(self) -> str:
        shapes = {shape.path: shape for shape in self.shapes}
        gains = {row.layer: row for row in self.importance.rows}
        rows = []
        for row in self.replaced:
            shape, gain = shapes.get(row.path), gains.get(row.path)
            cells = ("", "not called") if shape is None else (f"{shape.changed:.1%}", shape.nearest_text())
            expected = "" if gain is None else f"{gain.gain:.4f} ± {gain.error:.4f}"
            rows.append((row.path, f"{row.old} -> {row.new}", expected, *cells))
        layers = table(("layer", "replaced", "expected gain", "changed", "nearest"), rows, numbers=False)
        compared = [] if self.families is None else ["", str(self.families)]
        return "\n".join([*self.verdict, "", layers, *compared])


def _lists(row: Any) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(row).items()}


def _replacement_sentence(study: Study) -> str:
    rows, base, initial = study.replaced, study.scores.base, study.scores.initial
    kinds, news = sorted({row.old for row in rows}), sorted({row.new for row in rows})
    subject = f"The {kinds[0]} was" if len(rows) == 1 else f"{len(rows)} activations ({', '.join(kinds)}) were"
    begun = f"{subject} replaced by {listed(news, 3)}"
    if initial.not_finite:
        return f"{begun}; then {initial.not_finite:,} of {study.scores.samples:,} samples gave NaN or infinity."
    parts = []
    if base.accuracy is not None and initial.accuracy is not None:
        parts.append(f"the accuracy changed from {base.accuracy:.2%} to {initial.accuracy:.2%}")
    elif base.loss is not None and initial.loss is not None:
        parts.append(f"the loss changed from {base.loss:.4g} to {initial.loss:.4g}")
    parts.append(f"the relative RMS change of the outputs was {initial.difference:.2%}")
    if initial.agreement is not None:
        parts.append(f"the prediction agreement {initial.agreement:.2%}")
    return f"{begun}; on {evaluated_on(study)} {_and(parts)}."


def _tuning_sentence(study: Study) -> str:
    identification, scores = study.identification, study.scores
    count, seconds = f"{len(identification.names):,} parameters", _seconds(identification.seconds)
    steps = sum(step.phase in ("layers", "joint") for step in identification.steps)
    if not steps or identification.steps[-1].phase == "start":
        return (
            f"Gauss-Newton found nothing better than the initial values of the {count} ({seconds}), as far as the "
            f"{identification.samples:,} samples tell; they keep these values."
        )
    taken = f"{steps} step{'s' * (steps != 1)} ({seconds})"
    begun = f"Gauss-Newton fitted their {count} to {identification.samples:,} samples in {taken}"
    tuned = scores.tuned
    if scores.accuracy_gain is not None and tuned.accuracy is not None:
        gain = scores.accuracy_gain
        value = f"{100 * gain.value:+.2f} ± {100 * gain.error:.2f} points against the base network"
        return f"{begun}; the accuracy is now {tuned.accuracy:.2%}, {value}, {_claim(study, gain, gain.value > 0)}."
    if scores.loss_gain is not None and tuned.loss is not None:
        gain = scores.loss_gain
        value = f"{gain.value:+.2g} ± {gain.error:.1g} against the base network"
        return f"{begun}; the loss is now {tuned.loss:.4g}, {value}, {_claim(study, gain, gain.value < 0)}."
    return f"{begun}; the relative RMS difference of the outputs from the base network's is now {tuned.difference:.2%}."


def _claim(study: Study, gain: PairedGain, better: bool) -> str:
    """Return a clause on the significance of the gain; on fitted samples none is claimed."""
    if not study.scores.held_out:
        estimate = "".join(
            f" (decrease of the loss by the {one.judged_by}: {one.gain:.2g} ± {one.error:.1g})"
            for one in study.identification.gains[:1]
        )
        return f"on the samples that were fitted, which is no evidence of a gain{estimate}: give others as heldout="
    if gain.p is None:
        size, test = "more than two standard errors" if gain.significant else "within two standard errors", ""
    else:
        size = "significant" if gain.significant else "consistent with chance"
        test = f" (exact test of {gain.changed} changed predictions, p = {gain.p:.2g})"
    if not gain.significant:
        return f"{size}{test}, so no difference is shown"
    return f"{size}{test}: {'an improvement' if better else 'a loss'}"


def evaluated_on(study: Study) -> str:
    """Return the samples that the networks were compared on, in words."""
    samples = f"{study.scores.samples:,}"
    return f"{samples} held-out samples" if study.scores.held_out else f"the {samples} fitted samples"


def _shapes_sentence(study: Study) -> str:
    if not study.shapes:
        return "The samples reach none of the replaced layers."
    certain = [shape for shape in study.shapes if shape.significant is not False and shape.changed > 0]
    near = sum(shape.nearest[0].distance < NEAR for shape in study.shapes)
    some = f"{near} of the {len(study.shapes)} learned shapes {'is' if near == 1 else 'are'}"
    of = f"{some if near else 'no learned shape is'} within {NEAR:.0%} of a known function"
    if not certain:
        by = " by more than two standard errors" if any(shape.changed > 0 for shape in study.shapes) else ""
        return f"No shape changed{by}; {of}."
    most = max(certain, key=lambda shape: shape.changed)
    gain = next((row for row in study.importance.rows if row.layer == most.path and row.significant), None)
    expected = "" if gain is None else f", expected gain in loss {gain.gain:.2g} ± {gain.error:.1g}"
    error = "no standard error available" if most.error is None else f"standard error {most.error:.1%}"
    first = most.nearest[0]
    known = f"its nearest known function is {most.nearest_text()}"
    if first.distance >= NEAR:
        known = f"no known function is near it (closest: {first.name}, {first.distance:.0%})"
    return f"The shape of layer {most.path} changed most, by {most.changed:.1%} ({error}{expected}), and {known}; {of}."


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
