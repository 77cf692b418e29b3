"""Schedule 10,000 runs whose workers only sleep; measure memory and processor time of the schedule, and its report.

    ./run_experiment.sh benchmarks/many_runs.py

The runs are those of a suite with enough seeds, in processes of this machine. Their folders look like real ones, with
made-up numbers. A stopped benchmark resumes with the same --folder.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch

from aafit.activations import LEAF
from aafit.experiment.models import build
from aafit.experiment.report.page import write_report
from aafit.experiment.runs.documents import StoredComparison, StoredDifference
from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.suite import Suite, load_suite
from aafit.experiment.scheduling.engines.local import LocalEngine
from aafit.experiment.scheduling.schedule import run_suite
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.saving import save_activations
from aafit.networks.surgery import replace_activations
from benchmarks.harness import Command, call, json_option, peak_bytes, report
from benchmarks.sleeper import LAYERS

SLEEPER = (sys.executable, "-S", "-E", str(Path(__file__).with_name("sleeper.py")))


def prepare(suite: Suite, runs_dir: Path, template: Path, seconds: float) -> None:
    """Write the files that the sleeping workers of a suite need, see sleeper.py."""
    template.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(suite, runs_dir)
    lines = [f"{name}/seed{seed} {job.settings_hash}\n" for (name, seed), job in jobs.items()]
    (template / "hashes.txt").write_text("".join(lines))
    (template / "seconds.txt").write_text(f"{seconds}\n")
    torch.manual_seed(0)
    net, _ = replace_activations(build("KerasNet", (1, 28, 28), 10), {"ReLU": LEAF.like("ReLU")})
    start = {name: value.clone() for name, value in adaptive_parameters(net).items()}
    save_activations(net, template / "activations.safetensors", start=start, replaced=dict.fromkeys(LAYERS, "ReLU"))
    layers = tuple(StoredDifference(path=layer, max_abs=0.5, mean_abs=0.1) for layer in LAYERS)
    StoredComparison(
        layers=layers,
        logits=StoredDifference(path="logits", max_abs=0.5, mean_abs=0.1),
        agreement=0.9,
        base_accuracy=0.8,
        base_loss=0.7,
        replaced_accuracy=0.6,
        replaced_loss=0.9,
        samples=1000,
    ).write(template)


def many(suite_name: str, count: int) -> Suite:
    """Return the suite with enough seeds for at least `count` runs."""
    suite = load_suite(suite_name)
    return suite.with_seeds(list(islice(range(1, count + 1), -(-count // len(suite.runs)))))


def schedule(suite_name: str, count: int, folder: str, jobs: int, seconds: float, minutes: float) -> dict[str, Any]:
    """Do the remaining runs for a limited number of minutes; return what this process used."""
    suite, runs_dir = many(suite_name, count), Path(folder) / "runs"
    prepare(suite, runs_dir, Path(folder) / "template", seconds)
    os.environ["SLEEPER"] = str(Path(folder) / "template")
    engine = LocalEngine("cpu", jobs, SLEEPER)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    spent, began = time.process_time(), time.monotonic()
    with (Path(folder) / "schedule.txt").open("a") as log:
        from rich.console import Console

        summary = run_suite(suite, runs_dir, engine, console=Console(file=log, width=160))
    wall = time.monotonic() - began
    timer.cancel()
    done = sum(outcome.status in ("done", "already done") for outcome in summary.runs)
    now = sum(outcome.status == "done" for outcome in summary.runs)
    return {
        "runs": len(summary.runs),
        "done": done,
        "done now": now,
        "s": wall,
        "CPU s": time.process_time() - spent,
        "share of a core": (time.process_time() - spent) / wall,
        "peak MB": (peak_bytes() or 0) / 1e6,
    }


def reported(folder: str) -> dict[str, Any]:
    """Write the report; return what that used."""
    spent, began = time.process_time(), time.monotonic()
    made = write_report(Path(folder))
    return {
        "s": time.monotonic() - began,
        "CPU s": time.process_time() - spent,
        "peak MB": (peak_bytes() or 0) / 1e6,
        "page MB": made.page.stat().st_size / 1e6,
        "figures": len(made.figures),
    }


@click.command(cls=Command)
@click.option("--suite", default="demo", show_default=True)
@click.option("--runs", "count", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=64, show_default=True, help="Processes at once.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="That each run sleeps.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="To stop the schedule after.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where the runs go, to be kept.")
@json_option
def main(
    suite: str, count: int, jobs: int, seconds: float, minutes: float, folder: Path | None, json_path: Path | None
) -> None:
    """Time the schedule and the report of many runs that only sleep."""
    with report(json_path) as out, tempfile.TemporaryDirectory() as temporary:
        where = (folder or Path(temporary)).absolute()
        asked: dict[str, Any] = {"suite_name": suite, "count": count, "folder": str(where), "jobs": jobs}
        row = call("benchmarks.many_runs:schedule", **asked, seconds=seconds, minutes=minutes)
        out.table(f"Schedule: {jobs} processes at once, {seconds:g} s each", [row])
        if row["done"] < row["runs"]:
            out.note("Stopped; the same command goes on.")
            return
        out.table(
            "Report", [call("benchmarks.many_runs:reported", folder=str(where / "runs" / many(suite, count).name))]
        )


if __name__ == "__main__":
    main()
