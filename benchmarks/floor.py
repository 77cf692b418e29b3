"""Measure a lower bound of a training step: only the convolutions and matrix products that KerasNet needs.

./run_experiment.sh benchmarks/floor.py --precision bf16

Each product is timed separately, as fast as torch computes it, in as many processes side by side as the program would
start.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

from aafit.experiment.devices import slots
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Row, device_option, json_option, report, side_by_side, synchronise

CLASSES, FEATURES, FLATTENED = 10, 512, 2304


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of `side` x `side` pixels, or a matrix product if `side` is 0."""

    name: str
    inputs: int
    outputs: int
    side: int | None = None
    padding: int = 0

    def products(self) -> int:
        """Return the multiplications for one image."""
        if self.side is None:
            return self.inputs * self.outputs
        return 9 * self.inputs * self.outputs * (self.side - 2 + 2 * self.padding) ** 2


LAYERS = (
    Layer("conv1", 3, 32, 32, 1),
    Layer("conv2", 32, 32, 32),
    Layer("conv4", 32, 64, 15, 1),
    Layer("conv5", 64, 64, 15),
    Layer("fc7", FLATTENED, FEATURES),
    Layer("fc8", FEATURES, CLASSES),
)
FORWARD, DATA, WEIGHTS = "forward", "data gradient", "weight gradient"


def needed(kind: str) -> list[tuple[str, str]]:
    """Return the (layer, pass) pairs that a training step of a kind of run needs."""
    names = [layer.name for layer in LAYERS]
    passes = [(name, FORWARD) for name in names]
    if kind.startswith("F-Neuron"):
        return [*passes, ("fc8", DATA)]
    passes += [(name, DATA) for name in names[1:]]
    return passes + [(name, WEIGHTS) for name in names] if kind.startswith("base") else passes


@dataclass(frozen=True)
class Floor:
    """Seconds of each (layer, pass) for one batch, measured with all slots of the machine busy."""

    batch_size: int
    seconds: dict[tuple[str, str], float]

    def step(self, kind: str, lockstep: int = 1) -> float:
        """Return the lower bound of the seconds of a step; in lockstep, the average for one run."""
        return sum(self.seconds[part] / runs for part, runs in _shared(kind, lockstep))

    def operations(self, kind: str, lockstep: int = 1) -> float:
        """Return the floating-point operations of that lower bound."""
        products = {layer.name: layer.products() for layer in LAYERS}
        return 2.0 * self.batch_size * sum(products[name] / runs for (name, _), runs in _shared(kind, lockstep))


def _shared(kind: str, lockstep: int) -> list[tuple[tuple[str, str], int]]:
    """Return each needed (layer, pass) with the number of runs in lockstep that share it."""
    own = LAYERS[-1].name
    return [(part, lockstep if kind.startswith("F-Neuron") and part[0] != own else 1) for part in needed(kind)]


def measure_floor(batch_size: int, precision: str, device: str, repeats: int = 5) -> tuple[Floor, int]:
    """Measure the lower bound, and return it with the number of processes side by side."""
    places = slots(device)
    out = {"batch_size": batch_size, "precision": precision, "repeats": repeats}
    results = side_by_side("benchmarks.floor:passes", places, [out] * len(places))
    keys = [(name, what) for name, what, _ in results[0]]
    values = [median(result[at][2] for result in results) for at in range(len(keys))]
    return Floor(batch_size, dict(zip(keys, values, strict=True))), len(places)


def passes(
    batch_size: int, precision: str, repeats: int, device: str, threads: int | None
) -> list[tuple[str, str, float]]:
    """Return the median seconds of each (layer, pass) over repetitions."""
    at = torch.device(device)
    rows = []
    with arithmetic(precision, threads):
        for layer in LAYERS:
            run = _passes_of(layer, batch_size, torch.bfloat16 if precision == "bf16" else torch.float32, at)
            for name, function in run.items():
                function()
                times = []
                for _ in range(repeats):
                    synchronise(at)
                    began = time.perf_counter()
                    function()
                    synchronise(at)
                    times.append(time.perf_counter() - began)
                rows.append((layer.name, name, median(times)))
    return rows


def _passes_of(layer: Layer, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    def noise(*shape: int) -> Tensor:
        tensor = torch.randn(shape, device=device).to(dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    if layer.side is None:
        x_BF, weight_GF = noise(batch_size, layer.inputs), noise(layer.outputs, layer.inputs)
        grad_BG = noise(batch_size, layer.outputs)
        return {
            FORWARD: lambda: x_BF @ weight_GF.T,
            DATA: lambda: grad_BG @ weight_GF,
            WEIGHTS: lambda: grad_BG.T @ x_BF,
        }
    x_BCHW = noise(batch_size, layer.inputs, layer.side, layer.side)
    weight = noise(layer.outputs, layer.inputs, 3, 3)
    padding = [layer.padding] * 2
    grad_BDHW = torch.empty_like(torch.nn.functional.conv2d(x_BCHW, weight, padding=padding)).normal_()

    def backward(mask: list[bool]) -> None:
        torch.ops.aten.convolution_backward(
            grad_BDHW, x_BCHW, weight, [0], [1, 1], padding, [1, 1], False, [0, 0], 1, mask
        )

    return {
        FORWARD: lambda: torch.nn.functional.conv2d(x_BCHW, weight, padding=padding),
        DATA: lambda: backward([True, False, False]),
        WEIGHTS: lambda: backward([False, True, False]),
    }


@click.command(cls=Command)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bf16"]))
@device_option
@json_option
def main(batch_size: int, precision: str, device: str, json_path: Path | None) -> None:
    """Measure the milliseconds of each layer's products for a batch, forward and backward."""
    with report(json_path) as out:
        floor, processes = measure_floor(batch_size, precision, device)
        rows: list[Row] = [
            {"layer": layer.name, **{what: 1e3 * floor.seconds[layer.name, what] for what in (FORWARD, DATA, WEIGHTS)}}
            for layer in LAYERS
        ]
        out.table(f"ms for {batch_size} images, {precision}, {processes} processes side by side", rows)


if __name__ == "__main__":
    main()
