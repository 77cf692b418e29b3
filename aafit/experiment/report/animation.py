"""The activations of a run over its epochs, as a GIF or an MP4 with one frame an epoch."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
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
from aafit.networks.saving import read_activations
from aafit.plots.curves import LABELS, Curves, curves_of, drawn_range
from aafit.plots.panels import add_legend, draw_curves, panel_grid
from aafit.plots.style import look

MOST_FRAMES = 40
MILLISECONDS, LAST = 140, 1800
DOTS = 100


def animate(run: RunRecord, out: Path, name: str, video: bool = False) -> Path:
    """Write an animation of the layers whose parameters are shared, over at most 40 epochs or steps.

    Args:
        run: The run, read from its folder.
        out: The folder to write to.
        name: Name of the file without its suffix.
        video: Write `name`.mp4 (H.264, by ffmpeg) instead of `name`.gif.

    Returns:
        The file.
    """
    file = run.folder / ACTIVATIONS
    layers = [saved for saved in read_activations(file) if saved.tuned.shape == (1,)] if file.exists() else []
    layers = [layer for layer in layers if _columns(run, layer.path, layer.tuned)]
    if not layers:
        raise UserError(f"{run.folder} has no adaptive activation that is shared by its layer: nothing to animate.")
    epochs = run.columns["epoch"]
    chosen = sorted({round(at) for at in np.linspace(0, len(epochs) - 1, min(MOST_FRAMES, len(epochs)))})
    curves: dict[str, list[Curves]] = {}
    for layer in layers:
        u_U = torch.linspace(*drawn_range(layer.tuned), 201, dtype=torch.float64)
        columns = [run.parameters[column] for column in _columns(run, layer.path, layer.tuned)]
        vectors = torch.from_numpy(np.stack(columns, axis=1)[chosen])
        curves[f"{layer.path}: {layer.tuned.text}"] = _curves(layer.tuned, vectors, u_U)
    frames = _frames(run, curves, [int(epochs[at]) for at in chosen])
    written = make_folder(out) / f"{name}.{'mp4' if video else 'gif'}"
    write_atomically(written, _mp4(frames) if video else _gif(frames))
    return written


def _columns(run: RunRecord, path: str, activation: AdaptiveActivation) -> list[str]:
    """Return the names of an activation's recorded parameters, in the order of its vector; none if one is missing."""
    names = []
    for own_name, parameter in activation.named_parameters(recurse=False):
        name = f"{path}.{own_name}"
        names += [name] if parameter.numel() == 1 else [f"{name}[{index}]" for index in range(parameter.numel())]
    return names if all(name in run.parameters for name in names) else []


def _curves(activation: AdaptiveActivation, vectors: torch.Tensor, u_U: torch.Tensor) -> list[Curves]:
    """Return the curves at each epoch, with the first as the initial one."""
    activation, curves = activation.double(), list[Curves]()
    for vector in vectors:
        torch.nn.utils.vector_to_parameters(vector, list(activation.parameters()))
        curves.append(curves_of(activation, None, None, u_U))
    return [replace(one, initial_U=curves[0].tuned_U) for one in curves]


def _frames(run: RunRecord, layers: Mapping[str, list[Curves]], epochs: list[int]) -> list[Image.Image]:
    frames = []
    figure, axes = panel_grid(len(layers), min(3, len(layers)), (2.6, 1.9), (0.5, 0.12, 0.4, 0.3), " ")
    canvas = FigureCanvasAgg(figure)
    with look():
        for panel, (title, curves) in zip(axes, layers.items(), strict=False):
            draw_curves(panel, curves[0])
            low, high = (pick([pick(one.tuned_U).item() for one in curves]) for pick in (min, max))
            room = 0.06 * (high - low) or 1.0
            panel.set_ylim(low - room, high + room)
            panel.set_title(title, fontsize=8)
        add_legend(figure, axes, len(layers))
        for at, epoch in enumerate(epochs):
            figure.texts[0].set_text(f"{run.name}, seed {run.seed}: epoch {epoch}")
            for panel, curves in zip(axes, layers.values(), strict=False):
                (tuned,) = (line for line in panel.lines if line.get_label() == LABELS["tuned"])
                tuned.set_ydata(curves[at].tuned_U.numpy())
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
    # H.264 needs an even number of pixels; the last frame stays longer, as in the GIF.
    width, height = (size - size % 2 for size in frames[0].size)
    shown = [*frames, *[frames[-1]] * round(LAST / MILLISECONDS - 1)]
    pixels = b"".join(frame.crop((0, 0, width, height)).tobytes() for frame in shown)
    rate = f"{1000 / MILLISECONDS:.3f}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.mp4"
        target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(file)]
        ran = subprocess.run([_ffmpeg(), "-loglevel", "error", *source, *target], input=pixels, capture_output=True)
        if ran.returncode:
            raise UserError(f"ffmpeg could not write the MP4: {ran.stderr.decode(errors='replace').strip()}")
        return file.read_bytes()


def _ffmpeg() -> str:
    """Return the path of ffmpeg: an installed one, or that of the package imageio-ffmpeg."""
    if (installed := shutil.which("ffmpeg")) is not None:
        return installed
    if find_spec("imageio_ffmpeg") is None:
        raise UserError("An MP4 needs ffmpeg: install it, or pip install 'aafit[video]'. A GIF needs neither.")
    program: str = import_module("imageio_ffmpeg").get_ffmpeg_exe()
    return program
