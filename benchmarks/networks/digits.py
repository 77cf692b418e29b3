"""A digit recognizer: its ReLUs replaced, compared, tuned, identified, saved and loaded, with its accuracy on
MNIST-5k.

./run_experiment.sh benchmarks/networks/digits.py --json digits.json

Seconds are processor seconds on one thread.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.identification import identify
from aafit.networks.saving import load_activations, save_activations
from aafit.networks.surgery import replace_activations
from aafit.training.compare import compare
from aafit.training.evaluate import evaluate
from aafit.training.precision import arithmetic
from aafit.training.tune import tune
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import adaptive_numbers
from benchmarks.networks.material import digits
from benchmarks.networks.pretrained import digit_cnn

BATCH = 100
Batches = list[tuple[Tensor, Tensor]]

REPLACEMENTS: dict[str, Any] = {
    "LEAF as ReLU": LEAF.like("ReLU"),
    "LEAF as SiLU": LEAF.like("SiLU"),
    "LEAF as Tanh": LEAF.like("Tanh"),
    "AHAF as SiLU": AHAF.like("SiLU"),
    "F-Neuron as Tanh": FNeuron.like("Tanh"),
}


def batches(x_B: Tensor, y_B: Tensor) -> Batches:
    return list(zip(x_B.split(BATCH), y_B.split(BATCH), strict=True))


def same_when_loaded(base: nn.Module, net: nn.Module, x_B: Tensor) -> int:
    """Save the activations, load them onto the base, check that the outputs are equal, and return the size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activations.safetensors"
        save_activations(net, path)
        with torch.inference_mode():
            assert torch.equal(load_activations(base, path)(x_B), net(x_B))
        return path.stat().st_size


def chain(fitted: int, judged: int, epochs: int) -> Iterator[Row]:
    """Return a row for each replacement: accuracy before tuning, tuned, and identified."""
    base = digit_cnn()
    x_B, y_B = digits()
    here = batches(x_B[:fitted], y_B[:fitted])
    other = batches(x_B[fitted : fitted + judged], y_B[fitted : fitted + judged])
    ways: dict[str, Callable[[nn.Module], Any]] = {
        f"tuned, {epochs} epochs": lambda net: tune(net, here, epochs=epochs, lr=1e-2),
        "identified": lambda net: identify(net, here, base=base),
    }
    accuracy = evaluate(base, other).accuracy
    for name, new in REPLACEMENTS.items():
        start, _ = replace_activations(base, {"ReLU": new}, sample=x_B[:BATCH])
        found = compare(base, start, other)
        row: dict[str, Any] = {
            "ReLU replaced by": name,
            "numbers": adaptive_numbers(start),
            "base": f"{accuracy:.2%}",
        }
        row["before tuning"] = f"{found.replaced_accuracy:.2%}"
        for way, adapt in ways.items():
            net = deepcopy(start)
            began = time.process_time()
            adapt(net)
            seconds = time.process_time() - began
            row |= {way: f"{evaluate(net, other).accuracy:.2%}", f"processor s, {way}": round(seconds, 1)}
        yield {**row, "bytes saved": same_when_loaded(base, net, x_B[:BATCH])}


@click.command(cls=Command)
@click.option("--fitted", default=2000, show_default=True, type=click.IntRange(min=BATCH), help="Digits to fit.")
@click.option("--judged", default=3000, show_default=True, type=click.IntRange(min=BATCH), help="Others, to judge.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1), help="Of tuning.")
@json_option
@markdown_option
def main(fitted: int, judged: int, epochs: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """Measure the digit recognizer with other activations."""
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        title = f"The digit recognizer: accuracy on {judged} digits of MNIST-5k that were not fitted"
        out.table(title, chain(fitted, judged, epochs))


if __name__ == "__main__":
    main()
