"""`aafit.study`: the study of a network, its progress on a terminal or in a log, and its page."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from aafit.activations import FNeuron
from aafit.errors import UserError, needs_extra
from aafit.networks.batches import Output
from aafit.networks.build import NewActivation
from aafit.networks.surgery import Sharing
from aafit.studies.asked import LossGiven, StudyConfig
from aafit.studies.parts import PARTS, ProgressCallback, run_parts
from aafit.studies.result import Study
from aafit.studies.samples import Samples
from aafit.studies.store import Store, study_key

log = logging.getLogger(__name__)


def study(
    net: nn.Module,
    batches: Iterable[Any],
    replacements: Mapping[Any, NewActivation] | None = None,
    *,
    heldout: Iterable[Any] | None = None,
    sharing: Sharing = "layer",
    target: str | None = None,
    loss: LossGiven | None = None,
    output: Output | None = None,
    steps: int = 30,
    images: int = 1024,
    memory: int = 2 << 30,
    seed: int = 0,
    report: str | Path | None = None,
    command: str = "",
) -> Study:
    """All that can be asked of the activations of a network, in one call and on one page.

    It finds them, replaces them, looks at what each receives, audits what an optimizer could move, predicts what each
    layer is worth, identifies them by Gauss-Newton, compares base, replaced and tuned network, and names the known
    functions that the forms are nearest to. With a report every part is kept in the folder "<report>.parts" beside it,
    in a folder of its own for each network, data and arguments: the same call again goes on where it stopped.

    Args:
        net: any network; left as it was.
        batches: a few thousand samples that it was not trained on, or augmented ones, in batches of any form.
        replacements: as for `replace_activations`; by default every activation by an F-Neuron that is fitted to it.
        heldout: samples to judge on; by default those of `batches`, which is kind to the tuned network.
        sharing: what has parameters of its own: "layer", "channel" or "neuron".
        target: as for `identify`; by default "labels" where the batches have them, else "logits".
        loss: as for `identify`.
        output: which tensor is meant of what the network returns, as `lambda out: out.last_hidden_state`.
        steps: of the identification, at most.
        images: samples that histograms, audit, importance and the comparison of layers look at.
        memory: bytes that the batches may take.
        seed: of the order of the samples and the random columns of the curvature.
        report: the HTML file to write; None: no page is written and nothing is kept.
        command: what the page says was called.

    Returns:
        The results; prints as a verdict in three sentences and a table of the layers.

    Raises:
        UserError: what its parts refuse (`replace_activations`, `identify`, ...); no samples, or too many for the
            memory; `report` is there and is not the page of this study, or cannot be written to.
        ImportError: a report is asked for, and jinja2 is not installed.
    """
    page = None if report is None else Path(report)
    if page is not None:
        with needs_extra("The page of a study", "plots"):
            from aafit.studies.page import check_page, write_study_page
    samples = Samples.gathered(batches, heldout, memory)
    target = target or ("labels" if samples.labelled else "logits")
    if target == "labels" and not samples.labelled:
        raise UserError("The batches hold no labels: give batches of (inputs, labels), or target='logits'.")
    asked = StudyConfig(
        {"*": FNeuron} if replacements is None else replacements,
        sharing,
        target,
        loss,
        output,
        steps,
        images,
        memory,
        seed,
    )
    key = study_key(net, samples, asked)
    if page is not None:
        check_page(page, key)
    store = Store(None if page is None else page.with_suffix(".parts"), key)
    with _progress() as tell:
        found = run_parts(net, samples, asked, store, command, tell)
    return found if page is None else replace(found, page=write_study_page(found, page))


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """A bar on a terminal that rich can draw on; elsewhere a line of the log for each part, and what the parts log."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        began = time.perf_counter()

        def line(part: str, step: str) -> None:
            # The identification logs its steps itself.
            if not step:
                log.info("%7.1f s  %s", time.perf_counter() - began, part)

        yield line
        log.info("%7.1f s  done", time.perf_counter() - began)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[step]}"))
    with _silent(logging.getLogger("aafit")), Progress(*columns) as bars:
        task = bars.add_task("", total=len(PARTS), step="")

        def show(part: str, step: str) -> None:
            bars.update(task, description=part, completed=PARTS.index(part), step=step)

        yield show
        bars.update(task, description="done", completed=len(PARTS), step="")


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Without its plain lines, which would break a bar."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
