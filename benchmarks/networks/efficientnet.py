"""EfficientNet-Lite0, ImageNet: its 33 calls of ReLU6 replaced, fitted, tuned and identified, by layer and by channel.

./run_experiment.sh benchmarks/networks/efficientnet.py --json efficientnet.json

One ReLU6 module serves several calls of a block; each call gets an activation of its own. The fitted and the held-out
patches are from different photographs. Tuning and identification match the base's logits or activations, without
labels. Seconds are processor seconds on one thread.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.identification import identify
from aafit.networks.select import Sharing
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from aafit.training.tune import tune
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import SameClasses, adaptive_numbers
from benchmarks.networks.material import fitted_and_judged_patches
from benchmarks.networks.pretrained import efficientnet_lite0

BATCH = 8
REPLACEMENTS: dict[str, Any] = {
    "LEAF": LEAF,
    "AHAF": AHAF,
    "F-Neuron, 18 knots": partial(FNeuron.fit, knots=18),
    "F-Neuron, 34 knots": partial(FNeuron.fit, knots=34),
    "F-Neuron, ReLU6 between -3 and 9, 17 knots": FNeuron.like(torch.nn.functional.relu6, interval=(-3, 9), knots=17),
}
SHARINGS: tuple[Sharing, ...] = ("layer", "channel")


def outputs(net: nn.Module, x_B: Tensor) -> Tensor:
    """Return the logits, (B, 1000)."""
    with torch.inference_mode():
        return torch.cat([net(part) for part in x_B.split(BATCH)])


class Trial:
    """The base network, patches to fit, and held-out patches."""

    def __init__(self, fitted: int, judged: int) -> None:
        self.base = efficientnet_lite0()
        self.here, self.other = fitted_and_judged_patches(fitted, judged)
        self.before = outputs(self.base, self.other)

    def row(self, name: str, sharing: Sharing, net: nn.Module, seconds: float) -> Row:
        kept = SameClasses.of(self.before, outputs(net, self.other)).row()
        numbers: dict[str, Any] = {"ReLU6 replaced by": name, "sharing": sharing, "numbers": adaptive_numbers(net)}
        return {**numbers, **kept, "processor s": round(seconds, 1)}


def untuned(trial: Trial, sharings: Sequence[Sharing]) -> Iterator[Row]:
    """Return a row for each family fitted to ReLU6. Restored, the logits must be bit-identical to the base's."""
    for name, new in REPLACEMENTS.items():
        for sharing in sharings:
            began = time.process_time()
            net, swap = replace_activations(trial.base, {"ReLU6": new}, sharing=sharing, sample=trial.here)
            yield trial.row(name, sharing, net, time.process_time() - began)
            assert torch.equal(outputs(swap.restore(net), trial.other[:BATCH]), trial.before[:BATCH])


def brought_back(trial: Trial, sharings: Sequence[Sharing], epochs: int) -> Iterator[Row]:
    """Return the rows of LEAF as ReLU, unbounded where ReLU6 is flat: before tuning, tuned, and identified."""
    batches = list(trial.here.split(BATCH))
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "before tuning": lambda net: None,
        f"tuned, {epochs} epochs at 0.01": lambda net: tune(net, batches, epochs=epochs, lr=1e-2, base=trial.base),
    }
    identified = partial(identify, batches=batches, base=trial.base, errors=False)
    ways["identified, activations"] = partial(identified, target="activations")
    ways["identified, logits"] = partial(identified, target="logits")
    # The mean of the prior is the LEAF nearest to ReLU6, which is not near: a row without the prior shows its effect.
    ways["identified, logits, prior=None"] = partial(identified, target="logits", prior=None)
    for sharing in sharings:
        start, _ = replace_activations(trial.base, {"ReLU6": LEAF.like("ReLU")}, sharing=sharing, sample=trial.here)
        for way, adapt in ways.items():
            net = deepcopy(start)
            began = time.process_time()
            adapt(net)
            yield trial.row(f"LEAF as ReLU, {way}", sharing, net, time.process_time() - began)


@click.command(cls=Command)
@click.option("--fitted", default=32, show_default=True, type=click.IntRange(min=2), help="Patches to fit.")
@click.option("--judged", default=64, show_default=True, type=click.IntRange(min=2), help="Others, to judge.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(min=1), help="Of tuning.")
@click.option("--part", type=click.Choice(["untuned", "adapted"]), help="Do this alone.")
@click.option("--sharing", type=click.Choice(SHARINGS), help="Do this alone.")
@json_option
@markdown_option
def main(
    fitted: int,
    judged: int,
    epochs: int,
    part: str | None,
    sharing: Sharing | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure EfficientNet-Lite0 with other activations."""
    sharings = SHARINGS if sharing is None else (sharing,)
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        trial = Trial(fitted, judged)
        if part != "adapted":
            rows = untuned(trial, sharings)
            out.table("EfficientNet-Lite0 on patches of photographs that were not fitted, untuned", rows)
            out.note("Each replaced network was restored, and then gave the base's logits to the last bit.")
        if part != "untuned":
            rows = brought_back(trial, sharings, epochs)
            out.table("EfficientNet-Lite0, LEAF as ReLU brought back without labels", rows)


if __name__ == "__main__":
    main()
