"""MiniLM, a sentence encoder: its GELUs replaced, fitted, tuned and identified, judged by its sentence embeddings.

./run_experiment.sh benchmarks/networks/minilm.py --json minilm.json

Everything is found out from 400 sentences without labels, and judged on 500 others, by the embeddings that the network
was made for: the mean of the last hidden states over the tokens, of length 1. Nothing is wrapped: the network takes
what its tokenizer gives, and `output` says which of its outputs is meant. Seconds are of the processor, on one thread:
what else runs on the machine does not count.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.identification import identify
from aafit.networks.inputs import Batch, as_inputs
from aafit.networks.outputs import Output, run
from aafit.networks.surgery import replace_activations
from aafit.report.shapes import plot_activations
from aafit.training.precision import arithmetic
from aafit.training.tune import tune
from benchmarks.harness import Command, Report, Row, json_option, markdown_option, report
from benchmarks.networks.kept import Kept, adaptive_numbers
from benchmarks.networks.material import sentences
from benchmarks.networks.pretrained import Tokenize, minilm

BATCH = 50
TO_REACH, NEIGHBOURS, SECONDS = 0.9995, 0.99, 120

Tokens = Mapping[str, Tensor]

FITTED: dict[str, Any] = {
    "LEAF": LEAF,
    "AHAF": AHAF,
    "F-Neuron, 16 pieces": partial(FNeuron.fit, pieces=16),
    "F-Neuron, 32 pieces": partial(FNeuron.fit, pieces=32),
    "F-Neuron, 16 pieces, straight beyond": partial(FNeuron.fit, pieces=16, outside="linear"),
    "F-Neuron, 32 pieces, straight beyond": partial(FNeuron.fit, pieces=32, outside="linear"),
}

DRAWN = "F-Neuron, 16 pieces, straight beyond"


def last_hidden_state(out: Any) -> Tensor:
    """The output that is meant without the embedding, (B, T, C), of padding too."""
    state: Tensor = out.last_hidden_state
    return state


def embedding(out: Any, batch: Batch) -> Tensor:
    """(B, C): a row of length 1 for each sentence, of the tokens that are no padding."""
    mask = batch.kwargs["attention_mask"][..., None]
    return F.normalize((out.last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


def embeddings(net: nn.Module, batches: Sequence[Tokens]) -> Tensor:
    """A row for each sentence."""
    with torch.inference_mode():
        return torch.cat([run(net, as_inputs(tokens), embedding) for tokens in batches])


def tokenized(tokenize: Tokenize, texts: Sequence[str]) -> list[Tokens]:
    return [dict(tokenize(texts[at : at + BATCH])) for at in range(0, len(texts), BATCH)]


class Trial:
    """The base network, and sentences to fit and to judge."""

    def __init__(self, fitted: int, judged: int) -> None:
        self.base, tokenize = minilm()
        here, other = sentences(fitted, judged)
        self.fitted, self.judged = tokenized(tokenize, here), tokenized(tokenize, other)
        self.sample = {key: torch.cat([tokens[key] for tokens in self.fitted]) for key in self.fitted[0]}
        self.before = embeddings(self.base, self.judged)
        self.rows: list[Row] = []

    def replaced(self, new: Any) -> nn.Module:
        net, _ = replace_activations(self.base, {"GELU": new}, sample=self.sample)
        return net

    def judge(self, what: str, net: nn.Module, seconds: float) -> Kept:
        kept = Kept.of(self.before, embeddings(net, self.judged))
        row: dict[str, Any] = {"network": what, "numbers": adaptive_numbers(net), **kept.row()}
        self.rows.append({**row, "processor s": round(seconds, 1)})
        return kept

    def shown(self, told: Report, title: str) -> None:
        told.table(title, self.rows)
        self.rows = []


def fitted_ones(trial: Trial, told: Report) -> None:
    """Every GELU by the nearest of each family, on its own inputs."""
    best = 0.0
    for name, new in FITTED.items():
        began = time.process_time()
        net = trial.replaced(new)
        kept = trial.judge(name, net, time.process_time() - began)
        best = max(best, kept.cosine if name.startswith("F-Neuron") else 0.0)
    trial.shown(told, "GELU replaced by what is fitted to it on its own inputs, untuned")
    told.say(f"Best F-Neuron, untuned: a cosine of {best:.5f} (to reach: {TO_REACH}).")


def hard_case(trial: Trial, told: Report, epochs: int) -> None:
    """LEAF as ReLU brought back to the base."""
    start = trial.replaced(LEAF.like("ReLU"))
    trial.judge("LEAF as ReLU, just replaced", start, 0)
    net = deepcopy(start)
    began = time.process_time()
    tune(net, trial.fitted, epochs=epochs, lr=1e-2, output=last_hidden_state, base=trial.base)
    trial.judge(f"tune, {epochs} epochs at 0.01", net, time.process_time() - began)
    identified(trial, told, start, "activations", last_hidden_state)
    identified(trial, told, start, "logits", last_hidden_state)
    trial.shown(told, "The hard case: every GELU replaced by LEAF as ReLU, then brought back without labels")


def by_embeddings(trial: Trial, told: Report) -> None:
    """The same, with the embeddings themselves as the outputs to be kept."""
    identified(trial, told, trial.replaced(LEAF.like("ReLU")), "logits", embedding)
    trial.shown(told, "LEAF as ReLU identified by the sentence embeddings")


def identified(trial: Trial, told: Report, start: nn.Module, target: str, output: Output) -> None:
    net = deepcopy(start)
    began = time.process_time()
    identify(net, trial.fitted, base=trial.base, target=target, output=output)
    seconds = time.process_time() - began
    name = f'identify, target="{target}"'
    kept = trial.judge(name, net, seconds)
    marks = {
        f"a cosine of {TO_REACH}: {kept.cosine:.5f}": kept.cosine >= TO_REACH,
        f"{NEIGHBOURS:.0%} of neighbours: {kept.nearest:.1%}": kept.nearest >= NEIGHBOURS,
        f"in {SECONDS} s: {seconds:.0f} s": seconds <= SECONDS,
    }
    told.say(f"{name}: " + "; ".join(f"{mark}, {'' if yes else 'not '}reached" for mark, yes in marks.items()) + ".")


@click.command(cls=Command)
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=BATCH), help="Sentences to fit.")
@click.option("--judged", default=500, show_default=True, type=click.IntRange(min=10), help="Others, to judge.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(min=1), help="Of tuning.")
@click.option("--part", type=click.Choice(["fitted", "hard", "embeddings"]), help="Do this alone.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the activations there.")
@json_option
@markdown_option
def main(
    fitted: int,
    judged: int,
    epochs: int,
    part: str | None,
    picture: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """MiniLM with other activations."""
    with report(json_path, markdown_path) as told, arithmetic("float32", 1):
        trial = Trial(fitted, judged)
        if part in (None, "fitted"):
            fitted_ones(trial, told)
        if picture is not None:
            plot_activations(trial.replaced(FITTED[DRAWN]), inputs=trial.judged[:1]).savefig(picture)
        if part in (None, "hard"):
            hard_case(trial, told, epochs)
        if part in (None, "embeddings"):
            by_embeddings(trial, told)


if __name__ == "__main__":
    main()
