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

from aafit.errors import needs_extra
from aafit.identification import Loss
from aafit.networks.inputs import Output
from aafit.networks.make import Replacement
from aafit.networks.surgery import Sharing
from aafit.studies.parts import PARTS, Tell, run_study
from aafit.studies.result import Study

log = logging.getLogger(__name__)


def study(
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
        images: samples that histograms, audit and importance look at.
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
    path = None if report is None else Path(report)
    if path is not None:
        with needs_extra("The page of a study", "plots"):
            from aafit.studies.page import check_page, write_study_page
    with _progress() as tell:
        found = run_study(
            net,
            batches,
            replacements,
            heldout=heldout,
            sharing=sharing,
            target=target,
            loss=loss,
            output=output,
            steps=steps,
            images=images,
            memory=memory,
            seed=seed,
            within=None if path is None else path.with_suffix(".parts"),
            command=command,
            begin=lambda key: None if path is None else check_page(path, key),
            tell=tell,
        )
    return found if path is None else replace(found, page=write_study_page(found, path))


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal that rich can draw on; a line of the log for each part, and each of its steps, elsewhere."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        began = time.perf_counter()
        yield lambda part, text: log.info(
            "%7.1f s  %s", time.perf_counter() - began, f"{part}: {text}" if text else part
        )
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns) as bars:
        task = bars.add_task("study", total=len(PARTS), text="")

        def tell(part: str, text: str) -> None:
            bars.update(task, description=part, completed=PARTS.index(part), text=text)

        yield tell
        bars.update(task, description="done", completed=len(PARTS), text="")
