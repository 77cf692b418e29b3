"""What a replacement of activations changes: at each layer, at the logits, in the predictions, and as a function."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.tables import fit_for_json
from aafit.training.evaluate import Batches, evaluation_mode
from aafit.training.precision import autocast

CURVE_POINTS = 4001


@dataclass(frozen=True)
class Difference:
    """Largest and mean absolute difference of one layer's output between two networks, over all images."""

    path: str
    max_abs: float
    mean_abs: float


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images: the base and the one whose activations were replaced.

    An image whose logits are NaN or infinite is predicted by neither network: it counts as wrong, and as not equal.
    `base_not_finite` and `replaced_not_finite` are the numbers of such images.
    """

    layers: tuple[Difference, ...]
    logits: Difference
    agreement: float
    base_accuracy: float
    base_loss: float
    replaced_accuracy: float
    replaced_loss: float
    images: int
    base_not_finite: int = 0
    replaced_not_finite: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON: None for what is not a finite number."""
        return fit_for_json(asdict(self))

    def __str__(self) -> str:
        rows = [("output of", "largest difference", "mean difference")]
        rows += [(row.path, f"{row.max_abs:.4g}", f"{row.mean_abs:.4g}") for row in (*self.layers, self.logits)]
        width = max(len(row[0]) for row in rows)
        lines = [f"{path:<{width}}  {largest:>18}  {mean:>15}" for path, largest, mean in rows]
        lines.append(
            f"equal predictions {self.agreement:.2%} of {self.images} images; accuracy {self.base_accuracy:.2%} -> "
            f"{self.replaced_accuracy:.2%}, loss {self.base_loss:.4f} -> {self.replaced_loss:.4f} by the replacement"
        )
        for which, count in (("base", self.base_not_finite), ("replaced", self.replaced_not_finite)):
            if count:
                lines.append(f"DIVERGED: the {which} network gives NaN or infinity for {count} of {self.images} images")
        return "\n".join(lines)


