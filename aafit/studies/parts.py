"""Run the parts of a study in their order; a part that an earlier call has computed is loaded from the store."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aafit.identification import Audit, Identification, Importance, State, audit, identify, importance
from aafit.identification.coordinates import Coordinates
from aafit.networks.adaptive import load_activations, save_activations
from aafit.networks.batches import Batch
from aafit.networks.find import found_in
from aafit.networks.surgery import Replaced, Skipped, replace_activations, with_matching_modules
from aafit.studies.config import StudyConfig, provenance
from aafit.studies.families import FamilyComparison, compare_families
from aafit.studies.inputs import InputDistribution, input_distributions
from aafit.studies.result import Study
from aafit.studies.samples import StudySamples, first_samples
from aafit.studies.scores import StudyScores, study_scores
from aafit.studies.shapes import LearnedShape, learned_shapes
from aafit.studies.store import Store
from aafit.training.compare import Comparison, compare

PARTS = ("find", "replace", "inputs", "audit", "importance", "identify", "compare", "shapes", "families")
AUDITED = 512
"""The most samples of the audit."""

ProgressCallback = Callable[[str, str], None]
"""Called with the name of a part and a description of its step; the description is "" when the part begins."""


def run_parts(
    net: nn.Module, data: StudySamples, config: StudyConfig, store: Store, command: str, progress: ProgressCallback
) -> Study:
    """Run all parts, or load them from the store.

    Args:
        net: The network; left unchanged.
        data: The samples.
        config: The settings.
        store: Saves and loads the parts.
        command: The command of the study, for the page.
        progress: Called at the beginning of each part and after each step of the identification.

    Raises:
        UserError: A saved part is damaged or cannot be written, or one of the analyses refuses the arguments.
    """
    progress("find", "")
    found = found_in(net, data.example)
    progress("replace", "")
    initial, replaced, skipped = _replaced(net, data, config, store)
    base = with_matching_modules(net, initial)
    labels = config.target == "labels"
    options: dict[str, Any] = {
        "base": None if labels else base,
        "output": config.output,
        "loss": config.loss,
    }
    fitted, evaluated = (first_samples(batches, config.samples) for batches in (data.fitted, data.evaluated))

    progress("inputs", "")
    paths = [row.path for row in replaced]
    inputs = store.value("inputs", tuple[InputDistribution, ...], lambda: input_distributions(base, paths, fitted))
    calls = {row.path: number for number, row in enumerate(inputs)}
    replaced = tuple(sorted(replaced, key=lambda row: calls.get(row.path, len(calls))))
    progress("audit", "")
    audited = store.value(
        "audit", Audit, lambda: audit(initial, data.fitted, samples=min(config.samples, AUDITED), **options)
    )
    rows = sorted(audited.rows, key=lambda row: calls.get(row.name.rpartition(".")[0], len(calls)))
    progress("importance", "")
    expected = store.value(
        "importance", Importance, lambda: importance(initial, data.fitted, samples=config.samples, **options)
    )
    progress("identify", "")
    identification, vectors = store.value(
        "identify",
        tuple[Identification, tuple[Tensor, ...]],
        lambda: _identified(initial, base, data, config, store, progress),
    )
    tuned = deepcopy(initial)
    Coordinates(tuned).write(identification.state.vector_P)
    if data.heldout:
        identification.check_inputs(tuned, data.heldout)
    progress("compare", "")
    # On labels the networks are compared by the loss of the identification, otherwise by the default for the targets.
    loss = (config.loss or "cross-entropy") if labels else None
    if not labels and not all(batch.target is None or _has_classes(batch) for batch in evaluated):
        evaluated = [batch.without_target() for batch in evaluated]
    comparisons = store.value(
        "compare",
        tuple[Comparison, Comparison],
        lambda: (
            compare(base, initial, evaluated, output=config.output, loss=loss),
            compare(base, tuned, evaluated, output=config.output, loss=loss),
        ),
    )
    scores = store.value(
        "scores",
        StudyScores,
        lambda: study_scores(base, initial, tuned, data.evaluated, bool(data.heldout), loss, config.output),
    )
    progress("shapes", "")
    shapes = store.value(
        "shapes",
        tuple[LearnedShape, ...],
        lambda: learned_shapes(initial, base, identification, vectors, inputs),
    )
    progress("families", "")
    families = None
    if config.families is not None:
        compared = config.families
        families = store.value("families", FamilyComparison, lambda: _families(net, paths, compared, data, config))
    facts = store.value("provenance", dict[str, str], lambda: provenance(net, data, config, command))
    if store.folder is not None and not (store.folder / "tuned.safetensors").exists():
        save_activations(tuned, store.folder / "tuned.safetensors")
    return Study(
        found=tuple(sorted(found, key=lambda row: calls.get(row.path, len(calls)))),
        replaced=replaced,
        skipped=skipped,
        inputs=inputs,
        audit=replace(audited, rows=tuple(rows)),
        importance=expected,
        identification=identification,
        initial=comparisons[0],
        tuned=comparisons[1],
        scores=scores,
        shapes=shapes,
        provenance={**facts, "study": store.key},
        seconds={name: seconds for name, seconds in store.seconds.items() if seconds},
        families=families,
        net=tuned,
        base=base,
        folder=store.folder,
    )


def _replaced(
    net: nn.Module, data: StudySamples, config: StudyConfig, store: Store
) -> tuple[nn.Module, tuple[Replaced, ...], tuple[Skipped, ...]]:
    """Return the network before tuning, the replaced and the skipped activations.

    The initial parameters of an earlier call are loaded from its file, because they may have been drawn at random.
    """
    file = None if store.folder is None else store.folder / "start.safetensors"
    made: list[nn.Module] = []

    def compute() -> tuple[tuple[Replaced, ...], tuple[Skipped, ...]]:
        initial, replacement = replace_activations(net, config.replacements, config.sharing, data.example)
        if file is not None:
            save_activations(initial, file)
        made.append(initial)
        return replacement.rows, replacement.skipped

    rows, skipped = store.value("replace", tuple[tuple[Replaced, ...], tuple[Skipped, ...]], compute)
    if not made:
        assert file is not None
        made.append(load_activations(net, file))
    return made[0], rows, skipped


def _identified(
    initial: nn.Module,
    base: nn.Module,
    data: StudySamples,
    config: StudyConfig,
    store: Store,
    progress: ProgressCallback,
) -> tuple[Identification, tuple[Tensor, ...]]:
    """Identify, or resume a stopped identification; return the result and the coordinates after each step."""
    state, vectors = store.read("identify-state", tuple[State, tuple[Tensor, ...]]) or (None, ())
    trajectory = list(vectors)

    def after_step(now: State) -> None:
        if len(now.steps) > len(trajectory):
            # If one call adds several steps, only the coordinates after the last one are known.
            unknown = torch.full_like(now.vector_P, torch.nan)
            trajectory.extend([unknown] * (len(now.steps) - len(trajectory) - 1))
            trajectory.append(now.vector_P.clone())
            last = now.steps[-1]
            progress("identify", f"step {last.number} ({last.phase}): loss {last.loss:.5g}")
        store.write("identify-state", (now, tuple(trajectory)))

    result = identify(
        deepcopy(initial),
        data.fitted,
        base=base,
        target=config.target,
        loss=config.loss,
        output=config.output,
        steps=config.steps,
        # The study evaluates the result on its own held-out set.
        heldout=0.0 if data.heldout else None,
        memory=config.memory,
        seed=config.seed,
        state=state,
        after_step=after_step,
        verbose=False,
    )
    return result, tuple(trajectory)


def _families(
    net: nn.Module, paths: list[str], families: tuple[Any, ...], data: StudySamples, config: StudyConfig
) -> FamilyComparison:
    """Compare the families in the replaced layers, on the samples of the study."""
    return compare_families(
        net,
        data.fitted,
        # Without a held-out set the fitted samples are used, and the comparison reports that.
        heldout=data.heldout or None,
        heldout_share=None if data.heldout else 0.0,
        families=families,
        layers=paths,
        # A sharing by key refers to the keys of the replacements, and families are not replaced by those keys.
        sharing=config.sharing if isinstance(config.sharing, str) else "layer",
        target=config.target,
        loss=config.loss,
        output=config.output,
        samples=config.samples,
        memory=config.memory,
        seed=config.seed,
        verbose=False,
    )


def _has_classes(batch: Batch) -> bool:
    return isinstance(batch.target, Tensor) and not batch.target.is_floating_point()
