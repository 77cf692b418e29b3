"""Compare the speed of this checkout with that of another one, such as an earlier commit.

git worktree add ../earlier COMMIT && ln -s "$PWD/venv" ../earlier/venv
./run_experiment.sh benchmarks/checkouts.py ../earlier --json checkouts.json

Both checkouts take turns in processes of their own with the same Python: the import, epochs of the demo suite as its
runs record them, and identifications of a small digit network from 1,500 samples.
"""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import click

from aafit.errors import UserError
from benchmarks.harness import LEAST_ROUNDS, Command, Row, json_option, markdown_option, report, take_turns

HERE = Path(__file__).parents[1]
RUNS = ("base-relu", "relu-leaf-relu", "relu-fneuron-tanh")

IDENTIFY = """
import sys, time, torch, aafit
from torch import nn
torch.manual_seed(0)
x, y = torch.randn(4000, 1, 14, 14), torch.randint(10, (4000,))
features = [nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU()]
base = nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 32), nn.SiLU(), nn.Linear(32, 10))
with torch.no_grad():
    base[9].weight.mul_(8)
    y = torch.distributions.Categorical(logits=base(x)).sample()
activation = {"F-Neuron": aafit.FNeuron.like("Tanh"), "LEAF": aafit.LEAF.like("SiLU")}[sys.argv[1]]
net, _ = aafit.replace_activations(base, {"SiLU": activation}, sample=x[:2])
began = time.perf_counter()
aafit.identify(net, [(x[:1500], y[:1500])], base=base)
print(time.perf_counter() - began)
"""


def run(checkout: Path, *arguments: str) -> str:
    """Run Python in a checkout, on one thread, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"Python failed in {checkout}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def importing(checkout: Path) -> float:
    """Return the seconds of `import aafit` beyond those of `import torch`."""
    program = "import time, torch; began = time.perf_counter(); import aafit; print(time.perf_counter() - began)"
    return float(run(checkout, "-c", program))


def identifying(family: str, checkout: Path) -> float:
    """Return the seconds of one identification."""
    return float(run(checkout, "-c", IDENTIFY, family).split()[-1])


def epoch(name: str, checkout: Path) -> float:
    """Return the median seconds of an epoch of a run of the demo suite, the first one left out."""
    with tempfile.TemporaryDirectory() as runs:
        options = [
            "--suite",
            "demo",
            "--only",
            f"base-relu,{name}",
            "--epochs-scale",
            "0.3",
            "--jobs",
            "1",
            "--runs-dir",
            runs,
        ]
        run(checkout, "-m", "aafit", "run", *options)
        with (Path(runs) / "demo" / name / "seed42" / "metrics.csv").open(newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file) if row["seconds"]]
    return median(seconds[1:])


@click.command(cls=Command)
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=LEAST_ROUNDS, show_default=True, type=click.IntRange(min=LEAST_ROUNDS))
@json_option
@markdown_option
def main(other: Path, rounds: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """Seconds of this checkout over those of OTHER, in turns."""
    measures: dict[str, Callable[[Path], float]] = {
        "import aafit": importing,
        **{f"identify, {family}": partial(identifying, family) for family in ("F-Neuron", "LEAF")},
        **{f"epoch, {name}": partial(epoch, name) for name in RUNS},
    }
    other = other.resolve()
    with report(json_path, markdown_path) as out:
        rows: list[Row] = []
        for what, measure in measures.items():
            turns = take_turns({"this": partial(measure, HERE), "other": partial(measure, other)}, rounds)
            ratio = turns.ratio("this", "other")
            rows.append(
                {
                    "what": what,
                    "this, s": turns.median("this"),
                    "other, s": turns.median("other"),
                    **ratio.cells("ratio"),
                }
            )
            out.note(f"{what}: {ratio.median:.3f}")
        out.table("Seconds of this checkout and of the other one", rows)


if __name__ == "__main__":
    main()
