"""The parts of a study in their order.

find -> replace, fitted to what each layer sees -> inputs seen -> audit -> importance -> identify -> compare -> forms
and the nearest known functions. The first is done each time, as it takes one forward.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aafit.identification import Audit, Identification, Importance, State, audit, identify, importance
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import load_activations, save_activations
from aafit.networks.as_modules import with_matching_modules
from aafit.networks.batches import Batch
from aafit.networks.find import found_in
from aafit.networks.surgery import replace_activations
from aafit.studies.asked import StudyConfig, facts
from aafit.studies.forms import Form, Identified, forms
from aafit.studies.inputs import InputsSeen, inputs_seen
from aafit.studies.result import Compared, FoundLayer, Origin, Replacing, Study
from aafit.studies.samples import Samples, first_of
from aafit.studies.standing import Scores, standings
from aafit.studies.store import Store
from aafit.training.compare import compare

PARTS = ("find", "replace", "inputs", "audit", "importance", "identify", "compare", "forms")
AUDITED = 512
"""Samples that the audit looks at, at most."""

ProgressCallback = Callable[[str, str], None]
"""Called with the name of a part, and with what is done in it; "" when the part begins."""


def run_parts(
    net: nn.Module, samples: Samples, asked: StudyConfig, store: Store, command: str, tell: ProgressCallback
) -> Study:
    """All parts, one after another; what the store has is taken from there.

    Args:
        net: left as it was.
        samples: what to identify on, and to judge on.
        asked: what is asked.
        store: keeps what each part finds.
        command: what was called, for the page.
        tell: hears of the progress.
    """
    tell("find", "")
    example = samples.example
    found = found_in(net, example)
    tell("replace", "")
    start, replacing = _replaced(net, asked, example, store)
    base = with_matching_modules(net, start)
    paths = [row.path for row in replacing.rows]
    labels = asked.target == "labels"
    options: dict[str, Any] = {
        "base": None if labels else base,
        "output": asked.output,
        "loss": asked.loss,
        "batch_size": samples.at_once,
    }
    fitted, judged = (first_of(batches, asked.images) for batches in (samples.fitted, samples.judged))

    tell("inputs", "")
    seen = store.value("inputs", tuple[InputsSeen, ...], lambda: inputs_seen(base, paths, fitted))
    tell("audit", "")
    audited = store.value(
        "audit", Audit, lambda: audit(start, samples.fitted, samples=min(asked.images, AUDITED), **options)
    )
    tell("importance", "")
    worth = store.value(
        "importance",
        Importance,
        lambda: importance(start, samples.fitted, samples=asked.images, **options),
    )
    tell("identify", "")
    way = store.value("identify", Identified, lambda: _identified(start, base, samples, asked, store, tell))
    tuned = load_identified(start, way.result)
    tell("compare", "")
    # As `identify` took it; where the outputs of the base were the target, the loss was one of these.
    loss = (asked.loss or "cross-entropy") if labels else None

    def compared() -> Compared:
        # Where the study is not about the targets they count only if they are classes.
        seen = judged if labels or all(map(_has_classes, judged)) else [Batch(own.args, own.kwargs) for own in judged]
        return Compared(*(compare(base, own, seen, output=asked.output, loss=loss) for own in (start, tuned)))

    differences = store.value("compare", Compared, compared)
    ranked = store.value(
        "standings",
        Scores,
        lambda: standings(base, start, tuned, samples.judged, samples.heldout_sha256 is not None, loss, asked.output),
    )
    tell("forms", "")
    originals = {path: base.get_submodule(path) for path in paths}
    shapes = store.value(
        "forms", tuple[Form, ...], lambda: forms(start, originals, way, {row.path: row for row in seen})
    )
    origin = store.document("origin") or facts(net, samples, asked, command)
    store.write_document("origin", origin)
    if store.folder is not None and not (store.folder / "tuned.safetensors").exists():
        save_activations(tuned, store.folder / "tuned.safetensors")
    return Study(
        tuple(map(_plain, found)),
        seen,
        replacing,
        differences,
        ranked,
        audited,
        worth,
        way.result,
        shapes,
        Origin({**origin, "study": store.key}, dict(store.seconds)),
        tuned,
        base,
        folder=store.folder,
    )


def load_identified(start: nn.Module, found: Identification) -> nn.Module:
    """A copy of the network with the identified parameters."""
    tuned = deepcopy(start)
    Coordinates(tuned).write(found.state.vector_P)
    return tuned


def _replaced(net: nn.Module, asked: StudyConfig, example: Any, store: Store) -> tuple[nn.Module, Replacing]:
    """The network as it starts. What an earlier call drew at random is taken from its file."""
    file = None if store.folder is None else store.folder / "start.safetensors"
    made: list[nn.Module] = []

    def find() -> Replacing:
        start, swap = replace_activations(net, asked.replacements, asked.sharing, example)
        if file is not None:
            save_activations(start, file)
        made.append(start)
        return Replacing(swap.rows, swap.kept)

    replacing = store.value("replace", Replacing, find)
    if not made:
        assert file is not None
        made.append(load_activations(net, file))
    return made[0], replacing


def _identified(
    start: nn.Module, base: nn.Module, samples: Samples, asked: StudyConfig, store: Store, tell: ProgressCallback
) -> Identified:
    document = store.document("identify-state")
    state = None if document is None else State.from_dict(document["state"])
    vectors = [] if document is None else [torch.tensor(row, dtype=torch.float64) for row in document["vectors"]]

    def after_step(now: State) -> None:
        if len(now.steps) > len(vectors):
            vectors.append(now.vector_P.clone())
            last = now.steps[-1]
            tell("identify", f"step {last.number} ({last.phase}): held-out loss {last.heldout_loss:.5g}")
        state = {"state": now.as_dict(), "vectors": [vector_P.tolist() for vector_P in vectors]}
        store.write_document("identify-state", state)

    result = identify(
        deepcopy(start),
        samples.fitted,
        base=base,
        target=asked.target,
        loss=asked.loss,
        output=asked.output,
        steps=asked.steps,
        memory=asked.memory,
        batch_size=samples.at_once,
        seed=asked.seed,
        state=state,
        after_step=after_step,
    )
    return Identified(result, tuple(vectors))


def _has_classes(batch: Batch) -> bool:
    return isinstance(batch.target, Tensor) and not batch.target.is_floating_point()


def _plain(row: Any) -> FoundLayer:
    after = None if row.after is None else " ".join(row.after)
    return FoundLayer(row.path, row.kind, row.line, row.calls, row.shape, after, row.gate)
