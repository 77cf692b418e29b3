"""The result of an identification: its steps, the gain, the parameters and their standard errors."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from aafit.identification.layerwise import Matched
from aafit.identification.prior import Strength
from aafit.identification.uncertainty import Uncertainty
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.batches import each_batch
from aafit.networks.running import evaluation_mode, outside_text, watched
from aafit.tables import fit_for_json
from aafit.training.predictor import Predictor

OUTSIDE = 0.05
"""Share of a layer's inputs outside the identified range from which `Identification.check_inputs` warns."""


@dataclass(frozen=True)
class Step:
    """One row of the table of an identification. Losses are means over the labelled positions.

    Attributes:
        number: Number of the step; 0 for the initial parameters.
        phase: "start" (the initial parameters, also if restored in the end), "slope" (slopes were lowered until
            they are trainable), "layers" (layers were matched to the base network), "joint" (one damped step of all
            parameters), or "end" (the result).
        samples: Number of fitted samples that `loss` is the mean over.
        loss: Loss on those samples.
        heldout_loss: Loss on the held-out set, for the initial parameters and the result; None otherwise.
        damping: Damping for the next joint step (Levenberg-Marquardt); None for other phases.
        predicted, gained: Decrease of the objective, as the quadratic model predicts and as measured; None for other
            phases.
        seconds: Time since the identification began.
    """

    number: int
    phase: str
    samples: int
    loss: float
    heldout_loss: float | None = None
    damping: float | None = None
    predicted: float | None = None
    gained: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        joint = self.damping is not None
        numbers = f"{self.damping:9.2g} {self.predicted:10.6f} {self.gained:10.6f}" if joint else " " * 31
        heldout = " " * 13 if self.heldout_loss is None else f"{self.heldout_loss:13.6f}"
        return (
            f"{self.number:4d}  {self.phase:<9} {self.samples:7d} {self.loss:10.6f} {heldout} {numbers} "
            f"{self.seconds:8.1f}"
        )


HEADER = (
    f"{'step':>4}  {'phase':<9} {'samples':>7} {'loss':>10} {'held-out loss':>13} {'damping':>9} {'predicted':>10} "
    f"{'gained':>10} {'seconds':>8}"
)


@dataclass(frozen=True)
class Gain:
    """The decrease of the loss from the initial parameters to the result, as estimated for new samples.

    Attributes:
        judged_by: "leave-one-out estimate" or "5-fold cross-validation" on the fitted samples, or "held-out set".
        gain: Mean over the samples, paired.
        error: Standard error of `gain`.
        samples: Number of samples.
    """

    judged_by: str
    gain: float
    error: float
    samples: int

    @property
    def significant(self) -> bool:
        """Whether the gain exceeds two standard errors in size."""
        return abs(self.gain) > 2 * self.error

    def __str__(self) -> str:
        within = "" if self.significant else ", within noise"
        where = f"{self.judged_by} of {self.samples} samples"
        return f"gain in loss by the {where}: {self.gain:.3g} +- {self.error:.2g} (standard error){within}"


NO_STRENGTH = Strength(0.0, ())


@dataclass(frozen=True)
class State:
    """The state between two steps; an identification resumes from it bit-identically.

    Attributes:
        phase: The next phase: "slope", "layers", "joint", "validation" or "done".
        vector_P: The current coordinates, see `aafit.identification.coordinates`.
        start_P: The initial coordinates.
        mean_P: The coordinates of the prior's mean.
        samples: Number of samples of the next joint step.
        steps: All steps so far.
        strength: Strength of the prior, from the joint steps on.
        dispersion: Dispersion of the loss, from the joint steps on; 0 before.
        damping: Damping of the next joint step.
        rounds: Number of vectors since the samples or the weight of the prior changed.
        weighed: Whether the weight of the prior has been selected.
        path: The vectors before `vector_P`, oldest first, since the curvature was computed at the first of them; if
            empty, it is computed at `vector_P`.
        matched: The errors of the matched layers.
        folds: For each finished fold of the cross-validation the gain of its samples.
        gains: The gain of the result; empty before the end, and if the result is the initial parameters.
        messages: Messages for the user.
    """

    phase: str
    vector_P: Tensor
    start_P: Tensor
    mean_P: Tensor
    samples: int
    steps: tuple[Step, ...]
    strength: Strength = NO_STRENGTH
    dispersion: float = 0.0
    damping: float = 0.0
    rounds: int = 0
    weighed: bool = False
    path: tuple[Tensor, ...] = ()
    matched: tuple[Matched, ...] = ()
    folds: tuple[tuple[float, ...], ...] = ()
    gains: tuple[Gain, ...] = ()
    messages: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON, from which `from_dict` rebuilds a bit-identical state."""
        content = {
            name: getattr(self, name) for name in ("phase", "samples", "dispersion", "damping", "rounds", "weighed")
        }
        for name in ("vector_P", "start_P", "mean_P"):
            content[name.removesuffix("_P")] = getattr(self, name).tolist()
        content["path"] = [vector_P.tolist() for vector_P in self.path]
        for name in ("steps", "matched", "gains"):
            content[name] = [asdict(row) for row in getattr(self, name)]
        content["folds"] = [list(fold) for fold in self.folds]
        return {**content, "strength": asdict(self.strength), "messages": list(self.messages)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild a state from the content that `as_dict` returned."""
        strength = content["strength"]
        return cls(
            **{name: content[name] for name in ("phase", "samples", "dispersion", "damping", "rounds", "weighed")},
            vector_P=_vector(content["vector"]),
            start_P=_vector(content["start"]),
            mean_P=_vector(content["mean"]),
            path=tuple(map(_vector, content["path"])),
            strength=Strength(strength["weight"], tuple(strength["smoothness"])),
            steps=tuple(Step(**row) for row in content["steps"]),
            matched=tuple(Matched(**row) for row in content["matched"]),
            folds=tuple(map(tuple, content["folds"])),
            gains=tuple(Gain(**row) for row in content["gains"]),
            messages=tuple(content["messages"]),
        )


