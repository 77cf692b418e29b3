"""The page of a study: what it found, as texts, tables and pictures for the template study.html."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from aafit.errors import UserError
from aafit.files import make_folder, write_atomically
from aafit.plots.html import embedded_json, rendered
from aafit.plots.svg import line_picture
from aafit.studies import page_tables as tables
from aafit.studies.forms import Form
from aafit.studies.pictures import form_picture, small_picture
from aafit.studies.result import Study, nearest_text

SHOWN = 12
"""Layers in the picture of the first screen."""
MOST_STEPS = 24
LEGEND = (
    ("tuned", "tuned"),
    ("start", "start"),
    ("replaced", "what stood there"),
    ("inputs", "inputs of the layer"),
)
BAND = ("band", "± 2 standard errors")


def write_study_page(study: Study, path: Path) -> Path:
    """Write the page of a study.

    Raises:
        UserError: there is something else at `path`, or it cannot be written to.
    """
    key = study.origin.facts["study"]
    check_page(path, key)
    make_folder(path.parent)
    write_atomically(path, study_page(study))
    return path


def check_page(path: Path, key: str) -> None:
    """Nothing, where a page of the study with this key may be written to `path`.

    Raises:
        UserError: there is another file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file, as {path / 'study.html'}.")
    if path.exists() and f'name="aafit-study" content="{key}"' not in path.read_text(errors="replace"):
        raise UserError(
            f"{path} is there already, and is not the page of this study (another network, data or arguments): give "
            "another name as report=, or move it away."
        )


def study_page(study: Study) -> str:
    """The page as HTML."""
    layers = _layers(study)
    drawn = [layer for layer in layers if layer["small"]]
    most = sorted(drawn, key=lambda layer: -layer["changed"])[:SHOWN]
    return rendered(
        "study.html",
        title=f"Activations of {study.origin.facts['network'].partition(',')[0]}",
        study_key=study.origin.facts["study"],
        verdict=study.verdict,
        numbers=_numbers(study),
        legend=LEGEND,
        overview=[layer for layer in drawn if layer in most],
        more=len(drawn) - len(most),
        layer_table=tables.layer_table(study),
        layers=layers,
        step_names=_step_names(study),
        identification=_identification(study),
        step_table=tables.step_table(study),
        pair_table=tables.pair_table(study),
        judged=_judged(study),
        standing_table=tables.standing_table(study),
        difference_table=tables.difference_table(study),
        optimizer=study.audit.optimizer,
        audited=study.audit.samples,
        audit_table=tables.audit_table(study),
        found_table=tables.found_table(study),
        origin=[(name.capitalize(), value) for name, value in study.origin.facts.items() if value],
        time_table=tables.time_table(study),
        data=embedded_json(_data(study)),
    )


def _layers(study: Study) -> list[dict[str, Any]]:
    """What the page tells and draws of each layer that was replaced."""
    forms = {form.path: form for form in study.forms}
    seen = {row.path: row for row in study.inputs}
    order = [form.path for form in study.forms]
    layers: list[dict[str, Any]] = []
    for row in study.replacing.rows:
        form = forms.get(row.path)
        label = f"{row.path}: before and after identification"
        legend = LEGEND if form is None or form.error_U is None else (*LEGEND, BAND)
        if form is not None and form.low_U is not None:
            legend = (*legend, ("spread", f"where 90% of the {form.curves} curves are"))
        layers.append(
            {
                "path": row.path,
                "anchor": tables.anchor(row.path),
                "near": "not reached" if form is None else nearest_text(form),
                "changed": 0.0 if form is None else form.changed,
                "lead": _lead(study, row.path),
                "small": form and small_picture(form, seen[row.path], order.index(row.path), label),
                "picture": form and form_picture(form, seen[row.path], order.index(row.path), label),
                "legend": legend,
                "facts": _layer_facts(study, row.path, form),
                "parameters": tables.parameter_table(study, row.path),
            }
        )
    return layers


def _numbers(study: Study) -> list[tuple[str, str]]:
    """The few numbers of the first screen."""
    own, count = study.standings, len(study.identification.names)
    numbers = []
    for standing, name in ((own.base, "base"), (own.replaced, "just replaced"), (own.tuned, "tuned")):
        if standing.accuracy is not None:
            numbers.append((f"{standing.accuracy:.2%}", f"accuracy, {name}"))
        elif standing.loss is not None:
            numbers.append((f"{standing.loss:.4g}", f"loss, {name}"))
        elif standing is not own.base:
            numbers.append((f"{standing.difference:.2%}", f"change of the outputs, {name}"))
    if own.accuracy_gain is not None:
        gain = own.accuracy_gain
        numbers.append((f"{100 * gain.value:+.2f} ± {100 * gain.error:.2f}", "points, tuned against base"))
    numbers.append((f"{count:,}", "numbers tuned"))
    return numbers


