"""Time and peak extra memory of forward and backward of the activations, all candidates in one run.

./run_experiment.sh benchmarks/activations.py --json activations.json

Each candidate computes its output and the gradients with respect to its input and all of its parameters. The
candidates take turns; a ratio is the median over the rounds of the ratio in one round, and is "not measured" where
the rounds differ by more than 30%. They run in a process like one of the program's: on a CPU with one thread, and
with the allocator set as for a run. Inputs of four dimensions are in channels_last, as convolutions leave them. In
bfloat16 inputs and gradients are, and the parameters of the straightforward candidates; those of the program are
float32, as in a run. "Extra arrays" is the peak of memory in arrays of the size of the input; `peak_extra_bytes` says
what it counts. The last table is of the forward alone, without gradients, against F.gelu, at the size of a
transformer's layer.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from aafit.activations import from_text
from aafit.experiment.devices import choose_device, slots
from aafit.training.precision import arithmetic
from benchmarks import straightforward
from benchmarks.harness import (
    Command,
    Row,
    Turns,
    call,
    device_option,
    json_option,
    report,
    rounds_option,
    synchronise,
    take_turns,
)

SHAPES = ("128x512", "128x32x32x32")
LARGE = (128, 32, 32, 32)
TOKENS = (8, 64, 1536)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAPTIVE = {"AHAF": "AHAF as SiLU", "LEAF": "LEAF as SiLU", "F-Neuron": "F-Neuron as Tanh"}
TO_SILU = {"AHAF": 2.0, "LEAF": 2.0, "F-Neuron": 8.0}
FASTER, LEANER, TO_GELU = 30.0, 8.0, 3.0
SHORTEST = 2e-3
"""Seconds of a turn: what is faster than that is called several times in it."""


# The profiler's own messages would stand between the tables.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass
class Candidate:
    """An activation to be timed, with its parameters."""

    name: str
    function: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...] = ()

    def call(self, u: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the output and the gradients with respect to the input and the parameters."""
        y = self.function(u)
        return y, *torch.autograd.grad(y, (u, *self.parameters), grad)

    def seconds(self, u: Tensor, grad: Tensor | None, calls: int) -> float:
        """Return the mean seconds of one call; without `grad`, of the forward pass alone."""
        run = partial(self.function, u) if grad is None else partial(self.call, u, grad)
        synchronise(u.device)
        began = time.perf_counter()
        for _ in range(calls):
            run()
        synchronise(u.device)
        return (time.perf_counter() - began) / calls


def candidates(dtype: torch.dtype, device: torch.device, compiled: bool = False) -> list[Candidate]:
    """Return fixed functions, the program's activations, the straightforward ones, and these compiled."""
    found = [Candidate("F.relu", F.relu), Candidate("F.silu", F.silu)]
    for name, text in ADAPTIVE.items():
        found.append(_of(name, from_text(text).to(device)))
    for name, text in ADAPTIVE.items():
        plain = straightforward.activation(text).to(device, dtype)
        found.append(_of(f"straightforward {name}", plain))
        if compiled:
            function: Callable[[Tensor], Tensor] = torch.compile(plain, dynamic=False)
            found.append(Candidate(f"compiled {name}", function, tuple(plain.parameters())))
    return found


def _of(name: str, module: nn.Module) -> Candidate:
    return Candidate(name, module, tuple(module.parameters()))


def measured_rows(
    shape: tuple[int, ...], dtype_name: str, device_name: str, threads: int | None, rounds: int, compiled: bool = False
) -> list[Row]:
    """Return a row for each candidate: milliseconds, extra arrays of the size of the input, and the ratios."""
    with arithmetic("float32", threads):
        torch.manual_seed(0)
        return _measured(shape, DTYPES[dtype_name], choose_device(device_name), rounds, compiled)


def _measured(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int, compiled: bool
) -> list[Row]:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    u, grad = (
        (2 * torch.randn(shape, device=device)).to(dtype).contiguous(memory_format=layout).requires_grad_(needed)
        for needed in (True, False)
    )
    tried = candidates(dtype, device, compiled)
    turns = _in_turns(tried, u, grad, rounds)
    arrays = {one.name: peak_extra_bytes(partial(one.call, u, grad), device) / u.nbytes for one in tried}
    return [_row(one.name, turns, arrays) for one in tried]


def _in_turns(tried: list[Candidate], u: Tensor, grad: Tensor | None, rounds: int) -> Turns:
    """Measure the candidates in turns."""
    timed = {}
    for one in tried:
        one.seconds(u, grad, 2)
        calls = max(1, math.ceil(SHORTEST / one.seconds(u, grad, 1)))
        timed[one.name] = partial(one.seconds, u, grad, calls)
    return take_turns(timed, rounds)


