"""Measurements of an epoch are written as a whole, read back bit-identical, and continued where a run was stopped."""

import csv
import errno
import math
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aafit.errors import UserError
from aafit.experiment.runs.metrics import Row, WriteRow, metrics_file, read_columns, read_rows, tensorboard, wandb
from aafit.files import sha256_of

COLUMNS = ("epoch", "train_loss", "test_accuracy")


def row(epoch: int) -> Row:
    return {"epoch": epoch, "train_loss": 1 / (epoch + 3), "test_accuracy": epoch / 7}


def opened(path: Path, columns: Sequence[str] = COLUMNS, *more: Any) -> WriteRow:
    """The function that appends a row; there is nothing to close."""
    with metrics_file(path, columns, *more) as write:
        return write


def written(path: Path, epochs: int) -> None:
    write = opened(path)
    for epoch in range(epochs):
        write(row(epoch))


def epochs_in(path: Path) -> list[int]:
    return [int(row["epoch"]) for row in read_rows(path)]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_floats_come_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.csv"
    write = opened(path, ("epoch", "value"))
    for epoch, value in enumerate(values):
        write({"epoch": epoch, "value": value})
    read = [float(row["value"]) for row in read_rows(path)]
    assert len(read) == len(values)
    for one, other in zip(read, values, strict=True):
        assert struct.pack("d", one) == struct.pack("d", other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_empty_cell(tmp_path: Path, value: float) -> None:
    write = opened(tmp_path / "metrics.csv", ("epoch", "value"))
    write({"epoch": 0, "value": value})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,value\n0,\n"


def test_a_metrics_file_is_a_table_that_any_program_reads(tmp_path: Path) -> None:
    write = opened(tmp_path / "metrics.csv", ("epoch", "train_loss", "act1.weight[0]", "act1.gamma"))
    write({"epoch": 0, "train_loss": None, "act1.weight[0]": 0.1 + 0.2, "act1.gamma": 65536.0})
    # In any order, as a dictionary has it.
    write({"act1.gamma": 1e-300, "train_loss": 2, "epoch": 1, "act1.weight[0]": float("nan")})
    assert (tmp_path / "metrics.csv").read_bytes().splitlines(keepends=True) == [
        b"epoch,train_loss,act1.weight[0],act1.gamma\n",
        b"0,,0.30000000000000004,65536.0\n",
        b"1,2,,1e-300\n",
    ]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == read_rows(tmp_path / "metrics.csv")
    assert read_rows(tmp_path / "metrics.csv")[0]["train_loss"] == ""


@pytest.mark.parametrize(("measured", "kept"), [(range(0), []), (range(1), [0]), (range(3), [0, 1, 2])])
def test_reopening_keeps_the_rows_that_the_state_knows_of(tmp_path: Path, measured: range, kept: list[int]) -> None:
    path = tmp_path / "metrics.csv"
    written(path, 5)
    before = path.read_text().splitlines()
    write = opened(path, COLUMNS, measured)
    assert epochs_in(path) == kept
    write(row(len(kept)))
    assert path.read_text().splitlines()[:-1] == before[: 1 + len(kept)]
    assert epochs_in(path) == [*kept, len(kept)]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: "".join(text.splitlines(keepends=True)[:3]), r"has no row of epoch 2-4"),
        (lambda text: text[: text.index("\n3,") + 4], r"has no row of epoch 3-4"),
        (lambda text: text.replace("\n2,", "\n7,"), r"has no row of epoch 2,"),
        (lambda text: text.replace("\n2,", "\n1,"), r"has no row of epoch 2,"),
        (lambda text: text + text.splitlines()[2] + "\n", "has rows twice"),
        (lambda text: text[:60] + "\0" * 40 + "\n", "is damaged|has no row"),
        (lambda text: "\0" * len(text) + "\n", "has other columns than this run"),
        (lambda text: "", "has no row of epoch 0-4"),
        (lambda text: text.replace("train_loss", "loss"), "has other columns than this run"),
        (None, "is missing"),
    ],
)
def test_rows_that_the_state_knows_of_and_the_file_does_not(tmp_path: Path, damage: Any, sentence: str) -> None:
    path = tmp_path / "metrics.csv"
    written(path, 5)
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    before = path.read_text() if path.exists() else None
    with pytest.raises(UserError, match=rf"metrics\.csv ({sentence}).*saved state of this run is of epoch 4.*--fresh"):
        opened(path, COLUMNS, range(5))
    assert (path.read_text() if path.exists() else None) == before


