"""Make the tables of a study's page. Rows about layers are in the order of the layers' calls."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from markupsafe import Markup

from aafit.plots.html import breakable
from aafit.studies.result import Study
from aafit.studies.shapes import LearnedShape
from aafit.training.compare import Difference

ROUNDING = 1e-12
"""Absolute value below which a parameter is shown as 0."""
MOST_PARAMETERS = 100
MOST_PAIRS = 60
"""The most rows of a layer's table of parameters, and of the table of collinear pairs."""
NUMBER, OPTIONAL, BOTH = "number", "optional", "number optional"

Cell = Any
"""A value, (text, sort key), or markup."""
Column = tuple[str, str, Callable[[Any], Cell]]
"""Heading, CSS classes ("number" aligns right, "optional" is hidden on narrow screens), and the cell of a row."""
PageTable = dict[str, Any]
"""A table that readers can sort and filter: what the macro `sorted_table` of the templates takes."""


def page_table(
    anchor: str, caption: str, columns: Sequence[Column], rows: Iterable[Any], search: str = ""
) -> PageTable:
    """Return a table without the columns in which every cell is empty.

    Args:
        anchor: Its id in the page.
        caption: Its caption.
        columns: Its columns.
        rows: What the columns make a cell of.
        search: Label of the field that filters the rows; empty for none.
    """
    cells = [[cell(row) for _, _, cell in columns] for row in rows]
    filled = [at for at in range(len(columns)) if not cells or any(row[at] != "" for row in cells)]
    return {
        "anchor": anchor,
        "caption": caption,
        "columns": [columns[at][:2] for at in filled],
        "rows": [[row[at] for at in filled] for row in cells],
        "search": search,
    }


def anchor(path: str) -> str:
    """Return the HTML id of a layer's section."""
    return "layer-" + re.sub(r"[^A-Za-z0-9_-]", "-", path)


def layer_table(study: Study) -> PageTable:
    """Return a row for each replaced layer."""
    shapes = {shape.path: shape for shape in study.shapes}
    gains = {row.layer: row for row in study.importance.rows}

    def link(path: str) -> Cell:
        return Markup('<a class="path" href="#{}">{}</a>').format(anchor(path), breakable(path)), path

    def of_shape(cell: Callable[[Any], Cell], missing: str = "") -> Callable[[Any], Cell]:
        return lambda row: cell(shapes[row.path]) if row.path in shapes else missing

    def of_gain(cell: Callable[[Any], Cell]) -> Callable[[Any], Cell]:
        return lambda row: cell(gains[row.path]) if row.path in gains else ""

    columns: list[Column] = [
        ("layer", "", lambda row: link(row.path)),
        ("replaced", OPTIONAL, lambda row: f"{row.old} → {row.new}"),
        ("expected gain", NUMBER, of_gain(lambda gain: (f"{gain.gain:.2g} ± {gain.error:.1g}", gain.gain))),
        ("changed", NUMBER, of_shape(lambda shape: (f"{shape.changed:.1%}", shape.changed))),
        ("standard error", BOTH, of_shape(relative_error)),
        ("nearest", "", of_shape(lambda shape: shape.nearest_text(), "not called")),
        ("parameters", BOTH, of_gain(lambda gain: gain.parameters)),
    ]
    return page_table("layer-table", "The replaced layers", columns, study.replaced, "Filter layers")


def relative_error(shape: LearnedShape) -> Cell:
    """Return the relative standard error of a shape as a cell; empty if it is not available."""
    if shape.error is None:
        return ""
    return "undetermined" if shape.undetermined else f"± {shape.error:.1%}", shape.error