class _Recorder:
    """Keeps the latest output of some modules of a network."""

    def __init__(self, net: nn.Module, paths: Sequence[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.handles = [net.get_submodule(path).register_forward_hook(self._hook(path)) for path in paths]

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # Cloned: what comes next may work in place.
            self.outputs[path] = output.clone()

        return keep

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def replaced_paths(base: nn.Module, net: nn.Module) -> list[str]:
    """The paths at which `net` has another kind of module than `base`, or an adaptive one.

    Raises:
        UserError: the two networks are not built alike.
    """
    before, after = dict(base.named_modules()), dict(net.named_modules())
    replaced = [
        path
        for path, module in after.items()
        if path in before
        and path
        and (type(module) is not type(before[path]) or isinstance(module, AdaptiveActivation))
    ]
    within = tuple(f"{path}." for path in replaced)
    unmatched = sorted(path for path in before.keys() ^ after.keys() if not path.startswith(within))
    if unmatched:
        raise UserError(f"The two networks are not built alike: only one of them has {', '.join(unmatched[:5])}.")
    return [path for path in replaced if not path.startswith(within)]


def compare(base: nn.Module, net: nn.Module, batches: Batches, precision: str = "float32") -> Comparison:
    """How `net`, made from `base` by replacing activations, differs from it on `batches` of (images, labels).

    Differences are taken at the output of every replaced activation that the networks call (with everything before it
    replaced too) and at the logits. Both networks run in evaluation mode and are left in the mode they were in; with
    precision "bf16" they run under autocast, else in the type that they have.

    Raises:
        UserError: the networks are not built alike, or there is no image in `batches`.
    """
    paths = replaced_paths(base, net)
    recorders = _Recorder(base, paths), _Recorder(net, paths)
    largest = dict.fromkeys([*paths, "logits"], 0.0)
    total = dict.fromkeys([*paths, "logits"], 0.0)
    count = dict.fromkeys([*paths, "logits"], 0)
    agreed = images = 0
    right, loss, broken = [0, 0], [0.0, 0.0], [0, 0]
    try:
        with evaluation_mode(base, net):
            for x_B, y_B in batches:
                if len(y_B) == 0:
                    continue
                with autocast(precision, x_B.device):
                    logits = base(x_B), net(x_B)
                outputs = [recorder.outputs for recorder in recorders]
                pairs = {path: (outputs[0][path], outputs[1][path]) for path in outputs[0].keys() & outputs[1].keys()}
                for path, (before, after) in {**pairs, "logits": logits}.items():
                    difference = (after.double() - before.double()).abs()
                    # Not Python's max, which loses NaN: the largest of 0 and NaN is 0 there.
                    largest[path] = float(np.maximum(largest[path], difference.max().item()))
                    total[path] += difference.sum().item()
                    count[path] += difference.numel()
                predicted = [output.argmax(1) for output in logits]
                finite = [output.isfinite().all(1) for output in logits]
                agreed += int(((predicted[0] == predicted[1]) & finite[0] & finite[1]).sum())
                for which in (0, 1):
                    broken[which] += int((~finite[which]).sum())
                    right[which] += int(((predicted[which] == y_B) & finite[which]).sum())
                    loss[which] += F.cross_entropy(logits[which].double(), y_B, reduction="sum").item()
                images += len(y_B)
    finally:
        for recorder in recorders:
            recorder.remove()
    if images == 0:
        raise UserError("There is nothing to compare on: the batches hold no image.")
    rows = {path: Difference(path, largest[path], total[path] / count[path]) for path in largest if count[path]}
    return Comparison(
        layers=tuple(rows[path] for path in paths if path in rows),
        logits=rows["logits"],
        agreement=agreed / images,
        base_accuracy=right[0] / images,
        base_loss=loss[0] / images,
        replaced_accuracy=right[1] / images,
        replaced_loss=loss[1] / images,
        images=images,
        base_not_finite=broken[0],
        replaced_not_finite=broken[1],
    )


@dataclass(frozen=True)
class CurveError:
    """How far an activation is from the function it stands for, over an interval of inputs, in one arithmetic."""

    dtype: str
    max: float
    mean_squared: float
    interval: tuple[float, float]


def curve_errors(
    activation: nn.Module,
    function: Callable[[Tensor], Tensor],
    interval: tuple[float, float] = (-8.0, 8.0),
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32, torch.float64),
) -> list[CurveError]:
    """Largest and mean squared error of `activation` against `function` over `interval`.

    The mean is taken over an even grid; the largest error also over points that come ever nearer to 0, where steep
    sigmoids differ most. The activation computes in each of `dtypes`, on inputs rounded to that type; `function`
    computes in float64 on the same rounded inputs, so that the errors are those of the activation alone. A type that
    the device cannot compute in is left out.
    """
    device = next(iter(activation.parameters()), torch.empty(0)).device
    shape = activation.shape if isinstance(activation, AdaptiveActivation) else (1,)
    # Per-neuron parameters: every neuron gets the whole grid, in as many points as keep it quick.
    points = max(33, min(CURVE_POINTS, 400_000 // max(1, torch.Size(shape).numel())))
    grid = torch.linspace(*interval, points, dtype=torch.float64, device=device)
    small = torch.logspace(-8, 0, points // 10, dtype=torch.float64, device=device) * max(map(abs, interval))
    near = torch.cat([-small, small])
    grid = torch.cat([grid, near[(near >= interval[0]) & (near <= interval[1])]])
    grid = grid.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    errors = []
    for dtype in dtypes:
        inputs = grid.to(dtype)
        try:
            with torch.no_grad():
                output = activation(inputs)
                difference = output.double() - function(inputs.double())
        except (RuntimeError, TypeError):
            continue
        name = str(dtype).removeprefix("torch.")
        mean_squared = difference[:points].square().mean().item()
        errors.append(CurveError(name, difference.abs().max().item(), mean_squared, interval))
    return errors