def _lead(study: Study, path: str) -> str:
    row = next(row for row in study.replacing.rows if row.path == path)
    own = next((found for found in study.found if found.path == path), None)
    where = f", after {own.after}" if own is not None and own.after else ""
    return f"{row.old} → {row.new}{where}{f', called in {own.line}' if own is not None and own.line else ''}"


def _layer_facts(study: Study, path: str, form: Form | None) -> list[tuple[str, str]]:
    facts = []
    if form is not None:
        facts.append(("Nearest known", nearest_text(form, len(form.nearest))))
        facts.append(("Changed from start", f"{form.changed:.2%} of its spread"))
        if form.error is not None:
            facts.append(("Known to", _known(form.error)))
        if form.curves > 1:
            facts.append(("Curves", f"{form.curves}; their median is drawn"))
    else:
        facts.append(("Not reached", "the forward of the samples does not call it"))
    seen = next((row for row in study.inputs if row.path == path), None)
    if seen is not None:
        facts.append(("Inputs", f"{seen.mean:.3g} ± {seen.deviation:.3g}, from {seen.low:.3g} to {seen.high:.3g}"))
    gain = next((row for row in study.importance.rows if row.layer == path), None)
    if gain is not None:
        note = "" if gain.significant else ", within its noise"
        facts.append(("Expected gain", f"{gain.gain:.2g} ± {gain.error:.1g} in loss, alone{note}"))
    own = [row for row in study.audit.rows if row.name.rpartition(".")[0] == path]
    names: dict[str, list[str]] = {}
    for audited in own:
        names.setdefault(audited.verdict, []).append(audited.name.rpartition(".")[2])
    facts += [("Audit", f"{', '.join(same)}: {verdict}") for verdict, same in names.items()]
    outside = next((row.outside for row in own if row.outside is not None), None)
    if outside is not None:
        facts.append(("Outside its interval", f"{outside:.2%} of the inputs"))
    return facts


def _judged(study: Study) -> str:
    """What the layers are compared on."""
    kind = "held out" if study.standings.held_out else "that it was tuned on"
    return f"{study.compared.tuned.samples:,} of the {study.standings.samples:,} samples {kind}"


def _known(error: float) -> str:
    if error < 1:
        return f"± {error:.2%} of its spread (standard error over its inputs)"
    return "not known: the standard error is larger than all of its spread; more samples would tell"


def _shown_steps(study: Study) -> list[int]:
    """The steps that the slider has: all, or so many evenly chosen ones with the first and the last."""
    count = len(study.identification.steps)
    if count <= MOST_STEPS:
        return list(range(count))
    return sorted({round(index * (count - 1) / (MOST_STEPS - 1)) for index in range(MOST_STEPS)})


def _step_names(study: Study) -> list[str]:
    steps = study.identification.steps
    return [
        f"step {steps[index].number} ({steps[index].phase}): held-out loss {steps[index].heldout_loss:.4g}"
        for index in _shown_steps(study)
    ]


def _identification(study: Study) -> dict[str, Any]:
    """The text and the picture of the steps."""
    found = study.identification
    shown = [found.steps[index] for index in _shown_steps(study)]
    lines = [("start", [step.loss for step in shown]), ("tuned", [step.heldout_loss for step in shown])]
    values = [value for _, line in lines for value in line if math.isfinite(value)]
    log = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    label = "Loss after each step of the identification"
    return {
        "text": f"{len(found.names):,} numbers from {found.images:,} samples, {found.heldout_images:,} more held out "
        f"to judge each step; {found.seconds:.1f} s. The last step's parameters are the result.",
        "picture": line_picture([step.number for step in shown], lines, label, "step", log) if len(shown) > 1 else None,
        "messages": found.state.messages,
    }


def _data(study: Study) -> dict[str, Any]:
    """What the script moves the curves by."""
    chosen = _shown_steps(study)
    old = {row.path: row.old for row in study.replacing.rows}
    return {
        "steps": _step_names(study),
        "layers": [
            {
                "path": form.path,
                "name": old[form.path],
                "x": [form.u_U[0].item(), form.u_U[-1].item()],
                "replaced": _rounded(form.replaced_U),
                "start": _rounded(form.start_U),
                "steps": [_rounded(form.steps_SU[index]) for index in chosen],
                "error": None if form.error_U is None else _rounded(form.error_U),
            }
            for form in study.forms
        ],
    }


def _rounded(curve: Tensor) -> Sequence[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in curve.tolist()]
