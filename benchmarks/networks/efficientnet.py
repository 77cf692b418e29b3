"""EfficientNet-Lite0, ImageNet: its 33 calls of ReLU6 replaced and fitted on photographs, by layer and by channel.

./run_experiment.sh benchmarks/networks/efficientnet.py --json efficientnet.json

One ReLU6 module serves several places of a block here; each gets an activation of its own. The patches to fit and those
to judge are from different photographs.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.networks.surgery import Sharing, replace_activations
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import SameClasses, adaptive_numbers
from benchmarks.networks.material import fitted_and_judged_patches
from benchmarks.networks.pretrained import efficientnet_lite0

BATCH = 8
REPLACEMENTS: dict[str, Any] = {
    "LEAF": LEAF,
    "AHAF": AHAF,
    "F-Neuron, 16 pieces": partial(FNeuron.fit, pieces=16),
    "F-Neuron, 32 pieces": partial(FNeuron.fit, pieces=32),
    "F-Neuron, ReLU6 between -3 and 9, 15 pieces": FNeuron.like(torch.nn.functional.relu6, interval=(-3, 9), pieces=15),
}
SHARINGS: tuple[Sharing, ...] = ("layer", "channel")


def outputs(net: nn.Module, x_B: Tensor) -> Tensor:
    """The logits (B, 1000)."""
    with torch.inference_mode():
        return torch.cat([net(part) for part in x_B.split(BATCH)])


@click.command(cls=Command)
@click.option("--fitted", default=32, show_default=True, type=click.IntRange(min=2), help="Patches to fit.")
@click.option("--judged", default=64, show_default=True, type=click.IntRange(min=2), help="Others, to judge.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@json_option
@markdown_option
def main(fitted: int, judged: int, threads: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """EfficientNet-Lite0 with other activations."""
    with report(json_path, markdown_path) as told, arithmetic("float32", threads):
        base = efficientnet_lite0()
        here, other = fitted_and_judged_patches(fitted, judged)
        before = outputs(base, other)
        rows: list[Row] = []
        for name, new in REPLACEMENTS.items():
            for sharing in SHARINGS:
                began = time.perf_counter()
                net, swap = replace_activations(base, {"ReLU6": new}, sharing=sharing, sample=here)
                seconds = time.perf_counter() - began
                kept = SameClasses.of(before, outputs(net, other))
                numbers = {"places": len(swap.rows), "numbers": adaptive_numbers(net)}
                row = {"ReLU6 replaced by": name, "sharing": sharing, **numbers, **kept.row()}
                rows.append({**row, "seconds to replace": round(seconds, 1)})
                assert torch.equal(outputs(swap.restore(net), other[:BATCH]), before[:BATCH])
        told.table("EfficientNet-Lite0 on patches of photographs that were not fitted, untuned", rows)
        told.say("Each replaced network was restored, and then gave the base's logits to the last bit.")


if __name__ == "__main__":
    main()
