"""Activations as polynomials for encrypted inference: replaced, fitted, identified without labels, beside Adam.

./run_experiment.sh benchmarks/networks/polynomials.py --network digits --json polynomials.json

Agreement is that with the base network, on held-out samples. Seconds are processor seconds on one thread.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import click
from torch import nn

from aafit.activations import Polynomial
from aafit.errors import UserError
from aafit.identification import identify
from aafit.networks.polynomials import export_polynomials
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from aafit.training.tune import tune
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.swapped import NETWORKS, Swapped, load


def rows(trial: Swapped, degree: int, epochs: int, untuned: bool, coefficients: Path | None) -> Iterator[Row]:
    """Return a row for each way to find the coefficients."""
    plain = partial(Polynomial.fit, degree=degree, tails=0.0, margin=0.0)
    weighted = partial(Polynomial.fit, degree=degree)
    began = time.process_time()
    net, _ = replace_activations(trial.base, {trial.kind: plain}, sample=trial.sample)
    yield _row(trial, degree, "plain least squares", net, began)
    began = time.process_time()
    start, _ = replace_activations(trial.base, {trial.kind: weighted}, sample=trial.sample)
    yield _row(trial, degree, "fitted with margin and tails", start, began)
    if untuned:
        return
    common: dict[str, Any] = {"base": trial.base, "output": trial.output}

    def layers(net: nn.Module) -> None:
        identify(net, trial.fitted, target="activations", errors=False, **common)

    def together(net: nn.Module) -> None:
        identify(net, trial.fitted, target="logits", errors=False, **common)

    def both(net: nn.Module) -> None:
        layers(net)
        together(net)

    ways: dict[str, Callable[[nn.Module], object]] = {
        f"Adam, {epochs} epochs at 1e-3": partial(tune, batches=trial.fitted, epochs=epochs, lr=1e-3, **common),
        "identified layer by layer": layers,
        "identified layer by layer, then together": both,
    }
    for name, adapt in ways.items():
        net, began = deepcopy(start), time.process_time()
        try:
            adapt(net)
        except UserError as error:
            yield _failed(trial, degree, name, error)
            continue
        yield _row(trial, degree, name, net, began)
    exported = export_polynomials(net, trial.judged, allowed_far=1.0)
    if coefficients is not None:
        exported.save(coefficients)


def _row(trial: Swapped, degree: int, what: str, net: nn.Module, began: float) -> Row:
    seconds = time.process_time() - began
    cells: dict[str, Any] = {"network": trial.title, "degree": degree, "coefficients": what}
    try:
        exported = export_polynomials(net, trial.judged, allowed_far=1.0).rows
    except UserError as error:
        return _failed(trial, degree, what, error)
    worst = max(exported, key=lambda row: row.outside)
    return {
        **cells,
        **trial.agreement(net),
        "most outside the interval": f"{worst.outside:.3%}",
        "most far outside": f"{max(row.far for row in exported):.3%}",
        "processor s": round(seconds, 1),
    }


def _failed(trial: Swapped, degree: int, what: str, error: UserError) -> Row:
    return {"network": trial.title, "degree": degree, "coefficients": f"{what}: {error}"}


@click.command(cls=Command)
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), help="Networks [default: all].")
@click.option("--degree", "degrees", multiple=True, type=click.IntRange(1, 64), help="Degrees [default: 2, 4, 8].")
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=100), help="Samples to fit.")
@click.option("--judged", default=1000, show_default=True, type=click.IntRange(min=100), help="Held-out samples.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1), help="Of Adam.")
@click.option("--untuned", is_flag=True, help="Leave out Adam and the identification.")
@click.option("--coefficients", type=click.Path(path_type=Path, dir_okay=False), help="Write the last ones there.")
@json_option
@markdown_option
def main(
    networks: tuple[str, ...],
    degrees: tuple[int, ...],
    fitted: int,
    judged: int,
    epochs: int,
    untuned: bool,
    coefficients: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure networks whose activations are polynomials."""
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        for name in networks or NETWORKS:
            trial = load(name, fitted, judged)
            for degree in degrees or (2, 4, 8):
                title = f"{trial.title}: polynomials of degree {degree}, {fitted} samples"
                out.table(title, rows(trial, degree, epochs, untuned, coefficients))


if __name__ == "__main__":
    main()
