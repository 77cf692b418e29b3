"""The tables of a study's page."""

import math
import re

from markupsafe import Markup

from aafit.plots.html import Cell, PageTable, breakable
from aafit.studies.result import Study, nearest_text

ROUNDING = 1e-12
MOST_PARAMETERS = 100
MOST_PAIRS = 60
"""Rows of a layer's parameters, and of pairs; more would be no table to read."""


def anchor(path: str) -> str:
    """The fragment of a layer's section."""
    return "layer-" + re.sub(r"[^A-Za-z0-9_-]", "-", path)


def layer_table(study: Study) -> PageTable:
    """What is known of each layer, in a line."""
    forms = {form.path: form for form in study.forms}
    gains = {row.layer: row for row in study.importance.rows}
    rows: list[tuple[Cell, ...]] = []
    for row in study.replacing.rows:
        form, gain = forms.get(row.path), gains.get(row.path)
        link = Markup('<a class="path" href="#{}">{}</a>').format(anchor(row.path), breakable(row.path))
        rows.append(
            (
                (link, row.path),
                f"{row.old} → {row.new}",
                "" if gain is None else (f"{gain.gain:.2g} ± {gain.error:.1g}", gain.gain),
                "" if form is None else (f"{form.changed:.1%}", form.changed),
                "not reached" if form is None else nearest_text(form),
                "" if form is None or form.error is None else (known_to(form.error), form.error),
                0 if gain is None else gain.parameters,
            )
        )
    columns = [
        ("layer", ""),
        ("replaced", "optional"),
        ("expected gain", "number"),
        ("changed", "number"),
        ("nearest", ""),
        ("known to", "number optional"),
        ("parameters", "number optional"),
    ]
    return PageTable.filled("layer-table", "The layers that were replaced", columns, rows, "Filter layers")


def known_to(error: float) -> str:
    """A standard error as a share of the form's spread; of one beyond all of it, no digits are worth reading."""
    return f"± {error:.1%}" if error < 1 else "not known"


def parameter_table(study: Study, path: str) -> PageTable:
    """The parameters of a layer, as they started and as they were identified."""
    found = study.identification
    errors = {} if found.uncertainty is None else {row.name: row for row in found.uncertainty.rows}
    rows: list[tuple[Cell, ...]] = []
    count = 0
    for name, start, value in zip(found.names, found.start, found.values, strict=True):
        if name.partition("[")[0].rpartition(".")[0] != path:
            continue
        count += 1
        if count > MOST_PARAMETERS:
            continue
        error = errors.get(name)
        shown: Cell = "" if error is None else cell(error.error) if error.determined else ("-", math.inf)
        note = "" if error is None or error.determined else "not determined"
        rows.append((name[len(path) + 1 :], _value(start), _value(value), shown, note))
    columns = [("parameter", ""), ("start", "number"), ("tuned", "number"), ("± error", "number"), ("note", "")]
    shown_of = "" if count <= MOST_PARAMETERS else f", the first {MOST_PARAMETERS} of {count:,}"
    return PageTable.filled(f"{anchor(path)}-parameters", f"Parameters of {path}{shown_of}", columns, rows)


def step_table(study: Study) -> PageTable:
    """The steps of the identification."""
    columns = [
        ("step", "number"),
        ("phase", ""),
        ("samples", "number"),
        ("loss", "number"),
        ("held-out loss", "number"),
        ("predicted gain", "number optional"),
        ("gained", "number optional"),
        ("seconds", "number"),
    ]
    rows = [
        (
            step.number,
            step.phase,
            step.images,
            cell(step.loss),
            cell(step.heldout_loss),
            cell(step.predicted),
            cell(step.gained),
            (f"{step.seconds:.1f}", step.seconds),
        )
        for step in study.identification.steps
    ]
    return PageTable.filled("step-table", "The steps", columns, rows)


def pair_table(study: Study) -> PageTable | None:
    """The parameters that the samples cannot tell apart; None: there are none."""
    uncertainty = study.identification.uncertainty
    if uncertainty is None or not uncertainty.pairs:
        return None
    pairs = uncertainty.pairs
    shown_of = "" if len(pairs) <= MOST_PAIRS else f", the closest {MOST_PAIRS} of {len(pairs):,} pairs"
    rows = [(pair.first, pair.second, (f"{pair.correlation:+.3f}", pair.correlation)) for pair in pairs[:MOST_PAIRS]]
    columns = [("one", ""), ("the other", ""), ("correlation", "number")]
    return PageTable("pair-table", f"Parameters that cannot be told apart{shown_of}", tuple(columns), tuple(rows))


