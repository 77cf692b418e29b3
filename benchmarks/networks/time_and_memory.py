"""Measure the cost of replaced networks: inference against the base, and finding and replacing.

./run_experiment.sh benchmarks/networks/time_and_memory.py --json time_and_memory.json

Inference: EfficientNet-Lite0 (224 x 224) and MiniLM (48 tokens) with a batch of 8 on one thread; base and replaced
networks take turns. nn.SiLU is a reference: a fixed function as smooth as the adaptive ones. Denormal numbers are
flushed to 0, except in one row. Finding and replacing, by LEAF as ReLU and by activations fitted to each layer:
networks of 200 layers whose activations are 200 modules, 200 calls of F.relu, or one module called 200 times, and the
two networks above. Peak memory is what torch's allocator hands out in addition, in units of the network's weights,
beside that of one plain forward pass.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.experiment.devices import slots
from aafit.networks.find import find_activations
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from benchmarks.activations import peak_extra_bytes
from benchmarks.harness import Command, Row, call, json_option, markdown_option, report, rounds_option, take_turns
from benchmarks.networks.material import fitted_and_judged_patches, sentences
from benchmarks.networks.pretrained import efficientnet_lite0, minilm

MODULE = "benchmarks.networks.time_and_memory"
BATCH, LAYERS, WIDTH = 8, 200, 256
REPLACEMENTS: dict[str, nn.Module] = {
    "nn.SiLU": nn.SiLU(),
    "AHAF as SiLU": AHAF.like("SiLU"),
    "LEAF as SiLU": LEAF.like("SiLU"),
    "AHAF as ReLU": AHAF.like("ReLU"),
    "LEAF as ReLU": LEAF.like("ReLU"),
    "F-Neuron as SiLU": FNeuron.like("SiLU"),
    "F-Neuron as SiLU, 34 knots": FNeuron.like("SiLU", knots=34),
}
TO_REACH = {"AHAF": 1.15, "LEAF": 1.15, "F-Neuron": 1.5}
# Measured without torch.set_flush_denormal(True), unlike all others.
SLOW = "LEAF as ReLU, denormal numbers kept"
PRETRAINED = {"EfficientNet-Lite0": "ReLU6", "MiniLM": "GELU"}


def network_and_sample(name: str) -> tuple[nn.Module, Any]:
    """Return a pre-trained network and eight inputs."""
    if name == "MiniLM":
        net, tokenize = minilm()
        return net, dict(tokenize(sentences(BATCH, 10)[0]))
    return efficientnet_lite0(), fitted_and_judged_patches(BATCH, 2)[0]


def forward(net: nn.Module, sample: Any) -> Any:
    """Run one inference."""
    with torch.inference_mode():
        return net(**sample) if isinstance(sample, Mapping) else net(sample)


def inference_rows(name: str, rounds: int) -> list[Row]:
    """Return a row for the base and for each replacement: processor milliseconds a batch, and the ratio to the base."""
    with arithmetic("float32", 1):
        base, sample = network_and_sample(name)
        nets = {"base": base}
        for what, new in REPLACEMENTS.items():
            nets[what] = replace_activations(base, {PRETRAINED[name]: new}, sample=sample)[0]
        nets[SLOW] = nets["LEAF as ReLU"]
        for net in nets.values():
            forward(net, sample)
        turns = take_turns({what: partial(_inference_seconds, net, sample, what) for what, net in nets.items()}, rounds)
    rows: list[Row] = []
    for what in nets:
        ratio = turns.ratio(what, "base")
        row: dict[str, Any] = {"network": name, "activations": what, "ms": 1e3 * turns.median(what)}
        limit = TO_REACH.get(what.partition(" as ")[0])
        others = {"cores busy with other processes": turns.other_load}
        rows.append(row | ratio.cells("times the base") | ratio.against(limit) | others)
    return rows


def _inference_seconds(net: nn.Module, sample: Any, what: str) -> float:
    torch.set_flush_denormal(what != SLOW)
    # Processor time, on one thread: other processes affect it less than the wall time.
    began = time.process_time()
    forward(net, sample)
    return time.process_time() - began


class Deep(nn.Module):
    """200 linear layers, each followed by an activation."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(LAYERS if written == "modules" else 0))
        self.relu, self.written = nn.ReLU(), written

    def forward(self, x: Tensor) -> Tensor:
        if self.written == "modules":
            for layer, relu in zip(self.layers, self.relus, strict=True):
                x = relu(layer(x))
            return x
        return UNROLLED[self.written](self, x)


