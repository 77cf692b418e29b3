"""Reading run folders, damaged ones too."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run

from aafit.errors import UserError
from aafit.experiment.report.runs import read_run, read_suite
from aafit.experiment.runs.documents import load_json, save_json
from aafit.files import sha256_of


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", "ReLU", epochs=5)
    whole = (folder / "metrics.csv").read_text()
    for cut in (1, 3, 20):
        (folder / "metrics.csv").write_text(whole[:-cut])
        assert read_run(folder).columns["epoch"].tolist() == [0, 1, 2, 3, 4]
    (folder / "metrics.csv").write_text("epoch,tra")
    assert read_run(folder).last_epoch is None


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("done.json", "{", "done.json is damaged"),
        (
            "done.json",
            {"hash": "", "sha256": {}, "finished": "", "seconds": 1},
            "damaged: result: Field",
        ),
        ("done.json", b"\xff\xfe", "done.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", {"hash": "", "seed": 1, "run": {"name": "x"}}, r"config.json is damaged: run.epochs"),
        ("compare.json", {"layers": 3}, "compare.json is damaged: layers"),
        (
            "metrics.csv",
            "epoch,loss\n1,2\n",
            "the header, has no column 'train_loss'",
        ),
        ("metrics.csv", "epoch,train_loss,test_loss,test_accuracy\n1,2,3,4\n1,2\n", "metrics.csv is damaged: line 3"),
        ("metrics.csv", "epoch,train_loss,test_loss,test_accuracy\n1,2,3,many\n", "metrics.csv is damaged: line 2"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str | bytes | dict[str, Any], says: str) -> None:
    folder = write_run(tmp_path, "run", "LEAF as ReLU", epochs=1)
    if isinstance(content, dict):
        save_json(folder / file, content)
    else:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=says):
        read_suite(tmp_path)


def vouched(folder: Path) -> None:
    """Let done.json vouch for the files that are there."""
    names = ("config.json", "metrics.csv", "compare.json", "activations.safetensors")
    digests = {name: sha256_of(folder / name) for name in names if (folder / name).exists()}
    save_json(folder / "done.json", {**load_json(folder / "done.json"), "sha256": digests})


@pytest.mark.parametrize("name", ["metrics.csv", "compare.json", "activations.safetensors"])
def test_a_file_that_was_altered_since_the_run_ended_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path, "run", "LEAF as ReLU", parent="base", epochs=3)
    vouched(folder)
    read_suite(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        content[: content.rindex(b"\n", 0, -1) + 1] if name == "metrics.csv" else content + b" "
    )
    with pytest.raises(UserError, match=f"{name} is missing, truncated or was altered since its run ended"):
        read_suite(tmp_path)


def test_settings_of_another_run_are_noticed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", "ReLU", epochs=3)
    save_json(folder / "done.json", {**load_json(folder / "done.json"), "hash": "1" * 64})
    with pytest.raises(UserError, match=r"config\.json and done\.json belong to different runs"):
        read_suite(tmp_path)


def test_a_copy_is_not_another_seed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", "ReLU", seed=42, epochs=3)
    shutil.copytree(folder, folder.with_name("seed43"))
    with pytest.raises(UserError, match=r"seed43 holds the run 'run' with seed 42"):
        read_suite(tmp_path)


def test_a_run_in_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        write_run(tmp_path, name, "ReLU", epochs=1)
    listed = Path.iterdir

    def refusing(folder: Path) -> Iterator[Path]:
        if folder.name == "second":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(UserError, match=r"Cannot read .*second: Permission denied"):
        read_suite(tmp_path)
