"""Write the HTML page of a study: its results as texts, tables and figures for the template study.html.

Begin with `study_page`; page_tables.py makes the tables.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from aafit.errors import UserError
from aafit.files import is_file, is_folder, make_folder, write_atomically
from aafit.identification.importance import ImportanceRow
from aafit.networks.surgery import Replaced
from aafit.plots.curves import LABELS
from aafit.plots.html import embedded_json, rendered, svg_url
from aafit.plots.style import figure_bytes
from aafit.plots.svg import curves_picture, line_picture, thumbnail
from aafit.studies import page_tables as tables
from aafit.studies.figures import plot_families
from aafit.studies.inputs import InputDistribution
from aafit.studies.result import Study, evaluated_on
from aafit.studies.shapes import LearnedShape

SHOWN = 12
"""The most layers that are drawn on the first screen."""
MOST_STEPS = 24
"""The most positions of the slider over the steps."""
SUFFIXES = (".html", ".htm")


def write_study_page(study: Study, path: Path) -> Path:
    """Write the page of a study to `path`, and return `path`.

    Raises:
        UserError: As `check_page`, or the file cannot be written.
    """
    check_page(path, study.provenance["study"])
    make_folder(path.parent)
    write_atomically(path, study_page(study))
    return path


def check_page(path: Path, key: str) -> None:
    """Check that a page of the study with this key may be written to `path`.

    Raises:
        UserError: `path` is a folder, its suffix is not .html or .htm, or it is a file other than a page of this study.
    """
    if is_folder(path):
        raise UserError(f"{path} is a folder: give the name of a file, such as {path / 'study.html'}.")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"The report of a study is an HTML page, and {path.name} is no name of one: give "
            f"report={str(path.with_suffix('.html'))!r}; aafit.plot_study draws figures as SVG, PDF or PNG."
        )
    if is_file(path) and f'name="aafit-study" content="{key}"' not in path.read_text(errors="replace"):
        raise UserError(
            f"{path} exists and is not the page of this study (another network, data or arguments): give another name "
            "as report=, or move it away."
        )


def study_page(study: Study) -> str:
    """Return the page as HTML."""
    layers = [_layer(study, row) for row in study.replaced]
    drawn = [layer for layer in layers if layer["small"]]
    most = sorted(drawn, key=lambda layer: -layer["changed"])[:SHOWN]
    return rendered(
        "study.html",
        title=f"Activations of {study.provenance['network'].partition(',')[0]}",
        study_key=study.provenance["study"],
        verdict=study.verdict,
        numbers=_numbers(study),
        legend=[(key, LABELS[key]) for key in ("tuned", "initial", "original", "inputs")],
        overview=[layer for layer in drawn if layer in most],
        more=len(drawn) - len(most),
        layer_table=tables.layer_table(study),
        layers=layers,
        step_names=_step_names(study),
        identification=_identification(study),
        step_table=tables.step_table(study),
        pair_table=tables.pair_table(study),
        compared_on=f"{study.tuned.samples:,} of the {evaluated_on(study).removeprefix('the ')}",
        score_table=tables.score_table(study),
        difference_table=tables.difference_table(study),
        families=_families(study),
        family_table=tables.family_table(study),
        optimizer=study.audit.optimizer,
        audited=study.audit.samples,
        audit_table=tables.audit_table(study),
        found_table=tables.found_table(study),
        provenance=[(name.capitalize(), value) for name, value in study.provenance.items() if value],
        time_table=tables.time_table(study),
        data=embedded_json(_data(study)),
    )


def _layer(study: Study, replaced: Replaced) -> dict[str, Any]:
    """Return the texts and pictures of one replaced layer."""
    path = replaced.path
    shape = next((row for row in study.shapes if row.path == path), None)
    inputs = next((row for row in study.inputs if row.path == path), None)
    expected = next((row for row in study.importance.rows if row.layer == path), None)
    layer = {
        "path": path,
        "anchor": tables.anchor(path),
        "near": "not called" if shape is None else shape.nearest_text(),
        "changed": 0.0 if shape is None else shape.changed,
        "gain": 0.0 if expected is None else expected.gain,
        "summary": _layer_summary(shape, expected),
        "lead": _lead(study, replaced),
        "small": None,
        "picture": None,
        "legend": (),
        "facts": _layer_facts(study, path, shape, inputs, expected),
        "parameters": tables.parameter_table(study, path),
    }
    if shape is not None and inputs is not None:
        number = [row.path for row in study.shapes].index(path)
        label = f"{path}: original, initial and tuned activation"
        layer |= {
            "small": thumbnail(shape, inputs.histogram, number, label),
            "picture": curves_picture(shape, inputs.histogram, number, label),
            "legend": shape.legend(),
        }
    return layer


def _numbers(study: Study) -> list[tuple[str, str]]:
    """Return the key figures of the first screen, each with its label."""
    scores, numbers = study.scores, []
    for name in ("base", "initial", "tuned"):
        score = getattr(scores, name)
        if score.accuracy is not None:
            numbers.append((f"{score.accuracy:.2%}", f"accuracy, {name}"))
        elif score.loss is not None:
            numbers.append((f"{score.loss:.4g}", f"loss, {name}"))
        elif name != "base":
            numbers.append((f"{score.difference:.2%}", f"relative RMS change of the outputs, {name}"))
    if scores.accuracy_gain is not None:
        gain = scores.accuracy_gain
        numbers.append((f"{100 * gain.value:+.2f} ± {100 * gain.error:.2f}", "points, tuned minus base"))
    numbers.append((f"{len(study.identification.names):,}", "parameters"))
    return numbers


def _lead(study: Study, replaced: Replaced) -> str:
    activation = next((row for row in study.found if row.path == replaced.path), None)
    after = f", after {' '.join(activation.after)}" if activation is not None and activation.after else ""
    line = f", called in {activation.line}" if activation is not None and activation.line else ""
    return f"{replaced.old} → {replaced.new}{after}{line}"


def _layer_summary(shape: LearnedShape | None, expected: ImportanceRow | None) -> list[tuple[str, str]]:
    """Return the cells of a layer's row in the overview: a text and its name each."""
    cells = [("not called" if shape is None else shape.nearest_text(), "nearest")]
    if shape is not None:
        error = "" if shape.error is None else ", undetermined" if shape.undetermined else f" ± {shape.error:.1%}"
        cells.append((f"{shape.changed:.1%}{error}", "changed"))
    if expected is not None:
        cells.append((f"{expected.gain:.2g} ± {expected.error:.1g}", "expected gain"))
    return cells


