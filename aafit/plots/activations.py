"""The figure of a network's adaptive activations, with the inputs that they receive."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from aafit.activations import FIXED, AdaptiveActivation, Histogram
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import each_batch
from aafit.networks.running import evaluation_mode, receiving
from aafit.plots.panels import Drawn, draw_activations
from aafit.training.predictor import Predictor


def plot_activations(net: nn.Module, inputs: Iterable[Any] | Tensor | None = None, title: str = "") -> Figure:
    """Draw every adaptive activation of a network: original, initial and tuned.

    For several parameter sets (channels, neurons) the median is drawn, and the range of 90% of the curves. The
    parameters are listed over each panel.

    Args:
        net: Any network; it is left unchanged.
        inputs: Batches of any form that `evaluate` takes, or a single tensor; the density of each activation's inputs
            is drawn behind its curves.
        title: Title of the figure.

    Returns:
        A matplotlib figure, not registered with pyplot; notebooks show it.

    Raises:
        UserError: The network has no adaptive activation, or `inputs` holds no batch.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), aafit.LEAF.like("Tanh"))
        >>> figure = aafit.plot_activations(net, inputs=torch.randn(100, 3))
        >>> figure.savefig("activations.svg")  # doctest: +SKIP
    """
    activations = adaptive_activations(net)
    if not activations:
        raise UserError("The network has no adaptive activation to draw: put some in with aafit.replace_activations.")
    batches = [inputs] if isinstance(inputs, Tensor) else inputs
    histograms = {} if batches is None else _histograms(net, activations, batches)
    drawn = []
    for path, activation in activations.items():
        initial = FIXED[activation.start]() if activation.start in FIXED else None
        drawn.append(Drawn(path or type(net).__name__, activation, initial, activation.replaced, histograms.get(path)))
    return draw_activations(drawn, title)


def _histograms(
    net: nn.Module, activations: Mapping[str, AdaptiveActivation], batches: Iterable[Any]
) -> dict[str, Histogram]:
    histograms: dict[str, Histogram] = {}

    def see(path: str, u: Tensor) -> None:
        histogram = Histogram.of(u)
        histograms[path] = histograms[path].merged(histogram) if path in histograms else histogram

    predictor, seen = Predictor(net), 0
    with receiving(net, activations, see), evaluation_mode(net):
        for batch in each_batch(batches):
            predictor.forward(batch)
            seen += 1
    if not seen:
        raise UserError("inputs holds no batch: give at least one, or leave inputs out.")
    return histograms
