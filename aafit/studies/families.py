"""Compare families of activations on one network, in each layer alone and in all layers together.

Begin with `compare_families`. A place is one layer, or all layers. Each row of the result is one family in one place:
fitted to the original activations, identified, and compared with the base network on the same held-out samples.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import erfc, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from aafit.activations import ADAPTIVE, AdaptiveActivation, Affine, AffineActivation, Histogram, fit_from_text
from aafit.errors import UserError, check_count, nearest
from aafit.identification import identify
from aafit.identification.hessian import wide_target
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.build import input_histograms, is_fit
from aafit.networks.running import copied, evaluation_mode, with_matching_modules
from aafit.networks.surgery import Sharings, put_activation, replace_activations
from aafit.progress import progress
from aafit.studies.samples import StudySamples, first_samples
from aafit.studies.scores import joined_values, paired_gain, sample_values
from aafit.tables import fit_for_json, table
from aafit.training.losses import LossLike
from aafit.training.predictor import Output, Predictor

log = logging.getLogger(__name__)

ALL = "all layers"
FAMILIES: tuple[type[AdaptiveActivation], ...] = (
    *(family for family in ADAPTIVE.values() if not issubclass(family, AffineActivation)),
    Affine("ReLU"),
)
"""The families that are compared by default: those of the package, with Affine(ReLU) for the families of `Affine`."""
LEVEL = 0.05
"""Significance level of the adjusted p-values."""
TIMED, ROUNDS = 1 << 16, 7
"""Elements of the input of a timed forward pass, and rounds of timing."""
NO_OPERATORS = {"_assert_tensor_metadata", "promote_types", "to", "_to_copy", "detach", "lift_fresh_copy"}
"""Operators of an exported program that compute nothing, by name."""
CORRECTION = "Holm's method over the families tried in each place, at 5%"


@dataclass(frozen=True)
class FamilyRow:
    """The result of one family in one layer, or in all.

    Attributes:
        place: Path of the layer, or "all layers".
        family: Name of the family.
        parameters: Number of parameters.
        fit_error: RMS error of the fit before tuning, relative to the standard deviation of the original activation;
            the largest of several layers, and infinite if the family was not fitted.
        gain: Decrease of the held-out loss against the base network after identification; negative if the loss grew.
        error: Standard error of `gain`, from the paired differences of the samples.
        p: Two-sided p-value of the hypothesis of no difference, adjusted for the number of families by Holm's method.
        relative_time: Time of the activations relative to the original ones on the same inputs, forward only.
        operators: Names of the operators to which torch.export exports one activation, sorted; empty if it cannot.
        seconds: Time of the identification.
    """

    place: str
    family: str
    parameters: int
    fit_error: float
    gain: float
    error: float
    p: float
    relative_time: float
    operators: tuple[str, ...]
    seconds: float

    @property
    def significant(self) -> bool:
        """Whether the difference from the base network is significant at 5% after the adjustment."""
        return self.p < LEVEL


@dataclass(frozen=True)
class FamilyComparison:
    """The result of `compare_families`: prints as a table.

    Attributes:
        rows: By place in the order of the calls, then all layers; in each place by gain, the largest first.
        samples: Number of samples that were fitted.
        heldout_samples: Number of samples that the gain is computed on.
        held_out: Whether these samples were held out; False if they are the fitted ones.
        loss: The loss whose decrease is the gain, in words.
        correction: The adjustment of the p-values, in words.
        cost: The number of identifications and forward passes, in words, as logged before the first of them.
        skipped: Families and places that were not tried because the time was up, as "LEAF in act1".
        seconds: Total time.
    """

    rows: tuple[FamilyRow, ...]
    samples: int
    heldout_samples: int
    held_out: bool
    loss: str
    correction: str
    cost: str
    skipped: tuple[str, ...]
    seconds: float

    def best(self, place: str = ALL) -> FamilyRow:
        """Return the row with the largest gain in a place.

        Raises:
            UserError: There is no such place.
        """
        rows = [row for row in self.rows if row.place == place]
        if not rows:
            raise UserError(f"No family was tried in {place!r}. {nearest(place, {row.place for row in self.rows})}")
        return rows[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON; values that are not finite become None."""
        return fit_for_json(asdict(self))

    def __str__(self) -> str:
        header = ("place", "family", "parameters", "fit error", "gain ± SE", "p (Holm)", "time", "exports to")
        cells = [
            (
                row.place,
                row.family,
                f"{row.parameters:,}",
                f"{row.fit_error:.2%}" if row.fit_error < float("inf") else "",
                f"{row.gain:+.3g} ± {row.error:.1g}",
                f"{row.p:.2g}" + " *" * row.significant,
                f"{row.relative_time:.1f} x",
                ", ".join(row.operators),
            )
            for row in self.rows
        ]
        judged = f"{self.heldout_samples:,} {'held-out' if self.held_out else 'of the fitted'} samples"
        lines = [
            table(header, cells),
            f"Gain: decrease of {self.loss} against the base network on {judged}, paired; {self.samples:,} samples "
            f"were fitted. p: {self.correction}; * significant.",
            "Time: of the activations over that of the original ones, forward only.",
        ]
        if not self.held_out:
            lines.append("The samples that judge were fitted too, so that the gains are no evidence: give heldout=.")
        if self.skipped:
            lines.append(f"Not tried, as the time was up: {', '.join(self.skipped)}.")
        return "\n".join(lines)


