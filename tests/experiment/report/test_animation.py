"""Animations of activations over the epochs."""

import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_runs import write_run
from PIL import Image

from aafit.errors import UserError
from aafit.experiment.cli.main import main
from aafit.experiment.report.page import animate_activations
from aafit.experiment.report.runs import read_run


def test_an_animation_has_a_picture_an_epoch(suite: Path, tmp_path: Path) -> None:
    folder = suite / "relu-leaf-tanh" / "seed42"
    with Image.open(animate_activations(folder, tmp_path)) as moving:
        assert moving.format == "GIF"
        assert moving.n_frames == len(read_run(folder).columns["epoch"])
        first = np.asarray(moving.convert("RGB")).copy()
        moving.seek(moving.n_frames - 1)
        assert (np.asarray(moving.convert("RGB")) != first).any()
    with pytest.raises(UserError, match="nothing to animate"):
        animate_activations(suite / "base-relu" / "seed42", tmp_path)


def test_an_animation_as_a_video(suite: Path, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None and find_spec("imageio_ffmpeg") is None:
        pytest.skip("no ffmpeg here: pip install imageio-ffmpeg")
    made = animate_activations(suite / "relu-leaf-tanh" / "seed42", tmp_path, video=True)
    content = made.read_bytes()
    assert made.suffix == ".mp4"
    assert content[4:8] == b"ftyp"
    # One of its pictures for each picture of the GIF, and the last for as long as there.
    with Image.open(animate_activations(suite / "relu-leaf-tanh" / "seed42", tmp_path)) as moving:
        milliseconds = sum(
            (moving.seek(at), moving.info["duration"])[1]  # type: ignore[func-returns-value]
            for at in range(moving.n_frames)
        )
    scale, length = struct.unpack(">II", content[content.index(b"mvhd") + 16 :][:8])
    assert length / scale == pytest.approx(milliseconds / 1000, abs=0.15)


def test_a_video_without_ffmpeg_is_one_sentence(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aafit.experiment.report.animation.shutil.which", lambda program: None)
    monkeypatch.setattr("aafit.experiment.report.animation.find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"An MP4 needs ffmpeg: install it, or pip install 'aafit\[video\]'"):
        animate_activations(suite / "relu-leaf-tanh" / "seed42", tmp_path, video=True)
    assert not list(tmp_path.iterdir())


def test_the_command_draws_them(tmp_path: Path) -> None:
    write_run(tmp_path / "small", "base", "ReLU", epochs=1)
    write_run(tmp_path / "small", "child", "LEAF as ReLU", parent="base", start=1, epochs=2)
    done = CliRunner().invoke(
        main, ["show", str(tmp_path / "small"), "--animate", "--times", "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    assert {path.suffix for path in (tmp_path / "o").rglob("*.*")} == {".gif", ".svg", ".png"}
    assert (tmp_path / "o" / "times.svg").exists()
