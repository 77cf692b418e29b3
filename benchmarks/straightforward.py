"""The straightforward implementation that the benchmarks and the tests compare the program with.

It has the formulas of the activations as plain torch operations, F-Neuron membership by membership, KerasNet in NCHW
and float32, and a training loop with a DataLoader whose four workers augment image by image with Pillow.

./run_experiment.sh benchmarks/straightforward.py   # seconds of an epoch of this loop alone

Axes in names: B image of a batch, H row, W column, C channel or colour plane, F feature, K class.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, Dataset

from aafit.experiment.data.datasets import Split
from aafit.experiment.devices import slots
from aafit.experiment.runs.config import RunConfig
from benchmarks.harness import (
    Command,
    Row,
    data_dir_option,
    device_option,
    json_option,
    measuring,
    report,
    synchronise,
)
from benchmarks.workload import Sample, chosen_kinds, sample_for

WORKERS = 4
WARM_STEPS = 10
MAX_SHIFT = 0.1
LEARNING_RATE = 1e-3
SLOWED = 1000.0

AHAF_STARTS = {"ReLU": (2.0**16, 1.0), "SiLU": (1.0, 1.0)}
LEAF_STARTS = {
    "ReLU": (1.0, 0.0, 2.0**16, 0.0),
    "SiLU": (1.0, 0.0, 1.0, 0.0),
    "Tanh": (0.0, 2.0, 2.0, -1.0),
    "Sigmoid": (0.0, 1.0, 1.0, 0.0),
}


class SiLU(nn.Module):
    """x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class AHAF(nn.Module):
    """beta * x * sigmoid(gamma * x)."""

    def __init__(self, gamma: float, beta: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor([gamma]))
        self.beta = nn.Parameter(torch.tensor([beta]))

    def forward(self, x: Tensor) -> Tensor:
        return self.beta * x * torch.sigmoid(self.gamma * x)


class LEAF(nn.Module):
    """(p1 * x + p2) * sigmoid(p3 * x) + p4."""

    def __init__(self, p1: float, p2: float, p3: float, p4: float) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.tensor([p1]))
        self.p2 = nn.Parameter(torch.tensor([p2]))
        self.p3 = nn.Parameter(torch.tensor([p3]))
        self.p4 = nn.Parameter(torch.tensor([p4]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.p1 * x + self.p2) * torch.sigmoid(self.p3 * x) + self.p4


class FNeuron(nn.Module):
    """sum of weight_i * membership_i(x), one pass over x for each membership function.

    The inner ones are triangles of the radius r around their centres, the outer ones ramps that stay 1 beyond the ends.
    """

    def __init__(self, weight: Tensor, left: float = -4.0, right: float = 4.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.reshape(1, -1).clone())
        self.radius = (right - left) / (weight.numel() - 1)
        self.centres = [left + i * self.radius for i in range(weight.numel())]

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for i, centre in enumerate(self.centres):
            result = result + self.weight[0, i] * self.membership(i, (x - centre) / self.radius)
        return result

    def membership(self, i: int, distance: Tensor) -> Tensor:
        """Return the i-th membership, given the distance from its centre in radii."""
        if i == 0:
            return torch.clamp(1 - distance, 0, 1)
        if i == len(self.centres) - 1:
            return torch.clamp(1 + distance, 0, 1)
        return torch.clamp(1 - distance.abs(), min=0)


def activation(text: str) -> nn.Module:
    """Return the activation of a text such as "ReLU", "AHAF as SiLU", "LEAF as Tanh" or "F-Neuron random"."""
    family, _, start = text.partition(" ")
    start = start.removeprefix("as ")
    if family == "AHAF":
        return AHAF(*AHAF_STARTS[start])
    if family == "LEAF":
        return LEAF(*LEAF_STARTS[start])
    if family == "F-Neuron":
        return FNeuron(torch.rand(18) * 2 - 1 if start == "random" else torch.linspace(-4, 4, 18).tanh())
    fixed: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "SiLU": SiLU}
    return fixed[family]()