def parameter_table(study: Study, path: str) -> PageTable:
    """Return the parameters of a layer before and after tuning."""
    identification = study.identification
    uncertainty = identification.uncertainty
    errors = {} if uncertainty is None else {row.name: row for row in uncertainty.rows}
    all_rows = zip(identification.names, identification.start, identification.values, strict=True)
    rows = [row for row in all_rows if row[0].partition("[")[0].rpartition(".")[0] == path]

    def error(row: tuple[str, float, float]) -> Cell:
        known = errors.get(row[0])
        return "" if known is None else number(known.error) if known.has_error else ("undetermined", math.inf)

    columns: list[Column] = [
        ("parameter", "", lambda row: row[0][len(path) + 1 :]),
        ("initial", NUMBER, lambda row: _parameter(row[1])),
        ("tuned", NUMBER, lambda row: _parameter(row[2])),
        ("standard error", NUMBER, error),
    ]
    shown_of = "" if len(rows) <= MOST_PARAMETERS else f", the first {MOST_PARAMETERS} of {len(rows):,}"
    caption = f"Parameters of {path}{shown_of}"
    return page_table(f"{anchor(path)}-parameters", caption, columns, rows[:MOST_PARAMETERS])


def step_table(study: Study) -> PageTable:
    """Return the steps of the identification."""
    columns: list[Column] = [
        ("step", NUMBER, lambda step: step.number),
        ("phase", "", lambda step: step.phase),
        ("samples", NUMBER, lambda step: step.samples),
        ("loss", NUMBER, lambda step: number(step.loss)),
        ("held-out loss", NUMBER, lambda step: number(step.heldout_loss)),
        ("predicted decrease", BOTH, lambda step: number(step.predicted)),
        ("actual decrease", BOTH, lambda step: number(step.gained)),
        ("seconds", NUMBER, lambda step: (f"{step.seconds:.1f}", step.seconds)),
    ]
    return page_table("step-table", "Steps", columns, study.identification.steps)


def pair_table(study: Study) -> PageTable | None:
    """Return the pairs of collinear parameters; None if there are none."""
    uncertainty = study.identification.uncertainty
    if uncertainty is None or not uncertainty.pairs:
        return None
    count = len(uncertainty.pairs)
    shown_of = "" if count <= MOST_PAIRS else f", the closest {MOST_PAIRS} of {count:,} pairs"
    columns: list[Column] = [
        ("first", "", lambda pair: pair.first),
        ("second", "", lambda pair: pair.second),
        ("correlation", NUMBER, lambda pair: (f"{pair.correlation:+.3f}", pair.correlation)),
    ]
    return page_table("pair-table", f"Collinear parameters{shown_of}", columns, uncertainty.pairs[:MOST_PAIRS])


def score_table(study: Study) -> PageTable:
    """Return the scores of the three networks."""
    scores = study.scores
    columns: list[Column] = [
        ("network", "", lambda row: row[0]),
        ("accuracy", NUMBER, lambda row: share(row[1].accuracy)),
        ("loss", NUMBER, lambda row: number(row[1].loss)),
        ("prediction agreement", NUMBER, lambda row: share(row[1].agreement)),
        ("relative RMS change", NUMBER, lambda row: share(row[1].difference)),
        ("samples not finite", NUMBER, lambda row: row[1].not_finite or ""),
    ]
    rows = [("base", scores.base), ("initial", scores.initial), ("tuned", scores.tuned)]
    return page_table("score-table", "The three networks", columns, rows)


def difference_table(study: Study) -> PageTable:
    """Return the differences of each layer's output from the base network's, before and after tuning."""
    after: dict[str, Difference] = {row.path: row for row in (*study.tuned.layers, study.tuned.logits)}
    order = {row.path: number for number, row in enumerate(study.inputs)}
    layers = sorted(study.initial.layers, key=lambda row: order.get(row.path, len(order)))

    def tuned(name: str, cell: Callable[[float], Cell]) -> Callable[[Any], Cell]:
        return lambda row: cell(getattr(after.get(row.path, row), name, math.nan))

    def initial(name: str, cell: Callable[[float], Cell]) -> Callable[[Any], Cell]:
        return lambda row: cell(getattr(row, name, math.nan))

    columns: list[Column] = [
        ("layer", "", lambda row: row.path),
        ("initial: relative", NUMBER, initial("relative", share)),
        ("local error", NUMBER, initial("local_relative", share)),
        ("input error", BOTH, initial("input_relative", share)),
        (
            "amplification",
            BOTH,
            initial("amplification", lambda value: (f"{value:.2f}", value) if value == value else ""),
        ),
        ("tuned: relative", NUMBER, tuned("relative", share)),
        ("local error", NUMBER, tuned("local_relative", share)),
        ("largest", BOTH, tuned("max_abs", number)),
    ]
    rows = [*layers, study.initial.logits]
    return page_table("difference-table", "Differences of each layer's output", columns, rows, "Filter these layers")


