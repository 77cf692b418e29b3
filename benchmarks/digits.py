"""Digits: networks identified from 100 to 1,500 samples, judged on digits of any contrast.

./run_experiment.sh benchmarks/digits.py --json digits.json

Three small SiLU networks are trained on 600 digits of MNIST-5k, halved in size. Their activations become F-Neurons
on [-6, 6] with linear ends, or LEAFs, and are identified from other digits. All are judged on 2,000 further digits,
also with their contrast multiplied by 0.6 to 2. A network takes about a minute on one core.
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aafit
from benchmarks.harness import Command, Loss, Row, json_option, markdown_option, report
from benchmarks.networks.material import digits

TRAINED, FIRST, JUDGED = 600, 1000, 3000  # the first 600 digits, those from 1,000 on, those from 3,000 on
MEAN, DEVIATION = 0.1307, 0.3081  # by which the digits are standardized
CONTRASTS = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
FAMILIES = {
    "F-Neuron": aafit.FNeuron.like("SiLU", interval=(-6.0, 6.0), outside="linear"),
    "LEAF": aafit.LEAF.like("SiLU"),
}


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Return a small network trained on the first digits."""
    torch.manual_seed(seed)
    features = [nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU()]
    net = nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 32), nn.SiLU(), nn.Linear(32, 10))
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(14):
        for batch in torch.randperm(TRAINED).split(50):
            adam.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            adam.step()
    return net.eval()


def judged(net: nn.Module, x: Tensor, y: Tensor, contrast: float = 1.0) -> tuple[float, float]:
    """Return the loss and the accuracy in percent at a contrast."""
    with torch.no_grad():
        outputs = net(((x * DEVIATION + MEAN) * contrast - MEAN) / DEVIATION)
    return F.cross_entropy(outputs, y).item(), 100 * (outputs.argmax(1) == y).double().mean().item()


@click.command(cls=Command)
@click.option("--network", "networks", multiple=True, type=int, default=(0, 1, 2), show_default=True, help="Seeds.")
@click.option("--samples", multiple=True, type=int, default=(100, 200, 500, 1500), show_default=True)
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), default=tuple(FAMILIES))
@json_option
@markdown_option
def main(
    networks: tuple[int, ...],
    samples: tuple[int, ...],
    families: tuple[str, ...],
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Test loss and accuracy of networks identified from few digits, at several contrasts."""
    images, labels = digits()
    images = F.avg_pool2d(images, 2)
    x, y = images[JUDGED:], labels[JUDGED:]
    with report(json_path, markdown_path) as out:
        for seed in networks:
            base = trained(images, labels, seed)
            rows = [_row("base", "", base, base, x, y)]
            for family in families:
                for count in samples:
                    fitted = images[FIRST : FIRST + count], labels[FIRST : FIRST + count]
                    net, _ = aafit.replace_activations(base, {"SiLU": FAMILIES[family]}, sample=fitted[0][:2])
                    aafit.identify(net, [fitted], base=base, errors=False)
                    rows.append(_row(family, f"{count}", net, base, x, y))
            out.table(f"Network {seed}: 2,000 test digits; accuracy by contrast less the base's, in points", rows)


def _row(family: str, samples: str, net: nn.Module, base: nn.Module, x: Tensor, y: Tensor) -> Row:
    loss, accuracy = judged(net, x, y)
    contrasts = {f"x {c}": judged(net, x, y, c)[1] - judged(base, x, y, c)[1] for c in CONTRASTS}
    return {
        "activations": family,
        "samples": samples,
        "loss": Loss(loss),
        "loss, less base": Loss(loss - judged(base, x, y)[0]),
        "accuracy, %": accuracy,
        **contrasts,
    }


if __name__ == "__main__":
    main()