def forward_rows(shape: tuple[int, ...], device_name: str, threads: int | None, rounds: int) -> list[Row]:
    """Return a row for each candidate: milliseconds of the forward pass in float32, and the ratio to F.gelu."""
    with arithmetic("float32", threads), torch.inference_mode():
        torch.manual_seed(0)
        device = choose_device(device_name)
        adaptive = [_of(name, from_text(text).to(device)) for name, text in ADAPTIVE.items()]
        turns = _in_turns(
            [Candidate("F.gelu", F.gelu), Candidate("F.silu", F.silu), *adaptive],
            2 * torch.randn(shape, device=device),
            None,
            rounds,
        )
    rows: list[Row] = []
    for name in turns.seconds:
        ratio, target = turns.ratio(name, "F.gelu"), TO_GELU if name == "F-Neuron" else None
        rows.append(
            {
                "activation": name,
                "ms": 1e3 * turns.median(name),
                **ratio.cells("to F.gelu"),
                **ratio.against(target),
                "cores busy with other processes": turns.other_load,
            }
        )
    return rows


def peak_extra_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the peak of the memory that torch allocates during one call of `function`, in bytes above the start.

    All tensors created in the call count while they live: results, gradients, what is saved for the backward pass,
    and every intermediate array. Tensors that existed before and memory outside torch's allocator do not count. On a
    CPU the profiler's record of all allocations is exact, and the same each time; on CUDA the allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        kept = function()
    del kept
    held = peak = 0
    for change in _changes(profiled):
        held += change
        peak = max(peak, held)
    return peak


def _changes(profiled: profile) -> list[int]:
    """Return the bytes of each allocation, negative for a release, in the order in which they happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(events, key=lambda event: float(event["ts"]))]


def _row(name: str, turns: Turns, arrays: dict[str, float]) -> Row:
    plain, to_silu = f"straightforward {name}", turns.ratio(name, "F.silu")
    faster = turns.ratio(plain, name).cells("times faster") if plain in turns.seconds else {}
    fused = f"compiled {name}"
    beside = turns.ratio(fused, name).cells("times faster than compiled") if fused in turns.seconds else {}
    return {
        "activation": name,
        "ms": 1e3 * turns.median(name),
        **to_silu.cells("to F.silu"),
        **to_silu.against(TO_SILU.get(name)),
        **(faster or {"times faster": None, "times faster, range": None}),
        **(beside or {"times faster than compiled": None, "times faster than compiled, range": None}),
        "extra arrays": arrays[name],
        "times leaner": arrays[plain] / arrays[name] if plain in arrays else None,
        "cores busy with other processes": turns.other_load,
    }


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}"


def _shape(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[tuple[int, ...]]:
    try:
        shapes = [tuple(int(size) for size in text.split("x")) for text in texts]
    except ValueError:
        shapes = [(0,)]
    if any(size < 1 for shape in shapes for size in shape):
        raise click.BadParameter(f"{' '.join(texts)} is not a shape such as 128x512.")
    return shapes


@click.command(cls=Command)
@click.option("--part", default="all", show_default=True, type=click.Choice(["all", "forward"]), help="What to do.")
@click.option("--compiled", is_flag=True, help="Also the straightforward ones under torch.compile.")
@rounds_option
@click.option("--shape", "shapes", multiple=True, default=SHAPES, show_default=True, callback=_shape)
@device_option
@json_option
def main(
    part: str, compiled: bool, rounds: int, shapes: list[tuple[int, ...]], device: str, json_path: Path | None
) -> None:
    """Measure time and memory of the activations against F.relu, F.silu and the straightforward ones."""
    place = slots(device, 1)[0]
    with report(json_path) as out:
        for shape in shapes if part == "all" else ():
            for name in DTYPES:
                rows = call(
                    "benchmarks.activations:measured_rows",
                    place.environment,
                    shape=shape,
                    dtype_name=name,
                    device_name=place.device,
                    threads=place.threads,
                    rounds=rounds,
                    compiled=compiled,
                )
                out.table(f"Forward and backward at {shape}, {name}; faster and leaner than straightforward", rows)
                fneuron = next(row for row in rows if row["activation"] == "F-Neuron")
                if shape == LARGE:
                    out.note(
                        f"F-Neuron in {name}, against membership by membership: times faster "
                        f"{_shown(fneuron['times faster'])} (to reach: {FASTER:g}), times leaner "
                        f"{fneuron['times leaner']:.1f} (to reach: {LEANER:g})."
                    )
        rows = call(
            "benchmarks.activations:forward_rows",
            place.environment,
            shape=TOKENS,
            device_name=place.device,
            threads=place.threads,
            rounds=rounds,
        )
        out.table(f"Forward alone at {TOKENS}, float32, without gradients", rows)


if __name__ == "__main__":
    main()
