"""Functions in processes of their own, one for each slot of the machine, as the program runs.

`python -m benchmarks.processes` reads a function's name and its arguments on standard input, calls it, and writes what
it returned as the last line of its output.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from aafit.devices import Slot
from aafit.errors import UserError

ROOT = Path(__file__).parent.parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def call(function: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """What "module:function" returns in a new process; without an `environment` torch chooses its threads itself.

    Raises:
        UserError: the one that the function raised.
        RuntimeError: the process failed otherwise; the message has what it wrote last.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in THREADS}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.processes"],
            input=pickle.dumps((function, arguments)),
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**inherited, **(environment or {}), "PYTHONPATH": path},
            check=False,
        )
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if process.returncode == 2:
        raise UserError(said.splitlines()[-1])
    if process.returncode:
        raise RuntimeError(f"{function} failed:\n{said[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def side_by_side(function: str, places: Sequence[Slot], each: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the function returns for each of these arguments, each in a new process, one at a time in a slot."""
    free: SimpleQueue[Slot] = SimpleQueue()
    for place in places:
        free.put(place)

    def one(arguments: Mapping[str, Any]) -> Any:
        place = free.get()
        try:
            told = {"device": place.device, "threads": place.threads}
            return call(function, place.environment, **{**told, **arguments})
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, each))


def peak_bytes() -> int | None:
    """The most memory that this process held: on the GPU where it used one, else resident; None where nobody counts."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        # Not getrusage: what it says of a new process begins with the peak of the one that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Do what standard input says."""
    name, arguments = pickle.loads(sys.stdin.buffer.read())
    module, _, function = name.partition(":")
    try:
        result = getattr(import_module(module), function)(**arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{json.dumps(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
