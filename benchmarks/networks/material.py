"""Real inputs for the networks, from files in installed packages: text, photographs, digits, sounds."""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.signal import resample_poly
from torch import Tensor

from aafit.experiment.data.datasets import load_dataset
from benchmarks.networks.pretrained import folder_of, package

PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/retina.jpg",
    ),
}
JUDGED_LICENSES = 0.3
SIDE = 224
RATE = 22_050


@cache
def sentences(fitted: int, judged: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return English sentences to fit, and held-out ones.

    Those to fit are from docstrings of one half of the modules of the standard library. Those to judge are from the
    other half, and three in ten from the licences of the installed packages.
    """
    halves: tuple[set[str], set[str]] = set(), set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        halves[_number(path.stem) % 2].update(_docstring_sentences(path))
    licences = {sentence for text in _licences() for sentence in split(text)}
    here = _shuffled(halves[0])[:fitted]
    count = round(JUDGED_LICENSES * judged)
    other = _shuffled(halves[1] - halves[0])[: judged - count] + _shuffled(licences - halves[0])[:count]
    return tuple(here), tuple(other)


def _docstring_sentences(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds):
            yield from split(ast.get_docstring(node) or "")


def split(text: str) -> Iterator[str]:
    """Split text into sentences of 40 to 240 characters, one line each."""
    for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
        line = " ".join(sentence.split())
        if 40 <= len(line) <= 240 and len(re.findall(r"[A-Za-z]{2,}", line)) >= 7:
            yield line


def _licences() -> Iterator[str]:
    for distribution in sorted(distributions(), key=lambda found: found.name or ""):
        for file in distribution.files or ():
            if re.match(r"(LICEN[CS]E|COPYING|NOTICE)", file.name) and not file.name.endswith(".py"):
                path = Path(str(file.locate()))
                if path.is_file():
                    yield path.read_text(encoding="utf-8", errors="replace")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _shuffled(found: set[str]) -> list[str]:
    return sorted(found, key=_number)


@cache
def photographs(stride: int = 56, most: int = 40) -> tuple[Tensor, ...]:
    """Return patches of 224 x 224 pixels from each of nine photographs, uint8 (N, 3, 224, 224)."""
    found, generator = [], torch.Generator().manual_seed(0)
    for name, files in PHOTOGRAPHS.items():
        for file in files:
            with Image.open(folder_of(name) / file) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            rows = pixels.unfold(1, SIDE, stride).unfold(2, SIDE, stride)
            patches = rows.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)
            found.append(patches[torch.randperm(len(patches), generator=generator)[:most]])
    return tuple(found)


def fitted_and_judged_patches(fitted: int, judged: int) -> tuple[Tensor, Tensor]:
    """Return patches to fit and held-out patches from other photographs, normalized and shuffled."""
    found, generator = photographs(), torch.Generator().manual_seed(0)
    parts = []
    for first, count in ((0, fitted), (1, judged)):
        patches = torch.cat(found[first::2])
        order = torch.randperm(len(patches), generator=generator)[:count]
        parts.append(((patches[order].float() - 127) / 128).contiguous())
    return parts[0], parts[1]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 5,000 MNIST digits normalized for the digit recognizer, (N, 1, 28, 28), and their labels, shuffled."""
    data = load_dataset("MNIST-5k")
    images = torch.cat([data.train.images_BHWC, data.test.images_BHWC])
    labels = torch.cat([data.train.labels_B, data.test.labels_B])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    # A copy, not a permuted view: convolutions treat its strides as channels_last, and this network views their output.
    x_B = images[order].reshape(-1, 1, 28, 28)
    return (x_B.float() / 255 - 0.1307) / 0.3081, labels[order]


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return synthetic sounds with harmonics and noise, (N, 1024) at 16 kHz, and their pitches in Hz.

    The pitch is drawn evenly in its logarithm from 60 to 1000 Hz; up to 20 harmonics fall by 3 to 9 dB an octave;
    noise is 10 to 40 dB below.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 4, generator=generator)
    pitch = 60 * (1000 / 60) ** uniform[:, 0]
    time = torch.arange(1024) / 16_000
    harmonic = torch.arange(1, 21)
    frequency = pitch[:, None] * harmonic
    level = harmonic ** -(0.5 + uniform[:, 1, None]) * (frequency < 8_000)
    phase = 2 * torch.pi * torch.rand(count, 20, generator=generator)
    waves = level[..., None] * torch.sin(2 * torch.pi * frequency[..., None] * time + phase[..., None])
    x_B = waves.sum(1)
    noise = torch.randn(x_B.shape, generator=generator) * x_B.std(1, keepdim=True)
    x_B = x_B + noise * 10 ** -(0.5 + 1.5 * uniform[:, 2, None])
    x_B = x_B - x_B.mean(1, keepdim=True)
    return x_B / x_B.std(1, keepdim=True), pitch


@cache
def drums() -> Tensor:
    """Return the spectrogram of BeatNet's sample music, 120 beats a minute, 50 frames a second, (T, 272)."""
    samples, rate = package("soundfile").read(folder_of("BeatNet") / "test_data" / "808kick120bpm.mp3")
    sound = resample_poly(samples.reshape(len(samples), -1).mean(1), RATE, rate)
    return spectrogram(torch.from_numpy(sound).float())


def spectrogram(sound: Tensor, rate: int = RATE) -> Tensor:
    """Return the frames that BeatNet takes: 136 bands on a logarithmic scale, and the increase of each.

    The bands are triangles at 24 an octave from 30 Hz to 17 kHz over windows of 64 ms, of which those that are narrower
    than the resolution are left out; log10(1 + magnitude).
    """
    step, window = int(0.02 * rate), int(0.064 * rate)
    spectrum = torch.stft(sound, window, step, window=torch.hann_window(window), return_complex=True).abs().T
    filters = _bands(window, rate)
    bands = torch.log10(1 + spectrum[:, : len(filters)] @ filters)
    rise = torch.cat([torch.zeros(1, bands.shape[1]), (bands[1:] - bands[:-1]).clamp(min=0)])
    return torch.cat([bands, rise], 1)


def _bands(window: int, rate: int) -> Tensor:
    octaves = torch.arange(-24 * 8, 24 * 8)
    centres = 440 * 2.0 ** (octaves / 24)
    centres = centres[(centres >= 30) & (centres <= 17_000)]
    bins = torch.unique((centres * window / rate).round().long().clamp(max=window // 2 - 1))
    filters = torch.zeros(window // 2, len(bins) - 2)
    for band, (left, centre, right) in enumerate(zip(bins, bins[1:], bins[2:], strict=False)):
        filters[left:centre, band] = torch.arange(int(centre - left)) / (centre - left)
        filters[centre:right, band] = 1 - torch.arange(int(right - centre)) / (right - centre)
    return filters / filters.sum(0)
