"""Rank the layers by the gain in loss that a quadratic model predicts for adapting each activation alone.

Axes in names: P coordinate of the network, L coordinate of one layer.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_count, check_seed
from aafit.identification.coordinates import Coordinates
from aafit.identification.problem import Problem, Quadratic, probes_for
from aafit.identification.samples import load_samples, with_targets
from aafit.identification.uncertainty import scaled_inverse
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.running import evaluation_mode
from aafit.tables import fit_for_json, listed, table
from aafit.training.losses import LossLike
from aafit.training.predictor import Output, Predictor, unwrapped

MOST_COORDINATES = 5_000
MEASURABLE = 1e-6
"""Smallest change of the loss that counts."""


@dataclass(frozen=True)
class ImportanceRow:
    """The expected gain in mean loss of adapting one layer's activation alone.

    Attributes:
        layer: Path of the activation.
        parameters: Number of its parameters.
        gain: Gain of the damped step minus `noise`; negative if the gradient is smaller than its noise.
        error: Standard error of `gain`: its standard deviation over other samples of the same number.
        noise: The gain by chance: what would be predicted on average if the true gradient were 0.
        silent: Parameters with practically no curvature, for which nothing can be predicted.
    """

    layer: str
    parameters: int
    gain: float
    error: float
    noise: float
    silent: tuple[str, ...]

    @property
    def significant(self) -> bool:
        """Whether the gain exceeds twice its error."""
        return self.gain > 2 * self.error and self.gain > 0


@dataclass(frozen=True)
class Importance:
    """The result of `importance`; prints as a table.

    Attributes:
        rows: The layers by expected gain, the largest first.
        together: All layers adapted at once; less than the sum of the rows if layers can replace each other.
        loss: Mean loss of the network at its current parameters.
        samples: Number of samples.
    """

    rows: tuple[ImportanceRow, ...]
    together: ImportanceRow
    loss: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result fit for JSON; values that are not finite become None."""
        rows = [{**asdict(row), "significant": row.significant} for row in (*self.rows, self.together)]
        return fit_for_json({"samples": self.samples, "loss": self.loss, "rows": rows[:-1], "together": rows[-1]})

    def __str__(self) -> str:
        header = ("layer", "parameters", "gain in loss", "error", "gain by chance", "")
        lines = [table(header, [_cells(row, self.loss) for row in (*self.rows, self.together)])]
        if self.together.silent:
            count = Counter(name.partition("[")[0] for name in self.together.silent)
            names = [f"{name} ({number} elements)" if number > 1 else name for name, number in count.items()]
            lines.append(f"No curvature, so no prediction: {listed(names)}")
        lines.append(
            f"{self.samples} samples, loss {self.loss:.4f}; gains of a quadratic model at the present values; the gain "
            "by chance is subtracted"
        )
        return "\n".join(lines)


def importance(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int = 1024,
    base: nn.Module | None = None,
    output: Output | None = None,
    loss: LossLike | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    seed: int = 0,
) -> Importance:
    """Predict the gain in mean loss of adapting each layer's activation alone.

    With g and H the gradient and the Gauss-Newton matrix with respect to a layer's coordinates, at the present
    parameters in evaluation mode, and S the covariance of the n per-sample gradients,

        gain = g^T A g / 2 - noise,    noise = tr(A S) / (2 n),    A = (H + lambda diag(H))^-1.

    The noise is the expectation of the first term if the true gradient is 0. It is subtracted because a layer with many
    parameters would otherwise gain by overfitting these samples. lambda, the damping, is the share of noise in the
    undamped gain, tr(H^-1 S) / (n g^T H^-1 g), at most 1, and 0 for a gradient without noise. The error is the standard
    deviation of the gain when g is drawn with the covariance S / n: the root of g^T A S A g / n +
    tr((A S)^2) / (2 n^2).

    The prediction is local. From a poor initialization the quadratic model can promise more than the whole loss, which
    the table reports; the ranking is then only a hint. Parameters whose slope is so steep that no gradient exists
    (gamma = 2^16) have no curvature either: they are listed without a prediction. Two layers adapted together gain less
    than the sum of both where one can replace the other: see the row of all together.

    H is exact for up to 16 outputs per sample, else estimated from 8 random probes per sample, from 2 above 4,096
    outputs. `net` is left unchanged.

    Args:
        net: A network with adaptive activations, with at most 5,000 parameters.
        batches: Batches of any form, as for `identify`.
        samples: Number of samples used, the first ones of `batches`; at least 2.
        base: The network whose outputs are the targets; None: the labels are the targets.
        output: Selects the output tensor of what the network returns, as for `identify`.
        loss: As for `identify`.
        batch_size: Samples per forward pass; by default the size of the largest batch, at most 128.
        precision: Precision of the forward passes, as for `aafit.tune`.
        seed: Seed of the random probes.

    Returns:
        A row per layer, the largest gain first; prints as a table.

    Raises:
        UserError: The network has no adaptive activation or too many parameters; there are fewer than two samples, they
            are not finite, or the network fails on them; labels do not fit its outputs; the loss is not finite; the
            number of samples or the batch size is below 1; the seed or the precision is not valid.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), aafit.AHAF.like("SiLU"), nn.Linear(8, 3))
        >>> print(aafit.importance(net, [(torch.randn(64, 4), torch.randint(3, (64,)))]))  # doctest: +SKIP
        layer         parameters  gain in loss   error  gain by chance
        1                      2        0.0008  0.0045          0.0044  within the noise
        all together           2        0.0008  0.0045          0.0044  within the noise
        64 samples, loss 1.1463; gains of a quadratic model at the present values; the gain by chance is subtracted
    """
    net, base = unwrapped(net), None if base is None else unwrapped(base)
    coordinates = Coordinates(net)
    if len(coordinates) > MOST_COORDINATES:
        raise UserError(
            f"The network has {len(coordinates)} adaptive parameters, and importance needs a matrix of that number "
            f"squared: it takes at most {MOST_COORDINATES}. Share them by layer or by channel."
        )
    check_seed(seed)
    if batch_size is not None:
        check_count("batch size", batch_size)
    predictor = Predictor(net, output, precision, batch_size)
    data = load_samples(predictor, batches, "predict from", most=samples)
    if len(data) < 2:
        raise UserError("The noise of a gain can be estimated from 2 samples or more; got 1.")
    with evaluation_mode(net, *([] if base is None else [base])):
        data, made = with_targets(data, None if base is None else predictor.of(base), loss)
        problem = Problem(predictor, coordinates, made)
        problem.check(data)
        probes = probes_for(problem, coordinates.read(), data)
        quadratic = problem.quadratic(coordinates.read(), data, probes, seed)
    return importance_of(quadratic, coordinates, tuple(adaptive_activations(net)))


