"""What a study found, as one value, and its verdict in three sentences."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from aafit.identification import Audit, Identification, Importance
from aafit.networks.surgery import Replaced, Skipped
from aafit.studies.forms import Form
from aafit.studies.inputs import InputsSeen
from aafit.studies.standing import Gain, Score, Scores
from aafit.tables import fit_for_json, listed, table
from aafit.training.compare import Comparison

CLOSE = 0.01
"""A form this near to a known function can be called by its name."""
FLAT = 1 - 1e-9
"""A function that is this far away is no nearer than a constant."""


@dataclass(frozen=True)
class FoundLayer:
    """An activation that the network has.

    Attributes:
        path: Its path, or the one that its call was given.
        kind: Of the function, "ReLU".
        line: Where the program calls it; None where that is not known.
        calls: In one forward.
        shape: Of what it receives, the batch first.
        after: The layer before it.
        gate: Why it is taken for a gate; empty: it is none.
    """

    path: str
    kind: str
    line: str | None
    calls: int | None
    shape: tuple[int, ...] | None
    after: str | None
    gate: str


@dataclass(frozen=True)
class Replacing:
    """What took whose place, and what did not."""

    rows: tuple[Replaced, ...]
    kept: tuple[Skipped, ...]


@dataclass(frozen=True)
class Compared:
    """The base against the replaced network, and against the tuned one, on the first samples to judge on."""

    replaced: Comparison
    tuned: Comparison


@dataclass(frozen=True)
class Origin:
    """How a study came about, by name: "machine", "data", "torch", ...; `seconds` is by part."""

    facts: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Study:
    """What `aafit.study` found; prints as its verdict and a table of the layers.

    Attributes:
        found: The activations of the network.
        inputs: What those that were replaced receive, in the base network.
        replacing: What was replaced.
        compared: The base, the replaced and the tuned network on the first samples to judge on, layer by layer.
        standings: The same three on all of them, and what tuning gained.
        audit: Of the parameters as they were put in.
        importance: What adapting each layer alone can be expected to gain, from there.
        identification: Its steps and the parameters with their errors.
        forms: Of each layer, with the nearest known functions.
        origin: How it came about.
        net: The tuned network.
        base: The network with its activations as modules, at the same paths.
        page: The page, None where none was asked for.
        folder: Where the parts are kept, None where they are not.
    """

    found: tuple[FoundLayer, ...]
    inputs: tuple[InputsSeen, ...]
    replacing: Replacing
    compared: Compared
    standings: Scores
    audit: Audit
    importance: Importance
    identification: Identification
    forms: tuple[Form, ...]
    origin: Origin
    net: nn.Module = field(repr=False, compare=False)
    base: nn.Module = field(repr=False, compare=False)
    page: Path | None = None
    folder: Path | None = None

    @property
    def verdict(self) -> tuple[str, str, str]:
        """Three sentences: what replacing cost, what tuning gave, and which forms came out."""
        return _replaced(self), _tuned(self), _forms(self)

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; what is not finite becomes None."""
        return fit_for_json(
            {
                "verdict": list(self.verdict),
                "found": [vars(row) for row in self.found],
                "inputs": [_listed(row) for row in self.inputs],
                "replaced": [vars(row) for row in self.replacing.rows],
                "kept": [vars(row) for row in self.replacing.kept],
                "compared": {
                    "replaced": self.compared.replaced.as_dict(),
                    "tuned": self.compared.tuned.as_dict(),
                },
                "standings": {
                    "samples": self.standings.samples,
                    "held_out": self.standings.held_out,
                    **{name: vars(getattr(self.standings, name)) for name in ("base", "replaced", "tuned")},
                    **{
                        name: None if gain is None else vars(gain)
                        for name, gain in (
                            ("accuracy_gain", self.standings.accuracy_gain),
                            ("loss_gain", self.standings.loss_gain),
                        )
                    },
                },
                "audit": self.audit.as_dict(),
                "importance": self.importance.as_dict(),
                "identification": self.identification.as_dict(),
                "forms": [{**_listed(form), "nearest": [vars(near) for near in form.nearest]} for form in self.forms],
                "origin": {"facts": self.origin.facts, "seconds": self.origin.seconds},
            }
        )

    def __str__(self) -> str:
        named = {form.path: form for form in self.forms}
        gains = {row.layer: row for row in self.importance.rows}
        rows = []
        for row in self.replacing.rows:
            form, gain = named.get(row.path), gains.get(row.path)
            rows.append(
                (
                    row.path,
                    f"{row.old} -> {row.new}",
                    "" if gain is None else f"{gain.gain:.4f} ± {gain.error:.4f}",
                    "" if form is None else f"{form.changed:.1%}",
                    "not reached" if form is None else nearest_text(form),
                )
            )
        return "\n\n".join(
            [
                "\n".join(self.verdict),
                table(("layer", "replaced", "expected gain", "changed", "nearest"), rows, numbers=False),
            ]
        )


