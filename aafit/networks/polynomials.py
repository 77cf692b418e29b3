"""Export the polynomials of a network, with the inputs that they receive, for encrypted inference."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, Polynomial
from aafit.errors import UserError
from aafit.files import as_path, write_atomically
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.running import check_module, forward_of_sample, probe_of, receiving
from aafit.tables import table

FAR = 0.5
"""Inputs beyond the interval by more than this share of its width are far outside."""


@dataclass(frozen=True)
class ExportedPolynomial:
    """A polynomial, and the inputs that it receives.

    Attributes:
        path: Its path in the network.
        degree: Its degree n.
        interval: The interval of its Chebyshev basis.
        chebyshev: Its Chebyshev coefficients on that interval, a list of n + 1 for each parameter set.
        powers: Its coefficients of 1, u, u^2, ..., likewise.
        shape: The shape of the parameter sets; (1,) if the layer shares one polynomial.
        least: The smallest input.
        largest: The largest input.
        outside: Share of the inputs outside the interval.
        far: Share of the inputs beyond it by more than half its width.
    """

    path: str
    degree: int
    interval: tuple[float, float]
    chebyshev: list[list[float]]
    powers: list[list[float]]
    shape: tuple[int, ...]
    least: float
    largest: float
    outside: float
    far: float


@dataclass(frozen=True)
class PolynomialExport:
    """The polynomials of a network in the order of their calls: prints as a table, and is saved as JSON.

    Attributes:
        rows: One for each polynomial, with its coefficients, its interval and the range of its inputs.
    """

    rows: tuple[ExportedPolynomial, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, fit for JSON."""
        return {"format": "aafit polynomials", "version": 1, "polynomials": [asdict(row) for row in self.rows]}

    def save(self, path: str | Path) -> None:
        """Write it as JSON; an existing file is replaced atomically."""
        write_atomically(as_path(path), (json.dumps(self.as_dict(), indent=1) + "\n").encode())

    def __str__(self) -> str:
        header = ("polynomial", "degree", "interval", "inputs", "outside", "far outside")
        cells = [
            (
                row.path,
                str(row.degree),
                f"{row.interval[0]:.3g} to {row.interval[1]:.3g}",
                f"{row.least:.3g} to {row.largest:.3g}",
                f"{row.outside:.3%}",
                f"{row.far:.3%}",
            )
            for row in self.rows
        ]
        return table(header, cells, numbers=False)


def export_polynomials(net: nn.Module, batches: Iterable[Any], *, allowed_far: float = 0.0) -> PolynomialExport:
    """Return the polynomials of a network with their coefficients and the ranges of their inputs.

    An encrypted network cannot clamp: a polynomial grows like u^n outside its interval, so that a single far input may
    spoil a sample. Give samples like those that will be encrypted.

    Args:
        net: A network whose adaptive activations are all `Polynomial`; it is left unchanged.
        batches: Inputs of the network, each as `sample` of `replace_activations`.
        allowed_far: The largest share of a layer's inputs that may be far outside its interval, which means by more
            than half of its width.

    Returns:
        A row for each polynomial, in the order of their calls.

    Raises:
        UserError: There is no polynomial, an adaptive activation is of another family, there is no batch or one that
            does not reach a polynomial, the inputs are not finite, or more of them than allowed are far outside.

    Example:
        >>> base, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(200, 4)
        >>> net, _ = aafit.replace_activations(base, {"GELU": aafit.Polynomial}, sample=x)
        >>> exported = aafit.export_polynomials(net, [x])
        >>> len(exported.rows[0].powers[0])
        9
    """
    check_module(net)
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise UserError(f"The batches given are a {type(batches).__name__}: give a list of batches or a DataLoader.")
    polynomials = {at: _checked(at, activation) for at, activation in adaptive_activations(net).items()}
    if not polynomials:
        raise UserError("The network has no polynomial to export: replace its activations by aafit.Polynomial first.")
    seen: dict[str, list[float]] = {}

    def see(path: str, u: Tensor) -> None:
        if not u.isfinite().all():
            raise UserError(
                f"{path!r} receives NaN or infinity: a polynomial before it has inputs far outside its interval, or "
                "the samples are not finite."
            )
        left, right = polynomials[path].interval
        reach = FAR * (right - left)
        count, outside, far, least, largest = seen.get(path, [0, 0, 0, float("inf"), -float("inf")])
        seen[path] = [
            count + u.numel(),
            outside + int(polynomials[path].is_outside(u).sum()),
            far + int(((u < left - reach) | (u > right + reach)).sum()),
            min(least, u.min().item()),
            max(largest, u.max().item()),
        ]

    probe = probe_of(net)
    for batch in batches:
        forward_of_sample(probe, batch, receiving(probe, polynomials, see))
    missing = [path for path in polynomials if path not in seen]
    if missing:
        raise UserError(f"The batches do not reach the polynomial at {missing[0]!r}: give other samples.")
    rows = tuple(_row(path, polynomial, *seen[path]) for path, polynomial in polynomials.items())
    for row in rows:
        if row.far > allowed_far:
            raise UserError(
                f"{row.path!r} receives {row.far:.3%} of its inputs far outside [{row.interval[0]:.3g}, "
                f"{row.interval[1]:.3g}], up to {max(row.least, row.largest, key=abs):.3g}: fit it with a larger "
                f"margin or interval, or allow the share with allowed_far={row.far:.1g}."
            )
    return PolynomialExport(rows)


def _checked(path: str, activation: AdaptiveActivation) -> Polynomial:
    if not isinstance(activation, Polynomial):
        raise UserError(
            f"{path!r} is {activation.text}, not a polynomial, and cannot be exported as one: replace it by "
            "aafit.Polynomial."
        )
    return activation


def _row(
    path: str, polynomial: Polynomial, count: float, outside: float, far: float, least: float, largest: float
) -> ExportedPolynomial:
    size = polynomial.degree + 1
    chebyshev = polynomial.coefficients.detach().double().cpu().reshape(-1, size).tolist()
    powers = polynomial.powers().reshape(-1, size).tolist()
    shares = outside / count, far / count
    return ExportedPolynomial(
        path, polynomial.degree, polynomial.interval, chebyshev, powers, polynomial.shape, least, largest, *shares
    )
