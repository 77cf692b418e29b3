"""How a suite is done: none of it changes a result."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the runs of a suite are done.

    Attributes:
        engine: what starts the processes: "local", "ray" or "slurm".
        address: of the Ray cluster, host:port; by default the one that this machine belongs to.
        own_disks: the nodes of a Ray cluster do not see the runs folder, see
        `aafit.experiment.scheduling.engines.carried`.
        jobs: processes at once; by default one for each usable core, or for each GPU.
        device: "auto" (the GPUs where there are some), "cpu", "cuda" or "cuda:1".
        data_dir: where the data sets are; by default they are looked for, or downloaded.
        fresh: move the folders of these runs aside and start again.
        tensorboard: write TensorBoard files too.
        wandb: write to Weights & Biases too.
    """

    engine: str = "local"
    address: str | None = None
    own_disks: bool = False
    jobs: int | None = None
    device: str = "auto"
    data_dir: Path | None = None
    fresh: bool = False
    tensorboard: bool = False
    wandb: bool = False
