import errno
import hashlib
import io
import re
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_files import RECORDS, write_cifar10, write_fashion

from aafit.errors import UserError
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.data.download import RemoteFile, fetch, fetch_and_unpack

CONTENT = b"published content " * 5000


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


class Server:
    """HTTP on this machine. `answers[path]` are the answers in turn, the last one for good: bytes, a status, "cut"."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                answers = server.answers.get(self.path, [404])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                status, body, cut = (answer, b"", 0) if isinstance(answer, int) else (200, answer, 0)
                if answer == "cut":
                    body, cut = CONTENT, 1000
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - cut])

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path):
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the pauses between tries
    running = Server()
    yield running
    running.close()


def published(server, *paths, content=CONTENT, name="data.gz"):
    return RemoteFile(name, md5(content), tuple(map(server.url, paths)))


@pytest.mark.parametrize(
    ("first_mirror", "asked"),
    [
        pytest.param([CONTENT], ["/a"], id="good"),
        pytest.param([503, CONTENT], ["/a", "/a"], id="busy once: tried again"),
        pytest.param(["cut", CONTENT], ["/a", "/a"], id="connection lost: tried again"),
        pytest.param([404], ["/a", "/a", "/b"], id="gone: the next mirror"),
        pytest.param([b"an altered file"], ["/a", "/a", "/b"], id="wrong checksum: the next mirror"),
        pytest.param(["cut"], ["/a", "/a", "/b"], id="always cut: the next mirror"),
    ],
)
def test_a_file_comes_from_the_first_mirror_that_has_it(server, tmp_path, first_mirror, asked):
    server.answers = {"/a": first_mirror, "/b": [CONTENT]}
    [path] = fetch([published(server, "/a", "/b")], tmp_path / "new" / "cache", "The data")
    assert path == tmp_path / "new" / "cache" / "data.gz"
    assert path.read_bytes() == CONTENT
    assert server.asked == asked


def test_a_file_that_is_there_is_not_downloaded_again_unless_it_is_altered(server, tmp_path):
    server.answers = {"/a": [CONTENT]}
    remote = [published(server, "/a")]
    fetch(remote, tmp_path, "The data")
    fetch(remote, tmp_path, "The data")
    assert server.asked == ["/a"]
    (tmp_path / "data.gz").write_bytes(b"cut short")
    [path] = fetch(remote, tmp_path, "The data")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["/a", "/a"]


def test_no_mirror_is_one_sentence_that_says_how_to_go_on(server, tmp_path):
    server.answers = {"/a": [404], "/b": [b"other bytes"]}
    unreachable = "http://127.0.0.1:1/data.gz"
    remote = RemoteFile("data.gz", md5(CONTENT), (server.url("/a"), server.url("/b"), unreachable))
    with pytest.raises(UserError) as caught:
        fetch([remote], tmp_path, "The data")
    host = re.escape(server.url("").removeprefix("http://"))
    assert re.fullmatch(
        rf"The data cannot be downloaded: no mirror gave data\.gz \({host}: HTTP status 404; {host}: wrong checksum; "
        rf"127\.0\.0\.1:1: no connection\)\. Connect this machine to the internet, or fetch {server.url('/a')} on "
        r"another one and give the folder that holds it, unpacked \(--data-dir or \$AAFIT_DATA\)\.",
        str(caught.value),
    )
    assert not (tmp_path / "data.gz").exists()


def test_a_mirror_that_does_not_answer_is_given_up(server, tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("aafit.experiment.data.download.TIMEOUT_S", (5, 0.05))
    monkeypatch.setattr("aafit.experiment.data.download.RETRIES", 0)
    server.answers = {"/b": [CONTENT]}
    silent = ThreadingHTTPServer(("127.0.0.1", 0), type("Silent", (BaseHTTPRequestHandler,), {"handle": released.wait}))
    thread = threading.Thread(target=silent.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        silent_url = f"http://127.0.0.1:{silent.server_port}/a"
        [path] = fetch([RemoteFile("data.gz", md5(CONTENT), (silent_url, server.url("/b")))], tmp_path, "The data")
        assert path.read_bytes() == CONTENT
        with pytest.raises(UserError, match="no answer in time"):
            fetch([RemoteFile("other.gz", md5(CONTENT), (silent_url,))], tmp_path, "The data")
    finally:
        released.set()
        silent.shutdown()
        silent.server_close()
        thread.join()


def test_processes_that_need_the_same_file_download_it_once(server, tmp_path):
    server.answers = {"/a": [CONTENT]}
    remote = [published(server, "/a")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(remote, tmp_path, "The data"), range(4)))
    assert found == [[tmp_path / "data.gz"]] * 4
    assert server.asked == ["/a"]


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        UserError, match=r"The data cannot be downloaded to .*cache: .* give a folder that holds The data"
    ):
        fetch([published(server, "/a")], tmp_path / "cache", "The data")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_a_terminal_only(server, tmp_path, monkeypatch, stream, shown):
    server.answers = {"/a": ["cut", CONTENT]}
    monkeypatch.setattr(sys, "stderr", stream)
    fetch([published(server, "/a")], tmp_path, "The data")
    assert ("90.0k/90.0k" in stream.getvalue()) == shown


# ------------------------------------------------------------------------------------------------ fetch_and_unpack


def archive_of(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = archive_of({"batches/one.bin": b"first", "batches/two.bin": b"second"})


@pytest.fixture
def archive(server):
    server.answers = {"/a": [ARCHIVE]}
    return published(server, "/a", content=ARCHIVE, name="data.tar.gz")


def test_an_archive_is_unpacked_once_and_not_kept(server, archive, tmp_path):
    for _ in range(2):
        folder = fetch_and_unpack(archive, tmp_path, "batches", "The data")
        assert folder == tmp_path / "batches"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "one.bin": b"first",
            "two.bin": b"second",
        }
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["batches"]
    assert server.asked == ["/a"]


def test_an_unpacking_that_breaks_off_leaves_nothing_half_done(archive, tmp_path, monkeypatch):
    def full_disk(tar, path, **_):
        (tmp_path / path / "batches").mkdir()
        (tmp_path / path / "batches" / "one.bin").write_bytes(b"fir")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(tarfile.TarFile, "extractall", full_disk)
        with pytest.raises(UserError, match=r"The data cannot be downloaded to .*No space left on device\. Make room"):
            fetch_and_unpack(archive, tmp_path, "batches", "The data")
    assert not (tmp_path / "batches").exists()
    folder = fetch_and_unpack(archive, tmp_path, "batches", "The data")
    assert (folder / "one.bin").read_bytes() == b"first"


def tar_of(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(CONTENT) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(CONTENT) if info.size else None)
    return stream.getvalue()


def test_only_regular_files_of_the_subfolder_are_unpacked(server, tmp_path):
    packed = tar_of(
        ("batches/one.bin", tarfile.REGTYPE, ""),
        ("batches/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("batches/hard", tarfile.LNKTYPE, "batches/one.bin"),
        ("batches/pipe", tarfile.FIFOTYPE, ""),
        ("../outside", tarfile.REGTYPE, ""),
        ("/absolute", tarfile.REGTYPE, ""),
        ("elsewhere/two.bin", tarfile.REGTYPE, ""),
    )
    server.answers = {"/a": [packed]}
    folder = fetch_and_unpack(published(server, "/a", content=packed, name="x.tar.gz"), tmp_path / "x", "batches", "It")
    assert [path.name for path in folder.iterdir()] == ["one.bin"]
    assert {path.name for path in tmp_path.rglob("*")} == {"x", ".lock", "batches", "one.bin"}


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (b"no archive at all", "x.tar.gz is damaged"),
        (ARCHIVE[:60], "x.tar.gz is damaged"),
        (archive_of({"other/one.bin": b"first"}), r"x.tar.gz has no files in batches/"),
        (archive_of({"batches/one.bin": bytes(100_000)}), "x.tar.gz unpacks to more than 50,000 bytes: it is refused"),
    ],
    # An archive has the second it was made in, and two processes that run the tests must agree on the names.
    ids=["no archive", "cut off", "nothing to unpack", "too large"],
)
def test_an_archive_that_cannot_be_unpacked_is_named(server, tmp_path, monkeypatch, packed, sentence):
    monkeypatch.setattr("aafit.experiment.data.download.LARGEST_UNPACKED", 50_000)
    server.answers = {"/a": [packed]}
    with pytest.raises(UserError, match=sentence):
        fetch_and_unpack(published(server, "/a", content=packed, name="x.tar.gz"), tmp_path, "batches", "The data")
    assert not (tmp_path / "batches").exists()


# ------------------------------------------------------------------------------------------- into the user's cache


def test_a_data_set_that_is_nowhere_is_downloaded(server, tmp_path, monkeypatch):
    monkeypatch.setattr("aafit.experiment.data.file_formats.CIFAR10_RECORDS", RECORDS)
    monkeypatch.setattr("aafit.experiment.data.datasets.FASHION_DEBIAN", tmp_path / "no-debian-package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_cifar10(tmp_path / "cifar-10-batches-bin")
    packed = archive_of({f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
    server.answers = {"/cifar": [packed]}
    monkeypatch.setattr(
        "aafit.experiment.data.datasets.CIFAR_ARCHIVE", published(server, "/cifar", content=packed, name="cifar.tar.gz")
    )
    fashion = []
    for path in write_fashion(tmp_path / "idx").iterdir():
        server.answers[f"/{path.name}"] = [path.read_bytes()]
        fashion.append(published(server, f"/{path.name}", content=path.read_bytes(), name=path.name))
    monkeypatch.setattr("aafit.experiment.data.datasets.FASHION_FILES", tuple(fashion))
    for _ in range(2):
        assert len(load_dataset("CIFAR-10").train) == 5 * RECORDS
        assert len(load_dataset("Fashion-MNIST").train) == 60
    assert sorted(server.asked) == sorted(server.answers)  # each once
    assert load_dataset("CIFAR-10").fingerprint == load_dataset("CIFAR-10", folder).fingerprint
