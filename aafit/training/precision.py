"""Numeric precision: data types, autocast, TF32, determinism and denormals."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from aafit.errors import check_name

PROCESSORS = Path("/proc/cpuinfo")
PRECISIONS = ("float32", "tf32", "bf16", "float64")


def data_type(precision: str) -> torch.dtype:
    """Return the data type of parameters and samples: float64 for "float64", float32 for all others."""
    return torch.float64 if check_name("precision", precision, PRECISIONS) == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 autocast for "bf16", none for all others."""
    check_name("precision", precision, PRECISIONS)
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def arithmetic(precision: str, threads: int | None = None) -> Iterator[None]:
    """Within the block compute in a precision, deterministically; the settings of the process are restored afterwards.

    By default PyTorch lets cuDNN use TF32 for float32 convolutions; here only "tf32" does.
    """
    tf32 = check_name("precision", precision, PRECISIONS) == "tf32"
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    own_threads, flushed = torch.get_num_threads(), (torch.tensor(1e-40) * 1).item() == 0
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, False
    # With gamma = 2^16 the sigmoid of most inputs is denormal, which CPUs compute many times more slowly.
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
    """Return the name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """Return the name of the processor."""
    return _processor_field("model name") or platform.processor() or platform.machine()


def has_bf16_arithmetic() -> bool:
    """Return whether the processor has bf16 instructions (AVX512-BF16, AMX), as far as Linux reports them."""
    return bool({"avx512_bf16", "amx_bf16"} & set(_processor_field("flags").split()))


def _processor_field(key: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        lines = PROCESSORS.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
