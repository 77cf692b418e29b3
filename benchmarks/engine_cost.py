"""What the Ray engine costs over the local one, for runs of 20 seconds; its start-up is counted apart.

    ./run_experiment.sh benchmarks/engine_cost.py

The workers only sleep, so that what else the machine does hardly counts: what is left is the time between a run's end
and the next one's start. What Ray's own processes take of the cores meanwhile is counted too.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from aafit.runs.config import RunConfig
from aafit.runs.suite import Suite
from aafit.scheduling.engines.engine import Engine
from aafit.scheduling.engines.local import LocalEngine
from aafit.scheduling.engines.ray import RayEngine
from aafit.scheduling.schedule import run_suite
from benchmarks.harness import Command, json_option, report
from benchmarks.many_runs import SLEEPER, prepare
from benchmarks.weather import MARK, RayNodes, marked

SLOTS = 2


def suite_of(count: int, name: str) -> Suite:
    """So many runs that do not wait for each other."""
    settings = {"epochs": 1, "dataset": "MNIST-5k"}
    return Suite(name, tuple(RunConfig.checked({"name": f"run{number}", **settings}) for number in range(count)))


def seconds_of(engine: Engine, suite: Suite, folder: Path, sleep: float) -> float:
    """How long the suite takes, from the first start to the last end."""
    prepare(suite, folder / "runs", folder / "template", sleep)
    summary = run_suite(suite, folder / "runs", console=Console(file=io.StringIO()), engine=engine)
    if not summary.ok:
        raise RuntimeError(f"the runs failed: {summary.outcomes[0].message}")
    return summary.seconds


def cpu_seconds() -> float:
    """Of all processes of the cluster so far."""
    ticks = 0
    for number, _ in marked():
        if number != os.getpid():
            ticks += sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@click.command(cls=Command)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="That each run sleeps.")
@click.option("--runs", "count", type=click.IntRange(min=1), default=4, show_default=True, help="In a suite.")
@click.option("--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Of each suite, in turn.")
@json_option
def main(seconds: float, count: int, repeats: int, json_path: Path | None) -> None:
    """Time suites of runs that only sleep, in turn by both engines, two at once."""
    with report(json_path) as told, tempfile.TemporaryDirectory() as temporary:
        os.environ |= {MARK: f"cost-{os.getpid()}", "SLEEPER": str(Path(temporary, "template"))}
        began = time.monotonic()
        cluster = RayNodes()
        ready = time.monotonic()
        ray = RayEngine(cluster.address, "cpu", command=SLEEPER)
        try:
            seconds_of(ray, suite_of(SLOTS, "first"), Path(temporary), 0.0)
            start = {"two nodes, s": ready - began, "engine and first runs, s": time.monotonic() - ready}
            local = LocalEngine("cpu", SLOTS, SLEEPER)
            spent: dict[str, list[float]] = {"local": [], "ray": []}
            busy = cpu_seconds()
            whole = time.monotonic()
            for number in range(repeats):
                for name, engine in (("local", local), ("ray", ray)):
                    suite = suite_of(count, f"{name}{number}")
                    spent[name].append(seconds_of(engine, suite, Path(temporary), seconds))
            busy, whole = cpu_seconds() - busy, time.monotonic() - whole
        finally:
            ray.close()
            cluster.close()
        mean = {name: sum(values) / len(values) for name, values in spent.items()}
        waves = -(-count // SLOTS)
        told.table("Start-up of Ray, once", [start])
        told.table(
            f"{count} runs that sleep {seconds:g} s, {SLOTS} at once, {repeats} times by each engine",
            [
                {
                    "local, s": mean["local"],
                    "ray, s": mean["ray"],
                    "ray over local": mean["ray"] / mean["local"] - 1,
                    "local, s a run beside its sleep": mean["local"] / waves - seconds,
                    "ray, s a run beside its sleep": mean["ray"] / waves - seconds,
                    "Ray's own processes, share of a core": busy / whole,
                }
            ],
        )


if __name__ == "__main__":
    sys.exit(main())