def compare_families(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    heldout: Iterable[Any] | None = None,
    heldout_share: float | None = None,
    families: Iterable[Any] | None = None,
    layers: Iterable[str] | None = None,
    sharing: Sharings = "layer",
    target: str | None = None,
    loss: LossLike | None = None,
    output: Output | None = None,
    samples: int = 1000,
    steps: int = 10,
    seconds: float = 600.0,
    memory: int = 2 << 30,
    seed: int = 0,
    verbose: bool = True,
) -> FamilyComparison:
    """Compare families of activations on a network, in each layer alone and in all layers together.

    In each place every family is fitted to the original activations on their inputs, then identified with `identify`
    from the same samples. Its gain is the decrease of the loss against the base network on the same held-out samples.
    The gains of one place are paired differences with standard errors; their p-values are those of a normal
    distribution, adjusted by Holm's method for the number of families tried there (Holm 1979, A simple sequentially
    rejective multiple test procedure, Scandinavian Journal of Statistics 6).

    Each family is fitted in all layers at once, and the base network's outputs for the held-out samples are computed
    once. Each row then takes one identification and one pass over the held-out samples. Their number and the time of a
    pass are logged before the first row, and no row begins after `seconds`.

    Args:
        net: any network; left unchanged.
        batches: samples to fit, in batches of any form; at most `samples` of them are used.
        heldout: held-out samples, in batches of any form.
        heldout_share: share of `batches` to hold out if `heldout` is not given; by default 0.2 of 500 samples or more,
            and 0 of fewer. With 0 the gain is computed on the fitted samples, and is no evidence.
        families: families by class, as LEAF or one of your own; by name, "LEAF" or "Polynomial(degree=4)"; or functions
            that fit, as functools.partial(FNeuron.fit, knots=34). By default all families of the package, with
            Affine(ReLU) as the only one of `Affine`.
        layers: paths of activations, or keys as those of `replace_activations`; by default all that can be replaced.
        sharing: as for `replace_activations`.
        target: as for `identify`; by default "labels" if the batches have them, else "logits".
        loss: as for `identify`.
        output: as for `identify`.
        samples: maximum number of samples to fit.
        steps: maximum number of joint steps of each identification.
        seconds: time limit after which no further row begins.
        memory: bytes that `batches` may take, and that `heldout` may take.
        seed: seed of the choice of held-out samples and of the identifications.
        verbose: whether to show the progress.

    Returns:
        The rows; `aafit.plot_families` draws them.

    Raises:
        UserError: a family is unknown, given twice, or none is given; `samples`, `steps`, `seconds` or the held-out
            samples are not valid; or for the reasons of `replace_activations` and `identify`.

    Example:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(64, 4), torch.randint(3, (64,))) for _ in range(10)]
        >>> found = aafit.compare_families(base, batches, families=[aafit.LEAF, aafit.AHAF], steps=2, verbose=False)
        >>> sorted({row.family for row in found.rows})
        ['AHAF', 'LEAF']
    """
    check_count("number of samples", samples, least=2)
    check_count("number of steps", steps, least=0)
    if not seconds > 0:
        raise UserError(f"The time must be a number of seconds above 0; got {seconds!r}.")
    data = StudySamples.load(batches, heldout, heldout_share, memory, seed)
    target = target or ("labels" if data.labelled else "logits")
    named = _named(FAMILIES if families is None else families)
    options = {"target": target, "loss": loss, "output": output, "steps": steps, "seed": seed}
    compared = _Compared(net, data, named, tuple(layers or ("*",)), sharing, samples, options)
    with progress("compare families", len(compared.tasks), verbose) as show:
        return compared.run(seconds, show)