def _vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Identification:
    """The result of `identify`; prints as the table of its steps, messages, the gain and the identified parameters.

    Attributes:
        state: The final state, with all steps.
        names: Names of the parameters, "act1.gamma", ...
        start, values: The parameters before and after the identification, in the order of `names`.
        uncertainty: Their standard errors; None for more than 2,000 parameters, or if they were not requested.
        ranges: The range of the inputs of each activation, without the lowest and the highest 0.1%, by path.
        samples, heldout_samples: Numbers of fitted and of held-out samples.
        memory: Bytes of the samples and of the outputs of the frozen prefix.
        outside: The share of the first samples' inputs outside the interval of each activation that has one, by path.
    """

    state: State
    names: tuple[str, ...]
    start: tuple[float, ...]
    values: tuple[float, ...]
    uncertainty: Uncertainty | None
    ranges: Mapping[str, tuple[float, float]]
    samples: int
    heldout_samples: int
    memory: int
    outside: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, from the start to the end."""
        return self.state.steps

    @property
    def gains(self) -> tuple[Gain, ...]:
        """The gain by the leave-one-out estimate and the held-out set, or by cross-validation; see `State.gains`."""
        return self.state.gains

    @property
    def seconds(self) -> float:
        """The time of all steps in seconds."""
        return self.steps[-1].seconds

    def check_inputs(self, net: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Return the share of each activation's inputs outside the identified range, by path, and warn above 5%.

        Outside its range an activation was not identified: its values come from the prior alone. An activation that is
        not called is left out.

        Args:
            net: the identified network.
            batches: batches of inputs, as for `identify`.

        Warns:
            UserWarning: more than 5% of a layer's inputs are outside.
        """
        outside, count = dict.fromkeys(self.ranges, 0), dict.fromkeys(self.ranges, 0)

        def see(path: str, u: Tensor, y: Tensor) -> None:
            low, high = self.ranges[path]
            outside[path] += int(((u < low) | (u > high)).sum())
            count[path] += u.numel()

        activations = {path: own for path, own in adaptive_activations(net).items() if path in self.ranges}
        with evaluation_mode(net), watched(net, activations, see):
            for batch in each_batch(batches):
                Predictor(net).forward(batch)
        shares = {path: outside[path] / count[path] for path in activations if count[path]}
        beyond = {path: share for path, share in shares.items() if share > OUTSIDE}
        if beyond:
            worst = max(beyond, key=lambda path: beyond[path])
            low, high = self.ranges[worst]
            warnings.warn(
                f"{beyond[worst]:.1%} of the inputs of {worst!r} are outside [{low:.3g}, {high:.3g}], the range it was "
                f"identified on ({len(beyond)} such layer{'s' if len(beyond) > 1 else ''}): there its values come "
                "from the prior alone.",
                stacklevel=2,
            )
        return shares

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON; values that are not finite become None."""
        content = {name: getattr(self, name) for name in ("samples", "heldout_samples", "memory")}
        for name in ("names", "start", "values"):
            content[name] = list(getattr(self, name))
        state = self.state.as_dict()
        for name in ("steps", "matched", "gains", "messages", "strength", "dispersion"):
            content[name] = state[name]
        content["ranges"] = {path: list(ends) for path, ends in self.ranges.items()}
        content["outside"] = dict(self.outside)
        content["uncertainty"] = None if self.uncertainty is None else self.uncertainty.as_dict()
        whole: dict[str, Any] = fit_for_json(content)
        return whole

    def __str__(self) -> str:
        heldout = f" ({self.heldout_samples} held out)" if self.heldout_samples else ""
        lines = [HEADER, *map(str, self.steps), *self.state.messages, *map(str, self.gains)]
        lines.append(
            f"{len(self.names)} parameters from {self.samples} samples{heldout}, {self.memory / 2**20:.0f} MiB held"
        )
        if self.outside:
            lines.append(outside_text(self.outside))
        return "\n".join(lines if self.uncertainty is None else [*lines, "", str(self.uncertainty)])
