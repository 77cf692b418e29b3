"""How the forms of a run's activations came about: a GIF or an MP4, a picture an epoch."""

import io
import shutil
import subprocess
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.experiment.report.runs import RunRecord
from aafit.experiment.runs.documents import ACTIVATIONS
from aafit.files import make_folder, write_atomically
from aafit.networks.adaptive import read_activations
from aafit.plots.activations import curve_range, curve_values
from aafit.plots.style import START, TUNED, look, panels

MOST_FRAMES = 40
MILLISECONDS, LAST = 140, 1800
DOTS = 100


def animate(run: RunRecord, out: Path, name: str, video: bool = False) -> Path:
    """Write `name`.gif: the layers whose parameters are shared, over the epochs or steps, at most 40 of them.

    Args:
        run: read from its folder.
        out: the folder to write to.
        name: of the file, without its ending.
        video: write `name`.mp4 (H.264) instead, by ffmpeg.

    Raises:
        UserError: the run has no activation that its layer shares, `out` cannot be written to, or there is no ffmpeg.
    """
    file = run.folder / ACTIVATIONS
    layers = [saved for saved in read_activations(file) if saved.tuned.shape == (1,)] if file.exists() else []
    layers = [layer for layer in layers if _columns(run, layer.path, layer.tuned)]
    if not layers:
        raise UserError(f"{run.folder} has no adaptive activation that its layer shares: there is nothing to animate.")
    epochs = run.columns["epoch"]
    chosen = sorted({round(at) for at in np.linspace(0, len(epochs) - 1, min(MOST_FRAMES, len(epochs)))})
    curves = []
    for layer in layers:
        u = np.linspace(*curve_range(layer.tuned), 201)
        columns = _columns(run, layer.path, layer.tuned)
        values = np.stack([run.parameters[column] for column in columns], axis=1)
        vectors = torch.from_numpy(values[chosen])
        curves.append((layer.path, layer.tuned.text, u, [_curve(layer.tuned, vector, u) for vector in vectors]))
    frames = _frames(run, curves, [int(epochs[at]) for at in chosen])
    write = _mp4 if video else _gif
    written = make_folder(out) / f"{name}.{'mp4' if video else 'gif'}"
    write_atomically(written, write(frames))
    return written


def _columns(run: RunRecord, path: str, activation: AdaptiveActivation) -> list[str]:
    """The names of the measured parameters of an activation, in the order of its vector; none where one is missing."""
    names = []
    for own, parameter in activation.named_parameters(recurse=False):
        name = f"{path}.{own}"
        names += [name] if parameter.numel() == 1 else [f"{name}[{index}]" for index in range(parameter.numel())]
    return names if all(name in run.parameters for name in names) else []


def _curve(activation: AdaptiveActivation, vector: torch.Tensor, u: np.ndarray) -> np.ndarray:
    torch.nn.utils.vector_to_parameters(vector, list(activation.double().parameters()))
    return curve_values(activation, u)[:, 0]


def _frames(
    run: RunRecord, curves: list[tuple[str, str, np.ndarray, list[np.ndarray]]], epochs: list[int]
) -> list[Image.Image]:
    """A picture for each of the epochs."""
    columns = min(3, len(curves))
    frames = []
    with look():
        figure, axes = panels(-(-len(curves) // columns), columns, (2.6, 1.9), (0.5, 0.12, 0.4, 0.3), " ")
        canvas = FigureCanvasAgg(figure)
        lines = []
        for where, (path, text, u, values) in zip(axes, curves, strict=False):
            where.plot(u, values[0], label="start", **START)
            lines.append(where.plot(u, values[0], label="now", **TUNED)[0])
            low, high = min(map(np.min, values)), max(map(np.max, values))
            room = 0.06 * (high - low) or 1.0
            where.set_ylim(low - room, high + room)
            where.set_title(f"{path}: {text}", fontsize=8)
        for where in axes[len(curves) :]:
            where.set_axis_off()
        for at, epoch in enumerate(epochs):
            figure.texts[0].set_text(f"{run.name}, seed {run.seed}: epoch {epoch}")
            for drawn, (*_, values) in zip(lines, curves, strict=True):
                drawn.set_ydata(values[at])
            figure.set_dpi(DOTS)
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames


def _gif(frames: list[Image.Image]) -> bytes:
    content = io.BytesIO()
    first, *others = (frame.quantize(64) for frame in frames)
    durations = [*[MILLISECONDS] * (len(frames) - 1), LAST]
    first.save(content, "gif", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()


def _mp4(frames: list[Image.Image]) -> bytes:
    # H.264 takes even numbers of pixels only; the last picture stays, as in the GIF.
    width, height = (size - size % 2 for size in frames[0].size)
    shown = [*frames, *[frames[-1]] * round(LAST / MILLISECONDS - 1)]
    pixels = b"".join(frame.crop((0, 0, width, height)).tobytes() for frame in shown)
    rate = f"{1000 / MILLISECONDS:.3f}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forms.mp4"
        made = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(file)]
        done = subprocess.run([_ffmpeg(), "-loglevel", "error", *given, *made], input=pixels, capture_output=True)
        if done.returncode:
            raise UserError(f"ffmpeg could not make the MP4: {done.stderr.decode(errors='replace').strip()}")
        return file.read_bytes()


def _ffmpeg() -> str:
    """The program: an installed one, or that of the package imageio-ffmpeg."""
    if (installed := shutil.which("ffmpeg")) is not None:
        return installed
    if find_spec("imageio_ffmpeg") is None:
        raise UserError("An MP4 needs ffmpeg: install it, or pip install 'aafit[video]'. A GIF needs neither.")
    program: str = import_module("imageio_ffmpeg").get_ffmpeg_exe()
    return program
