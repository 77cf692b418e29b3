"""Two networks on sounds: CREPE, which calls activations as functions, and BeatNet, with an LSTM that keeps its state.

./run_experiment.sh benchmarks/networks/sounds.py --json sounds.json

CREPE predicts the pitch of synthetic sounds, for which it is known: a prediction within 50 cents is correct. Its
F.relu stands in a method that is called for six layers: six activations. BeatNet finds the beats in the piece of
music that its package contains; the first half is fitted, the second is held out. The gates of its LSTM are computed
inside one torch operation and cannot be replaced; the ReLU before it can.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.identification import identify
from aafit.networks.surgery import replace_activations
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Row, json_option, markdown_option, report
from benchmarks.networks.kept import SameClasses, adaptive_numbers
from benchmarks.networks.material import drums, tones
from benchmarks.networks.pretrained import beatnet, crepe_tiny

BATCH = 50
CENTS = 50

FITTED: dict[str, Any] = {
    "LEAF": LEAF,
    "AHAF": AHAF,
    "F-Neuron, 18 knots": partial(FNeuron.fit, knots=18),
    "F-Neuron, 18 knots, straight beyond": partial(FNeuron.fit, knots=18, outside="linear"),
}
FAR: dict[str, Any] = {"LEAF as SiLU": LEAF.like("SiLU"), "AHAF as SiLU": AHAF.like("SiLU")}


def right_pitches(output_BK: Tensor, pitch_B: Tensor) -> float:
    """Return the share of pitches predicted within 50 cents; the bins of the output are 20 cents apart."""
    heard = 20 * output_BK.argmax(1) + 1997.3794084376191
    return ((heard - 1200 * torch.log2(pitch_B / 10)).abs() <= CENTS).double().mean().item()


def of_crepe(fitted: int, judged: int) -> Iterator[Row]:
    """Return the rows of CREPE: before tuning, and identified from its own activations without labels."""
    base = crepe_tiny()
    here, (other, pitch) = tones(fitted, seed=0)[0], tones(judged, seed=1)

    def heard(net: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([net(part) for part in other.split(BATCH)])

    before = heard(base)
    yield _row("base", base, right_pitches(before, pitch), SameClasses(1.0, 0.0), 0)
    for name, new in {**FITTED, **FAR}.items():
        began = time.process_time()
        net, _ = replace_activations(base, {"ReLU": new}, sample=here)
        after = heard(net)
        done = time.process_time() - began
        yield _row(name, net, right_pitches(after, pitch), SameClasses.of(before, after), done)
        if name in FAR:
            began = time.process_time()
            identify(net, list(here.split(BATCH)), base=base, target="activations")
            after, done = heard(net), time.process_time() - began
            what = f"{name}, identified"
            yield _row(what, net, right_pitches(after, pitch), SameClasses.of(before, after), done)


def _row(name: str, net: nn.Module, right: float, kept: SameClasses, seconds: float) -> Row:
    numbers: dict[str, Any] = {"network": name, "numbers": adaptive_numbers(net), "right": f"{right:.1%}"}
    return {**numbers, **kept.row(), "processor s": round(seconds, 1)}


def of_beatnet() -> Iterator[Row]:
    """Return the rows of BeatNet: agreement of the frames (beat, downbeat, neither), and the beats that are found."""
    base, frames = beatnet(), drums()[None]
    half = frames.shape[1] // 2

    def heard(net: nn.Module) -> Tensor:
        with torch.inference_mode():
            out: Tensor = deepcopy(net)(frames)[0, :, half:].T
        return out

    before = heard(base)
    for name, new in {"base": None, **FITTED, **FAR}.items():
        net = base if new is None else _replaced(base, new, frames[:, :half])
        after = heard(net)
        row: dict[str, Any] = {"network": name, "numbers": adaptive_numbers(net), **SameClasses.of(before, after).row()}
        yield {**row, "beats a minute": f"{beats_a_minute(after):.1f}"}


def _replaced(base: nn.Module, new: Callable[..., nn.Module], sample: Tensor) -> nn.Module:
    return replace_activations(base, {"ReLU": new}, sample=sample)[0]


def beats_a_minute(output_TK: Tensor) -> float:
    """Return the tempo from the mean distance of the peaks above 0.3 of beat and downbeat, at 50 frames a second."""
    beat = output_TK.softmax(1)[:, :2].sum(1)
    inner = beat[1:-1]
    at = ((inner > 0.3) & (inner >= beat[:-2]) & (inner > beat[2:])).nonzero().flatten().double()
    return 60 * 50 / at.diff().mean().item() if len(at) > 1 else 0.0


@click.command(cls=Command)
@click.option("--fitted", default=500, show_default=True, type=click.IntRange(min=BATCH), help="Sounds to fit.")
@click.option("--judged", default=1000, show_default=True, type=click.IntRange(min=BATCH), help="Others, to judge.")
@json_option
@markdown_option
def main(fitted: int, judged: int, json_path: Path | None, markdown_path: Path | None) -> None:
    """Measure CREPE and BeatNet with other activations."""
    with report(json_path, markdown_path) as out, arithmetic("float32", 1):
        title = f"CREPE, tiny: pitch of {judged} sounds within {CENTS} cents, ReLU replaced"
        out.table(title, of_crepe(fitted, judged))
        out.table("BeatNet: the second half of its piece of 120 beats a minute, F.relu replaced", of_beatnet())


if __name__ == "__main__":
    main()
