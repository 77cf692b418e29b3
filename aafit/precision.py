"""Which arithmetic a run uses."""

from contextlib import AbstractContextManager, nullcontext

import torch

from aafit.errors import UserError, check_name

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


def set_arithmetic(precision: str, threads: int | None = None) -> None:
    """Make the process compute as `precision` says, the same bits each time.

    PyTorch lets cuDNN use TF32 for float32 convolutions unless told otherwise; here only "tf32" does.
    """
    tf32 = check_name("precision", precision, PRECISIONS) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    # With gamma = 2^16 the sigmoid of most inputs is a number so small that CPUs need a hundred times longer for it.
    torch.set_flush_denormal(True)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
    if threads is not None:
        torch.set_num_threads(threads)


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
