"""Networks whose activations are replaced without labels: what two benchmarks share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aafit.experiment.data.datasets import load_dataset
from aafit.networks.batches import as_inputs
from aafit.training.predictor import Output
from benchmarks.networks.kept import Kept, SameClasses
from benchmarks.networks.material import digits, fitted_and_judged_patches, sentences
from benchmarks.networks.minilm import embedding, embeddings, tokenized
from benchmarks.networks.pretrained import digit_cnn, efficientnet_lite0, minilm

BATCH, PATCHES = 100, 8
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
        outputs: (net) -> the outputs for the held-out batches.
        before: The outputs of the base network for these batches.
        judge: (before, after) -> cells of a table: how much of the outputs remains.
        target: Target of the identification, as for `identify`.
        as_exported: (net) -> a network from tensors to a tensor, for ONNX.
    """

    title: str
    base: nn.Module
    kind: str
    fitted: Sequence[Any]
    judged: Sequence[Any]
    output: Output | None
    sample: Any
    outputs: Callable[[nn.Module], Tensor]
    before: Tensor
    judge: Callable[[Tensor, Tensor], Mapping[str, str]]
    target: str = "logits"
    as_exported: Callable[[nn.Module], nn.Module] = field(default=lambda net: net)

    def agreement(self, net: nn.Module) -> Mapping[str, str]:
        """Return the cells of a table for the network."""
        return self.judge(self.before, self.outputs(net))

    @property
    def judged_tensors(self) -> list[tuple[Tensor, ...]]:
        """The held-out batches as arguments of `as_exported(net)`."""
        return [tuple(batch.values()) if isinstance(batch, Mapping) else (batch,) for batch in self.judged]


def load(name: str, fitted: int, judged: int) -> Swapped:
    """Return one of `NETWORKS`, or "efficientnet"."""
    if name == "minilm":
        return _minilm(fitted, judged)
    size, target = BATCH, "logits"
    if name == "digits":
        base, kind, (x_B, _) = digit_cnn(), "ReLU", digits()
        here, other = x_B[:fitted], x_B[fitted : fitted + judged]
    elif name == "quickstart":
        base, kind, here, other = _quickstart(fitted, judged)
    else:
        base, kind, size, target = efficientnet_lite0(), "ReLU6", PATCHES, "activations"
        here, other = fitted_and_judged_patches(fitted, judged)

    def outputs(net: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([net(part) for part in other.split(size)])

    def judge(before: Tensor, after: Tensor) -> Mapping[str, str]:
        return SameClasses.of(before, after).row()

    titles = {
        "digits": "digit recognizer (ReLU)",
        "quickstart": "quickstart's network (SiLU)",
        "efficientnet": "EfficientNet-Lite0 (ReLU6)",
    }
    batches = list(here.split(size)), list(other.split(size))
    return Swapped(titles[name], base, kind, *batches, None, here, outputs, outputs(base), judge, target)


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


class _Embedding(nn.Module):
    """MiniLM from the tensors of its tokenizer to the embeddings, (B, C)."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, *tokens: Tensor) -> Tensor:
        """Return an embedding for each sentence."""
        batch = as_inputs(dict(zip(self.names, tokens, strict=True)))
        return embedding(self.net(**batch.kwargs), batch)


def _minilm(fitted: int, judged: int) -> Swapped:
    base, tokenize = minilm()
    here, other = (tokenized(tokenize, texts) for texts in sentences(fitted, judged))

    def outputs(net: nn.Module) -> Tensor:
        return embeddings(net, other)

    def judge(before: Tensor, after: Tensor) -> Mapping[str, str]:
        return Kept.of(before, after).row()

    sample = {key: torch.cat([tokens[key] for tokens in here]) for key in here[0]}
    return Swapped(
        "MiniLM (GELU)",
        base,
        "GELU",
        here,
        other,
        embedding,
        sample,
        outputs,
        outputs(base),
        judge,
        as_exported=lambda net: _Embedding(net, list(sample)).eval(),
    )
