"""Where runs go side by side: a slot takes one process."""

import os
from dataclasses import dataclass, field

import torch

from aafit.errors import UserError

ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc gives large arrays back to the system, which clears their pages anew for the next step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


@dataclass(frozen=True)
class Slot:
    """Place for one process: the device it is told to use, its threads, and what its environment gets."""

    device: str
    threads: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


def slots(device: str = "auto", jobs: int | None = None) -> list[Slot]:
    """The slots of this machine.

    On the CPU there are `jobs`, by default one for each core that this process may use, each with a single thread: so a
    run gives the same bits however many go beside it. On CUDA there are `jobs` (by default one) for every GPU, or for
    the one that "cuda:1" names.

    Raises:
        UserError: fewer than one job, or a device that is not here.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs} is not valid: give 1 or more.")
    gpus = _gpus(device)
    if gpus:
        return [Slot("cuda", None, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(jobs or 1) for gpu in gpus]
    return [Slot("cpu", 1, ON_CPU)] * (jobs or usable_cores())


def choose_device(name: str = "auto") -> torch.device:
    """The device `name` stands for: "auto" (the GPU where there is one, else the CPU), "cpu", "cuda", "cuda:1", ...

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"Device {name!r} cannot be used here; choose 'auto', 'cpu' or a CUDA device that exists."
        ) from error
    return device


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """The GPUs that `device` stands for, as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if kind in ("auto", "cuda") else 0
    # The driver itself obeys this variable: what it hides is not there for anyone.
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = names[:count] if len(names) >= count else [str(number) for number in range(count)]
    if device in ("auto", "cpu"):
        return names
    if kind == "cuda" and not index and names:
        return names
    if kind == "cuda" and index.isdecimal() and int(index) < count:
        return [names[int(index)]]
    raise UserError(
        f"Device {device!r} cannot be used here; valid: auto, cpu"
        + "".join(f", cuda:{number}" for number in range(count))
        + (", cuda." if count else " (no CUDA device was found).")
    )