def family_table(study: Study) -> PageTable | None:
    """Return a row for each family in each place; None if none were compared."""
    if study.families is None:
        return None
    columns: list[Column] = [
        ("place", "", lambda row: row.place),
        ("family", "", lambda row: row.family),
        ("parameters", NUMBER, lambda row: row.parameters),
        ("fit error", OPTIONAL, lambda row: share(row.fit_error)),
        ("gain", NUMBER, lambda row: (f"{row.gain:+.2g} ± {row.error:.1g}", row.gain)),
        ("p (Holm)", NUMBER, lambda row: (f"{row.p:.2g}{' *' * row.significant}", row.p)),
        ("time", NUMBER, lambda row: (f"{row.relative_time:.1f} x", row.relative_time)),
        ("exports to", OPTIONAL, lambda row: ", ".join(row.operators)),
    ]
    return page_table("family-table", "Families in each layer and in all", columns, study.families.rows, "Filter rows")


def audit_table(study: Study) -> PageTable:
    """Return the audit, a row for each parameter tensor."""
    columns: list[Column] = [
        ("parameter", "", lambda row: row.name),
        ("elements", NUMBER, lambda row: row.elements),
        ("smallest", BOTH, lambda row: number(row.value[0])),
        ("largest", BOTH, lambda row: number(row.value[1])),
        ("gradient", NUMBER, lambda row: number(row.gradient)),
        ("curvature", NUMBER, lambda row: number(row.curvature)),
        ("verdict", "", lambda row: row.verdict),
    ]
    return page_table("audit-table", "Audit of the parameters", columns, study.audit.rows, "Filter parameters")


def found_table(study: Study) -> PageTable:
    """Return all activations of the network, and what happened to them."""
    new = {row.path: row.new for row in study.replaced}
    why = {row.path: row.reason for row in study.skipped}
    columns: list[Column] = [
        ("activation", "", lambda row: row.path),
        ("kind", "", lambda row: row.kind),
        ("replaced by", "", lambda row: new.get(row.path) or f"nothing: {why.get(row.path, 'not selected')}"),
        ("calls", BOTH, lambda row: "" if row.calls is None else row.calls),
        ("input shape", OPTIONAL, lambda row: "" if row.shape is None else "x".join(map(str, row.shape))),
        ("after", OPTIONAL, lambda row: " ".join(row.after or ())),
        ("called in", OPTIONAL, lambda row: row.line or ""),
    ]
    return page_table("found-table", "Activations of the network", columns, study.found, "Filter activations")


def time_table(study: Study) -> PageTable:
    """Return the time of each part."""
    columns: list[Column] = [
        ("part", "", lambda row: row[0]),
        ("seconds", NUMBER, lambda row: (f"{row[1]:.1f}", row[1])),
    ]
    return page_table("time-table", "Time by part", columns, study.seconds.items())


def number(value: float | None) -> Cell:
    """Return a cell that shows a number with four digits and sorts by its value; empty for None."""
    if value is None:
        return ""
    return (f"{value:.4g}", value) if math.isfinite(value) else "not finite"


def share(value: float | None) -> Cell:
    """Return a cell that shows a share in percent; empty for None and values that are not finite."""
    return "" if value is None or not math.isfinite(value) else (f"{value:.2%}", value)


def _parameter(value: float) -> Cell:
    """Return the value of a parameter; the rounding error of a fit counts as 0."""
    return number(0.0 if abs(value) < ROUNDING else value)
