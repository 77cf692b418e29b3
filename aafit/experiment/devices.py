"""Devices, and the slots in which processes run alongside each other."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError, check_count

ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Otherwise glibc returns large arrays to the system, which clears their pages again for the next step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


@dataclass(frozen=True)
class Slot:
    """Place for one process: its device, its number of threads, and what is added to its environment."""

    device: str
    threads: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


def slots(device: str = "auto", jobs: int | None = None) -> list[Slot]:
    """Return the slots of this machine.

    Args:
        device: "auto", "cpu", "cuda", or a device such as "cuda:1".
        jobs: number of processes. On the CPU, by default one for each core that this process may use; each has a single
            thread, so that a run is bit-identical however many others there are. On CUDA, the number for each GPU, by
            default one.
    """
    if jobs is not None:
        check_count("number of --jobs", jobs)
    gpus = _gpus(device)
    if gpus:
        return [Slot("cuda", None, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(jobs or 1) for gpu in gpus]
    return [Slot("cpu", 1, ON_CPU)] * (jobs or usable_cores())


def node_slot(gpu: bool) -> Slot:
    """Return the slot of a process on a node of a cluster, whose scheduler chooses the GPU or the core."""
    return Slot("cuda") if gpu else Slot("cpu", 1, ON_CPU | {"CUDA_VISIBLE_DEVICES": ""})


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name: "auto" (the GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", ..."""
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
    """Return the GPUs of a device name, as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if kind in ("auto", "cuda") else 0
    # The driver obeys this variable: no process can use a GPU that it hides.
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


def compilation_from_environment() -> AbstractContextManager[None]:
    """Return a block of `compiled_loops`: off if the environment variable AAFIT_COMPILE is 0, else on."""
    return compiled_loops(os.environ.get("AAFIT_COMPILE") != "0")
