"""Thirty regressions whose activations start as another function: is the identified network ever worse than its base?

./run_experiment.sh benchmarks/regressions.py --json regressions.json

A ReLU network is trained on 1,500 samples of a teacher with noise. Its ReLUs become F-Neurons that start as Tanh, and
are identified from 2,000 new samples, without the base network. Both are judged on 50,000 fresh samples. A regression
takes about two seconds on one core.
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aafit
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report

FITTED, NEW, FRESH, STEPS = 1500, 2000, 50_000, 150


def network() -> nn.Sequential:
    """Return a new network with two hidden layers."""
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def drawn(truth: nn.Module, samples: int) -> tuple[Tensor, Tensor]:
    """Draw inputs, and six times the teacher's outputs with noise of standard deviation 0.5."""
    x = torch.randn(samples, 6)
    with torch.no_grad():
        y = 6 * truth(x)
    return x, y + 0.5 * torch.randn_like(y)


def teacher() -> nn.Module:
    """Return the network that all targets come from."""
    torch.manual_seed(7)
    return network()


def trained(truth: nn.Module, seed: int) -> nn.Module:
    """Return a base network, trained on samples of the teacher."""
    torch.manual_seed(seed)
    base = network()
    x, y = drawn(truth, FITTED)
    adam = torch.optim.Adam(base.parameters(), 1e-2)
    for _ in range(STEPS):
        adam.zero_grad()
        F.mse_loss(base(x), y).backward()
        adam.step()
    return base


def regression(truth: nn.Module, seed: int) -> tuple[float, float]:
    """Return the loss of the base and of the identified network on fresh samples."""
    base = trained(truth, seed)
    x, y = drawn(truth, NEW)
    net, _ = aafit.replace_activations(base, {"ReLU": aafit.FNeuron.like("Tanh")}, sample=x[:2])
    aafit.identify(net, [(x, y)], loss="mean squared error", errors=False)
    x, y = drawn(truth, FRESH)
    with torch.no_grad():
        return F.mse_loss(base(x), y).item(), F.mse_loss(net(x), y).item()


@click.command(cls=Command)
@click.option("--first", default=100, show_default=True, help="First seed.")
@click.option("--count", default=30, show_default=True, type=click.IntRange(min=1), help="Number of regressions.")
@json_option
@markdown_option
def main(first: int, count: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """Loss on fresh samples of trained networks, and of the same with identified F-Neurons."""
    truth = teacher()
    with report(json_path, markdown_path) as out:
        rows: list[Row] = []
        losses = []
        for seed in range(first, first + count):
            base, identified = regression(truth, seed)
            losses.append((base, identified))
            rows.append({"seed": seed, "base": Loss(base), "identified": Loss(identified), "ratio": identified / base})
        out.table("Loss on 50,000 fresh samples", rows)
        means = [sum(column) / count for column in zip(*losses, strict=True)]
        worst = max(identified / base for base, identified in losses)
        out.note(f"Mean: {means[0]:.4f} (base), {means[1]:.4f} (identified). Largest ratio: {worst:.4f}.")


if __name__ == "__main__":
    main()
