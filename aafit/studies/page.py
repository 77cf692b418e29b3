"""The page of a study: what it found, as texts, tables and pictures for the template study.html."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from aafit.errors import UserError
from aafit.files import make_folder, write_atomically
from aafit.pages.html import embedded_json, rendered
from aafit.pages.svg import line_picture
from aafit.studies.forms import Form
from aafit.studies.pictures import form_picture, small_picture
from aafit.studies.result import Study, nearest_text
from aafit.training.comparison import Comparison

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

Cell = Any


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
                "anchor": anchor(row.path),
                "near": "not reached" if form is None else nearest_text(form),
                "changed": 0.0 if form is None else form.changed,
                "lead": _lead(study, row.path),
                "small": form and small_picture(form, seen[row.path], order.index(row.path), label),
                "picture": form and form_picture(form, seen[row.path], order.index(row.path), label),
                "legend": legend,
                "facts": _layer_facts(study, row.path, form),
                "parameters": _parameters(study, row.path),
            }
        )
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
        layers=layers,
        layer_columns=[
            ("layer", ""),
            ("replaced", "optional"),
            ("expected gain", "number"),
            ("changed", "number"),
            ("nearest", ""),
            ("known to", "number optional"),
            ("parameters", "number optional"),
        ],
        layer_rows=_layer_rows(study, forms),
        parameter_columns=[
            ("parameter", ""),
            ("start", "number"),
            ("tuned", "number"),
            ("± error", "number"),
            ("note", ""),
        ],
        step_names=_step_names(study),
        identification=_identification(study),
        standing_columns=[
            ("network", ""),
            ("accuracy", "number"),
            ("loss", "number"),
            ("equal predictions", "number"),
            ("outputs moved by", "number"),
            ("not finite", "number optional"),
        ],
        standing_rows=_standing_rows(study),
        difference_columns=[
            ("layer", ""),
            ("replaced: relative", "number"),
            ("of its own", "number"),
            ("arriving", "number optional"),
            ("carried on", "number optional"),
            ("tuned: relative", "number"),
            ("of its own", "number"),
            ("largest", "number optional"),
        ],
        difference_rows=_difference_rows(study.compared.replaced, study.compared.tuned),
        optimizer=study.audit.optimizer,
        audited=study.audit.images,
        audit_columns=[
            ("parameter", ""),
            ("elements", "number"),
            ("smallest", "number optional"),
            ("largest", "number optional"),
            ("gradient", "number"),
            ("curvature", "number"),
            ("verdict", ""),
        ],
        audit_rows=[
            (
                row.name,
                row.elements,
                _cell(row.value[0]),
                _cell(row.value[1]),
                _cell(row.gradient),
                _cell(row.curvature),
                row.verdict,
            )
            for row in study.audit.rows
        ],
        found_columns=[
            ("activation", ""),
            ("kind", ""),
            ("became", ""),
            ("calls", "number optional"),
            ("input", "optional"),
            ("after", "optional"),
            ("called in", "optional"),
        ],
        found_rows=_found_rows(study),
        origin=[(name.capitalize(), value) for name, value in study.origin.facts.items() if value],
        seconds=[(part, (f"{seconds:.1f}", seconds)) for part, seconds in study.origin.seconds.items()],
        data=embedded_json(_data(study)),
    )


def anchor(path: str) -> str:
    """The fragment of a layer's section."""
    return "layer-" + re.sub(r"[^A-Za-z0-9_-]", "-", path)


def _numbers(study: Study) -> list[tuple[str, str]]:
    """The few numbers of the first screen."""
    own, count = study.standings, len(study.identification.names)
    numbers = []
    for standing, name in ((own.base, "base"), (own.replaced, "just replaced"), (own.tuned, "tuned")):
        if standing.accuracy is not None:
            numbers.append((f"{standing.accuracy:.2%}", f"accuracy, {name}"))
        elif standing.loss is not None:
            numbers.append((f"{standing.loss:.4g}", f"loss, {name}"))
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
        facts.append(("Nearest known", nearest_text(form)))
        facts.append(("Changed from start", f"{form.changed:.2%} of its spread"))
        if form.error is not None:
            facts.append(("Known to", f"± {form.error:.2%} of its spread (standard error over its inputs)"))
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
    facts += [("Audit", f"{row.name.rpartition('.')[2]}: {row.verdict}") for row in own]
    outside = next((row.outside for row in own if row.outside is not None), None)
    if outside is not None:
        facts.append(("Outside its interval", f"{outside:.2%} of the inputs"))
    return facts


def _parameters(study: Study, path: str) -> list[tuple[Cell, ...]]:
    found = study.identification
    errors = {} if found.uncertainty is None else {row.name: row for row in found.uncertainty.rows}
    rows = []
    for name, start, value in zip(found.names, found.start, found.values, strict=True):
        if name.partition("[")[0].rpartition(".")[0] != path:
            continue
        error = errors.get(name)
        shown: Cell = "" if error is None else _cell(error.error) if error.determined else ("-", math.inf)
        note = "" if error is None or error.determined else "not determined"
        rows.append((name[len(path) + 1 :], _cell(start), _cell(value), shown, note))
    return rows


