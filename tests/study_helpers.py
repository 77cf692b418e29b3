"""A small network, data for it, and its study."""

from pathlib import Path
from typing import Any

import torch
from small import Small, problem
from torch import nn

import aafit
from aafit import AHAF, FNeuron
from aafit.studies.result import Study

REPLACEMENTS = {"act1": FNeuron.like("ReLU", knots=6), "act2": AHAF.like("SiLU")}


def base() -> nn.Module:
    """Return a small network with two ReLU, trained to some accuracy."""
    torch.manual_seed(1)
    net = Small(dropout=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(6):
        for x, y in batches(0, 512):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def batches(first: int, count: int = 256) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return images whose class says which of their two channels is larger, if one is."""
    x = torch.cat([x for x, _ in problem(count=1024, size=1024)])[first : first + count]
    difference = x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2))
    return list(zip(x.split(64), (difference > -0.1).long().add((difference > 0.1).long()).split(64), strict=True))


def studied(folder: Path | None = None, replacements: Any = None, **options: Any) -> Study:
    """Return the study of `base`; with a folder its page is written as study.html."""
    given = {"heldout": batches(768), "steps": 4, "samples": 256} | options
    report = None if folder is None else folder / "study.html"
    return aafit.study(base(), batches(512), replacements or REPLACEMENTS, report=report, **given)
