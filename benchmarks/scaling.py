"""Measure throughput and memory as batch size, processes side by side, seeds and runs in lockstep grow.

./run_experiment.sh benchmarks/scaling.py --data-dir DATA --json scaling.json

One of the four grows while the others stay at: batches of 128, as many processes as the program would start, one seed
a process, one run in lockstep. Each point is a few epochs of few images in new processes. Images a second are those
of all processes together during training; for the seeds, over the whole time from the first start to the last end.
Memory is the peak of the largest process: resident on a CPU, allocated on a GPU.
"""

import math
from pathlib import Path

import click

from aafit.experiment.devices import slots
from aafit.experiment.runs.config import RunConfig
from benchmarks.harness import (
    Command,
    Report,
    Row,
    data_dir_option,
    device_option,
    json_option,
    report,
    whole_numbers,
)
from benchmarks.workload import Measured, chosen_kinds, measured_run

KINDS = ("base ReLU", "LEAF tuning")


@click.command(cls=Command)
@click.option("--batch-sizes", default="32,64,128,256,512", show_default=True, callback=whole_numbers)
@click.option("--processes", default="1,2,4", show_default=True, callback=whole_numbers, help="Side by side.")
@click.option("--seeds", default="1,2,4,8", show_default=True, callback=whole_numbers, help="How many seeds.")
@click.option(
    "--lockstep", default="1,2,4", show_default=True, callback=whole_numbers, help="F-Neuron runs in lockstep."
)
@click.option("--kind", "kinds", multiple=True, default=KINDS, show_default=True, help="Kinds of run.")
@click.option("--images", default=2560, show_default=True, type=click.IntRange(min=1), help="Images of an epoch.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bf16"]))
@data_dir_option
@device_option
@json_option
def main(
    batch_sizes: tuple[int, ...],
    processes: tuple[int, ...],
    seeds: tuple[int, ...],
    lockstep: tuple[int, ...],
    kinds: tuple[str, ...],
    images: int,
    precision: str,
    data_dir: Path | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Measure throughput and memory as batch size, processes, seeds and runs in lockstep grow."""
    with report(json_path) as out:
        for kind, run in chosen_kinds(kinds, precision).items():
            _batches(out, kind, run, batch_sizes, images, data_dir, device)
            _processes(out, kind, run, processes, images, data_dir, device)
            _seeds(out, kind, run, seeds, images, data_dir, device)
        for kind, run in chosen_kinds(["F-Neuron tuning"], precision).items():
            _lockstep(out, kind, run, lockstep, images, data_dir, device)


def _batches(
    out: Report, kind: str, run: RunConfig, sizes: tuple[int, ...], images: int, data_dir: Path | None, device: str
) -> None:
    rows: list[Row] = []
    for size in sizes:
        sized = run.model_copy(update={"batch_size": size})
        measured = measured_run(sized, math.ceil(images / size), data_dir=data_dir, device=device)
        rows.append({"batch": size, "processes": measured.processes, **_speed(measured)})
    out.table(f"{kind}: images in a batch", rows)


def _processes(
    out: Report, kind: str, run: RunConfig, counts: tuple[int, ...], images: int, data_dir: Path | None, device: str
) -> None:
    rows: list[Row] = []
    for count in counts:
        steps = math.ceil(images / run.batch_size)
        measured = measured_run(run, steps, data_dir=data_dir, device=device, processes=count)
        rows.append({"processes": measured.processes, **_speed(measured)})
    out.table(f"{kind}: processes side by side", rows)


def _seeds(
    out: Report, kind: str, run: RunConfig, counts: tuple[int, ...], images: int, data_dir: Path | None, device: str
) -> None:
    rows: list[Row] = []
    for count in counts:
        steps = math.ceil(images / run.batch_size)
        measured = measured_run(run, steps, data_dir=data_dir, device=device, seeds=count)
        rows.append(
            {
                "seeds": count,
                "processes": measured.processes,
                "s from start to end": measured.wall,
                "images/s of the whole": measured.epochs * measured.sample.train_images / measured.wall,
                "memory, MiB a process": _mebibytes(measured),
            }
        )
    out.table(f"{kind}: seeds, on {len(slots(device))} slots", rows)


def _lockstep(
    out: Report, kind: str, run: RunConfig, counts: tuple[int, ...], images: int, data_dir: Path | None, device: str
) -> None:
    rows: list[Row] = []
    for count in counts:
        steps = math.ceil(images / run.batch_size)
        measured = measured_run(run, steps, data_dir=data_dir, device=device, lockstep=count)
        rows.append({"runs in lockstep": count, "processes": measured.processes, **_speed(measured)})
    out.table(f"{kind}: runs in lockstep in a process (images and steps of all runs)", rows)


def _speed(measured: Measured) -> dict[str, float | None]:
    return {
        "images/s": measured.images_a_second,
        "ms a step": 1e3 * measured.training / math.ceil(measured.sample.train_images / measured.batch_size),
        "memory, MiB a process": _mebibytes(measured),
    }


def _mebibytes(measured: Measured) -> float | None:
    return None if measured.peak is None else measured.peak / 2**20


if __name__ == "__main__":
    main()