def _layer_rows(study: Study, forms: dict[str, Form]) -> list[tuple[Cell, ...]]:
    gains = {row.layer: row for row in study.importance.rows}
    rows: list[tuple[Cell, ...]] = []
    for row in study.replacing.rows:
        form, gain = forms.get(row.path), gains.get(row.path)
        link = Markup('<a class="path" href="#{}">{}</a>').format(anchor(row.path), row.path)
        rows.append(
            (
                (link, row.path),
                f"{row.old} → {row.new}",
                "" if gain is None else (f"{gain.gain:.2g} ± {gain.error:.1g}", gain.gain),
                "" if form is None else (f"{form.changed:.1%}", form.changed),
                "not reached" if form is None else nearest_text(form),
                "" if form is None or form.error is None else (f"± {form.error:.1%}", form.error),
                0 if gain is None else gain.parameters,
            )
        )
    return rows


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
    found = study.identification
    shown = [found.steps[index] for index in _shown_steps(study)]
    lines = [("start", [step.loss for step in shown]), ("tuned", [step.heldout_loss for step in shown])]
    values = [value for _, line in lines for value in line if math.isfinite(value)]
    log = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    label = "Loss after each step of the identification"
    pairs = () if found.uncertainty is None else found.uncertainty.pairs
    return {
        "text": f"{len(found.names):,} numbers from {found.images:,} samples, {found.heldout_images:,} more held out "
        f"to judge each step; {found.seconds:.1f} s. The last step's parameters are the result.",
        "picture": line_picture([step.number for step in shown], lines, label, "step", log) if len(shown) > 1 else None,
        "columns": [
            ("step", "number"),
            ("phase", ""),
            ("samples", "number"),
            ("loss", "number"),
            ("held-out loss", "number"),
            ("predicted gain", "number optional"),
            ("gained", "number optional"),
            ("seconds", "number"),
        ],
        "rows": [
            (
                step.number,
                step.phase,
                step.images,
                _cell(step.loss),
                _cell(step.heldout_loss),
                _cell(step.predicted),
                _cell(step.gained),
                (f"{step.seconds:.1f}", step.seconds),
            )
            for step in found.steps
        ],
        "messages": found.state.messages,
        "pairs": [(pair.first, pair.second, (f"{pair.correlation:+.3f}", pair.correlation)) for pair in pairs[:200]],
    }


def _standing_rows(study: Study) -> list[tuple[Cell, ...]]:
    own = study.standings
    return [
        (
            name,
            "" if standing.accuracy is None else (f"{standing.accuracy:.2%}", standing.accuracy),
            _cell(standing.loss),
            "" if standing.agreement is None else (f"{standing.agreement:.2%}", standing.agreement),
            (f"{standing.difference:.2%}", standing.difference),
            standing.not_finite,
        )
        for name, standing in (("base", own.base), ("just replaced", own.replaced), ("tuned", own.tuned))
    ]


def _difference_rows(replaced: Comparison, tuned: Comparison) -> list[tuple[Cell, ...]]:
    after = {row.path: row for row in tuned.layers}
    rows: list[tuple[Cell, ...]] = []
    for row in replaced.layers:
        cells = [row.path, _share(row.relative), _share(row.own_relative), _share(row.arriving), _times(row.carried)]
        own = after.get(row.path)
        cells += ["", "", ""] if own is None else [_share(own.relative), _share(own.own_relative), _cell(own.max_abs)]
        rows.append(tuple(cells))
    first, last = replaced.logits, tuned.logits
    outputs = (_share(first.relative), "", "", _times(first.carried), _share(last.relative), "", _cell(last.max_abs))
    return [*rows, ("the outputs", *outputs)]


def _share(value: float) -> Cell:
    return (f"{value:.2%}", value) if math.isfinite(value) else ""


def _times(value: float) -> Cell:
    return (f"{value:.2f} times", value) if math.isfinite(value) else ""


def _found_rows(study: Study) -> list[tuple[Cell, ...]]:
    new = {row.path: row.new for row in study.replacing.rows}
    why = {row.path: row.reason for row in study.replacing.kept}
    return [
        (
            row.path,
            row.kind,
            new.get(row.path) or f"as it was: {why.get(row.path, 'not asked for')}",
            "" if row.calls is None else row.calls,
            "" if row.shape is None else "x".join(map(str, row.shape)),
            row.after or "",
            row.line or "",
        )
        for row in study.found
    ]


def _cell(value: float | None) -> Cell:
    """A number with four digits, sorted by all of them; an empty cell for none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4g}", value


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