def nearest_text(form: Form, most: int = 3) -> str:
    """ "SiLU, 0.8%", or those that are as near, `most` by name.

    Where only a constant is left, its distance is all of the form's spread: nothing known is like the form.
    """
    names = [
        f"none nearer than {near.name}" if near.distance >= FLAT else f"{near.name}, {near.distance:.1%}"
        for near in form.nearest
    ]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return "; ".join([*names[:most], *more])


def _listed(row: Any) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(row).items()}


def _replaced(study: Study) -> str:
    rows, standings = study.replacing.rows, study.standings
    kinds = sorted({row.old for row in rows})
    news = sorted({row.new for row in rows})
    count = f"The {kinds[0]}" if len(rows) == 1 else f"{len(rows)} activations ({', '.join(kinds)})"
    was = "was" if len(rows) == 1 else "were"
    begun = f"{count} {was} replaced by {listed(news, 2)}"
    if standings.replaced.not_finite:
        return f"{begun}, and {standings.replaced.not_finite} of {standings.samples:,} samples then gave no number."
    parts = []
    if standings.base.accuracy is not None and standings.replaced.accuracy is not None:
        parts.append(
            f"accuracy on {_judged(study)} went from {standings.base.accuracy:.2%} to {standings.replaced.accuracy:.2%}"
        )
    parts.append(f"the outputs moved by {standings.replaced.difference:.2%} of their spread")
    if standings.replaced.agreement is not None:
        parts.append(f"{standings.replaced.agreement:.2%} of the predictions stayed as they were")
    return f"{begun}: {_and(parts)}."


def _tuned(study: Study) -> str:
    found, standings = study.identification, study.standings
    steps = found.steps[-1].number
    if not steps:
        return (
            f"Gauss-Newton ({_seconds(found.seconds)}) found no step of their {len(found.names):,} numbers "
            f"that was above the noise of its {found.images:,} samples and better on held-out ones, "
            "so they stayed as they were."
        )
    begun = (
        f"Gauss-Newton then set their {len(found.names):,} numbers in {steps} step{'s' * (steps != 1)} "
        f"({_seconds(found.seconds)}) from {found.images:,} samples"
    )
    tuned: Score = standings.tuned
    if standings.accuracy_gain is not None and tuned.accuracy is not None:
        gain = standings.accuracy_gain
        return (
            f"{begun}: accuracy is {tuned.accuracy:.2%}, {100 * gain.value:+.2f} ± {100 * gain.error:.2f} points "
            f"against the base network, {_sure(gain, gain.value > 0)}."
        )
    if standings.loss_gain is not None and tuned.loss is not None:
        gain = standings.loss_gain
        return (
            f"{begun}: the loss on {_judged(study)} is {tuned.loss:.4g}, {gain.value:+.2g} ± {gain.error:.1g} against "
            f"the base network, {_sure(gain, gain.value < 0)}."
        )
    return f"{begun}: the outputs are {tuned.difference:.2%} of their spread from the base network's."


def _judged(study: Study) -> str:
    samples = f"{study.standings.samples:,}"
    return f"{samples} held-out samples" if study.standings.held_out else f"the {samples} samples it was tuned on"


def _sure(gain: Gain, better: bool) -> str:
    if not gain.significant:
        return "which is within two standard errors, so no difference is shown"
    return f"which is more than two standard errors, so it is {'better' if better else 'worse'}"


def _forms(study: Study) -> str:
    if not study.forms:
        return "No layer that was replaced receives anything."
    most = max(study.forms, key=lambda form: form.changed)
    close = [form for form in study.forms if form.nearest and form.nearest[0].distance < CLOSE]
    gain = next((row for row in study.importance.rows if row.layer == most.path), None)
    expected = (
        "" if gain is None or not gain.significant else f" (expected gain in loss {gain.gain:.2g} ± {gain.error:.1g})"
    )
    if most.changed > 0:
        told = f"The form of {most.path} changed most, by {most.changed:.1%}{expected}, and {_nearest_of(most)}"
    else:
        told = "So no form changed"
    if len(study.forms) == 1:
        return f"{told}."
    are = "is" if len(close) == 1 else "are"
    return f"{told}; {len(close)} of the {len(study.forms)} layers {are} within 1% of a known function."


def _nearest_of(form: Form) -> str:
    names, away = _and([near.name for near in form.nearest][:3]), form.nearest[0].distance
    return f"no known function is nearer than {names}" if away >= FLAT else f"is nearest to {names} ({away:.1%} away)"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
