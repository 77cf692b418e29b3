"""What an identification went through and came to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor, tensor
from torch import float64 as torch_float64

from aafit.identification.layerwise import Matched
from aafit.identification.uncertainty import Uncertainty


@dataclass(frozen=True)
class Step:
    """Where a step led. Losses are means over images.

    Attributes:
        number: 0 is the start.
        phase: "start", "steepness" (made able to move), "layers" (matched to the base network) or "joint".
        images: How many of the fitted images the loss is of.
        loss: On those images.
        heldout_loss: On the images held out.
        damping: Of the step (Levenberg-Marquardt).
        predicted, gained: Decrease of `loss`, as the quadratic model said and as it was.
        seconds: From the beginning.
    """

    number: int
    phase: str
    images: int
    loss: float
    heldout_loss: float
    damping: float | None = None
    predicted: float | None = None
    gained: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        joint = self.damping is not None
        numbers = f"{self.damping:9.2g} {self.predicted:10.6f} {self.gained:10.6f}" if joint else " " * 31
        return (
            f"{self.number:4d}  {self.phase:<9} {self.images:7d} {self.loss:10.6f} {self.heldout_loss:13.6f} {numbers} "
            f"{self.seconds:8.1f}"
        )


HEADER = (
    f"{'step':>4}  {'phase':<9} {'images':>7} {'loss':>10} {'held-out loss':>13} {'damping':>9} {'predicted':>10} "
    f"{'gained':>10} {'seconds':>8}"
)


@dataclass(frozen=True)
class State:
    """The state of an identification between two steps: from it, it goes on with the same numbers.

    Attributes:
        phase: What comes next: "steepness", "layers", "joint" or "done".
        vector_P: The coordinates; `start_P` those it began with.
        variation: How much the outputs depended on the images at first, see `collapsed`.
        images: Size of the sample in the next joint step.
        steps: What was done.
        matched: How well the layers were matched.
        messages: What a user should know.
    """

    phase: str
    vector_P: Tensor
    start_P: Tensor
    variation: float
    damping: float
    images: int
    steps: tuple[Step, ...]
    matched: tuple[Matched, ...] = ()
    messages: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; floats come back with the same bits."""
        values = {name: getattr(self, name) for name in ("phase", "variation", "damping", "images", "messages")}
        return {
            **values,
            "vector": self.vector_P.tolist(),
            "start": self.start_P.tolist(),
            "steps": [asdict(step) for step in self.steps],
            "matched": [asdict(row) for row in self.matched],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            phase=values["phase"],
            vector_P=_vector(values["vector"]),
            start_P=_vector(values["start"]),
            variation=values["variation"],
            damping=values["damping"],
            images=values["images"],
            steps=tuple(Step(**step) for step in values["steps"]),
            matched=tuple(Matched(**row) for row in values["matched"]),
            messages=tuple(values["messages"]),
        )


def _vector(values: list[float]) -> Tensor:
    return tensor(values, dtype=torch_float64)


@dataclass(frozen=True)
class Identification:
    """The result; prints as the table of its steps, what a user should know, and the identified parameters.

    Attributes:
        state: Where it ended, with every step.
        names: Of the coordinates, "act1.gamma", ...
        start, values: The parameters, in that order.
        uncertainty: Their standard errors; None where the parameters are too many for a matrix, or none were asked for.
        images, heldout_images: How many were fitted on and held out.
        collapsed: The outputs had lost what depends on the images, at the start or on every way on; nothing that had
            done so was kept.
    """

    state: State
    names: tuple[str, ...]
    start: tuple[float, ...]
    values: tuple[float, ...]
    uncertainty: Uncertainty | None
    images: int
    heldout_images: int
    memory: int
    collapsed: bool = field(default=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.state.steps

    @property
    def seconds(self) -> float:
        return self.steps[-1].seconds

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "names": list(self.names),
            "start": list(self.start),
            "values": list(self.values),
            "steps": [asdict(step) for step in self.steps],
            "matched": [asdict(row) for row in self.state.matched],
            "messages": list(self.state.messages),
            "uncertainty": None if self.uncertainty is None else self.uncertainty.as_dict(),
            "images": self.images,
            "heldout_images": self.heldout_images,
            "memory": self.memory,
            "collapsed": self.collapsed,
        }

    def __str__(self) -> str:
        lines = [HEADER, *map(str, self.steps), *self.state.messages]
        lines.append(
            f"{len(self.names)} numbers from {self.images} images ({self.heldout_images} held out), "
            f"{self.memory / 2**20:.0f} MiB of images kept"
        )
        return "\n".join(lines if self.uncertainty is None else [*lines, "", str(self.uncertainty)])
