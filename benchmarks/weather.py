"""The processes that storm.py can kill, and the clocks that it makes jump."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from aafit.errors import UserError

MARK = "AAFIT_STORM"
"""The environment variable by which the processes of a storm are known among all processes of the machine."""

JUMPS = (-300_000, -3600, -40, 0, 40, 3600, 34_560_000)
"""Seconds that a clock is off by."""


class Weather(Protocol):
    """Ways to disturb the processes of an engine; each returns whether it found a process to disturb."""

    kinds: Mapping[str, Callable[[], bool]]

    @property
    def address(self) -> str | None:
        """Return the address of the cluster; None without one."""

    def close(self) -> None: ...


class ThisMachine:
    """The local engine: besides the schedule, only the processes of runs can be killed."""

    def __init__(self) -> None:
        self.kinds: Mapping[str, Callable[[], bool]] = {"process of a run": kill_a_run}

    @property
    def address(self) -> None:
        return None

    def close(self) -> None:
        pass


class RayNodes:
    """Two Ray nodes of one core on this machine, which are killed and replaced."""

    def __init__(self) -> None:
        self.kinds: Mapping[str, Callable[[], bool]] = {
            "process of a run": kill_a_run,
            "Ray worker": kill_a_ray_worker,
            "raylet": self.kill_a_raylet,
            "node": self.kill_a_node,
            "head and all nodes": self.kill_all,
        }
        self.begin()

    def begin(self) -> None:
        from ray.cluster_utils import Cluster

        self.small: dict[str, Any] = {"num_cpus": 1, "include_log_monitor": False, "object_store_memory": 80 * 2**20}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **self.small})
        self.nodes = [self.cluster.head_node, self.cluster.add_node(**self.small)]

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    def kill_a_raylet(self) -> bool:
        node = random.choice(self.nodes)
        node.kill_raylet(check_alive=False)
        self.replace(node)
        return True

    def kill_a_node(self) -> bool:
        others = [node for node in self.nodes if node is not self.cluster.head_node]
        if not others:
            return False
        node = random.choice(others)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.replace(node)
        return True

    def replace(self, node: Any) -> None:
        self.nodes[self.nodes.index(node)] = self.cluster.add_node(wait=False, **self.small)

    def kill_all(self) -> bool:
        self.close()
        self.begin()
        return True

    def close(self) -> None:
        for node in [*self.nodes, self.cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def marked() -> Iterator[tuple[int, str]]:
    """Return process number and command line of the processes of this storm."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def runs() -> list[int]:
    """The processes of runs."""
    return [number for number, line in marked() if "benchmarks.witness worker" in line]


def kill(found: Sequence[int]) -> bool:
    """Kill one of these processes (SIGKILL)."""
    if not found:
        return False
    with suppress(ProcessLookupError):
        os.kill(random.choice(found), signal.SIGKILL)
    return True


def kill_a_run() -> bool:
    return kill(runs())


def kill_a_ray_worker() -> bool:
    """Kill the parent of a process of a run; its own title does not show that it belongs to this storm."""
    found = []
    for number in runs():
        with suppress(OSError):
            parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            if b"ray::" in Path(f"/proc/{parent}/cmdline").read_bytes():
                found.append(parent)
    return kill(found)


def kill_the_rest() -> None:
    """Kill the remaining processes of the storm."""
    for number, _ in marked():
        if number != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@contextmanager
def jumping(folder: Path) -> Iterator[Weather]:
    """This machine, with a wall clock that jumps for the storm's processes, see clock.c.

    Raises:
        UserError: there is no C compiler here.
    """
    clock, library = folder / "clock.txt", folder / "clock.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise UserError("There is no C compiler here, which makes the clock that jumps: install one as cc.")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)

    def jump() -> bool:
        clock.write_text(f"{random.choice(JUMPS)}\n")
        return True

    jump()
    weather = ThisMachine()
    weather.kinds = {**weather.kinds, "jump of the clock": jump}
    os.environ |= {"LD_PRELOAD": str(library), "AAFIT_CLOCK": str(clock)}
    try:
        yield weather
    finally:
        del os.environ["LD_PRELOAD"], os.environ["AAFIT_CLOCK"]