class KerasNet(nn.Module):
    """KerasNet for 3x32x32 images, with activations given by name."""

    def __init__(self, cnn: str, fc: str) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 32, 3, padding=1), activation(cnn)
        self.conv2, self.act2 = nn.Conv2d(32, 32, 3), activation(cnn)
        self.pool3, self.drop3 = nn.MaxPool2d(2), nn.Dropout2d(0.25)
        self.conv4, self.act4 = nn.Conv2d(32, 64, 3, padding=1), activation(cnn)
        self.conv5, self.act5 = nn.Conv2d(64, 64, 3), activation(cnn)
        self.pool6, self.drop6 = nn.MaxPool2d(2), nn.Dropout2d(0.25)
        self.fc7, self.act7, self.drop7 = nn.Linear(2304, 512), activation(fc), nn.Dropout(0.2)
        self.fc8 = nn.Linear(512, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.conv1(x_BCHW))
        x_BCHW = self.act2(self.conv2(x_BCHW))
        x_BCHW = self.drop3(self.pool3(x_BCHW))
        x_BCHW = self.act4(self.conv4(x_BCHW))
        x_BCHW = self.act5(self.conv5(x_BCHW))
        x_BCHW = self.drop6(self.pool6(x_BCHW))
        x_BF = self.drop7(self.act7(self.fc7(x_BCHW.flatten(1))))
        logits_BK: Tensor = self.fc8(x_BF)
        return logits_BK


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """A data set that flips each image at random and shifts it by up to a tenth of its side."""

    def __init__(self, split: Split) -> None:
        self.images_BHWC = split.images_BHWC.numpy()
        self.labels = split.labels_B.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images_BHWC[index])
        reach_x, reach_y = MAX_SHIFT * image.width, MAX_SHIFT * image.height
        shift = round(random.uniform(-reach_x, reach_x)), round(random.uniform(-reach_y, reach_y))
        return as_input(augmented(image, random.random() < 0.5, shift)), self.labels[index]


def augmented(image: Image.Image, flip: bool, shift: tuple[int, int]) -> Image.Image:
    """Return the image, flipped horizontally if `flip`, then shifted by whole pixels with black fill."""
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = shift
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y))


def as_input(image: Image.Image) -> Tensor:
    """(C, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def optimizer_for(net: nn.Module, train: str, p24sl: bool = False) -> Optimizer:
    """Return Adam for all parameters, or for those of the activations with everything else frozen.

    With `p24sl` p2 and p4 of LEAF learn a thousand times slower.
    """
    own: list[nn.Parameter] = []
    slow: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(train == "all" or name.startswith("act"))
        if parameter.requires_grad:
            (slow if p24sl and name.endswith((".p2", ".p4")) else own).append(parameter)
    groups = [{"params": own, "lr": LEARNING_RATE}, {"params": slow, "lr": LEARNING_RATE / SLOWED}]
    return Adam([group for group in groups if group["params"]])


def training_step(net: nn.Module, optimizer: Optimizer, x_BCHW: Tensor, y_B: Tensor) -> float:
    """Take one step on one batch; return the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x_BCHW), y_B)
    loss.backward()
    optimizer.step()
    return loss.item()


def step_seconds(
    cnn: str, fc: str, train: str, batch_size: int, sample: Sample, steps: int, device: str, p24sl: bool, compiled: bool
) -> Iterator[float]:
    """Yield the seconds of a step, averaged over `steps` batches, repeatedly; the first warms up.

    Before each measurement `WARM_STEPS` batches are trained on without being counted: they use up the batches that
    the loader prefetched in between.
    """
    at = torch.device(device)
    net: nn.Module = KerasNet(cnn, fc).to(at).train()
    optimizer = optimizer_for(net, train, p24sl)
    if compiled:
        net.compile(dynamic=False)
    images = AugmentedImages(sample.load().train)
    loader = DataLoader(
        images, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=WORKERS > 0
    )
    batches = chain.from_iterable(repeat(loader))
    while True:
        for at_step in range(WARM_STEPS + steps):
            if at_step == WARM_STEPS:
                synchronise(at)
                began = time.perf_counter()
            x_BCHW, y_B = next(batches)
            training_step(net, optimizer, x_BCHW.to(at), y_B.to(at))
        synchronise(at)
        yield (time.perf_counter() - began) / steps


@contextmanager
def straightforward_step(
    run: RunConfig, steps: int, data_dir: Path | None, device: str, compiled: bool = False
) -> Iterator[Callable[[], float]]:
    """Start the straightforward training loop, one process with torch's own number of threads.

    The block gets a callable that measures the seconds of a step over `steps` more steps.
    """
    place = slots(device, 1)[0]
    with measuring(
        "benchmarks.straightforward:step_seconds",
        {name: value for name, value in place.environment.items() if place.device != "cpu"},
        cnn=run.cnn,
        fc=run.fc,
        train=run.train,
        batch_size=run.batch_size,
        sample=sample_for(run, steps + WARM_STEPS, data_dir),
        steps=steps,
        device=place.device,
        p24sl=run.p24sl,
        compiled=compiled,
    ) as following:
        following()
        yield following


def _one_measurement(run: RunConfig, steps: int, data_dir: Path | None, device: str) -> float:
    with straightforward_step(run, steps, data_dir, device) as measure:
        return measure()


@click.command(cls=Command)
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Training steps of each kind.")
@data_dir_option
@device_option
@json_option
def main(steps: int, data_dir: Path | None, device: str, json_path: Path | None) -> None:
    """Measure an epoch of 50,000 images of the straightforward training loop, for each kind of run."""
    with report(json_path) as out:
        rows: list[Row] = [
            {"kind": kind, "seconds": _one_measurement(run, steps, data_dir, device) * math.ceil(50_000 / 128)}
            for kind, run in chosen_kinds().items()
        ]
        out.table("Seconds an epoch, straightforward training loop", rows)


if __name__ == "__main__":
    main()
