"""Activations as tables of few segments in 16 bits: replaced, identified without labels, frozen, and in onnxruntime.

./run_experiment.sh benchmarks/networks/few_segments.py --network digits --json few_segments.json

Agreement is that with the base network, on held-out samples. Seconds are processor seconds on one thread.
"""

import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from aafit.activations import PiecewiseLinear
from aafit.identification import identify
from aafit.networks.freeze import freeze_activations
from aafit.networks.segment_table import SegmentTable
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.swapped import NETWORKS, Swapped, load

TURNS = 7


def rows(trial: Swapped, segments: int, bits: int, untuned: bool) -> Iterator[Row]:
    """Return a row for each step."""
    began = time.process_time()
    fit = partial(PiecewiseLinear.fit, segments=segments)
    start, _ = replace_activations(trial.base, {trial.kind: fit}, sample=trial.sample)
    yield _row(trial, f"{segments} segments, just replaced", start, began)
    frozen, _ = freeze_activations(start, "table", trial.sample, segments=segments, bits=bits)
    yield _row(trial, f"just replaced, frozen in {bits} bits", frozen, time.process_time())
    if untuned:
        return
    net, began = deepcopy(start), time.process_time()
    identify(net, trial.fitted, base=trial.base, target="logits", output=trial.output, errors=False)
    yield _row(trial, "identified without labels", net, began)
    began = time.process_time()
    frozen, frozen_report = freeze_activations(net, "table", trial.sample, segments=segments, bits=bits)
    tables = [module for module in frozen.modules() if isinstance(module, SegmentTable)]
    yield {
        **_row(trial, f"identified, frozen in {bits} bits", frozen, began),
        "tables": len(tables),
        "bytes of all tables": sum(module.nbytes for module in tables),
        "largest relative error of a table": f"{max(row.rms for row in frozen_report.rows):.1e}",
    }
    if isinstance(trial.sample, Tensor):
        yield {"network": trial.title, **in_onnxruntime(trial, frozen)}


def _row(trial: Swapped, what: str, net: nn.Module, began: float) -> dict[str, Any]:
    seconds = time.process_time() - began
    return {"network": trial.title, "step": what, **trial.agreement(net), "processor s": round(seconds, 1)}


def in_onnxruntime(trial: Swapped, frozen: nn.Module) -> dict[str, Any]:
    """Return the agreement and the time of the frozen network in onnxruntime, and the size of its file."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions, sizes, plain = {}, {}, True
    with tempfile.TemporaryDirectory() as folder:
        for name, net in {"base": trial.base, "frozen": frozen}.items():
            path = Path(folder) / f"{name}.onnx"
            program = torch.onnx.export(net, (trial.judged[0],), dynamo=True, verbose=False)
            assert program is not None
            plain = plain and {node.domain for node in program.model.graph} == {""}
            program.save(str(path))
            sizes[name] = path.stat().st_size
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [part.numpy() for part in trial.judged if part.shape == trial.judged[0].shape]

    def run(name: str) -> np.ndarray:
        session = sessions[name]
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: x})[0] for x in inputs])

    same = float((run("base").argmax(1) == run("frozen").argmax(1)).mean())
    seconds: dict[str, list[float]] = {"base": [], "frozen": []}
    for _ in range(TURNS):
        for name, taken in seconds.items():
            began = time.process_time()
            run(name)
            taken.append(time.process_time() - began)
    ratio = median(after / before for before, after in zip(seconds["base"], seconds["frozen"], strict=True))
    return {
        "step": f"in onnxruntime, {'plain' if plain else 'other'} operators",
        "same top-1": f"{same:.1%}",
        "time over the base network's": f"{ratio:.2f}",
        "bytes of the file over the base network's": f"{sizes['frozen'] / sizes['base']:.3f}",
    }


@click.command(cls=Command)
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), help="Networks [default: all].")
@click.option("--segments", default=8, show_default=True, type=click.IntRange(1, 64), help="Segments of a table.")
@click.option("--bits", default=16, show_default=True, type=click.IntRange(4, 16), help="Bits of an entry.")
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=100), help="Samples to fit.")
@click.option("--judged", default=1000, show_default=True, type=click.IntRange(min=100), help="Held-out samples.")
@click.option("--untuned", is_flag=True, help="Leave out the identification and onnxruntime.")
@json_option
@markdown_option
def main(
    networks: tuple[str, ...],
    segments: int,
    bits: int,
    fitted: int,
    judged: int,
    untuned: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure networks with activations from small tables."""
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        for name in networks or NETWORKS:
            trial = load(name, fitted, judged)
            out.table(
                f"{trial.title}: {segments} segments a layer, {fitted} samples", rows(trial, segments, bits, untuned)
            )


if __name__ == "__main__":
    main()
