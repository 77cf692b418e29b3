"""Which arithmetic a run uses."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from aafit.errors import check_name

PROCESSORS = Path("/proc/cpuinfo")
PRECISIONS = ("float32", "tf32", "bf16", "float64")


def data_type(precision: str) -> torch.dtype:
    """The type of parameters and images: float64 for "float64", float32 for all others."""
    return torch.float64 if check_name("precision", precision, PRECISIONS) == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: bfloat16 convolutions and products for "bf16", nothing otherwise.

    For all other precisions the network computes in the type that its parameters have.
    """
    check_name("precision", precision, PRECISIONS)
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def arithmetic(precision: str, threads: int | None = None) -> Iterator[None]:
    """Compute as `precision` says, with the same bits each time; the process's own settings are put back at the end.

    PyTorch lets cuDNN use TF32 for float32 convolutions unless told otherwise; here only "tf32" does.
    """
    tf32 = check_name("precision", precision, PRECISIONS) == "tf32"
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    own_threads, flushed = torch.get_num_threads(), (torch.tensor(1e-40) * 1).item() == 0
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, False
    # With gamma = 2^16 the sigmoid of most inputs is a number so small that CPUs need many times longer for it.
    torch.set_flush_denormal(True)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(own_threads if threads is None else threads)
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_flush_denormal(flushed)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_num_threads(own_threads)


def device_name(device: torch.device) -> str:
    """What the device is called: the GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    return _of_processor("model name") or platform.processor() or platform.machine()


def has_bf16_arithmetic() -> bool:
    """Whether the processor multiplies in bf16 by itself (AVX512-BF16, AMX), as far as the system tells."""
    return bool({"avx512_bf16", "amx_bf16"} & set(_of_processor("flags").split()))


def _of_processor(key: str) -> str:
    """What Linux says of the first processor; nothing on other systems."""
    try:
        lines = PROCESSORS.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