def _named(families: Iterable[Any]) -> dict[str, Any]:
    """Return the families by name.

    Raises:
        UserError: One of them is no family or is given twice, or there is none.
    """
    named: dict[str, Any] = {}
    for family in families:
        if isinstance(family, str) and fit_from_text(family) is None:
            raise UserError(f"Unknown family of activations {family!r}. {nearest(family, ADAPTIVE)}")
        if not (isinstance(family, (str, AdaptiveActivation)) or is_fit(family)):
            raise UserError(
                f"{family!r} is no family: give a class such as LEAF, a name such as 'LEAF', or a function that fits."
            )
        name = _name(family)
        if name in named:
            raise UserError(f"The family {name!r} is given twice.")
        named[name] = family
    if not named:
        raise UserError("There is no family to compare: give families=, such as [LEAF, FNeuron].")
    return named


def _name(family: Any) -> str:
    if isinstance(family, str):
        return family
    if isinstance(family, AdaptiveActivation):
        return family.text
    class_name = getattr(family, "family", None)
    if class_name is not None:
        return str(class_name)
    # functools.partial(FNeuron.fit, knots=34)
    function = getattr(family, "func", family)
    bound = getattr(getattr(function, "__self__", None), "family", None) or getattr(function, "__name__", "a function")
    options = ", ".join(f"{name}={value!r}" for name, value in getattr(family, "keywords", {}).items())
    return f"{bound}, {options}" if options else str(bound)


