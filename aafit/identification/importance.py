"""Which layer's activation is worth adapting: the gain in loss that a quadratic predicts for each one alone.

Axes in names: L coordinate of one layer.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError, check_count
from aafit.identification.coordinates import Coordinates
from aafit.identification.losses import Loss
from aafit.identification.problem import Problem, Quadratic, draws_for
from aafit.identification.samples import first_samples, with_targets
from aafit.identification.uncertainty import scaled_inverse
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import Output
from aafit.networks.running import evaluation_mode
from aafit.tables import fit_for_json, listed, table

MOST_COORDINATES = 5_000
MEASURABLE = 1e-6


@dataclass(frozen=True)
class ImportanceRow:
    """What adapting one layer's activation alone is expected to gain in mean loss.

    Attributes:
        gain: What the damped step gains less `noise`; below 0 where the gradient is smaller than its noise.
        error: Standard deviation of `gain` over draws of as many images.
        noise: What a gradient of pure noise would seem to gain.
        silent: Parameters with practically no curvature here, of which nothing can be predicted.
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
    """What `importance` found: prints as a table.

    Attributes:
        rows: the layers by expected gain, the largest first.
        together: all of them adapted at once; less than the sum of the rows where layers can do the same.
        loss: mean loss of the network as it is, in the units of its loss.
        images: how many samples it was computed from.
    """

    rows: tuple[ImportanceRow, ...]
    together: ImportanceRow
    loss: float
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; what is not finite becomes None."""
        return fit_for_json(
            {
                "images": self.images,
                "loss": self.loss,
                "rows": [{**asdict(row), "significant": row.significant} for row in self.rows],
                "together": {**asdict(self.together), "significant": self.together.significant},
            }
        )

    def __str__(self) -> str:
        header = ("layer", "parameters", "gain in loss", "error", "of noise", "")
        lines = [table(header, [_cells(row, self.loss) for row in (*self.rows, self.together)])]
        if self.together.silent:
            count = Counter(name.partition("[")[0] for name in self.together.silent)
            names = [f"{name} ({number} elements)" if number > 1 else name for name, number in count.items()]
            lines.append(f"No curvature, so nothing is predicted of: {listed(names)}")
        lines.append(
            f"{self.images} images, loss {self.loss:.4f}; gains are those of a quadratic, near the present values"
        )
        return "\n".join(lines)


def importance(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    images: int = 1024,
    base: nn.Module | None = None,
    output: Output | None = None,
    loss: Loss | str | Callable[[Tensor, Tensor], Tensor] | None = None,
    columns: int | None = None,
    batch_size: int = 128,
    precision: str = "float32",
    seed: int = 0,
) -> Importance:
    """The expected gain in mean loss of adapting each layer's activation alone, on the first `images` of `batches`.

    With g and H the gradient and the Gauss-Newton curvature by the coordinates of a layer, at the present parameters
    in evaluation mode, and S the covariance of the n images' own gradients,

        gain = g^T A g / 2 - noise,    noise = tr(A S) / (2 n),    A = (H + damping)^-1.

    The noise is what the first term is on average where the true gradient is 0, so that a layer with many parameters
    is not credited with fitting the draw of these images. The damping is chosen from it too, as Marquardt's,
    lambda diag(H): lambda is the share of noise in the undamped gain, tr(H^-1 S) / (n g^T H^-1 g), at most 1. It is 0
    where the gradient has no noise. The error is the standard deviation of the gain when g is drawn with the
    covariance S / n: the root of g^T A S A g / n + tr((A S)^2) / (2 n^2). `net` is left as it was.

    This is a local prediction. From a far start the quadratic can promise more than the whole loss, which the table
    says; the ranking is then a hint. Parameters whose steepness is so steep that no gradient exists (gamma = 2^16)
    have no curvature either: nothing is predicted of them, and they are listed. Adapting two layers gains less than
    the sum of both where one can do the other's work: compare with the row of all together.

    Args:
        net: a network with adaptive activations.
        batches: of any form, as for `identify`.
        images: how many of them.
        base: the network whose outputs are the targets; None: the labels are.
        output: from what the network returns to its outputs, as for `identify`.
        loss: as for `identify`.
        columns: of the curvature, drawn at random for each image; None: the exact curvature where an image has up to 16
            outputs, else 8 columns, 2 above 4,096 outputs.
        batch_size: images at once.
        precision: of the forward passes, as for `aafit.tune`.
        seed: of the sampled columns.

    Raises:
        UserError: no adaptive activation or too many parameters, no images, images that are not finite or that the
            network refuses, or labels that do not fit its outputs.
    """
    coordinates = Coordinates(net)
    if len(coordinates) > MOST_COORDINATES:
        raise UserError(
            f"The network has {len(coordinates)} adaptive parameters, and importance needs a matrix of their number "
            f"squared: it takes at most {MOST_COORDINATES}. Share them by layer or by channel."
        )
    check_count("batch size", batch_size)
    data = first_samples(net, batches, images, "predict from", base, output)
    if len(data) < 2:
        raise UserError("The noise of a gain needs at least 2 images.")
    with evaluation_mode(net, *([] if base is None else [base])):
        data, made = with_targets(data, base, loss, batch_size, precision, output)
        problem = Problem(net, coordinates, made, batch_size, precision, output)
        problem.check(data)
        columns = columns or draws_for(problem, coordinates.read(), data)
        quadratic = problem.quadratic(coordinates.read(), data, columns, seed)
    return importance_of(quadratic, coordinates, tuple(adaptive_activations(net)))


def importance_of(quadratic: Quadratic, coordinates: Coordinates, layers: tuple[str, ...]) -> Importance:
    """The same from a quadratic that is there already.

    Raises:
        UserError: the quadratic is not finite.
    """
    parts = (quadratic.gradient_P, quadratic.curvature_PP, quadratic.scatter_PP)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise UserError("The loss or its derivatives are not finite at the present parameters.")
    index = {layer: [i for i, of in enumerate(coordinates.layers) if of == layer] for layer in layers}
    rows = [_row(layer, torch.tensor(at), quadratic, coordinates) for layer, at in index.items()]
    together = _row("all together", torch.arange(len(coordinates)), quadratic, coordinates)
    # Layers of equal gain stay in the order of the network.
    return Importance(tuple(sorted(rows, key=lambda row: -row.gain)), together, quadratic.loss, quadratic.images)


def _row(layer: str, at: Tensor, quadratic: Quadratic, coordinates: Coordinates) -> ImportanceRow:
    n, mean_P = quadratic.images, quadratic.gradient_P
    gradient_L, curvature_LL = mean_P[at], quadratic.curvature_PP[at][:, at]
    covariance_LL = (quadratic.scatter_PP - torch.outer(mean_P, mean_P))[at][:, at] / n
    # A coordinate that changes the loss by less than can be measured when it changes by 1, a steepness by a factor e.
    silent_L = (curvature_LL.diag() / 2 < MEASURABLE) & (gradient_L.abs() < MEASURABLE)
    heard_L = (~silent_L).to(gradient_L)
    gradient_L = gradient_L * heard_L
    mask_LL = torch.outer(heard_L, heard_L)
    curvature_LL, covariance_LL = curvature_LL * mask_LL, covariance_LL * mask_LL
    inverse_LL, _ = scaled_inverse(curvature_LL)
    raw, raw_noise = _form(gradient_L, inverse_LL), _trace(inverse_LL, covariance_LL)
    share = min(1.0, raw_noise / raw) if raw > 0 else 1.0
    damped_LL, _ = scaled_inverse(curvature_LL + share * curvature_LL.diag().diag())
    noise = _trace(damped_LL, covariance_LL) / 2
    gain = _form(gradient_L, damped_LL) / 2 - noise
    spread_LL = damped_LL @ covariance_LL
    variance = _form(gradient_L, spread_LL @ damped_LL) + _trace(spread_LL, spread_LL) / 2
    silent = tuple(coordinates.names[i] for i in at[silent_L].tolist())
    return ImportanceRow(layer, len(at), gain, max(variance, 0.0) ** 0.5, noise, silent)


def _form(vector_L: Tensor, matrix_LL: Tensor) -> float:
    return torch.dot(vector_L, matrix_LL @ vector_L).item()


def _trace(one_LL: Tensor, other_LL: Tensor) -> float:
    return (one_LL * other_LL.T).sum().item()


def _cells(row: ImportanceRow, loss: float) -> tuple[str, ...]:
    if len(row.silent) == row.parameters:
        return row.layer, str(row.parameters), "-", "-", "-", "no gradient: nothing can be predicted"
    said = "" if row.significant else "within the noise"
    if row.gain > loss:
        said = "more than the whole loss: too far for a quadratic"
    return row.layer, str(row.parameters), f"{row.gain:.4f}", f"{row.error:.4f}", f"{row.noise:.4f}", said
