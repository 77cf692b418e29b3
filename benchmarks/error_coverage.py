"""How often the standard errors of an identification cover a known truth.

./run_experiment.sh benchmarks/error_coverage.py --json error_coverage.json

In each of nine cases a small network draws labels or targets, and a network with other values of its activation is
identified from them, several times from new samples: with the default prior, whose weight is selected, and with a prior
of weight 1, which hardly shrinks the parameters. Covered: among the parameters with a standard error, the share whose
value is within 1.96 standard errors of the truth; 95% is right. With an error: the share of the parameters that the
samples determine. Each identification takes about a fifth of a second on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import aafit
from benchmarks.harness import Command, Row, json_option, markdown_option, report

INPUTS, HIDDEN = 6, 16
FIRST_SEED = 1000


@dataclass(frozen=True)
class Case:
    """A known truth.

    Attributes:
        start, truth: Make the activation that the identification starts from, and the true one.
        draw: From outputs to labels or targets.
        outputs: Number of outputs.
        confidence: Factor of the last layer's weights.
    """

    start: Callable[[], aafit.AdaptiveActivation]
    truth: Callable[[], aafit.AdaptiveActivation]
    draw: Callable[[Tensor], Tensor]
    outputs: int = 4
    confidence: float = 1.0

    def net(self, activation: nn.Module) -> nn.Sequential:
        """Return the network with an activation; its weights are always the same."""
        torch.manual_seed(11)
        first, last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, self.outputs)
        with torch.no_grad():
            first.weight.mul_(2)
            last.weight.mul_(4 * self.confidence)
            last.bias.mul_(4 * self.confidence)
        return nn.Sequential(first, activation, last)

    @property
    def loss(self) -> str:
        """The loss that the drawn labels or targets ask for."""
        return "cross-entropy" if self.draw is labels else "mean squared error"


def bent(knots: int) -> aafit.FNeuron:
    """Return an F-Neuron as SiLU with a wave on it."""
    activation = aafit.FNeuron.like("SiLU", knots=knots)
    with torch.no_grad():
        activation.weight.add_(0.3 * torch.sin(1.3 * activation.knot_positions.float()))
    return activation


def jagged() -> aafit.FNeuron:
    """Return an F-Neuron as SiLU whose knots are changed independently, by about 40% of their size and more."""
    activation = aafit.FNeuron.like("SiLU")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        size = activation.weight.abs() + 0.2
        activation.weight.add_(0.4 * size * torch.randn(activation.weight.shape, generator=generator))
    return activation


def labels(outputs: Tensor) -> Tensor:
    """Draw classes from the probabilities of the logits."""
    drawn: Tensor = torch.distributions.Categorical(logits=outputs).sample()
    return drawn


def homoscedastic(outputs: Tensor) -> Tensor:
    """Add noise of standard deviation 1."""
    return outputs + torch.randn_like(outputs)


def heteroscedastic(outputs: Tensor) -> Tensor:
    """Add noise whose standard deviation grows with the outputs."""
    return outputs + torch.randn_like(outputs) * (0.3 + 0.5 * outputs.abs())


AHAF = partial(aafit.AHAF.like, "SiLU"), partial(aafit.AHAF, 1.2, 0.9)
LEAF = partial(aafit.LEAF.like, "SiLU"), partial(aafit.LEAF, 1.1, -0.2, 0.8, 0.1)
KNOTS_10 = partial(aafit.FNeuron.like, "SiLU", knots=10), partial(bent, 10)
KNOTS_18 = partial(aafit.FNeuron.like, "SiLU", knots=18), partial(bent, 18)

PRIORS: dict[float | str, str] = {"auto": "weight selected", 1.0: "weight 1"}

CASES = {
    "AHAF": Case(*AHAF, labels),
    "LEAF": Case(*LEAF, labels),
    "LEAF, confident network": Case(*LEAF, labels, confidence=3.0),
    "F-Neuron, 10 knots": Case(*KNOTS_10, labels),
    "F-Neuron, 18 knots": Case(*KNOTS_18, labels),
    "F-Neuron, 18 knots, squared error": Case(*KNOTS_18, homoscedastic),
    "F-Neuron, 18 knots, 30 outputs": Case(*KNOTS_18, labels, outputs=30),
    "F-Neuron, 10 knots, heteroscedastic noise": Case(*KNOTS_10, heteroscedastic),
    "F-Neuron, 18 knots, jagged": Case(partial(aafit.FNeuron.like, "SiLU", knots=18), jagged, labels),
}


def coverage(case: Case, samples: int, repetitions: int, prior: float | str) -> tuple[float, float]:
    """Return the coverage of a case and the share of the parameters that get a standard error, in percent."""
    inside, known, count = 0, 0, 0
    true = torch.cat([p.detach().flatten() for p in case.truth().parameters()]).tolist()
    for seed in range(repetitions):
        net, teacher = case.net(case.start()), case.net(case.truth())
        torch.manual_seed(FIRST_SEED + seed)
        x = torch.randn(samples, INPUTS)
        with torch.no_grad():
            y = case.draw(teacher(x))
        found = aafit.identify(net, [(x, y)], loss=case.loss, prior=prior)
        assert found.uncertainty is not None
        for row, value in zip(found.uncertainty.rows, true, strict=True):
            count += 1
            known += row.determined
            inside += row.determined and abs(row.value - value) < 1.96 * row.error
    return 100 * inside / max(known, 1), 100 * known / count


@click.command(cls=Command)
@click.option(
    "--samples", default=1500, show_default=True, type=click.IntRange(min=10), help="Of which 80% are fitted."
)
@click.option("--repetitions", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="One of the cases; default: all.")
@json_option
@markdown_option
def main(
    samples: int, repetitions: int, names: tuple[str, ...], json_path: Path | None, markdown_path: Path | None
) -> None:
    """How often value +- 1.96 standard errors covers a known truth."""
    with report(json_path, markdown_path) as out:
        rows: list[Row] = []
        for name in names or CASES:
            row: dict[str, str | float] = {"case": name}
            for prior, label in PRIORS.items():
                covered, known = coverage(CASES[name], samples, repetitions, prior)
                row |= {f"covered, {label}, %": covered, f"with an error, {label}, %": known}
                out.note(f"{name}, {label}: {covered:.1f}%")
            rows.append(row)
        out.table(f"Coverage of value +- 1.96 standard errors, {samples} samples, {repetitions} repetitions", rows)


if __name__ == "__main__":
    main()
