"""How the forms of a run's activations came about: a GIF, a picture an epoch."""

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from aafit.activations import AdaptiveActivation
from aafit.errors import UserError
from aafit.files import make_folder, write_atomically
from aafit.networks.adaptive import read_activations
from aafit.pages.style import look, panels
from aafit.report.runs import RunRecord
from aafit.report.shapes import AFTER, BEFORE, curve_range, curve_values
from aafit.runs.documents import ACTIVATIONS

MOST_FRAMES = 40
MILLISECONDS, LAST = 140, 1800
DOTS = 100


def animate(run: RunRecord, out: Path, name: str) -> Path:
    """Write `name`.gif: the layers whose parameters are shared, over the epochs or steps, at most 40 of them.

    Raises:
        UserError: the run has no activation that its layer shares, or `out` cannot be written to.
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
    write_atomically(make_folder(out) / f"{name}.gif", _gif(run, curves, [int(epochs[at]) for at in chosen]))
    return out / f"{name}.gif"


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


def _gif(run: RunRecord, curves: list[tuple[str, str, np.ndarray, list[np.ndarray]]], epochs: list[int]) -> bytes:
    columns = min(3, len(curves))
    frames = []
    with look():
        figure, axes = panels(-(-len(curves) // columns), columns, (2.6, 1.9), (0.5, 0.12, 0.4, 0.3), " ")
        canvas = FigureCanvasAgg(figure)
        lines = []
        for where, (path, text, u, values) in zip(axes, curves, strict=False):
            where.plot(u, values[0], label="start", **BEFORE)
            lines.append(where.plot(u, values[0], label="now", **AFTER)[0])
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
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64))
    content = io.BytesIO()
    durations = [*[MILLISECONDS] * (len(frames) - 1), LAST]
    frames[0].save(content, "gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return content.getvalue()
