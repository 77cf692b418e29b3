"""Seconds an epoch of each kind of run, against the straightforward training loop and against the floor.

./run_experiment.sh benchmarks/epochs.py --data-dir DATA --json epochs-float32.json
./run_experiment.sh benchmarks/epochs.py --data-dir DATA --precision bf16 --json epochs-bf16.json

An epoch is 50,000 images, or as many as --images says, extrapolated from --steps steps; evaluation is not included.
The program is measured as it runs: on a CPU one process of one thread for each core side by side, and its machine
seconds are the seconds of a process divided by the number of processes. The straightforward loop (straightforward.py,
in float32 whatever --precision says, with torch's default settings) is one process with all cores and 4 loader workers:
its machine seconds are its seconds. Where runs of the paper suite train in lockstep, the program's seconds are the
share of one run. Both train the same network on the same images in batches of the same size. The two take turns, at
least five each; the speedup is the median of the ratios of the rounds.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import click

from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.job import jobs_of, lockstep_groups
from aafit.experiment.runs.suite import load_suite
from benchmarks.floor import Floor, measure_floor
from benchmarks.harness import (
    Command,
    Report,
    Row,
    Turns,
    data_dir_option,
    device_option,
    json_option,
    report,
    rounds_option,
    take_turns,
)
from benchmarks.parts import table_of_parts
from benchmarks.straightforward import straightforward_step
from benchmarks.workload import EVALUATED, FIRST_OF_KIND, Measured, chosen_kinds, measured_in_turns, merged

IMAGES = 50_000
TARGETS = {
    "float32": {"base": 24.0, "AHAF": 19.0, "LEAF": 19.0, "F-Neuron": 7.0},
    "bf16": {"base": 15.0, "AHAF": 11.0, "LEAF": 11.0, "F-Neuron": 4.0},
}


@click.command(cls=Command)
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1), help="Training steps an epoch.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images of a step [default: the suite's].")
@click.option("--evaluated", type=click.IntRange(min=1), help=f"Test images of an epoch [default: {EVALUATED}].")
@click.option("--images", default=IMAGES, show_default=True, type=click.IntRange(min=1), help="Images of an epoch.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(list(TARGETS)))
@click.option("--kind", "kinds", multiple=True, help=f"Only this: {', '.join(FIRST_OF_KIND)}. May be repeated.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes side by side [default: one a core, or one a GPU].")
@click.option("--compiled", is_flag=True, help="Also the straightforward loop under torch.compile.")
@rounds_option
@data_dir_option
@device_option
@json_option
def main(
    steps: int,
    batch_size: int | None,
    evaluated: int | None,
    images: int,
    precision: str,
    kinds: tuple[str, ...],
    jobs: int | None,
    compiled: bool,
    rounds: int,
    data_dir: Path | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Measure the seconds of an epoch of each kind of run, of the straightforward loop, and the lower bound."""
    runs = chosen_kinds(kinds, precision)
    if batch_size is not None:
        runs = {kind: run.model_copy(update={"batch_size": batch_size}) for kind, run in runs.items()}
    with report(json_path) as out:
        ours: dict[str, Measured] = {}
        theirs: dict[str, float] = {}
        all_turns: dict[str, Turns] = {}
        lockstep = lockstep_of_the_paper()
        for kind, run in runs.items():
            program = measured_in_turns(run, steps, data_dir, device, jobs, lockstep[kind], evaluated)
            measured, turns = _measured(program, run, steps, data_dir, device, images, compiled, rounds)
            ours[kind], all_turns[kind] = merged(measured), turns
            theirs[kind] = turns.median("straightforward")
        rows = [_row(kind, lockstep[kind], ours[kind], all_turns[kind], images, precision) for kind in runs]
        out.table(f"Machine seconds an epoch of {images:,} images, {precision}, evaluation not counted", rows)
        _whole(out, {kind: ours[kind].training_of(images) / ours[kind].processes for kind in runs}, theirs)
        floor, processes = measure_floor(next(iter(runs.values())).batch_size, precision, device)
        _floor(out, runs, lockstep, floor, processes, ours, images)
        table_of_parts(out, runs, steps, data_dir, device, evaluated)