class _Compared:
    """The networks and samples that all rows share; `options` are those of `identify`."""

    def __init__(
        self,
        net: nn.Module,
        data: StudySamples,
        families: Mapping[str, Any],
        keys: Sequence[str],
        sharing: Sharings,
        samples: int,
        options: dict[str, Any],
    ) -> None:
        self.began = time.perf_counter()
        self.options, self.on_labels = options, options["target"] == "labels"
        self.fitted, self.judged = first_samples(data.fitted, samples), data.evaluated
        self.held_out = bool(data.heldout)
        self.networks = {
            name: replace_activations(net, dict.fromkeys(keys, family), sharing, data.example)[0]
            for name, family in families.items()
        }
        first = next(iter(self.networks.values()))
        self.base = with_matching_modules(net, first)
        self.paths = list(adaptive_activations(first))
        self.histograms = input_histograms(self.base, data.example, self.paths)
        places = [(path, [path]) for path in self.paths]
        places += [(ALL, self.paths)] if len(self.paths) > 1 else []
        self.tasks = [(place, paths, name) for place, paths in places for name in self.networks]
        self.operators = {
            name: _operators(adaptive_activations(network)[self.paths[0]]) for name, network in self.networks.items()
        }
        self.times: dict[tuple[str, str], float] = {}
        self.targets: list[tuple[Tensor, Any]] = []
        """The base network's outputs and the target of each batch of held-out samples."""

    def run(self, seconds: float, show: Callable[[int, str], None]) -> FamilyComparison:
        """Compute all rows, as far as the time allows."""
        began = time.perf_counter()
        base_values = self._base_values()
        passed = time.perf_counter() - began
        fitted, judged = (sum(map(len, batches)) for batches in (self.fitted, self.judged))
        count = len(self.tasks)
        cost = (
            f"{len(self.networks)} families in {count // len(self.networks)} places: {count} identifications of up to "
            f"{self.options['steps']} steps from {fitted:,} samples, and {count} forward passes of {judged:,} samples, "
            f"which take the base network {passed:.2g} s; none begins after {seconds:g} s"
        )
        log.info("%s", cost)
        rows: list[FamilyRow] = []
        skipped = []
        for number, (place, paths, name) in enumerate(self.tasks):
            show(number, f"{name} in {place}")
            if time.perf_counter() - began > seconds:
                skipped.append(f"{name} in {place}")
                continue
            rows.append(self._row(place, paths, name, base_values))
            log.info("%7.1f s  %s in %s: gain %+.3g", time.perf_counter() - began, name, place, rows[-1].gain)
        show(len(self.tasks), "done")
        order = {place: number for number, place in enumerate((*self.paths, ALL))}
        adjusted = [row for place in order for row in _adjusted([row for row in rows if row.place == place])]
        what = "the loss on the labels" if self.on_labels else "the squared error from the base's outputs"
        return FamilyComparison(
            tuple(sorted(adjusted, key=lambda row: (order[row.place], -row.gain))),
            fitted,
            judged,
            self.held_out,
            what,
            CORRECTION,
            cost,
            tuple(skipped),
            time.perf_counter() - self.began,
        )

    def _base_values(self) -> dict[str, Tensor]:
        """Compute the targets; return the `sample_values` of the base network by name, (N,) each."""
        for outputs, batch in zip(self._outputs(self.base), self.judged, strict=True):
            self.targets.append((outputs, wide_target(batch.target) if self.on_labels else outputs))
        return self._values([outputs for outputs, _ in self.targets])

    def _outputs(self, net: nn.Module) -> Iterator[Tensor]:
        """Return the outputs of a network for each batch of held-out samples, in float64."""
        predictor = Predictor(net, self.options["output"])
        for batch in self.judged:
            with evaluation_mode(net):
                outputs = predictor(batch).double()
            yield outputs

    def _values(self, outputs: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the `sample_values` of a network by name, (N,) each."""
        # If the targets are the base's outputs, the gain is the decrease of the distance from them.
        loss = self.options["loss"] if self.on_labels else "mean squared error"
        pairs = zip(outputs, self.targets, strict=True)
        return joined_values([sample_values(loss, of_net, *of_base) for of_net, of_base in pairs])

    def _row(self, place: str, paths: Sequence[str], name: str, base_values: Mapping[str, Tensor]) -> FamilyRow:
        net = copied(self.base)
        new = {path: deepcopy(self.networks[name].get_submodule(path)) for path in paths}
        for path, activation in new.items():
            put_activation(net, path, activation)
        began = time.perf_counter()
        identify(net, self.fitted, base=self.base, heldout=0.0, errors=False, verbose=False, **self.options)
        took = time.perf_counter() - began
        gain = paired_gain(self._values(self._outputs(net)), base_values, "loss", "labelled")
        if gain is None:
            raise UserError("The families cannot be judged: the held-out samples are fewer than 2, or have no target.")
        residuals = [one.residual for one in new.values() if isinstance(one, AdaptiveActivation)]
        p = erfc(abs(gain.value) / gain.error / sqrt(2)) if gain.error > 0 else float(gain.value == 0)
        return FamilyRow(
            place=place,
            family=name,
            parameters=sum(parameter.numel() for one in new.values() for parameter in one.parameters()),
            fit_error=max((float("inf") if one is None else one.worst for one in residuals), default=float("inf")),
            gain=-gain.value,
            error=gain.error,
            p=p,
            relative_time=self._relative_time(name, paths),
            operators=self.operators[name],
            seconds=took,
        )

    def _relative_time(self, name: str, paths: Sequence[str]) -> float:
        """Return the time of a family's activations over that of the original ones, on inputs like theirs."""
        for path in paths:
            if (name, path) not in self.times:
                new, original = self.networks[name].get_submodule(path), self.base.get_submodule(path)
                times = _times({name: new, "": original}, _inputs_like(self.histograms[path], new))
                self.times |= {(which, path): seconds for which, seconds in times.items()}
        return sum(self.times[name, path] for path in paths) / sum(self.times["", path] for path in paths)


def _adjusted(rows: Sequence[FamilyRow]) -> list[FamilyRow]:
    """Return the rows of one place with p-values adjusted by Holm's method."""
    largest, adjusted = 0.0, []
    for number, row in enumerate(sorted(rows, key=lambda row: row.p)):
        largest = max(largest, min(1.0, row.p * (len(rows) - number)))
        adjusted.append(replace(row, p=largest))
    return adjusted


def _inputs_like(histogram: Histogram, activation: nn.Module) -> Tensor:
    """Return a random input with the distribution of the layer's inputs, in a shape that the activation takes."""
    points_E, weight_E = histogram.points()
    parameter = next(activation.parameters())
    shape = activation.shape if isinstance(activation, AdaptiveActivation) else (1,)
    rows = max(1, TIMED // torch.Size(shape).numel())
    generator = torch.Generator().manual_seed(0)
    index = torch.multinomial(weight_E, rows * torch.Size(shape).numel(), True, generator=generator)
    return points_E[index].reshape(rows, *shape).to(parameter.device, parameter.dtype)


def _times(modules: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Return the shortest time of a forward pass of each module in seconds; the modules take turns."""
    least = dict.fromkeys(modules, float("inf"))
    with torch.no_grad():
        for number in range(ROUNDS):
            for name, module in modules.items():
                copy = inputs.clone()
                began = time.perf_counter()
                module(copy)
                if copy.device.type == "cuda":
                    torch.cuda.synchronize(copy.device)
                took = time.perf_counter() - began
                # The first round does not count: modules may be compiled in it.
                least[name] = min(least[name], took) if number else least[name]
    return least


def _operators(activation: nn.Module) -> tuple[str, ...]:
    """Return the names of the operators that torch.export makes of an activation; empty if it cannot export it."""
    frozen = deepcopy(activation).requires_grad_(False).eval()
    shape = frozen.shape if isinstance(frozen, AdaptiveActivation) else (1,)
    parameter = next(frozen.parameters())
    try:
        program = torch.export.export(frozen, (torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype),))
    # The error may be of any type: the formula may be the user's.
    except Exception as error:
        log.info("%s is not exported: %s", type(frozen).__name__, error)
        return ()
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    names = {target.name().removeprefix("aten::").partition(".")[0] for target in called if hasattr(target, "name")}
    return tuple(sorted(name.strip("_") for name in names - NO_OPERATORS))
