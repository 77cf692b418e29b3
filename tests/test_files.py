"""A file that is written is the old one or the new one, whatever goes wrong."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aafit.errors import UserError
from aafit.files import make_folder, sha256_of, write_atomically


def failing(number: int) -> Callable[..., None]:
    """A call of the system that fails as a full or a read-only disk makes it fail."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", b""),
        (b"\x00\xff\r\n", b"\x00\xff\r\n"),
        ("", b""),
        ("a line\n", b"a line\n"),
        ("\u03b3 = 2\u00b9\u2076\n", b"\xce\xb3 = 2\xc2\xb9\xe2\x81\xb6\n"),
    ],
)
@pytest.mark.parametrize("before", [None, b"what was there, and longer than what comes"])
def test_content_is_written_as_it_is(tmp_path: Path, content: bytes | str, expected: bytes, before: bytes) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("module", "call"), [(os, "fsync"), (Path, "replace")], ids=["full while writing", "no permission to rename"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, call: str, number: int, before: bytes | None
) -> None:
    path = tmp_path / "state.pt"
    if before is not None:
        path.write_bytes(before)
    with monkeypatch.context() as patched:
        patched.setattr(module, call, failing(number))
        with pytest.raises(UserError) as caught:
            write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else ["state.pt"])
    assert before is None or path.read_bytes() == before
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    seen: list[str] = []
    synchronise = os.fsync

    def look(descriptor: int) -> None:
        seen.append(path.read_text())
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "where", ["file/inside", "missing/inside", "folder"], ids=["parent is a file", "no such parent", "is a folder"]
)
def test_what_cannot_be_written_to_is_said_in_one_sentence(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("unharmed")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        write_atomically(tmp_path / where, "content")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "unharmed"


def test_a_file_system_that_nothing_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the removal of a file is refused before it is noticed that there is none."""
    path = tmp_path / "done.json"
    path.write_text("old")
    with monkeypatch.context() as patched:
        for module, call in ((Path, "open"), (Path, "unlink"), (os, "unlink")):
            patched.setattr(module, call, failing(errno.EROFS))
        with pytest.raises(UserError, match="Read-only file system"):
            write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("where", ["", "a", "a/b/c"])
def test_a_folder_is_made_with_its_parents(tmp_path: Path, where: str) -> None:
    for _ in range(2):
        assert make_folder(tmp_path / where) == tmp_path / where
        assert (tmp_path / where).is_dir()


@pytest.mark.parametrize("where", ["file", "file/below", "file/below/it"])
def test_a_folder_where_a_file_is(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("unharmed")
    with pytest.raises(UserError, match="Cannot write"):
        make_folder(tmp_path / where)
    assert (tmp_path / "file").read_text() == "unharmed"


def test_a_folder_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", failing(errno.EROFS))
        with pytest.raises(UserError, match="runs: Read-only file system"):
            make_folder(tmp_path / "runs")


@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=200))
def test_sha256(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("sha") / "file"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
