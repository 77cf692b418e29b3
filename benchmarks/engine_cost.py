"""Measure the overhead of the Ray engine over the local one, for runs of 20 seconds; its start-up is reported
separately.

    ./run_experiment.sh benchmarks/engine_cost.py
    ./run_experiment.sh benchmarks/engine_cost.py --epochs 20 --repeats 3     # runs that train, on a quiet machine

The workers only sleep, so that other load hardly matters: what remains is the time between the end of a run and the
start of the next. With --epochs they train LeNet-5 on digits, and Ray's own processes compete for the cores. The
processor time of these processes is reported either way.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.suite import Suite
from aafit.experiment.scheduling.engines.engine import WORKER, Engine
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.engines.ray import RayEngine
from aafit.experiment.scheduling.schedule import run_suite
from benchmarks.harness import Command, json_option, report
from benchmarks.many_runs import SLEEPER, prepare
from benchmarks.weather import MARK, RayNodes, marked

SLOTS = 2


def suite_of(count: int, name: str, epochs: int = 1) -> Suite:
    """Return a suite of independent runs."""
    settings = {"epochs": epochs, "network": "LeNet-5", "dataset": "MNIST-5k"}
    runs = tuple(RunConfig.checked({"name": f"run{number}", **settings}) for number in range(count))
    return Suite(name=name, runs=runs)


def seconds_of(engine: Engine, suite: Suite, folder: Path, sleep: float | None) -> float:
    """Return the wall time of the suite in seconds; with `sleep` None its runs train."""
    if sleep is not None:
        prepare(suite, folder / "runs", folder / "template", sleep)
    summary = run_suite(suite, folder / "runs", engine, console=Console(file=io.StringIO()))
    if not summary.ok:
        raise RuntimeError(f"the runs failed: {summary.runs[0].message}")
    return summary.seconds


def cpu_seconds() -> float:
    """Return the processor seconds of all processes of the cluster so far."""
    ticks = 0
    for number, _ in marked():
        if number != os.getpid():
            ticks += sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@click.command(cls=Command)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="That each run sleeps.")
@click.option("--epochs", type=click.IntRange(min=1), help="That each run trains on digits, instead of sleeping.")
@click.option("--runs", "count", type=click.IntRange(min=1), default=4, show_default=True, help="In a suite.")
@click.option("--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Of each suite, in turn.")
@json_option
def main(seconds: float, epochs: int | None, count: int, repeats: int, json_path: Path | None) -> None:
    """Time suites of runs that sleep, or train, with both engines in turn, two runs at a time."""
    worker = WORKER if epochs else SLEEPER
    with report(json_path) as out, tempfile.TemporaryDirectory() as temporary:
        os.environ |= {MARK: f"cost-{os.getpid()}", "SLEEPER": str(Path(temporary, "template"))}
        began = time.monotonic()
        cluster = RayNodes()
        ready = time.monotonic()
        ray = RayEngine(cluster.address, "cpu", command=worker)
        try:
            seconds_of(ray, suite_of(SLOTS, "first"), Path(temporary), None if epochs else 0.0)
            start = {"two nodes, s": ready - began, "engine and first runs, s": time.monotonic() - ready}
            local = LocalEngine("cpu", SLOTS, worker)
            spent: dict[str, list[float]] = {"local": [], "ray": []}
            busy = cpu_seconds()
            whole = time.monotonic()
            for number in range(repeats):
                for name, engine in (("local", local), ("ray", ray)):
                    suite = suite_of(count, f"{name}{number}", epochs or 1)
                    spent[name].append(seconds_of(engine, suite, Path(temporary), None if epochs else seconds))
            busy, whole = cpu_seconds() - busy, time.monotonic() - whole
        finally:
            ray.close()
            cluster.close()
        mean = {name: sum(values) / len(values) for name, values in spent.items()}
        row: dict[str, str | int | float | bool | None] = {"local, s": mean["local"], "ray, s": mean["ray"]}
        row |= {"ray over local": mean["ray"] / mean["local"] - 1}
        if epochs:
            row |= {"ray over local, the quickest of each": min(spent["ray"]) / min(spent["local"]) - 1}
        else:
            waves = -(-count // SLOTS)
            row |= {f"{name}, s a run beside its sleep": mean[name] / waves - seconds for name in mean}
        row |= {"Ray's own processes, share of a core": busy / whole}
        out.table("Start-up of Ray, once", [start])
        out.table(
            f"{count} runs that {f'train {epochs} epochs' if epochs else f'sleep {seconds:g} s'}, {SLOTS} at once, "
            f"{repeats} times by each engine",
            [row],
        )


if __name__ == "__main__":
    sys.exit(main())
