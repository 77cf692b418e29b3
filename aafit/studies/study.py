"""Run all analyses of a network's activations in one call: `aafit.study`. The analyses are in parts.py."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from aafit.activations import FNeuron
from aafit.errors import Stopped, UserError, check_count, needs_extra
from aafit.files import as_path
from aafit.networks.batches import Output
from aafit.networks.build import NewActivation
from aafit.networks.running import check_network
from aafit.networks.surgery import Sharings
from aafit.progress import progress
from aafit.studies.config import StudyConfig
from aafit.studies.parts import PARTS, ProgressCallback, run_parts
from aafit.studies.result import Study
from aafit.studies.samples import StudySamples
from aafit.studies.store import Store, study_key
from aafit.training.losses import LossLike

log = logging.getLogger(__name__)


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
    config = StudyConfig(replacements, sharing, target, loss, output, steps, samples, memory, seed)
    if families is not None:
        config = replace(config, families=tuple(families))
    key = study_key(net, data, config)
    if page is not None:
        check_page(page, key)
    store = Store(None if page is None else page.with_suffix(".parts"), key)
    try:
        with _progress(verbose) as show:
            found = run_parts(net, data, config, store, command, show)
    except KeyboardInterrupt:
        kept = (
            "Stopped; nothing was saved. With report= the parts are saved, and the same call resumes."
            if store.folder is None
            else f"Stopped. The same call resumes from {store.folder}."
        )
        raise Stopped(kept) from None
    return found if page is None else replace(found, page=write_study_page(found, page))


@contextmanager
def _progress(verbose: bool) -> Iterator[ProgressCallback]:
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
