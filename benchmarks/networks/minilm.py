"""MiniLM, a sentence encoder: its GELUs replaced, fitted, tuned and identified, evaluated by its sentence embeddings.

./run_experiment.sh benchmarks/networks/minilm.py --json minilm.json

The activations are fitted to 400 sentences without labels and evaluated on 500 others, by the sentence embeddings:
the normalized mean of the last hidden states over the tokens. The network is called with what its tokenizer returns,
and `output` selects one of its outputs. Seconds are processor seconds on one thread.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.identification import identify
from aafit.networks.batches import Batch, as_inputs
from aafit.networks.select import Sharing
from aafit.networks.surgery import replace_activations
from aafit.plots.activations import plot_activations
from aafit.training.precision import arithmetic
from aafit.training.predictor import Output, run
from aafit.training.tune import tune
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import Kept, adaptive_numbers
from benchmarks.networks.material import sentences
from benchmarks.networks.pretrained import Tokenize, minilm

BATCH = 50
AFTER = 4
TO_REACH, NEIGHBOURS, SECONDS = 0.9995, 0.99, 120

Tokens = Mapping[str, Tensor]

FITTED: dict[str, Any] = {
    "LEAF": LEAF,
    "AHAF": AHAF,
    "F-Neuron, 18 knots": partial(FNeuron.fit, knots=18),
    "F-Neuron, 34 knots": partial(FNeuron.fit, knots=34),
    "F-Neuron, 18 knots, straight beyond": partial(FNeuron.fit, knots=18, outside="linear"),
    "F-Neuron, 34 knots, straight beyond": partial(FNeuron.fit, knots=34, outside="linear"),
}

DRAWN = "F-Neuron, 18 knots, straight beyond"


def last_hidden_state(out: Any) -> Tensor:
    """Return the last hidden state, (B, T, C), padding included."""
    state: Tensor = out.last_hidden_state
    return state


def embedding(out: Any, batch: Batch) -> Tensor:
    """Return a normalized embedding for each sentence, (B, C): the mean over the tokens that are not padding."""
    mask = batch.kwargs["attention_mask"][..., None]
    return F.normalize((out.last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


def embeddings(net: nn.Module, batches: Sequence[Tokens]) -> Tensor:
    """Return an embedding for each sentence."""
    with torch.inference_mode():
        return torch.cat([run(net, as_inputs(tokens), embedding) for tokens in batches])


def tokenized(tokenize: Tokenize, texts: Sequence[str]) -> list[Tokens]:
    return [dict(tokenize(texts[at : at + BATCH])) for at in range(0, len(texts), BATCH)]


class Trial:
    """The base network, sentences to fit, and held-out ones."""

    def __init__(self, fitted: int, judged: int) -> None:
        self.base, tokenize = minilm()
        here, other = sentences(fitted, judged)
        self.fitted, self.judged = tokenized(tokenize, here), tokenized(tokenize, other)
        self.sample = {key: torch.cat([tokens[key] for tokens in self.fitted]) for key in self.fitted[0]}
        self.before = embeddings(self.base, self.judged)

    def replaced(self, new: Any, sharing: Sharing = "layer") -> nn.Module:
        net, _ = replace_activations(self.base, {"GELU": new}, sharing=sharing, sample=self.sample)
        return net

    def row(self, what: str, net: nn.Module, seconds: float) -> Row:
        kept = Kept.of(self.before, embeddings(net, self.judged))
        row: dict[str, Any] = {"network": what, "numbers": adaptive_numbers(net), **kept.row()}
        return {**row, "processor s": round(seconds, 1)}

    def adapted(self, what: str, net: nn.Module, adapt: Callable[[nn.Module], object]) -> Row:
        """Return the row of `net` after `adapt` has changed it in place."""
        began = time.process_time()
        adapt(net)
        return self.row(what, net, time.process_time() - began)


def fitted_ones(trial: Trial) -> Iterator[Row]:
    """Return a row for each family, fitted to every GELU on its inputs."""
    for name, new in FITTED.items():
        began = time.process_time()
        net = trial.replaced(new)
        yield trial.row(name, net, time.process_time() - began)


def by_layer(trial: Trial, epochs: int) -> Iterator[Row]:
    """Return the rows of LEAF as ReLU by layer, identified from the last hidden states."""
    start = trial.replaced(LEAF.like("ReLU"))
    yield trial.row("LEAF as ReLU, before tuning", start, 0)
    tuned = partial(tune, batches=trial.fitted, epochs=epochs, lr=1e-2, output=last_hidden_state, base=trial.base)
    yield trial.adapted(f"tune, {epochs} epochs at 0.01", deepcopy(start), tuned)
    for target in ("activations", "logits"):
        found = partial(identified, trial, trial.fitted, target, last_hidden_state)
        yield trial.adapted(f'identify, target="{target}"', deepcopy(start), found)


def by_embeddings(trial: Trial, epochs: int) -> Iterator[Row]:
    """Return the same rows, identified from the embeddings."""
    found = partial(identified, trial, trial.fitted, "logits", embedding)
    yield trial.adapted('identify, target="logits", embeddings', trial.replaced(LEAF.like("ReLU")), found)


def in_hindsight(trial: Trial, epochs: int) -> Iterator[Row]:
    """Return the same rows, identified from the held-out sentences themselves: an upper bound for so few parameters."""
    found = partial(identified, trial, trial.judged, "logits", embedding, heldout=0.02)
    yield trial.adapted("the same, from the sentences it is judged on", trial.replaced(LEAF.like("ReLU")), found)


def by_channel(trial: Trial, epochs: int) -> Iterator[Row]:
    """Return the rows of LEAF as ReLU by channel, initialized layer by layer, then tuned."""
    net = trial.replaced(LEAF.like("ReLU"), "channel")
    yield trial.row("LEAF as ReLU by channel, before tuning", net, 0)
    found = partial(identified, trial, trial.fitted, "activations", last_hidden_state)
    yield trial.adapted('identify, target="activations", by channel', net, found)
    tuned = partial(tune, batches=trial.fitted, epochs=AFTER, lr=1e-4, output=last_hidden_state, base=trial.base)
    yield trial.adapted(f"then tune, {AFTER} epochs at 0.0001", net, tuned)


def identified(
    trial: Trial, batches: Sequence[Tokens], target: str, output: Output, net: nn.Module, heldout: float = 0.2
) -> None:
    identify(net, batches, base=trial.base, target=target, output=output, heldout=heldout, errors=False)


HARD: dict[str, Callable[[Trial, int], Iterator[Row]]] = {
    "layer": by_layer,
    "embeddings": by_embeddings,
    "hindsight": in_hindsight,
    "channel": by_channel,
}


@click.command(cls=Command)
@click.option("--fitted", default=400, show_default=True, type=click.IntRange(min=BATCH), help="Sentences to fit.")
@click.option("--judged", default=500, show_default=True, type=click.IntRange(min=10), help="Others, to judge.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(min=1), help="Of tuning.")
@click.option("--part", "parts", multiple=True, type=click.Choice(["fitted", *HARD]), help="Do these alone.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the activations there.")
@json_option
@markdown_option
def main(
    fitted: int,
    judged: int,
    epochs: int,
    parts: tuple[str, ...],
    picture: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure MiniLM with other activations."""
    parts = parts or ("fitted", *HARD)
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        trial = Trial(fitted, judged)
        if picture is not None:
            plot_activations(trial.replaced(FITTED[DRAWN]), inputs=trial.judged[:1]).savefig(picture)
        if "fitted" in parts:
            out.table("GELU replaced by what is fitted to it on its own inputs, untuned", fitted_ones(trial))
        ways = [way(trial, epochs) for part, way in HARD.items() if part in parts]
        if ways:
            title = "The hard case: every GELU replaced by LEAF as ReLU, then brought back without labels"
            out.table(title, chain.from_iterable(ways))
            out.note(f"To reach, in {SECONDS} s: a cosine of {TO_REACH} and {NEIGHBOURS:.0%} of the neighbours.")


if __name__ == "__main__":
    main()
