"""The gain that an identification reports from few samples, against the true one.

./run_experiment.sh benchmarks/few_samples.py --json few_samples.json

A small network draws labels, and a network with other values of its activation is identified from 30 to 300 of them,
several times from new samples. The gain is the decrease of the loss from the start to the result: as reported by 5-fold
cross-validation, which is the default, and by the leave-one-out estimate (heldout=0), and as it is on 20,000 fresh
samples. Results that were replaced by their start report no gain and are left out. "Too high" is the mean of reported
minus true gains, in mean reported standard errors. An identification takes about a fifth of a second on one core, with
cross-validation a second.
"""

from pathlib import Path
from statistics import fmean

import click
import torch
import torch.nn.functional as F

import aafit
from benchmarks.error_coverage import CASES, FIRST_SEED, INPUTS, Case
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report

FRESH = 20_000
FAMILIES = ("LEAF", "F-Neuron, 18 knots")


def gains(case: Case, samples: int, repetitions: int, heldout: float | None) -> list[tuple[float, float, float]]:
    """Return reported gain, its standard error and the true gain, for each repetition that reports a gain."""
    teacher = case.net(case.truth())
    fresh = torch.randn(FRESH, INPUTS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = teacher(fresh).softmax(1)

        def loss(net: torch.nn.Module) -> float:
            return F.cross_entropy(net(fresh), probabilities).item()

        before, found = loss(case.net(case.start())), []
        for seed in range(FIRST_SEED, FIRST_SEED + repetitions):
            net = case.net(case.start())
            torch.manual_seed(seed)
            x = torch.randn(samples, INPUTS)
            y = case.draw(teacher(x))
            result = aafit.identify(net, [(x, y)], heldout=heldout, errors=False, verbose=False)
            if result.gains:
                found.append((result.gains[0].gain, result.gains[0].error, before - loss(net)))
    return found


def row(name: str, samples: int, repetitions: int) -> Row:
    """Return the row of a case: its results, their reported and their true gains."""
    cells: dict[str, str | int | float | Loss] = {"case": name, "samples": samples}
    for label, heldout in (("cross-validation", None), ("leave-one-out", 0.0)):
        found = gains(CASES[name], samples, repetitions, heldout)
        reported, error, true = (fmean(column) for column in zip(*found, strict=True)) if found else (0.0, 1.0, 0.0)
        cells[f"{label}: gains"] = len(found)
        cells |= {f"{label}: reported": Loss(reported), f"{label}: true": Loss(true)}
        cells[f"{label}: too high, errors"] = (reported - true) / error
    return cells


@click.command(cls=Command)
@click.option("--samples", multiple=True, type=click.IntRange(10, 499), default=(30, 60, 120, 300), show_default=True)
@click.option("--repetitions", default=24, show_default=True, type=click.IntRange(min=1))
@json_option
@markdown_option
def main(samples: tuple[int, ...], repetitions: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """Reported against true gains of identifications from few samples."""
    with report(json_path, markdown_path) as out:
        rows = [row(name, count, repetitions) for name in FAMILIES for count in samples]
        out.table(f"Gain in loss, means over the results that report one, of {repetitions}", rows)


if __name__ == "__main__":
    main()
