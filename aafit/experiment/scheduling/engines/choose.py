"""The engines by name."""

from aafit.errors import UserError, check_name, needs_extra
from aafit.experiment.scheduling.engines.engine import Engine
from aafit.experiment.scheduling.engines.local import LocalEngine

ENGINES = ("local", "ray", "slurm")


def open_engine(name: str, address: str | None, device: str, jobs: int | None, *, own_disks: bool = False) -> Engine:
    """The engine `name` of `ENGINES`; the rest is as in `aafit.experiment.scheduling.options.RunOptions`.

    Raises:
        UserError: there is no such engine, its package is not installed, or its cluster cannot be used.
    """
    check_name("engine", name, ENGINES)
    if address is not None and name != "ray":
        raise UserError(f"--address {address} is of a Ray cluster: give --engine ray too.")
    if own_disks and name != "ray":
        raise UserError("--own-disks is for the nodes of a Ray cluster: give --engine ray too, or drop it.")
    try:
        with needs_extra(f"--engine {name}", name):
            if name == "ray":
                from aafit.experiment.scheduling.engines.ray import RayEngine

                return RayEngine(address or "auto", device, jobs, own_disks=own_disks)
            if name == "slurm":
                from aafit.experiment.scheduling.engines.slurm import SlurmEngine

                return SlurmEngine(device, jobs)
    except ImportError as error:
        raise UserError(str(error)) from error
    return LocalEngine(device, jobs)
