"""Checkpoints come back whole, or are refused by name."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.files import sha256_of
from aafit.runs.checkpoint import (
    check_finished,
    load_json,
    load_state,
    load_tensors,
    save_json,
    save_network,
    save_state,
)

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
    assert same(load_tensors(tmp_path / "network.safetensors"), dict(net.state_dict()))


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


@pytest.mark.parametrize(
    "content",
    [{}, {"a": [1, 2.5, None, True, "\u03b3"], "b": {"c": 0.1 + 0.2}}, {"loss": 1e-300, "images": 10_000}],
)
def test_json_comes_back(tmp_path: Path, content: dict[str, Any]) -> None:
    save_json(tmp_path / "done.json", content)
    assert load_json(tmp_path / "done.json") == content
    assert (tmp_path / "done.json").read_text().endswith("\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b'{"hash": "ab', "is not JSON"),
        (b'{"a": 1} {"b": 2}', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "does not hold a JSON object"),
        (b"null", "does not hold a JSON object"),
        (b'"text"', "does not hold a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json {why}"):
        load_json(tmp_path / "config.json")


@pytest.mark.parametrize("load", [load_tensors, load_json])
@pytest.mark.parametrize("where", ["missing", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, load: Callable[[Path], Any], where: str) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load(tmp_path / where)


FILES = {"config.json": b'{"hash": "ab"}\n', "metrics.csv": b"epoch,loss\n0,2.3\n", "network.safetensors": bytes(40)}


def finished(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    digests = {name: sha256_of(folder / name) for name in FILES}
    save_json(folder / "done.json", {"hash": "ab", "sha256": digests, "result": {"last_accuracy": 0.5}})
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder / "log.txt").write_text("what done.json does not vouch for may change")
    assert check_finished(folder)["result"] == {"last_accuracy": 0.5}


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_run_that_is_not_finished(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{folder} is not finished"):
        check_finished(tmp_path / folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    ],
    ids=["missing", "cut", "empty", "longer", "altered"],
)
def test_a_finished_run_with_another_file(tmp_path: Path, name: str, change: Callable[[Path], Any]) -> None:
    folder = finished(tmp_path)
    change(folder / name)
    with pytest.raises(UserError, match=f"{name} is missing, truncated or was altered"):
        check_finished(folder)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(FILES)), data=st.data())
def test_a_finished_run_with_any_byte_altered(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = finished(tmp_path_factory.mktemp("run"))
    content = bytearray(FILES[name])
    content[data.draw(st.integers(0, len(content) - 1), label="position")] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        check_finished(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_run_whose_results_are_no_longer_that(tmp_path: Path, content: str) -> None:
    folder = finished(tmp_path)
    (folder / "done.json").write_text(content)
    with pytest.raises(UserError, match=r"done\.json"):
        check_finished(folder)
