"""Activations as tables of few segments in 16 bits: replaced, identified without labels, frozen, and in onnxruntime.

./run_experiment.sh benchmarks/networks/few_segments.py --network digits --json few_segments.json

Agreement is that with the base network, on held-out samples. Seconds are processor seconds on one thread.
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import click
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
ALL = (*NETWORKS, "efficientnet")


def rows(trial: Swapped, segments: int, bits: int, steps: int, untuned: bool, made: list[nn.Module]) -> Iterator[Row]:
    """Return a row for each step, and add the last network to `made`."""
    began = time.process_time()
    fit = partial(PiecewiseLinear.fit, segments=segments)
    net, _ = replace_activations(trial.base, {trial.kind: fit}, sample=trial.sample)
    yield _row(trial, f"{segments} segments, before tuning", net, began)
    frozen, row = _frozen(trial, net, "before tuning", segments, bits)
    yield row
    if untuned:
        made.append(frozen)
        return
    began = time.process_time()
    options: dict[str, Any] = {"base": trial.base, "output": trial.output, "steps": steps, "errors": False}
    identify(net, trial.fitted, target=trial.target, **options)
    yield _row(trial, f"identified without labels, target {trial.target}", net, began)
    frozen, row = _frozen(trial, net, "identified", segments, bits)
    yield row
    made.append(frozen)


def _frozen(trial: Swapped, net: nn.Module, what: str, segments: int, bits: int) -> tuple[nn.Module, Row]:
    began = time.process_time()
    frozen, frozen_report = freeze_activations(net, "table", trial.sample, segments=segments, bits=bits)
    size = sum(module.nbytes for module in frozen.modules() if isinstance(module, SegmentTable))
    error = max(row.rms for row in frozen_report.rows)
    return frozen, _row(trial, f"{what}, frozen in {bits} bits", frozen, began, size, f"{error:.1e}")


def _row(
    trial: Swapped, what: str, net: nn.Module, began: float, size: int | None = None, error: str | None = None
) -> Row:
    seconds = time.process_time() - began
    cells: dict[str, Any] = {"step": what, **trial.agreement(net)}
    return {**cells, "bytes of all tables": size, "largest error of a table": error, "processor s": round(seconds, 1)}


def in_onnxruntime(trial: Swapped, frozen: nn.Module) -> dict[str, Any]:
    """Return the agreement and the time of the frozen network in onnxruntime, and the size of its file."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions, sizes, plain, batches = {}, {}, True, trial.judged_tensors
    with tempfile.TemporaryDirectory() as folder:
        for name, net in {"base": trial.base, "frozen": frozen}.items():
            path = Path(folder) / f"{name}.onnx"
            program = torch.onnx.export(trial.as_exported(net), batches[0], dynamo=True, verbose=False)
            assert program is not None
            plain = plain and {node.domain for node in program.model.graph} == {""}
            program.save(str(path))
            sizes[name] = path.stat().st_size
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [[part.numpy() for part in batch] for batch in batches if batch[0].shape == batches[0][0].shape]

    def run(name: str) -> Tensor:
        session = sessions[name]
        names = [given.name for given in session.get_inputs()]
        return torch.cat([torch.from_numpy(session.run(None, dict(zip(names, x, strict=True)))[0]) for x in inputs])

    same = trial.judge(run("base"), run("frozen"))
    seconds: dict[str, list[float]] = {"base": [], "frozen": []}
    for _ in range(TURNS):
        for name, taken in seconds.items():
            began = time.process_time()
            run(name)
            taken.append(time.process_time() - began)
    ratio = median(after / before for before, after in zip(seconds["base"], seconds["frozen"], strict=True))
    return {
        "operators": "plain" if plain else "other",
        **same,
        "time over the base network's": f"{ratio:.2f}",
        "bytes of the file over the base network's": f"{sizes['frozen'] / sizes['base']:.3f}",
    }


@click.command(cls=Command)
@click.option("--network", "networks", multiple=True, type=click.Choice(ALL), help="Networks [default: all].")
@click.option("--segments", default=8, show_default=True, type=click.IntRange(1, 64), help="Segments of a table.")
@click.option("--bits", default=16, show_default=True, type=click.IntRange(4, 16), help="Bits of an entry.")
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=8), help="Samples to fit.")
@click.option("--judged", default=1000, show_default=True, type=click.IntRange(min=8), help="Held-out samples.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(min=1), help="Joint steps, at most.")
@click.option("--untuned", is_flag=True, help="Leave out the identification.")
@json_option
@markdown_option
def main(
    networks: tuple[str, ...],
    segments: int,
    bits: int,
    fitted: int,
    judged: int,
    steps: int,
    untuned: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure networks with activations from small tables."""
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        for name in networks or ALL:
            trial = load(name, fitted, judged)
            made: list[nn.Module] = []
            title = f"{trial.title}: {segments} segments a layer, {fitted} samples, judged on {judged} others"
            out.table(title, rows(trial, segments, bits, steps, untuned, made))
            out.table(f"{trial.title}: in onnxruntime", [in_onnxruntime(trial, made[0])])


if __name__ == "__main__":
    main()