def _unrolled(written: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return a forward of 200 lines, in which each call has a source line of its own."""
    call_of = {"functions": "F.relu({})", "one module": "self.relu({})"}[written]
    lines = [f"    x = {call_of.format(f'self.layers[{at}](x)')}" for at in range(LAYERS)]
    names: dict[str, Any] = {"F": F}
    exec("\n".join(["def program(self, x):", *lines, "    return x"]), names)
    program: Callable[[nn.Module, Tensor], Tensor] = names["program"]
    return program


UNROLLED = {written: _unrolled(written) for written in ("functions", "one module")}


def replacing_rows(repeats: int) -> list[Row]:
    """Return a row for each network: seconds to find and to replace, and the peak memory."""
    with arithmetic("float32", 1):
        cases: dict[str, tuple[nn.Module, Any, str]] = {
            f"200 layers, {written}": (Deep(written).eval(), torch.randn(BATCH, WIDTH), "ReLU")
            for written in ("modules", *UNROLLED)
        }
        for name, kind in PRETRAINED.items():
            cases[f"{name}, batch of {BATCH}"] = (*network_and_sample(name), kind)
        return [_replacing(name, *case, repeats) for name, case in cases.items()]


def _replacing(name: str, net: nn.Module, sample: Any, kind: str, repeats: int) -> Row:
    given, named = ((), sample) if isinstance(sample, Mapping) else ((sample,), {})
    look = partial(find_activations, net, *given, **named)
    replaced, by_leaf, by_fneuron = (
        partial(replace_activations, net, {kind: new}, sample=sample) for new in (LEAF.like("ReLU"), LEAF, FNeuron)
    )
    weights = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    cpu = torch.device("cpu")
    found = replaced()[1].rows
    timed = partial(forward, net, sample), look, replaced, by_leaf, by_fneuron
    seconds = [_shortest(what, repeats) for what in timed]
    peaks = [peak_extra_bytes(what, cpu) / weights for what in (partial(forward, net, sample), look, replaced)]
    return {
        "network": name,
        "places": len(found),
        "MB of weights": round(weights / 1e6, 1),
        "s forward": round(seconds[0], 3),
        "s to find": round(seconds[1], 3),
        "s to replace": round(seconds[2], 3),
        "LEAF fitted": round(seconds[3], 2),
        "F-Neuron fitted": round(seconds[4], 2),
        "peak: forward": round(peaks[0], 2),
        "to find": round(peaks[1], 2),
        "to replace": round(peaks[2], 2),
    }


def _shortest(what: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        # Processor time, on one thread: other processes affect it less than the wall time.
        began = time.process_time()
        what()
        times.append(time.process_time() - began)
    return min(times)


@click.command(cls=Command)
@rounds_option
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Of each replacement.")
@click.option("--part", type=click.Choice(["inference", "replacing"]), help="Measure this alone.")
@json_option
@markdown_option
def main(rounds: int, repeats: int, part: str | None, json_path: Path | None, markdown_path: Path | None) -> None:
    """Measure time and memory of replaced networks, and of replacing."""
    place = slots("cpu", 1)[0]
    with report(json_path, markdown_path) as out:
        for name in PRETRAINED if part != "replacing" else ():
            rows = call(f"{MODULE}:inference_rows", place.environment, name=name, rounds=rounds)
            out.table(f"{name}: inference, batch of {BATCH}, one thread", rows)
        if part != "inference":
            rows = call(f"{MODULE}:replacing_rows", place.environment, repeats=repeats)
            out.table("Finding and replacing: the shortest of the repeats; peak memory in sizes of the weights", rows)


if __name__ == "__main__":
    main()
