"""Compare the predicted importance of layers with the gain from adapting each layer alone.

./run_experiment.sh benchmarks/layers_alone.py --base runs/cpu/base-silu/seed42 --data-dir DATA \
    --replacement "LEAF as SiLU"

`aafit.importance` predicts, with all activations replaced, the gain in loss from adapting one layer's activation.
Here each layer is adapted alone: it has the adaptive activation, and all other layers the fixed function that it is
initialized as. Gains are reductions of the mean loss by the identification, on the fitted and on the held-out images.
Differences below the prediction's standard error cannot be resolved.
"""

from pathlib import Path
from time import perf_counter

import click
import torch
from torch import nn

from aafit.activations import FIXED, from_text
from aafit.errors import UserError
from aafit.experiment.runs.start import activation_texts
from aafit.identification import importance
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report
from benchmarks.workload import Setting, base_option, images_dir_option, images_option, setting_of

TOGETHER = "all together"


def ranks(values: list[float]) -> list[float]:
    """Return the ranks, 1 for the largest; ties share the mean of their ranks."""
    return [1 + sum(other > value for other in values) + (values.count(value) - 1) / 2 for value in values]


def rank_correlation(first: list[float], second: list[float]) -> float | None:
    """Return Spearman's rank correlation; None if all values of one side are equal."""
    one, other = (torch.tensor(ranks(values), dtype=torch.float64) for values in (first, second))
    one, other = one - one.mean(), other - other.mean()
    length = (one.norm() * other.norm()).item()
    return (one @ other).item() / length if length else None


def fixed_part(replacement: str) -> str:
    """Return the fixed function that an activation is initialized as: "SiLU" for "LEAF as SiLU".

    Raises:
        UserError: it is not initialized as a fixed function.
    """
    name = replacement.rpartition(" as ")[2]
    if name == replacement or name not in FIXED:
        raise UserError(
            f"{replacement!r} does not start as a fixed function, which the other layers need to keep: "
            f"give one such as 'LEAF as SiLU' ({', '.join(FIXED)})."
        )
    return name


def with_one_adaptive(setting: Setting, layer: str, replacement: str) -> nn.Module:
    """Return the base network with the adaptive activation in one layer and the fixed function in the others."""
    fixed, run = fixed_part(replacement), setting.run
    options = {"interval": run.interval, "knots": run.knots}
    modules = {
        path: from_text(replacement, **options) if path == layer else from_text(fixed)  # type: ignore[arg-type]
        for path in activation_texts(run)
    }
    sample, _ = next(iter(setting.halves.batches(setting.heldout.at(torch.tensor([0])))))
    net, _ = replace_activations(setting.base, modules, run.sharing, sample)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def gains(setting: Setting, net: nn.Module, base: nn.Module | None = None) -> tuple[float, float, float]:
    """Identify `net`; return the gain on the fitted images, the gain on the held-out images, and the seconds."""
    halves = setting.halves
    before = halves.on_fitted(net).loss, halves.on_rest(net).loss
    began = perf_counter()
    setting.identify(net, base)
    seconds = perf_counter() - began
    return before[0] - halves.on_fitted(net).loss, before[1] - halves.on_rest(net).loss, seconds


@click.command(cls=Command)
@base_option
@click.option("--replacement", default="LEAF as SiLU", show_default=True, help="In all layers, for the prediction.")
@click.option("--predict-from", default=1024, show_default=True, type=click.IntRange(min=2), help="So many images.")
@images_option
@images_dir_option
@json_option
@markdown_option
def main(
    folder: Path,
    replacement: str,
    predict_from: int,
    images: int | None,
    data_dir: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Compare the predicted gain of adapting each layer alone with the actual gain."""
    fixed_part(replacement)
    setting = setting_of(folder, replacement, replacement, data_dir, images)
    run, halves, net = setting.run, setting.halves, setting.net
    with report(json_path, markdown_path) as out, arithmetic(run.precision):
        predicted = importance(
            net,
            halves.batches(halves.fitted),
            samples=predict_from,
            batch_size=run.batch_size,
            precision=run.precision,
            seed=setting.seed,
        )
        real = {
            layer: gains(setting, with_one_adaptive(setting, layer, replacement)) for layer in activation_texts(run)
        }
        # Initialized layer by layer if the initial outputs are far from the base, as in a suite.
        real[TOGETHER] = gains(setting, net, setting.base)
        columns = [[row.gain for row in predicted.rows]]
        columns += [[real[row.layer][index] for row in predicted.rows] for index in (0, 1)]
        placed = list(zip(*map(ranks, columns), strict=True))
        rows: list[Row] = []
        for row, places in zip((*predicted.rows, predicted.together), [*placed, (None,) * 3], strict=True):
            fitted, rest, seconds = real[row.layer]
            rows.append(
                {
                    "adapted": row.layer,
                    "predicted gain": Loss(row.gain),
                    "its error": Loss(row.error),
                    "gain, fitted": Loss(fitted),
                    "gain, held out": Loss(rest),
                    "rank, predicted": places[0],
                    "rank, fitted": places[1],
                    "rank, held out": places[2],
                    "seconds": seconds,
                }
            )
        sizes = f"{len(halves.fitted)} images fitted, {len(halves.rest)} held out"
        out.table(f"Gain in loss of adapting one layer: {replacement}, base {run.parent}, {sizes}", rows)
        for name, real_gains in zip(("fitted", "held-out"), columns[1:], strict=True):
            correlation = rank_correlation(columns[0], real_gains)
            text = "not defined" if correlation is None else f"{correlation:+.2f}"
            out.note(f"Rank correlation of the predicted gains with those on the {name} images: {text}")
        silent = predicted.together.silent
        if silent:
            out.note(f"No curvature at the start, so nothing is predicted of: {', '.join(silent)}")


if __name__ == "__main__":
    main()
