"""Activations as polynomials for encrypted inference: replaced, fitted, identified without labels, beside Adam.

./run_experiment.sh benchmarks/networks/polynomials.py --network digits --json polynomials.json

Agreement is that with the base network, on held-out samples. Seconds are processor seconds on one thread.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from torch import nn

from aafit.activations import Polynomial
from aafit.errors import UserError
from aafit.identification import identify
from aafit.networks.polynomials import export_polynomials
from aafit.networks.select import SHARINGS, Sharing
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from aafit.training.tune import tune
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.swapped import NETWORKS, Swapped, load

WAYS = ("plain", "fitted", "adam", "layers", "together")


@dataclass(frozen=True)
class Chosen:
    """The settings of a comparison.

    Attributes:
        ways: Names of ways to determine the coefficients, from `WAYS`.
        sharing: Sharing of the coefficients.
        epochs: Number of epochs of Adam.
        steps: Maximum number of joint steps.
    """

    ways: tuple[str, ...]
    sharing: Sharing
    epochs: int
    steps: int


def rows(trial: Swapped, degree: int, chosen: Chosen, coefficients: Path | None) -> Iterator[Row]:
    """Return a row for each way to find the coefficients."""
    plain = partial(Polynomial.fit, degree=degree, tails=0.0, margin=0.0)
    weighted = partial(Polynomial.fit, degree=degree)
    common: dict[str, Any] = {"base": trial.base, "output": trial.output}
    layers = partial(identify, batches=trial.fitted, target="activations", errors=False, **common)
    together = partial(identify, batches=trial.fitted, target="logits", steps=chosen.steps, errors=False, **common)
    adam = partial(tune, batches=trial.fitted, epochs=chosen.epochs, lr=1e-3, **common)
    # Each from the second one; the joint identification begins with that layer by layer.
    ways: dict[str, tuple[str, Any, Callable[[nn.Module], object]]] = {
        "plain": ("plain least squares", plain, lambda net: None),
        "fitted": ("fitted with margin and tails", weighted, lambda net: None),
        "adam": (f"Adam, {chosen.epochs} epoch{'s' * (chosen.epochs > 1)} at 1e-3", weighted, adam),
        "layers": ("identified layer by layer", weighted, layers),
        "together": (f"identified layer by layer, then together, {chosen.steps} steps at most", weighted, together),
    }
    for key in chosen.ways:
        name, fit, adapt = ways[key]
        began = time.process_time()
        net, _ = replace_activations(trial.base, {trial.kind: fit}, chosen.sharing, trial.sample)
        try:
            adapt(net)
        except UserError as error:
            yield _failed(degree, name, error)
            continue
        yield _row(trial, degree, name, net, began)
    if coefficients is not None:
        export_polynomials(net, trial.judged, allowed_far=1.0).save(coefficients)


def _row(trial: Swapped, degree: int, what: str, net: nn.Module, began: float) -> Row:
    seconds = time.process_time() - began
    cells: dict[str, Any] = {"degree": degree, "coefficients": what}
    try:
        exported = export_polynomials(net, trial.judged, allowed_far=1.0).rows
    except UserError as error:
        return _failed(degree, what, error)
    worst = max(exported, key=lambda row: row.outside)
    return {
        **cells,
        **trial.agreement(net),
        "most outside the interval": f"{worst.outside:.3%}",
        "most far outside": f"{max(row.far for row in exported):.3%}",
        "processor s": round(seconds, 1),
    }


def _failed(degree: int, what: str, error: UserError) -> Row:
    return {"degree": degree, "coefficients": f"{what}: {error}"}


@click.command(cls=Command)
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), help="Networks [default: all].")
@click.option("--degree", "degrees", multiple=True, type=click.IntRange(1, 64), help="Degrees [default: 2, 4, 8].")
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=8), help="Samples to fit.")
@click.option("--judged", default=1000, show_default=True, type=click.IntRange(min=8), help="Held-out samples.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1), help="Of Adam.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(min=1), help="Joint steps, at most.")
@click.option("--sharing", default="layer", show_default=True, type=click.Choice(SHARINGS), help="Of coefficients.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="Do these alone [default: all].")
@click.option("--coefficients", type=click.Path(path_type=Path, dir_okay=False), help="Write the last ones there.")
@json_option
@markdown_option
def main(
    networks: tuple[str, ...],
    degrees: tuple[int, ...],
    fitted: int,
    judged: int,
    epochs: int,
    steps: int,
    sharing: Sharing,
    ways: tuple[str, ...],
    coefficients: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure networks whose activations are polynomials."""
    chosen = Chosen(ways or WAYS, sharing, epochs, steps)
    shared = "" if sharing == "layer" else f", by {sharing}"
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        for name in networks or NETWORKS:
            trial = load(name, fitted, judged)
            for degree in degrees or (2, 4, 8):
                title = f"{trial.title}: degree {degree}{shared}, {fitted} samples, judged on {judged} others"
                out.table(title, rows(trial, degree, chosen, coefficients))


if __name__ == "__main__":
    main()
