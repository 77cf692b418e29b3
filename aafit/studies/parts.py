"""The parts of a study in their order.

find -> replace, fitted to what each layer sees -> inputs seen -> audit -> importance -> identify -> compare -> forms
and the nearest known functions. The first two are done each time: they take one forward.
"""

import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aafit.activations import FNeuron
from aafit.devices import device_name
from aafit.errors import UserError
from aafit.identification import (
    Audit,
    Identification,
    Importance,
    Loss,
    State,
    audit,
    identify,
    importance,
)
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import load_activations, save_activations
from aafit.networks.as_modules import like_for_like
from aafit.networks.find import found_in
from aafit.networks.inputs import Batch, Output, as_batch
from aafit.networks.make import Replacement
from aafit.networks.surgery import Sharing, replace_activations
from aafit.studies.forms import Form, Identified, forms
from aafit.studies.inputs import InputsSeen, inputs_seen
from aafit.studies.result import Compared, FoundLayer, Origin, Replacing, Study
from aafit.studies.standing import Standings, standings
from aafit.studies.store import Store, data_fingerprint, study_key, tensors_of
from aafit.training.compare import compare
from aafit.version import __version__

log = logging.getLogger(__name__)

PARTS = ("find", "replace", "inputs", "audit", "importance", "identify", "compare", "forms")
SAMPLE = 256
"""Samples that the fits of the replacements look at."""

Tell = Callable[[str, str], None]
"""Called with the name of a part, and with what is done in it; "" when the part begins."""


def run_study(
    net: nn.Module,
    batches: Iterable[Any],
    replacements: Mapping[Any, Replacement] | None = None,
    *,
    heldout: Iterable[Any] | None = None,
    sharing: Sharing = "layer",
    target: str | None = None,
    loss: Loss | None = None,
    output: Output | None = None,
    steps: int = 30,
    images: int = 1024,
    memory: int = 2 << 30,
    seed: int = 0,
    within: Path | None = None,
    command: str = "",
    begin: Callable[[str], None] = lambda key: None,
    tell: Tell = lambda part, text: None,
) -> Study:
    """The study itself, without a page; see `aafit.study`.

    Args:
        within: the folder in which a folder of each study is kept; None: nothing is kept.
        command: what was called, for the page.
        begin: called with the key of the study before anything is done; may refuse.
        tell: hears of the progress.
    """
    replacements = {"*": FNeuron} if replacements is None else replacements
    fitted = _gathered(batches, "batches", memory)
    judged = fitted if heldout is None else _gathered(heldout, "heldout", memory)
    given = all(batch.target is not None for batch in fitted)
    target = target or ("labels" if given else "logits")
    if target == "labels" and not given:
        raise UserError("The batches hold no labels: give batches of (inputs, labels), or target='logits'.")
    fingerprints = {
        "batches": data_fingerprint(fitted),
        "heldout": None if heldout is None else data_fingerprint(judged),
    }
    arguments = {
        "replacements": replacements,
        "sharing": sharing,
        "target": target,
        "loss": loss,
        "output": output,
        "steps": steps,
        "images": images,
        "seed": seed,
    }
    key = study_key(net, fingerprints, arguments)
    begin(key)
    store = Store(within, key)

    tell("find", "")
    sample = _sample(fitted)
    found = found_in(net, sample)
    tell("replace", "")
    start, replacing = _replaced(net, replacements, sharing, sample, store)
    base = like_for_like(net, start)
    paths = [row.path for row in replacing.rows]
    asked: dict[str, Any] = {"base": None if target == "labels" else base, "output": output, "loss": loss}

    tell("inputs", "")
    seen = store.value("inputs", tuple[InputsSeen, ...], lambda: inputs_seen(base, paths, _first(fitted, images)))
    tell("audit", "")
    audited = store.value("audit", Audit, lambda: audit(start, fitted, images=min(images, 512), **asked))
    tell("importance", "")
    worth = store.value(
        "importance",
        Importance,
        lambda: importance(start, fitted, images=images, **asked),
    )
    tell("identify", "")

    def identified() -> Identified:
        return _identified(start, base, fitted, store, target, loss, output, steps, memory, seed, tell)

    way = store.value("identify", Identified, identified)
    identification = way.result
    tuned = load_identified(start, identification)
    tell("compare", "")
    compared = store.value(
        "compare",
        Compared,
        lambda: Compared(*(compare(base, own, judged, output=output) for own in (start, tuned))),
    )
    ranked = store.value("standings", Standings, lambda: standings(base, start, tuned, judged, loss, output))
    tell("forms", "")
    originals = {path: base.get_submodule(path) for path in paths}
    shapes = store.value(
        "forms",
        tuple[Form, ...],
        lambda: forms(start, originals, way, {row.path: row for row in seen}),
    )
    facts = store.document("origin") or _facts(
        net, fitted, judged, heldout is not None, fingerprints, arguments, command
    )
    store.write_document("origin", facts)
    if store.folder is not None and not (store.folder / "tuned.safetensors").exists():
        save_activations(tuned, store.folder / "tuned.safetensors")
    return Study(
        tuple(map(_plain, found)),
        seen,
        replacing,
        compared,
        ranked,
        audited,
        worth,
        identification,
        shapes,
        Origin({**facts, "study": key}, dict(store.seconds)),
        tuned,
        base,
        folder=store.folder,
    )