def standing_table(study: Study) -> PageTable:
    """The three networks as a whole."""
    own = study.standings
    rows = [
        (
            name,
            "" if standing.accuracy is None else (f"{standing.accuracy:.2%}", standing.accuracy),
            cell(standing.loss),
            "" if standing.agreement is None else (f"{standing.agreement:.2%}", standing.agreement),
            (f"{standing.difference:.2%}", standing.difference),
            standing.not_finite or "",
        )
        for name, standing in (("base", own.base), ("just replaced", own.replaced), ("tuned", own.tuned))
    ]
    columns = [
        ("network", ""),
        ("accuracy", "number"),
        ("loss", "number"),
        ("equal predictions", "number"),
        ("outputs moved by", "number"),
        ("not finite", "number"),
    ]
    return PageTable.filled("standing-table", "The three networks", columns, rows)


def difference_table(study: Study) -> PageTable:
    """How far each layer's output is from the base's, before and after tuning."""
    replaced, tuned = study.compared.replaced, study.compared.tuned
    after = {row.path: row for row in tuned.layers}
    rows: list[tuple[Cell, ...]] = []
    for row in replaced.layers:
        cells = [
            row.path,
            _share(row.relative),
            _share(row.local_relative),
            _share(row.input_relative),
            _times(row.amplification),
        ]
        own = after.get(row.path)
        cells += ["", "", ""] if own is None else [_share(own.relative), _share(own.local_relative), cell(own.max_abs)]
        rows.append(tuple(cells))
    first, last = replaced.logits, tuned.logits
    outputs = (
        _share(first.relative),
        "",
        "",
        _times(first.amplification),
        _share(last.relative),
        "",
        cell(last.max_abs),
    )
    columns = [
        ("layer", ""),
        ("replaced: relative", "number"),
        ("of its own", "number"),
        ("arriving", "number optional"),
        ("carried on", "number optional"),
        ("tuned: relative", "number"),
        ("of its own", "number"),
        ("largest", "number optional"),
    ]
    rows.append(("the outputs", *outputs))
    return PageTable.filled(
        "difference-table", "Differences of each layer's output", columns, rows, "Filter these layers"
    )


def audit_table(study: Study) -> PageTable:
    """The audit, a row for each parameter tensor."""
    rows = [
        (
            row.name,
            row.elements,
            cell(row.value[0]),
            cell(row.value[1]),
            cell(row.gradient),
            cell(row.curvature),
            row.verdict,
        )
        for row in study.audit.rows
    ]
    columns = [
        ("parameter", ""),
        ("elements", "number"),
        ("smallest", "number optional"),
        ("largest", "number optional"),
        ("gradient", "number"),
        ("curvature", "number"),
        ("verdict", ""),
    ]
    return PageTable.filled("audit-table", "The audit", columns, rows, "Filter parameters")


def found_table(study: Study) -> PageTable:
    """All activations of the network, and what became of them."""
    new = {row.path: row.new for row in study.replacing.rows}
    why = {row.path: row.reason for row in study.replacing.kept}
    rows = [
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
    columns = [
        ("activation", ""),
        ("kind", ""),
        ("became", ""),
        ("calls", "number optional"),
        ("input", "optional"),
        ("after", "optional"),
        ("called in", "optional"),
    ]
    return PageTable.filled("found-table", "Activations of the network", columns, rows, "Filter activations")


def time_table(study: Study) -> PageTable:
    """What each part took."""
    rows = [(part, (f"{seconds:.1f}", seconds)) for part, seconds in study.origin.seconds.items()]
    return PageTable.filled("time-table", "Time by part", [("part", ""), ("seconds", "number")], rows)


def cell(value: float | None) -> Cell:
    """A number with four digits, sorted by all of them; an empty cell for none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4g}", value


def _value(parameter: float) -> Cell:
    """Of a parameter; what a fit left of a zero is a zero."""
    return cell(0.0 if abs(parameter) < ROUNDING else parameter)


def _share(value: float) -> Cell:
    return (f"{value:.2%}", value) if math.isfinite(value) else ""


def _times(value: float) -> Cell:
    return (f"{value:.2f} times", value) if math.isfinite(value) else ""