def _layer_facts(
    study: Study,
    path: str,
    shape: LearnedShape | None,
    inputs: InputDistribution | None,
    expected: ImportanceRow | None,
) -> list[tuple[str, str]]:
    """Return the facts about a layer, each with its name."""
    if shape is None:
        facts = [("Not called", "the forward pass of the samples does not call it")]
    else:
        facts = [("Nearest known function", shape.nearest_text(len(shape.nearest)))]
        error = "standard error not available"
        if shape.error is not None:
            error = "undetermined by the samples" if shape.undetermined else f"standard error {shape.error:.2%}"
        facts.append(("Relative RMS change", f"{shape.changed:.2%}, {error}"))
        if shape.curves > 1:
            facts.append(("Curves", f"{shape.curves}; the median is drawn"))
    if inputs is not None:
        moments = f"mean {inputs.mean:.3g}, std {inputs.std:.3g}"
        facts.append(("Inputs", f"{moments}, from {inputs.low:.3g} to {inputs.high:.3g}"))
    if expected is not None:
        note = "" if expected.significant else ", within the noise"
        facts.append(("Expected gain", f"{expected.gain:.2g} ± {expected.error:.1g} in loss, adapted alone{note}"))
    audited = [row for row in study.audit.rows if row.name.rpartition(".")[0] == path]
    names: dict[str, list[str]] = {}
    for parameter in audited:
        names.setdefault(parameter.verdict, []).append(parameter.name.rpartition(".")[2])
    facts += [("Audit", f"{', '.join(same)}: {verdict}") for verdict, same in names.items()]
    outside = next((row.outside for row in audited if row.outside is not None), None)
    if outside is not None:
        facts.append(("Outside its interval", f"{outside:.2%} of the inputs"))
    return facts


def _shown_steps(study: Study) -> list[int]:
    """Return the steps of the slider: all, or `MOST_STEPS` evenly spaced ones with the first and the last."""
    count = len(study.identification.steps)
    if count <= MOST_STEPS:
        return list(range(count))
    return sorted({round(index * (count - 1) / (MOST_STEPS - 1)) for index in range(MOST_STEPS)})


def _step_names(study: Study) -> list[str]:
    steps = study.identification.steps
    return [
        f"step {steps[index].number} ({steps[index].phase}): loss {steps[index].loss:.4g}"
        for index in _shown_steps(study)
    ]


def _identification(study: Study) -> dict[str, Any]:
    """Return the text and the picture of the steps."""
    identification = study.identification
    shown = [identification.steps[index] for index in _shown_steps(study)]
    losses = [step.loss for step in shown]
    finite = [loss for loss in losses if math.isfinite(loss)]
    log = bool(finite) and min(finite) > 0 and max(finite) > 10 * min(finite)
    label = "Loss after each step of the identification"
    return {
        "text": f"{len(identification.names):,} parameters, fitted to {identification.samples:,} samples in "
        f"{identification.seconds:.1f} s"
        + (f"; {heldout:,} other samples judged the result." if (heldout := identification.heldout_samples) else "."),
        "picture": line_picture([step.number for step in shown], losses, label, ("step", "loss"), log)
        if len(shown) > 1
        else None,
        "messages": (*identification.state.messages, *map(str, identification.gains)),
    }


def _families(study: Study) -> dict[str, str] | None:
    """Return the picture and the text of the comparison of families; None if there is none."""
    if study.families is None:
        return None
    families = study.families
    judged = f"{families.heldout_samples:,} {'held-out' if families.held_out else 'of the fitted'} samples"
    return {
        "picture": svg_url(figure_bytes(plot_families(families), "svg")),
        "label": "Held-out gain of each family against its number of parameters, in each layer and in all",
        "text": f"Each family was fitted to the original activations and identified from {families.samples:,} samples. "
        f"Gain: decrease of {families.loss} against the base network on {judged}, paired, with its standard error. p: "
        f"{families.correction}; * significant. Time: of the activations over that of the original ones, forward only.",
        "skipped": f"Not tried, as the time was up: {', '.join(families.skipped)}." if families.skipped else "",
    }


def _data(study: Study) -> dict[str, Any]:
    """Return the curves of every shown step, for the script."""
    original = {row.path: row.old for row in study.replaced}
    return {
        "steps": _step_names(study),
        "layers": [
            {
                "path": shape.path,
                "name": original[shape.path],
                "x": [shape.u_U[0].item(), shape.u_U[-1].item()],
                "original": _rounded(shape.original_U),
                "initial": _rounded(shape.initial_U),
                "steps": [_rounded(shape.steps_SU[index]) for index in _shown_steps(study)],
                "error": None if shape.error_U is None else _rounded(shape.error_U),
            }
            for shape in study.shapes
        ],
    }


def _rounded(curve: Tensor) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in curve.tolist()]
