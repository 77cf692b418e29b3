"""Networks whose activations are replaced without labels: what two benchmarks share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.experiment.data.datasets import load_dataset
from aafit.networks.batches import Output
from benchmarks.networks.kept import Kept, SameClasses
from benchmarks.networks.material import digits, sentences
from benchmarks.networks.minilm import embedding, embeddings, tokenized
from benchmarks.networks.pretrained import digit_cnn, minilm

BATCH = 100
NETWORKS = ("digits", "quickstart", "minilm")


@dataclass(frozen=True)
class Swapped:
    """A network, samples without labels to fit, and held-out ones.

    Attributes:
        title: Its name in tables.
        base: The network.
        kind: The activation that is replaced.
        fitted: Batches to fit.
        judged: Held-out batches.
        output: The output that is matched.
        sample: An input for the fits of the activations.
        agreement: (net) -> cells of a table: how much of the base network's outputs remains.
    """

    title: str
    base: nn.Module
    kind: str
    fitted: Sequence[Any]
    judged: Sequence[Any]
    output: Output | None
    sample: Any
    agreement: Callable[[nn.Module], dict[str, str]]


def load(name: str, fitted: int, judged: int) -> Swapped:
    """Return one of `NETWORKS`."""
    if name == "minilm":
        return _minilm(fitted, judged)
    if name == "digits":
        base, kind, (x_B, _) = digit_cnn(), "ReLU", digits()
        here, other = x_B[:fitted], x_B[fitted : fitted + judged]
    else:
        base, kind, here, other = _quickstart(fitted, judged)
    before = _logits(base, other)

    def agreement(net: nn.Module) -> dict[str, str]:
        return SameClasses.of(before, _logits(net, other)).row()

    title = {"digits": "digit recognizer (ReLU)", "quickstart": "quickstart's network (SiLU)"}[name]
    return Swapped(title, base, kind, list(here.split(BATCH)), list(other.split(BATCH)), None, here, agreement)


def _logits(net: nn.Module, x_B: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(part) for part in x_B.split(BATCH)])


def _quickstart(fitted: int, judged: int) -> tuple[nn.Module, str, Tensor, Tensor]:
    """Train the network of the README on 2,000 digits."""
    data = load_dataset("MNIST-5k")
    x, y = data.train.images_BHWC.permute(0, 3, 1, 2).float() / 255, data.train.labels_B
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 8, 5, stride=2), nn.SiLU(), nn.Conv2d(8, 16, 3, stride=2), nn.SiLU(), nn.Flatten()]
    base = nn.Sequential(*features, nn.Linear(400, 32), nn.SiLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(base.parameters(), 3e-3)
    for x_B, y_B in list(zip(x[:2000].split(50), y[:2000].split(50), strict=True)) * 8:
        optimizer.zero_grad()
        nn.functional.cross_entropy(base(x_B), y_B).backward()
        optimizer.step()
    fresh = torch.cat([x[2000:], data.test.images_BHWC.permute(0, 3, 1, 2).float() / 255])
    return base.eval(), "SiLU", fresh[:fitted], fresh[-judged:]


def _minilm(fitted: int, judged: int) -> Swapped:
    base, tokenize = minilm()
    here, other = (tokenized(tokenize, texts) for texts in sentences(fitted, judged))
    before = embeddings(base, other)

    def agreement(net: nn.Module) -> dict[str, str]:
        return Kept.of(before, embeddings(net, other)).row()

    sample = {key: torch.cat([tokens[key] for tokens in here]) for key in here[0]}
    return Swapped("MiniLM (GELU)", base, "GELU", here, other, embedding, sample, agreement)