def test_a_row_is_on_the_disk_before_anything_is_saved_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = opened(tmp_path / "metrics.csv", COLUMNS)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((tmp_path / "metrics.csv").read_text()))
    write(row(0))
    assert [text.count("\n") for text in synced] == [2]


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    opened(tmp_path / "metrics.csv", COLUMNS)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,train_loss,test_accuracy\n"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stop_at_any_byte_costs_at_most_the_last_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.csv"
    written(path, 4)
    whole = path.read_text()
    cut = whole[: data.draw(st.integers(0, len(whole)), label="length")]
    path.write_text(cut)
    rows = max(0, cut.count("\n") - 1)
    assert read_rows(path) == [{name: str(value) for name, value in row(epoch).items()} for epoch in range(rows)]
    write = opened(path, COLUMNS, range(rows))
    for epoch in range(rows, 4):
        write(row(epoch))
    assert path.read_text() == whole


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    written(path, 2)
    write = opened(path, COLUMNS, range(2))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(UserError, match=r"Cannot write .*metrics\.csv: No space left on device"):
            write(row(2))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"Cannot write .*metrics\.csv: No space left on device"):
            opened(path, COLUMNS, range(1))
    assert epochs_in(path) == [0, 1]
    write(row(2))
    assert epochs_in(path) == [0, 1, 2]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path) as write:
        write({"epoch": 100, "train_loss": None, "test_accuracy": 0.5, "act1.gamma": 65536.0})
        write({"epoch": 101, "train_loss": 0.75, "test_accuracy": 0.625, "act1.gamma": 65535.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {
        "train_loss": [(101, 0.75)],
        "test_accuracy": [(100, 0.5), (101, 0.625)],
        "act1.gamma": [(100, 65536.0), (101, 65535.5)],
    }


def test_tensorboard_can_be_watched_while_a_run_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path) as write:
        write({"epoch": 0, "test_accuracy": 0.5})
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [event.value for event in events.Scalars("test_accuracy")] == [0.5]


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("SILENT", "DISABLE_GIT", "DISABLE_CODE"):
        monkeypatch.setenv(f"WANDB_{name}", "true")
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline(tmp_path: Path) -> None:
    from wandb import teardown

    with wandb(tmp_path, "silu-leaf-seed42", {"optimizer": "rmsprop", "batch_size": 12345}) as write:
        write({"epoch": 100, "train_loss": None, "test_accuracy": 0.5})
        write({"epoch": 101, "train_loss": 0.0390625, "test_accuracy": 0.5078125})
    teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for said in (b"silu-leaf-seed42", b"aafit", b"rmsprop", b"12345", b"test_accuracy", b"0.0390625", b"0.5078125"):
        assert said in content
    assert b"null" not in content


@pytest.mark.usefixtures("wandb_offline")
def test_two_wandb_runs_in_one_process(tmp_path: Path) -> None:
    from wandb import teardown

    names = ("first-run", "second-run")
    first, second = (wandb(tmp_path / name, name, {}) for name in names)
    with first as write_first, second as write_second:
        write_first({"epoch": 1, "train_loss": 0.0390625})
        write_second({"epoch": 1, "train_loss": 0.0703125})
    teardown()
    contents = [next((tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")).read_bytes() for name in names]
    assert [(b"0.0390625" in content, b"0.0703125" in content) for content in contents] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("chosen", "key", "mode"),
    [
        (None, None, "offline"),
        (None, "a key", "online"),
        ("offline", "a key", "offline"),
        ("disabled", None, "disabled"),
        ("", None, "offline"),
    ],
)
def test_wandb_sends_nothing_without_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, key: str | None, mode: str
) -> None:
    given: dict[str, Any] = {}

    def init(**options: Any) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(finish=lambda: None)

    fake = SimpleNamespace(api=SimpleNamespace(api_key=key), init=init)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if chosen is not None:
        monkeypatch.setenv("WANDB_MODE", chosen)
    with wandb(tmp_path, "a run", {"lr": 0.1}):
        pass
    assert given["mode"] == mode
    assert given["dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("missing", "option"),
    [(("tensorboard", "torch.utils.tensorboard"), "tensorboard"), (("wandb",), "wandb")],
)
def test_a_logger_whose_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], option: str
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--{option} needs the package {option}: pip install 'aafit\[{option}\]'"):
        (tensorboard(tmp_path) if option == "tensorboard" else wandb(tmp_path, "a run", {})).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_were_altered_since_the_state_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    written(path, 3)
    digest = sha256_of(path)
    opened(path, COLUMNS, range(3), digest)
    path.write_text(path.read_text().replace("0.14285", "0.99000"))
    with pytest.raises(UserError, match=r"metrics\.csv was altered, but the saved state .* --fresh"):
        opened(path, COLUMNS, range(3), digest)


@pytest.mark.parametrize("header", ["0,2.3,0.1,2.3", "epoch", '"', "\0", "train_loss,test_loss,test_accuracy"])
def test_a_first_line_that_is_no_header_is_named(tmp_path: Path, header: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"{header}\n0,2.3,0.1,2.3\n")
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: its first line, the header, has no column"):
        read_columns(tmp_path / "metrics.csv")
