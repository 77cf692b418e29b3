"""Run all analyses of a network's activations in one call: `aafit.study`.

`_run_parts` has the analyses in their order; a part that an earlier call has computed is loaded from the store.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import FNeuron
from aafit.errors import Stopped, UserError, check_count, needs_extra
from aafit.files import as_path
from aafit.identification import Audit, Identification, Importance, State, audit, identify, importance
from aafit.identification.coordinates import Coordinates
from aafit.networks.batches import Batch
from aafit.networks.build import NewActivation
from aafit.networks.find import found_in
from aafit.networks.running import check_network, with_matching_modules
from aafit.networks.saving import load_activations, save_activations
from aafit.networks.surgery import Replaced, Sharings, Skipped, replace_activations
from aafit.progress import progress
from aafit.studies.config import StudyConfig, provenance, study_key
from aafit.studies.families import FamilyComparison, compare_families
from aafit.studies.inputs import InputDistribution, input_distributions
from aafit.studies.result import Study
from aafit.studies.samples import StudySamples, first_samples
from aafit.studies.scores import StudyScores, study_scores
from aafit.studies.shapes import LearnedShape, learned_shapes
from aafit.studies.store import Store
from aafit.training.compare import Comparison, compare
from aafit.training.losses import LossLike
from aafit.training.predictor import Output

log = logging.getLogger(__name__)

PARTS = ("find", "replace", "inputs", "audit", "importance", "identify", "compare", "shapes", "families")
"""The parts in their order, as the progress shows them."""
AUDITED = 512
"""The most samples of the audit."""

ShowPart = Callable[[str, str], None]
"""Called with the name of a part and a description of its step; the description is "" when the part begins."""


def study(
    net: nn.Module,
    batches: Iterable[Any],
    replacements: Mapping[Any, NewActivation] | None = None,
    *,
    heldout: Iterable[Any] | None = None,
    heldout_share: float | None = None,
    sharing: Sharings = "layer",
    target: str | None = None,
    loss: LossLike | None = None,
    output: Output | None = None,
    steps: int = 30,
    samples: int = 1024,
    memory: int = 2 << 30,
    seed: int = 0,
    families: Iterable[Any] | None = None,
    report: str | Path | None = None,
    command: str = "",
    verbose: bool = True,
) -> Study:
    """Run all analyses of a network's activations, and write their page.

    It finds the activations and replaces them, measures the distribution of each one's inputs, audits which parameters
    gradient steps can move, predicts the gain of adapting each layer, identifies all of them by Gauss-Newton, compares
    the base network with the network before and after tuning on held-out samples, and names the known functions that
    are nearest to the learned shapes.

    With a report the parts are saved in a folder beside it, named like the report with the suffix ".parts", in a
    subfolder for each network, data and arguments: the same call again resumes where it stopped.

    Args:
        net: Any network; left unchanged.
        batches: A few thousand samples that the network was not trained on, or augmented ones, in batches of any form.
        replacements: As for `replace_activations`; by default every activation is replaced by an F-Neuron fitted to it.
        heldout: Samples to evaluate on, which take no part in the identification.
        heldout_share: Share of `batches` to hold out if `heldout` is not given; by default 0.2 of 500 samples or more,
            and 0 of fewer. With 0 the networks are evaluated on the fitted samples, and no gain is claimed.
        sharing: As for `replace_activations`: "layer", "channel", "neuron", or a dictionary by key.
        target: As for `identify`; by default "labels" if the batches have them, else "logits".
        loss: As for `identify`.
        output: Selects the output tensor of what the network returns, as `lambda out: out.last_hidden_state`.
        steps: Maximum number of joint steps of the identification.
        samples: Maximum number of samples for input distributions, audit (at most 512), importance, the comparison of
            layers and that of families. The identification uses all.
        memory: Bytes that `batches` may take, and that `heldout` may take.
        seed: Seed of the choice of held-out samples, the order of the samples, and the random probes of the curvature.
        families: Families that are compared in each replaced layer and in all, as for `compare_families`; None: none.
        report: The HTML file to write; None: no page is written and nothing is saved.
        command: The command that the page shows.
        verbose: Whether to show the progress: a bar on a terminal and in a notebook, lines elsewhere.

    Returns:
        The results; prints as a verdict in three sentences and a table of the layers.

    Raises:
        UserError: One of the analyses refuses the arguments (`replace_activations`, `identify`, ...); there are no
            samples, or they exceed `memory`; `report` is not the name of an HTML file, exists and is not the page of
            this study, or cannot be written.
        ImportError: A report is requested, and jinja2 is not installed.
        Stopped: Ctrl-C was pressed; with a report the parts so far are saved.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(64, 4), torch.randint(3, (64,))) for _ in range(8)]
        >>> found = aafit.study(net, batches, {"*": aafit.LEAF}, steps=2)
        >>> [shape.path for shape in found.shapes]
        ['1']
    """
    check_network(net)
    page = None if report is None else as_path(report)
    if page is not None:
        with needs_extra("The page of a study", "plots"):
            from aafit.studies.page import check_page, write_study_page
    check_count("number of samples", samples, least=2)
    check_count("number of steps", steps, least=0)
    data = StudySamples.load(batches, heldout, heldout_share, memory, seed)
    target = target or ("labels" if data.labelled else "logits")
    if target == "labels" and not data.labelled:
        raise UserError("The batches have no labels: give batches of (inputs, labels), or target='logits'.")
    replacements = {"*": FNeuron} if replacements is None else replacements
    compared = None if families is None else tuple(families)
    config = StudyConfig(replacements, sharing, target, loss, output, steps, samples, memory, seed, compared)
    key = study_key(net, data, config)
    if page is not None:
        check_page(page, key)
    store = Store(None if page is None else page.with_suffix(".parts"), key)
    try:
        with _progress(verbose) as show:
            result = _run_parts(net, data, config, store, command, show)
    except KeyboardInterrupt:
        message = (
            "Stopped; nothing was saved. With report= the parts are saved, and the same call resumes."
            if store.folder is None
            else f"Stopped. The same call resumes from {store.folder}."
        )
        raise Stopped(message) from None
    return result if page is None else replace(result, page=write_study_page(result, page))


@contextmanager
def _progress(verbose: bool) -> Iterator[ShowPart]:
    """Show the parts and the steps of the identification; log a line for each part."""
    began = time.perf_counter()
    with progress("study", len(PARTS), verbose) as show:

        def show_part(part: str, step: str) -> None:
            show(PARTS.index(part), f"{part} {step}".rstrip())
            # The identification logs its steps itself.
            if not step:
                log.info("%7.1f s  %s", time.perf_counter() - began, part)

        yield show_part
        show(len(PARTS), "done")
        log.info("%7.1f s  done", time.perf_counter() - began)


def _run_parts(
    net: nn.Module, data: StudySamples, config: StudyConfig, store: Store, command: str, show: ShowPart
) -> Study:
    """Run all parts, or load them from the store."""
    show("find", "")
    found = found_in(net, data.example)
    show("replace", "")
    initial, replaced, skipped = _replaced(net, data, config, store)
    base = with_matching_modules(net, initial)
    labels = config.target == "labels"
    options: dict[str, Any] = {
        "base": None if labels else base,
        "output": config.output,
        "loss": config.loss,
    }
    fitted, evaluated = (first_samples(batches, config.samples) for batches in (data.fitted, data.evaluated))

    show("inputs", "")
    paths = [row.path for row in replaced]
    inputs = store.value("inputs", tuple[InputDistribution, ...], lambda: input_distributions(base, paths, fitted))
    calls = {row.path: number for number, row in enumerate(inputs)}
    replaced = tuple(sorted(replaced, key=lambda row: calls.get(row.path, len(calls))))
    show("audit", "")
    audited = store.value(
        "audit", Audit, lambda: audit(initial, data.fitted, samples=min(config.samples, AUDITED), **options)
    )
    rows = sorted(audited.rows, key=lambda row: calls.get(row.name.rpartition(".")[0], len(calls)))
    show("importance", "")
    expected = store.value(
        "importance", Importance, lambda: importance(initial, data.fitted, samples=config.samples, **options)
    )
    show("identify", "")
    identification, vectors = store.value(
        "identify",
        tuple[Identification, tuple[Tensor, ...]],
        lambda: _identified(initial, base, data, config, store, show),
    )
    tuned = deepcopy(initial)
    Coordinates(tuned).write(identification.state.vector_P)
    if data.heldout:
        identification.check_inputs(tuned, data.heldout)
    show("compare", "")
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
    show("shapes", "")
    shapes = store.value(
        "shapes",
        tuple[LearnedShape, ...],
        lambda: learned_shapes(initial, base, identification, vectors, inputs),
    )
    show("families", "")
    families = None
    if config.families is not None:
        families = store.value("families", FamilyComparison, lambda: _families(net, paths, data, config))
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
    initial: nn.Module | None = None

    def compute() -> tuple[tuple[Replaced, ...], tuple[Skipped, ...]]:
        nonlocal initial
        initial, replacement = replace_activations(net, config.replacements, config.sharing, data.example)
        if file is not None:
            save_activations(initial, file)
        return replacement.rows, replacement.skipped

    rows, skipped = store.value("replace", tuple[tuple[Replaced, ...], tuple[Skipped, ...]], compute)
    if initial is None:
        assert file is not None
        initial = load_activations(net, file)
    return initial, rows, skipped


def _identified(
    initial: nn.Module,
    base: nn.Module,
    data: StudySamples,
    config: StudyConfig,
    store: Store,
    show: ShowPart,
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
            show("identify", f"step {last.number} ({last.phase}): loss {last.loss:.5g}")
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


def _families(net: nn.Module, paths: list[str], data: StudySamples, config: StudyConfig) -> FamilyComparison:
    """Compare the families in the replaced layers, on the samples of the study."""
    return compare_families(
        net,
        data.fitted,
        # Without a held-out set the fitted samples are used, and the comparison reports that.
        heldout=data.heldout or None,
        heldout_share=None if data.heldout else 0.0,
        families=config.families,
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