def _measured(
    starting: AbstractContextManager[Callable[[], Measured]],
    run: RunConfig,
    steps: int,
    data_dir: Path | None,
    device: str,
    images: int,
    compiled: bool,
    rounds: int,
) -> tuple[list[Measured], Turns]:
    """Measure machine seconds of an epoch of the program and of the straightforward loop, in turns."""
    measured: list[Measured] = []
    with ExitStack() as stack:
        program = stack.enter_context(starting)
        loops = {
            name: stack.enter_context(straightforward_step(run, steps, data_dir, device, name == "compiled"))
            for name in ("straightforward", "compiled")[: 1 + compiled]
        }

        def program_seconds() -> float:
            measured.append(program())
            return measured[-1].training_of(images) / measured[-1].processes

        candidates = {"program": program_seconds}
        for name, loop in loops.items():
            candidates[name] = partial(_seconds_of_an_epoch, loop, math.ceil(images / run.batch_size))
        return measured, take_turns(candidates, rounds)


def _seconds_of_an_epoch(loop: Callable[[], float], steps: int) -> float:
    return loop() * steps


def kind_of(run: RunConfig) -> str:
    """Return the kind of a run of the paper suite."""
    families = {run.cnn.split()[0], run.fc.split()[0]}
    if run.train == "all":
        return f"base {run.cnn}"
    return next(f"{family} tuning" for family in ("F-Neuron", "LEAF", "AHAF") if family in families)


def epochs_of_the_paper() -> dict[str, int]:
    """Return the number of epochs of each kind in the paper suite."""
    epochs = dict.fromkeys(FIRST_OF_KIND, 0)
    for run in load_suite("paper").runs:
        epochs[kind_of(run)] += run.epochs
    return epochs


def lockstep_of_the_paper() -> dict[str, int]:
    """Return how many runs of each kind train in lockstep in the paper suite."""
    jobs = jobs_of(load_suite("paper"), Path())
    sizes = {kind_of(jobs[key].config): len(keys) for key, keys in lockstep_groups(jobs).items()}
    return {kind: sizes[kind] for kind in FIRST_OF_KIND}


def _row(kind: str, lockstep: int, ours: Measured, turns: Turns, images: int, precision: str) -> Row:
    process = ours.training_of(images)
    target = TARGETS[precision][kind.split()[0]]
    compiled: dict[str, str | int | float | bool | None] = {}
    if "compiled" in turns.seconds:
        compiled = turns.ratio("compiled", "program").cells("times faster than compiled")
    return {
        "kind": kind,
        "runs in lockstep": lockstep,
        "program, process": process,
        "program, machine": process / ours.processes,
        "to reach on 2 cores": target,
        "straightforward, machine": turns.median("straightforward"),
        **turns.ratio("straightforward", "program").cells("times faster"),
        **compiled,
        "cores busy with other processes": turns.other_load,
    }


def _whole(out: Report, ours: dict[str, float], theirs: dict[str, float]) -> None:
    epochs = {kind: count for kind, count in epochs_of_the_paper().items() if kind in ours}
    if len(ours) < len(FIRST_OF_KIND):
        out.note("Not all kinds were measured: nothing is said of the paper suite as a whole.")
        return
    hours = [sum(epochs[kind] * seconds[kind] for kind in epochs) / 3600 for seconds in (ours, theirs)]
    rows: list[Row] = [
        {
            "kind": kind,
            "epochs": count,
            "program, h": count * ours[kind] / 3600,
            "straightforward, h": count * theirs[kind] / 3600,
        }
        for kind, count in epochs.items()
    ]
    rows.append({"kind": "all", "epochs": sum(epochs.values()), "program, h": hours[0], "straightforward, h": hours[1]})
    out.table("The epochs of the paper suite", rows)
    out.note(f"As a whole the program is {hours[1] / hours[0]:.1f} times faster than the straightforward loop.")


def _floor(
    out: Report,
    runs: dict[str, RunConfig],
    lockstep: dict[str, int],
    floor: Floor,
    processes: int,
    ours: dict[str, Measured],
    images: int,
) -> None:
    rows: list[Row] = []
    for kind, run in runs.items():
        steps = math.ceil(images / run.batch_size)
        least, operations = floor.step(kind, lockstep[kind]), floor.operations(kind, lockstep[kind])
        seconds = least * steps / processes
        machine = ours[kind].training_of(images) / ours[kind].processes
        rows.append(
            {
                "kind": kind,
                "GFLOP a step": operations / 1e9,
                "TFLOP/s of the machine": operations * processes / least / 1e12,
                "floor, s an epoch": seconds,
                "program, s an epoch": machine,
                "share of the floor": seconds / machine,
            }
        )
    out.table("The floor: the convolutions and matrix products alone, as fast as torch does them here", rows)


if __name__ == "__main__":
    main()
