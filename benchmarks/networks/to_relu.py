"""SiLU, GELU and ReLU6 replaced by plain ReLU: Affine("ReLU") by channel, identified, folded into the layers around.

./run_experiment.sh benchmarks/networks/to_relu.py --json to_relu.json

Three networks: a small digit network with SiLU and batch norms, which is trained here; MiniLM with GELU; and
EfficientNet-Lite0 with ReLU6. No labels are used after the training of the first: targets are the base network's
outputs. All are judged on samples that take no part. Seconds are processor seconds on one thread.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aafit
from aafit.networks.batches import as_inputs
from aafit.training.precision import arithmetic
from aafit.training.predictor import Output, run
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import Kept, SameClasses, adaptive_numbers
from benchmarks.networks.material import digits, fitted_and_judged_patches, sentences
from benchmarks.networks.minilm import embedding, embeddings, tokenized
from benchmarks.networks.pretrained import efficientnet_lite0, minilm

TRAINED, TRAINING_EPOCHS, BATCH = 3000, 6, 50


@dataclass(frozen=True)
class Case:
    """A network, its samples, and how it is judged.

    Attributes:
        name: Of the network.
        base: The network.
        kind: The activations that are replaced.
        batches: Samples to fit, without labels.
        output: The output that is matched; None: the only one.
        measure: Judges a network, on other samples.
    """

    name: str
    base: nn.Module
    kind: str
    batches: Sequence[Any]
    output: Output | None
    measure: Callable[[nn.Module], Row]


def digit_network() -> nn.Module:
    """Return a network of the kind of many detectors: convolution, batch norm, SiLU, with zero padding."""

    def block(i: int, o: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, padding=1, bias=False), nn.BatchNorm2d(o), nn.SiLU()]

    layers = [*block(1, 8, 2), *block(8, 16, 1), *block(16, 32, 2), *block(32, 32, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def digit_case(fitted: int, judged: int) -> Case:
    """Train the digit network, with labels; nothing after that sees a label but the accuracy."""
    torch.manual_seed(0)
    x, y = digits()
    base = digit_network()
    optimizer = torch.optim.Adam(base.parameters(), 3e-3)
    for _ in range(TRAINING_EPOCHS):
        for rows in torch.randperm(TRAINED).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(base(x[rows]), y[rows]).backward()
            optimizer.step()
    base.eval()
    others, labels = x[-judged:], y[-judged:]
    before = outputs(base, others.split(BATCH))

    def measure(net: nn.Module) -> Row:
        after = outputs(net, others.split(BATCH))
        accuracy = (after.argmax(1) == labels).double().mean().item()
        return {"accuracy": f"{accuracy:.1%}", **SameClasses.of(before, after).row()}

    return Case("Digits, SiLU", base, "SiLU", list(x[TRAINED : TRAINED + fitted].split(BATCH)), None, measure)


def minilm_case(fitted: int, judged: int) -> Case:
    base, tokenize = minilm()
    here, other = (tokenized(tokenize, texts) for texts in sentences(fitted, judged))
    before = embeddings(base, other)

    def measure(net: nn.Module) -> Row:
        kept = Kept.of(before, embeddings(net, other))
        return dict(kept.row())

    return Case("MiniLM, GELU", base, "GELU", here, embedding, measure)


def efficientnet_case(fitted: int, judged: int) -> Case:
    base = efficientnet_lite0()
    here, other = fitted_and_judged_patches(fitted, judged)
    before = outputs(base, other.split(8))

    def measure(net: nn.Module) -> Row:
        return dict(SameClasses.of(before, outputs(net, other.split(8))).row())

    return Case("EfficientNet-Lite0, ReLU6", base, "ReLU6", list(here.split(8)), None, measure)


def outputs(net: nn.Module, batches: Sequence[Any]) -> Tensor:
    """Return the outputs for all batches."""
    with torch.inference_mode():
        return torch.cat([run(net, as_inputs(batch)) for batch in batches])


def rows(case: Case, target: str, epochs: int, rate: float, offsets: Sequence[bool]) -> Iterator[Row]:
    """Return the rows of a network: replaced by ReLU, fitted, identified and folded, and tuned by Adam.

    The family without an offset is left out where the one with an offset folds as a whole.
    """
    sample, sampled = case.batches[0], f"identified, target {target}"

    def row(what: str, net: nn.Module, seconds: float, plain: str = "") -> Row:
        cells: dict[str, Any] = {"network": what, "parameters": adaptive_numbers(net), **case.measure(net)}
        return {**cells, "plain ReLU": plain, "processor s": round(seconds, 1)}

    yield row("as it is", case.base, 0.0)
    plain, _ = aafit.replace_activations(case.base, {case.kind: "ReLU"}, sample=sample)
    yield row("replaced by ReLU, before tuning", plain, 0.0, "all")
    for offset in offsets:
        family = aafit.Affine("ReLU", offset)
        began = time.process_time()
        fitted, _ = aafit.replace_activations(case.base, {case.kind: family}, sharing="channel", sample=sample)
        yield row(f"{family.family}, fitted to each layer", fitted, time.process_time() - began)
        options: dict[str, Any] = {"base": case.base, "output": case.output, "verbose": False}
        start = family.like("ReLU")
        for way in ("identified", "tuned"):
            net, _ = aafit.replace_activations(case.base, {case.kind: start}, sharing="channel", sample=sample)
            began = time.process_time()
            if way == "identified":
                aafit.identify(net, case.batches, target=target, errors=False, **options)
                yield row(f"{family.family}, {sampled}", net, time.process_time() - began)
                began = time.process_time()
                folded, found = aafit.fold_activations(net, sample)
                count = sum(not one.remains for one in found.rows)
                yield row("the same, folded", folded, time.process_time() - began, f"{count} of {len(found.rows)}")
            else:
                aafit.tune(net, case.batches, epochs=epochs, lr=rate, **options)
                yield row(f"{family.family}, Adam, {epochs} epochs at {rate:g}", net, time.process_time() - began)
        if found.is_plain:
            break


CASES: dict[str, tuple[Callable[[int, int], Case], int, int, str, int, float]] = {
    "digits": (digit_case, 500, 1000, "logits", 20, 1e-2),
    "minilm": (minilm_case, 200, 300, "activations", 4, 1e-3),
    "efficientnet": (efficientnet_case, 32, 64, "activations", 3, 1e-3),
}
"""By name: the case, samples to fit and to judge, the target of the identification, epochs and rate of Adam."""


@click.command(cls=Command)
@click.option("--network", "names", multiple=True, type=click.Choice([*CASES]), help="Do this alone.")
@click.option("--fitted", type=click.IntRange(min=2), help="Samples to fit [default: by network].")
@click.option("--judged", type=click.IntRange(min=2), help="Other samples, to judge [default: by network].")
@click.option("--target", type=click.Choice(["logits", "activations"]), help="[default: by network]")
@click.option("--offset", type=click.Choice(["with", "without"]), help="Only the family with or without an offset.")
@json_option
@markdown_option
def main(
    names: tuple[str, ...],
    fitted: int | None,
    judged: int | None,
    target: str | None,
    offset: str | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure what comes back when activations are replaced by plain ReLU."""
    offsets = (True, False) if offset is None else (offset == "with",)
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        for name in names or CASES:
            make, here, other, own_target, epochs, rate = CASES[name]
            case = make(fitted or here, judged or other)
            title = f"{case.name}: {fitted or here} samples without labels, judged on {judged or other} others"
            out.table(title, rows(case, target or own_target, epochs, rate, offsets))


if __name__ == "__main__":
    main()