def importance_of(quadratic: Quadratic, coordinates: Coordinates, layers: tuple[str, ...]) -> Importance:
    """Predict the gains from a quadratic model of the loss.

    Raises:
        UserError: The model is not finite.
    """
    parts = (quadratic.gradient_P, quadratic.curvature_PP, quadratic.scatter_PP)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise UserError("The loss or its derivatives are not finite at the present parameters.")
    index = {layer: [i for i, of in enumerate(coordinates.layers) if of == layer] for layer in layers}
    rows = [_row(layer, torch.tensor(at), quadratic, coordinates) for layer, at in index.items()]
    together = _row("all together", torch.arange(len(coordinates)), quadratic, coordinates)
    # A stable sort: layers of equal gain stay in the order of the network.
    return Importance(tuple(sorted(rows, key=lambda row: -row.gain)), together, quadratic.loss, quadratic.samples)


def _row(layer: str, at: Tensor, quadratic: Quadratic, coordinates: Coordinates) -> ImportanceRow:
    n, mean_P = quadratic.samples, quadratic.gradient_P
    gradient_L, curvature_LL = mean_P[at], quadratic.curvature_PP[at][:, at]
    covariance_LL = (quadratic.scatter_PP - torch.outer(mean_P, mean_P))[at][:, at] / n
    # A change of the coordinate by 1 (of a large slope by a factor of e) changes the loss by less than MEASURABLE.
    silent_L = (curvature_LL.diag() / 2 < MEASURABLE) & (gradient_L.abs() < MEASURABLE)
    active_L = (~silent_L).to(gradient_L)
    gradient_L = gradient_L * active_L
    mask_LL = torch.outer(active_L, active_L)
    curvature_LL, covariance_LL = curvature_LL * mask_LL, covariance_LL * mask_LL
    inverse_LL, _ = scaled_inverse(curvature_LL)
    raw, raw_noise = _quadratic_form(gradient_L, inverse_LL), _trace(inverse_LL, covariance_LL)
    share = min(1.0, raw_noise / raw) if raw > 0 else 1.0
    damped_LL, _ = scaled_inverse(curvature_LL + share * curvature_LL.diag().diag())
    noise = _trace(damped_LL, covariance_LL) / 2
    gain = _quadratic_form(gradient_L, damped_LL) / 2 - noise
    product_LL = damped_LL @ covariance_LL
    variance = _quadratic_form(gradient_L, product_LL @ damped_LL) + _trace(product_LL, product_LL) / 2
    silent = tuple(coordinates.names[i] for i in at[silent_L].tolist())
    return ImportanceRow(layer, len(at), gain, max(variance, 0.0) ** 0.5, noise, silent)


def _quadratic_form(vector_L: Tensor, matrix_LL: Tensor) -> float:
    return torch.dot(vector_L, matrix_LL @ vector_L).item()


def _trace(one_LL: Tensor, other_LL: Tensor) -> float:
    """Return the trace of the product of two matrices."""
    return (one_LL * other_LL.T).sum().item()


def _cells(row: ImportanceRow, loss: float) -> tuple[str, ...]:
    if len(row.silent) == row.parameters:
        return row.layer, str(row.parameters), "-", "-", "-", "no gradient: no prediction"
    note = "" if row.significant else "within the noise"
    if row.gain > loss:
        note = "more than the whole loss: too far for a quadratic model"
    return row.layer, str(row.parameters), f"{row.gain:.4f}", f"{row.error:.4f}", f"{row.noise:.4f}", note
