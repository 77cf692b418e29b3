"""A replaced network that trains in several processes at once, each with a part of the batch."""

import os
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE, Popen

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aafit.activations import LEAF
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters, train_only_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(5))
PROCESSES = 2
STEPS = 4


class Net(nn.Module):
    """Its activations are a module, a function, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.twice = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.fc1(self.act(x))))
        return self.twice(self.fc2(x))


def trained(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of some steps by the mean of a loss over the samples."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    outputs = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        y = net(x)
        (y - 1).square().mean().backward()
        optimizer.step()
        outputs.append(y.detach())
    return outputs


def replaced() -> nn.Module:
    net, _ = replace_activations(Net(), {"ReLU": LEAF.like("SiLU")}, sample=X)
    train_only_activations(net)
    return net


def one_of_them(rank: int, folder: Path) -> None:
    """What process number `rank` does."""
    store = torch.distributed.FileStore(str(folder / "store"), PROCESSES)
    limit = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=limit)
    net = replaced()
    outputs = trained(DistributedDataParallel(net), X[rank::PROCESSES])
    torch.save((outputs, dict(adaptive_parameters(net))), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_several_processes_train_as_one_does(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        # Without asking for the machine's name, which not every machine can look up.
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with ExitStack() as block:
        running = []
        for rank in range(PROCESSES):
            command = [sys.executable, __file__, str(rank), str(tmp_path)]
            process = block.enter_context(Popen(command, env=environment, stderr=PIPE, text=True))
            block.callback(process.kill)
            running.append(process)
        # All of them first: where one fails the others wait for it, and only its own words say why.
        said = [process.communicate(timeout=200)[1] for process in running]
        assert [process.returncode for process in running] == [0] * PROCESSES, "\n".join(said)
    start, alone = adaptive_parameters(replaced()), replaced()
    outputs = trained(alone, X)
    assert len(start) == 4 * len(adaptive_activations(alone)) == 16
    for rank in range(PROCESSES):
        theirs, parameters = torch.load(tmp_path / f"{rank}.pt")
        for one, other in zip(theirs, outputs, strict=True):
            torch.testing.assert_close(one, other[rank::PROCESSES], rtol=1e-5, atol=1e-6)
        assert parameters.keys() == start.keys()
        for name, parameter in adaptive_parameters(alone).items():
            torch.testing.assert_close(parameters[name], parameter, rtol=1e-5, atol=1e-6)
            assert not torch.equal(parameter, start[name]), name


if __name__ == "__main__":
    one_of_them(int(sys.argv[1]), Path(sys.argv[2]))
