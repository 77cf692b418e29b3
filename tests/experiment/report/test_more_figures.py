"""Forms over seeds, over epochs and over time; the forms of a study in one figure."""

import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_runs import write_run
from PIL import Image
from study_helpers import studied

import aafit
from aafit.errors import UserError
from aafit.experiment.cli.main import main
from aafit.experiment.report.figures import draw_seeds
from aafit.experiment.report.page import animate_activations
from aafit.experiment.report.runs import read_run, read_suite
from aafit.networks.adaptive import read_activations
from aafit.plots.curves import curves_of
from aafit.studies.figure import write_figure


def test_the_mean_over_seeds(suite: Path) -> None:
    runs = read_suite(suite).by_name()["relu-leaf-tanh"]
    figure = draw_seeds(runs)
    assert figure is not None
    saved = [read_activations(run.folder / "activations.safetensors") for run in runs]
    for axes, layers in zip(figure.axes, zip(*saved, strict=True), strict=False):
        drawn = next(line for line in axes.lines if line.get_label() == "tuned, mean over the seeds")
        u = np.asarray(drawn.get_xdata())
        expected = np.mean([curves_of(layer.tuned, None, None, torch.tensor(u)).tuned_U for layer in layers], axis=0)
        assert np.allclose(np.asarray(drawn.get_ydata()), expected)
    assert draw_seeds(runs[:1]) is None


def test_a_title_has_room_over_a_single_panel(tmp_path: Path) -> None:
    for seed in (42, 100):
        write_run(tmp_path, "fneuron-with-a-long-name", "ReLU", "F-Neuron random", seed=seed)
    figure = draw_seeds(read_suite(tmp_path).runs)
    assert figure is not None
    figure.draw_without_rendering()
    title = next(text for text in figure.texts if "with-a-long-name" in text.get_text())
    assert title.get_window_extent().x1 < figure.bbox.x1


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


def test_the_forms_of_a_study_in_one_figure() -> None:
    found = studied(steps=1)
    figure = aafit.plot_study(found)
    for form, axes in zip(found.shapes, figure.axes, strict=False):
        tuned = next(line for line in axes.lines if line.get_label() == "tuned")
        assert np.array_equal(np.asarray(tuned.get_ydata()), form.tuned_U.numpy())
        assert form.path in axes.get_title(loc="left")


def test_a_figure_of_a_study_is_a_file_that_is_not_overwritten(tmp_path: Path) -> None:
    found = studied(steps=1)
    made = write_figure(found, tmp_path / "new" / "forms.svg")
    assert write_figure(found, made) == made
    made.write_text("mine")
    with pytest.raises(UserError, match="is not this figure"):
        write_figure(found, made)
    assert made.read_text() == "mine"
