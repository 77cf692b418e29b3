"""Saved states and networks are loaded bit-identical, or refused by name."""

import hashlib
import io
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import base_job
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.folder import (
    load_state,
    load_tensors,
    save_network,
    save_run_state,
    save_state,
)
from aafit.files import make_folder

CPU = torch.device("cpu")


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), LEAF.like("ReLU"), nn.Linear(4, 4), FNeuron.like("Tanh"), nn.Linear(4, 2)
    ).to(dtype)


def train(net: nn.Module, optimizer: Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(5, 3, generator=generator).to(dtype)
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(5) % 2).backward()
        optimizer.step()


def same(one: Any, other: Any) -> bool:
    """Equal through and through, tensors and floats bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make", [partial(Adam, fused=True), Adam, partial(RMSprop, alpha=0.9, eps=1e-7)], ids=["fused", "adam", "rmsprop"]
)
def test_a_state_goes_on_where_it_stopped(tmp_path: Path, make: Callable[..., Optimizer], dtype: torch.dtype) -> None:
    net = small(dtype)
    optimizer = make(net.parameters(), lr=0.01)
    train(net, optimizer, 3)
    state = {
        "hash": "ab",
        "epoch": 3,
        "seconds": math.pi,
        "net": net.state_dict(),
        "optimizers": [optimizer.state_dict()],
    }
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt", CPU)
    assert same(loaded, state)

    resumed = small(dtype)
    resumed_optimizer = make(resumed.parameters(), lr=0.01)
    resumed.load_state_dict(loaded["net"])
    resumed_optimizer.load_state_dict(loaded["optimizers"][0])
    train(net, optimizer, 2)
    train(resumed, resumed_optimizer, 2)
    assert same(resumed.state_dict(), net.state_dict())


def test_a_state_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for epoch in (1, 2):
        save_state(path, {"epoch": epoch, "optimizers": []})
    assert load_state(path, CPU) == {"epoch": 2, "optimizers": []}
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def state_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state.pt"
    save_state(path, {"epoch": 7, "net": AHAF.like("ReLU").state_dict()})
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_altered_byte_of_a_state_is_refused(state_file: Path, data: st.DataObject) -> None:
    content = bytearray(state_file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1), label="position")
    content[position] ^= data.draw(st.integers(1, 255), label="difference")
    altered = state_file.with_name("altered.pt")
    altered.write_bytes(content)
    with pytest.raises(UserError, match=r"altered\.pt is truncated or was altered"):
        load_state(altered, CPU)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_truncated_state_is_refused(state_file: Path, data: st.DataObject) -> None:
    content = state_file.read_bytes()
    cut = state_file.with_name("cut.pt")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    with pytest.raises(UserError, match=r"cut\.pt is truncated"):
        load_state(cut, CPU)


@pytest.mark.parametrize("more", [b"\x00", b"more than there was", bytes(32)])
def test_a_state_with_something_after_it_is_refused(state_file: Path, more: bytes) -> None:
    longer = state_file.with_name("longer.pt")
    longer.write_bytes(state_file.read_bytes() + more)
    with pytest.raises(UserError, match=r"longer\.pt"):
        load_state(longer, CPU)


def in_channels_last() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "make", [small, partial(small, torch.float64), in_channels_last], ids=["float32", "float64", "channels_last"]
)
def test_a_network_comes_back_bit_for_bit(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    net = make()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    save_network(tmp_path / "network.safetensors", net)
    kept = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("_extra_state")}
    assert same(load_tensors(tmp_path / "network.safetensors"), kept)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not safetensors at all, but long enough to look", bytes(range(64)), b"\x02" + bytes(7) + b"{"],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match="weights is truncated or not a safetensors file"):
        load_tensors(tmp_path / "weights")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncated_tensors_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "network.safetensors"
    save_network(path, LEAF.like("Tanh"))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    with pytest.raises(UserError, match=r"network\.safetensors is truncated"):
        load_tensors(path)


@pytest.mark.parametrize("where", ["missing", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load_tensors(tmp_path / where)


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", [Harmful(), [1, 2], b"bytes", None], ids=["code", "list", "bytes", "nothing"])
def test_a_crafted_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    """Its checksum is right, as anyone can compute it."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    (tmp_path / "state.pt").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(UserError, match=r"state\.pt does not hold what a run with these settings saves"):
        load_state(tmp_path / "state.pt", CPU)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epoch": 1, "seconds": 1.0, "net": {}, "optimizers": []},
        {"epoch": "many", "seconds": 1.0},
        {"epoch": 1, "seconds": None, "net": 3, "optimizers": 3},
    ],
    ids=["empty", "no tensors", "text", "numbers"],
)
def test_a_state_with_other_content_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    job = base_job(tmp_path)
    make_folder(job.folder)
    (job.folder / "metrics.csv").write_text("epoch\n0\n")
    save_run_state(job, values)
    with pytest.raises(UserError, match=r"state\.pt does not hold what a run with these settings saves"):
        execute(job)
