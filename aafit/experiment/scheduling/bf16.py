"""What bf16 arithmetic would save: said on a processor that has it, after timing both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aafit.experiment.runs.config import RunConfig
from aafit.training.precision import has_bf16_arithmetic


@dataclass(frozen=True)
class Bf16:
    """Seconds an epoch of one run, in float32 and in bf16, timed one after the other."""

    run: RunConfig
    float32: float
    bf16: float

    @property
    def share(self) -> float:
        """The time of bf16 by that of float32."""
        return self.bf16 / self.float32

    def __str__(self) -> str:
        return (
            f"This processor computes in bf16: an epoch of {self.run.name} takes {self.bf16:.2f} s so instead of "
            f"{self.float32:.2f} s (timed now), by --precision bf16."
        )


def time_bf16(runs: Sequence[RunConfig], device: str, measure: Callable[[RunConfig, str, int], float]) -> Bf16 | None:
    """Time the longest of the runs both ways; None where nothing of it is to be said.

    That is so on a GPU, on a processor without such arithmetic, where it is not faster, and where no run trains by
    gradient steps in float32.

    Args:
        runs: those that have not begun: one that has keeps its arithmetic.
        measure: as for `estimate`.
    """
    float32 = [run for run in runs if run.precision == "float32" and run.takes_gradient_steps]
    if device != "cpu" or not float32 or not has_bf16_arithmetic():
        return None
    run = max(float32, key=lambda run: (run.train == "all", run.epochs))
    timed = Bf16(run, *(measure(run.model_copy(update={"precision": name}), device, 1) for name in ("float32", "bf16")))
    return timed if timed.share < 1 else None
