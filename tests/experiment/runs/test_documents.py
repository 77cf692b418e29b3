"""The documents of a run folder: they come back as they were written, and a damaged one is refused by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import (
    Config,
    Data,
    Done,
    Result,
    StoredComparison,
    StoredCurveError,
    StoredDifference,
    check_files,
    check_finished,
    check_place,
    load_json,
    save_json,
)
from aafit.files import sha256_of

RUN = RunConfig.checked({"name": "run", "epochs": 3, "interval": [-2, 2], "init_from": "base.bin", "lr": 0.1})
RESULT = Result(last_accuracy=0.5, tuned_parameters=1, epochs=2)
DATA = Data(sha256="cd", in_shape=(3, 32, 32), classes=10)
DOCUMENTS = [
    Config(hash="ab", run=RUN, seed=1, parent=Path("a/b"), parent_hash="ef", data=DATA, environment={"threads": 1}),
    Done(
        hash="ab",
        sha256={"config.json": "12"},
        finished="now",
        seconds=0.1,
        result=RESULT,
    ),
    StoredComparison(
        layers=(StoredDifference(path="act1", max_abs=0.1 + 0.2, mean_abs=None),),
        logits=StoredDifference(path="logits", max_abs=1e-300, mean_abs=0.0),
        agreement=None,
        base_accuracy=0.5,
        base_loss=1.0,
        replaced_accuracy=None,
        replaced_loss=None,
        samples=7,
        curves=(
            StoredCurveError(
                path="act1", old="ReLU", new="AHAF", dtype="float32", max=1, mean_squared=0, interval=(-8, 8)
            ),
        ),
    ),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.file)
def test_a_document_comes_back(tmp_path: Path, document: Any) -> None:
    assert type(document).read(tmp_path) is None
    with pytest.raises(UserError, match=f"is not a run folder: it has no {document.file}"):
        type(document).of(tmp_path)
    document.write(tmp_path)
    assert type(document).of(tmp_path) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.file)
def test_no_bit_of_a_document_can_change(tmp_path: Path, document: Any) -> None:
    document.write(tmp_path)
    file = tmp_path / document.file
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            type(document).read(tmp_path)


def test_documents_of_format_2_are_read(tmp_path: Path) -> None:
    run = {"name": "child", "parent": "base", "fc": "F-Neuron as Tanh", "train": "activations", "epochs": 2}
    config = {"hash": "ab", "run": {**run, "pieces": 16}, "seed": 42, "parent": "../base", "parent_hash": "cd"}
    config["data"] = {"sha256": "ef", "in_shape": [3, 32, 32], "classes": 10}
    logits = {"path": "logits", "max_abs": 1.0, "mean_abs": 0.5}
    compared: dict[str, Any] = {"layers": [], "logits": logits, "agreement": 1.0, "images": 10}
    compared |= {f"{which}_{what}": 0.5 for which in ("base", "replaced") for what in ("accuracy", "loss")}
    identified = {"images": 4000, "heldout_images": 1000, "steps": [{"images": 500, "loss": 0.5}]}
    for name, content in (("config", config), ("compare", compared), ("identification", identified)):
        written(tmp_path / f"{name}.json", {"format": 2, **content})
    assert Config.of(tmp_path).run.knots == 18
    assert StoredComparison.of(tmp_path).samples == 10
    identified = load_json(tmp_path / "identification.json")
    assert identified == {"samples": 4000, "heldout_samples": 1000, "steps": [{"samples": 500, "loss": 0.5}]}


def test_a_document_of_another_format_is_refused(tmp_path: Path) -> None:
    for version in (None, 1, 4, "3"):
        written(tmp_path / "done.json", {"format": version})
        with pytest.raises(UserError, match=rf"done\.json is damaged: it is of format {version}, and "):
            Done.read(tmp_path)


def written(file: Path, content: dict[str, Any]) -> None:
    """Write a document with its checksum, whatever its format is."""
    text = json.dumps({**content, "checksum": ""})
    digest = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(text.replace('"checksum": ""', f'"checksum": "{digest}"'))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"hash": "ab", "seed": 1, "data": {"sha256": "", "in_shape": [1, 2, 3], "classes": 10}}, "run"),
        ({"hash": "ab", "seed": 1, "run": {"name": "x"}}, r"run\.epochs"),
        ({"hash": "ab", "seed": 1, "run": {"name": "x", "epochs": 1, "other": 1}}, r"run\.other"),
    ],
)
def test_what_is_wrong_in_a_field_is_named(tmp_path: Path, content: dict[str, Any], where: str) -> None:
    save_json(tmp_path / "config.json", content)
    with pytest.raises(UserError, match=rf"config\.json is damaged: {where}.*--fresh"):
        Config.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("[]", "it does not hold a JSON object"),
        ("[" * 100_000, "it is not JSON"),
        ("{", "it is not JSON"),
        ('{"format": 2, "hash": "ab"}', "its checksum is not that of its content"),
        ('{"hash": "ab", "checksum": "00"}', "its checksum is not that of its content"),
    ],
)
def test_what_is_wrong_in_a_document_is_named(tmp_path: Path, content: str, where: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json is damaged: {where}.*--fresh"):
        Config.read(tmp_path)


@pytest.mark.parametrize("where", ["missing", "."])
def test_json_that_cannot_be_read(tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load_json(tmp_path / where)


@pytest.mark.parametrize(
    "content",
    [{}, {"a": [1, 2.5, None, True, "\u03b3"], "b": {"c": 0.1 + 0.2}}, {"loss": 1e-300, "samples": 10_000}],
)
def test_json_comes_back(tmp_path: Path, content: dict[str, Any]) -> None:
    save_json(tmp_path / "done.json", content)
    assert load_json(tmp_path / "done.json") == content
    assert (tmp_path / "done.json").read_text().endswith("\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is not JSON"),
        (b'{"hash": "ab', "it is not JSON"),
        (b'{"a": 1} {"b": 2}', "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        (b"[1, 2]", "it does not hold a JSON object"),
        (b"null", "it does not hold a JSON object"),
        (b'"text"', "it does not hold a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json is damaged: {why}"):
        load_json(tmp_path / "config.json")


FILES = {"config.json": b'{"hash": "ab"}\n', "metrics.csv": b"epoch,loss\n0,2.3\n", "network.safetensors": bytes(40)}


def finished(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    digests = {name: sha256_of(folder / name) for name in FILES}
    Done(hash="ab", sha256=digests, finished="", seconds=1.0, result=RESULT).write(folder)
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder / "log.txt").write_text("what done.json does not vouch for may change")
    assert check_finished(folder).result == RESULT


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


def test_a_file_that_no_run_writes_is_not_vouched_for(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    done = Done.of(folder)
    done.model_copy(update={"sha256": {**done.sha256, "../../secret": "0" * 64}}).write(folder)
    with pytest.raises(UserError, match=r"done\.json is damaged: it vouches for '\.\./\.\./secret'"):
        check_finished(folder)


def test_a_file_that_may_be_missing_must_not_be_altered(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    network = folder / "network.safetensors"
    network.unlink()
    check_files(folder, Done.of(folder), may_lack=["network.safetensors"])
    network.write_bytes(b"")
    with pytest.raises(UserError, match=r"network\.safetensors is missing, truncated or was altered"):
        check_files(folder, Done.of(folder), may_lack=["network.safetensors"])


@pytest.mark.parametrize(
    ("folder", "right"),
    [("run/seed1", True), ("run/seed2", False), ("other/seed1", False), ("run/seed01", False), ("anywhere", True)],
)
def test_a_folder_is_named_after_its_run_and_its_seed(tmp_path: Path, folder: str, right: bool) -> None:
    config = DOCUMENTS[0]
    if right:
        check_place(tmp_path / folder, config)
    else:
        with pytest.raises(UserError, match=r"holds the run 'run' with seed 1, .* rename it to run/seed1"):
            check_place(tmp_path / folder, config)
