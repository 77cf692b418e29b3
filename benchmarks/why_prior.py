"""One figure: the same F-Neuron, identified from 200 samples without and with a prior.

./run_experiment.sh benchmarks/why_prior.py --out docs/identification/figures

The network is a regression of benchmarks/regressions.py; the second of its two F-Neurons is drawn.
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

import aafit
from aafit.plots.style import BAND, ORIGINAL, TUNED, look, panels, save
from benchmarks.harness import Command
from benchmarks.regressions import FRESH, drawn, teacher, trained

SAMPLES, SEED, SECOND = 200, 115, "3"


@click.command(cls=Command)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the figure.")
def main(out: Path) -> None:
    """Draw an F-Neuron identified from 200 samples, without and with a prior."""
    truth = teacher()
    base = trained(truth, SEED)
    x, y = drawn(truth, SAMPLES)
    fresh = drawn(truth, FRESH)
    u = torch.linspace(-5, 5, 401)
    with look():
        figure, axes = panels(2, 2, (3.2, 2.4), (0.55, 0.15, 0.45, 0.3), f"F-Neuron identified from {SAMPLES} samples")
        for axis, prior, title in zip(axes, (None, "auto"), ("without a prior", "with a prior"), strict=True):
            net, _ = aafit.replace_activations(base, {"ReLU": aafit.FNeuron.like("Tanh")}, sample=x[:2])
            found = aafit.identify(net, [(x, y)], loss="mean squared error", prior=prior)
            activation = net.get_submodule(SECOND)
            assert isinstance(activation, aafit.FNeuron)
            with torch.no_grad():
                curve_U = activation(u[:, None])[:, 0]
                loss = F.mse_loss(net(fresh[0]), fresh[1]).item()
            error_U = _errors(activation, found, u)
            axis.fill_between(u, curve_U - 2 * error_U, curve_U + 2 * error_U, **BAND, label="± 2 standard errors")
            axis.plot(u, F.relu(u), **ORIGINAL, label="original (ReLU)")
            axis.plot(u, curve_U, **TUNED, label="identified")
            low, high = found.ranges[SECOND]
            axis.axvspan(low, high, color="black", alpha=0.05, lw=0)
            axis.set(xlim=(-5, 5), ylim=(-4, 6), xlabel="input", title=f"{title}: loss {loss:.3f}")
        axes[0].legend(loc="lower right", frameon=False, fontsize=8)
    with torch.no_grad():
        loss = F.mse_loss(base(fresh[0]), fresh[1]).item()
    for file in save(figure, out, "why-prior"):
        click.echo(f"{file} (loss of the base network: {loss:.3f})")


def _errors(activation: aafit.FNeuron, found: aafit.Identification, u_U: Tensor) -> Tensor:
    """Return the standard error of the second F-Neuron at inputs, by the covariance of its knots."""
    assert found.uncertainty is not None
    at = torch.tensor([name.startswith(f"{SECOND}.") for name in found.names])
    covariance_QQ = found.uncertainty.covariance_PP[at][:, at]
    tents = [aafit.FNeuron(knot[None], activation.interval)(u_U[:, None])[:, 0] for knot in torch.eye(activation.knots)]
    tents_UQ = torch.stack(tents, 1).detach().double()
    return ((tents_UQ @ covariance_QQ) * tents_UQ).sum(1).clamp(min=0).sqrt()


if __name__ == "__main__":
    main()