def load_identified(start: nn.Module, found: Identification) -> nn.Module:
    """A copy of the network with the identified parameters."""
    tuned = deepcopy(start)
    Coordinates(tuned).write(found.state.vector_P)
    return tuned


def _replaced(
    net: nn.Module, replacements: Mapping[Any, Replacement], sharing: Sharing, sample: Batch, store: Store
) -> tuple[nn.Module, Replacing]:
    """The network as it starts. What an earlier call drew at random is taken from its file."""
    file = None if store.folder is None else store.folder / "start.safetensors"
    made: list[nn.Module] = []

    def find() -> Replacing:
        start, swap = replace_activations(net, replacements, sharing, sample)
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
    start: nn.Module,
    base: nn.Module,
    batches: list[Batch],
    store: Store,
    target: str,
    loss: Loss | None,
    output: Output | None,
    steps: int,
    memory: int,
    seed: int,
    tell: Tell,
) -> Identified:
    document = store.document("identify-state")
    state = None if document is None else State.from_dict(document["state"])
    vectors = [] if document is None else [torch.tensor(row, dtype=torch.float64) for row in document["vectors"]]

    def after_step(now: State) -> None:
        last = now.steps[-1]
        if len(now.steps) > len(vectors):
            vectors.append(now.vector_P.clone())
        state = {"state": now.as_dict(), "vectors": [vector_P.tolist() for vector_P in vectors]}
        store.write_document("identify-state", state)
        tell("identify", f"step {last.number} ({last.phase}): held-out loss {last.heldout_loss:.5g}")

    result = identify(
        deepcopy(start),
        batches,
        base=base,
        target=target,
        loss=loss,
        output=output,
        steps=steps,
        memory=memory,
        seed=seed,
        state=state,
        after_step=after_step,
    )
    return Identified(result, tuple(vectors))


def _gathered(batches: Iterable[Any], what: str, memory: int) -> list[Batch]:
    """All batches, kept, so that each part of the study sees the same.

    Raises:
        UserError: there are none, or they take more than `memory` bytes.
    """
    kept: list[Batch] = []
    taken = 0
    for given in batches:
        batch = as_batch(given)
        if len(batch) == 0:
            continue
        taken += sum(tensor.nbytes for tensor in tensors_of(batch))
        if taken > memory:
            raise UserError(
                f"The {what} take more than {memory / 2**30:.3g} GiB: a study needs a few thousand samples; give "
                "fewer, or a larger memory=."
            )
        kept.append(batch)
    if not kept:
        raise UserError(f"There is nothing to study: the {what} hold no sample.")
    return kept


def _sample(batches: list[Batch]) -> Batch:
    first = _first(batches, SAMPLE)
    return Batch.joined([Batch(batch.args, batch.kwargs) for batch in first[:1]])


def _first(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """The first samples."""
    chosen: list[Batch] = []
    for batch in batches:
        if samples <= 0:
            break
        chosen.append(batch.part(0, samples) if len(batch) > samples else batch)
        samples -= len(chosen[-1])
    return chosen


def _plain(row: Any) -> FoundLayer:
    after = None if row.after is None else " ".join(row.after)
    return FoundLayer(row.path, row.kind, row.line, row.calls, row.shape, after, row.gate)


def _facts(
    net: nn.Module,
    batches: list[Batch],
    judged: list[Batch],
    own: bool,
    fingerprints: Mapping[str, str | None],
    arguments: Mapping[str, Any],
    command: str,
) -> dict[str, str]:
    """How the study came about."""
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    samples = sum(map(len, batches))
    held = f"{sum(map(len, judged)):,} samples, SHA-256 {fingerprints['heldout']}" if own else "the same samples"
    return {
        "command": command,
        "network": f"{type(net).__name__}, {parameters:,} parameters",
        "data": f"{samples:,} samples, SHA-256 {fingerprints['batches']}",
        "judged on": held,
        "arguments": ", ".join(f"{name} = {_short(value)}" for name, value in arguments.items()),
        "aafit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": f"{device_name(device)}, {torch.get_num_threads()} threads",
        "begun": datetime.now(UTC).isoformat(timespec="seconds").replace("T", " ").replace("+00:00", " UTC"),
    }


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    name = getattr(value, "__name__", getattr(value, "name", None))
    return name if isinstance(name, str) else str(value)
