"""The benchmarks: what they compare with computes the same as the package, and what their tables are made of."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from aafit.activations import from_text
from aafit.experiment.data.batches import flip_and_shift
from aafit.experiment.models import build
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.execute import choose_trained
from aafit.networks.surgery import replace_activations
from aafit.training.tune import make_optimizers, train_epoch
from benchmarks import harness, precision_accuracy, straightforward, whole
from benchmarks.activations import Candidate, peak_extra_bytes
from benchmarks.epochs import epochs_of_the_paper
from benchmarks.floor import LAYERS, needed
from benchmarks.workload import FIRST_OF_KIND, Measured, Sample, chosen_kinds

CPU = torch.device("cpu")
TEXTS = ["AHAF as SiLU", "AHAF as ReLU", "LEAF as SiLU", "LEAF as Tanh", "F-Neuron as Tanh", "SiLU", "ReLU"]


# ---- the straightforward activations are those of the package ----


@pytest.mark.parametrize("text", TEXTS)
def test_straightforward_activations_equal_the_package(text: str) -> None:
    ours, plain = from_text(text).double(), straightforward.activation(text).double()
    with torch.no_grad():
        # Each started in float32; the parameters move, so that none of them is 0.
        for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
            mine.add_(torch.linspace(0.1, 0.2, mine.numel(), dtype=torch.float64).reshape(mine.shape))
            other.copy_(mine)
    # Off the centres of F-Neuron, where the slope jumps; beyond its interval too.
    u = torch.linspace(-5.003, 5.007, 997, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    grad = torch.cos(3 * u.detach())
    results = []
    for module in (ours, plain):
        y = module(u)
        results.append([y, *torch.autograd.grad(y, (u, *module.parameters()), grad)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("text", [text for text in TEXTS if " as " in text])
def test_straightforward_activations_start_as_the_package_does(text: str) -> None:
    for mine, other in zip(from_text(text).parameters(), straightforward.activation(text).parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_pillow_augments_as_the_package_does() -> None:
    generator = torch.Generator().manual_seed(0)
    images_BHWC = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    flips_B = torch.rand(8, generator=generator) < 0.5
    shifts_B2 = torch.randint(-3, 4, (8, 2), generator=generator)
    moved_BHWC = flip_and_shift(images_BHWC, flips_B, shifts_B2)
    for index, image_HWC in enumerate(images_BHWC):
        shift = (int(shifts_B2[index, 0]), int(shifts_B2[index, 1]))
        image = straightforward.augmented(Image.fromarray(image_HWC.numpy()), bool(flips_B[index]), shift)
        expected_CHW = moved_BHWC[index].permute(2, 0, 1).float() / 255
        torch.testing.assert_close(straightforward.as_input(image), expected_CHW, rtol=0, atol=1e-7)


def test_the_loader_gives_inputs() -> None:
    images = straightforward.AugmentedImages(Sample("CIFAR-10", 4, 2).load().train)
    x_CHW, label = images[3]
    assert x_CHW.shape == (3, 32, 32)
    assert x_CHW.dtype == torch.float32
    assert 0 <= label < 10
    assert len(images) == 4


# ---- float32 epochs of the package give the losses of the straightforward implementation in float64 ----


def batches_of(steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x_BCHW = torch.rand(steps * size, 3, 32, 32, generator=generator)
    y_B = torch.randint(10, (steps * size,), generator=generator)
    return list(zip(x_BCHW.split(size), y_B.split(size), strict=True))


def without_dropout(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return net


def package_network(run: RunConfig) -> nn.Module:
    torch.manual_seed(1)
    texts = dict.fromkeys(("act1", "act2", "act4", "act5"), run.cnn) | {"act7": run.fc}
    adaptive = {path: partial(from_text, text) for path, text in texts.items() if text not in ("ReLU", "SiLU")}
    fixed = [text if text in ("ReLU", "SiLU") else "ReLU" for text in (run.cnn, run.fc)]
    net: nn.Module = build("KerasNet", (3, 32, 32), 10, *fixed)
    if adaptive:
        net, _ = replace_activations(net, adaptive, "layer", torch.zeros(1, 3, 32, 32))
    return without_dropout(net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", FIRST_OF_KIND)
def test_losses_are_those_of_the_straightforward_loop_in_float64(kind: str) -> None:
    run = chosen_kinds([kind])[kind]
    ours = package_network(run)
    plain = without_dropout(straightforward.KerasNet(run.cnn, run.fc)).double().train()
    by_name = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(by_name[name].reshape(parameter.shape))
    choose_trained(ours, run.train)
    optimizers = make_optimizers(ours, run.optimizer, run.lr, run.p24sl, run.dspu4)
    optimizer = straightforward.optimizer_for(plain, run.train, run.p24sl)
    for x_BCHW, y_B in batches_of(steps=5, size=16):
        loss, _ = train_epoch(ours, [(x_BCHW.contiguous(memory_format=torch.channels_last), y_B)], optimizers)
        expected = straightforward.training_step(plain, optimizer, x_BCHW.double(), y_B)
        assert loss == pytest.approx(expected, rel=1e-5)
    trained = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in ours.named_parameters() if parameter.requires_grad]


# ---- memory ----


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        # The output, and the gradient by the input.
        (F.relu, 2),
        (F.silu, 2),
        # The output, and the gradients by 3 u and by u; 3 u itself is gone by then.
        (lambda u: torch.sigmoid(3 * u), 3),
        # Both exponentials are kept to the end, and then there are the gradients by the inner one and by u.
        (lambda u: u.exp().exp(), 4),
    ],
)
def test_peak_memory_of_known_cases(function: Callable[[Tensor], Tensor], arrays: int) -> None:
    u = torch.randn(64, 1024, requires_grad=True)
    grad, one = torch.ones_like(u), Candidate("known", function)
    assert peak_extra_bytes(lambda: one.call(u, grad), CPU) / u.nbytes == pytest.approx(arrays, abs=0.01)


def test_memory_from_before_the_call_does_not_count() -> None:
    kept = torch.zeros(1 << 20)
    assert peak_extra_bytes(lambda: kept.sum(), CPU) < 1000
    assert peak_extra_bytes(lambda: (kept + 1).sum(), CPU) == pytest.approx(kept.nbytes, rel=0.01)


def test_a_process_knows_its_own_peak_memory() -> None:
    peak = harness.peak_bytes()
    assert peak is not None
    held = torch.ones(peak // 4)
    assert (harness.peak_bytes() or 0) > 1.5 * peak
    # A new process does not begin with the peak of this one.
    assert harness.call("benchmarks.harness:peak_bytes") < held.nbytes


# ---- what the tables are made of ----


def test_the_floor_is_that_of_the_network() -> None:
    net = build("KerasNet", (3, 32, 32), 10)
    weights = {name: parameter for name, parameter in net.named_parameters() if name.endswith("weight")}
    assert [f"{layer.name}.weight" for layer in LAYERS] == list(weights)
    for layer, weight in zip(LAYERS, weights.values(), strict=True):
        assert weight.shape[:2] == (layer.outputs, layer.inputs)
    assert sum(layer.products() for layer in LAYERS) == pytest.approx(20.7e6, rel=0.01)
    assert len(needed("base ReLU")) == 6 + 5 + 6
    assert len(needed("LEAF tuning")) == 6 + 5
    assert len(needed("F-Neuron tuning")) == 6 + 1


def test_epochs_of_the_paper() -> None:
    assert epochs_of_the_paper() == {
        "base ReLU": 100,
        "base SiLU": 100,
        "AHAF tuning": 1000,
        "LEAF tuning": 1800,
        "F-Neuron tuning": 1600,
    }


def test_an_epoch_is_extrapolated_by_whole_batches() -> None:
    found = Measured(Sample("CIFAR-10", 256, 1000), 128, 2.0, 1.0, 9.0, 3, 2, None)
    assert found.training_of(50_000) == pytest.approx(391.0)
    assert found.evaluation_of(10_000) == pytest.approx(10.0)
    assert found.images_a_second == pytest.approx(256.0)
    run = chosen_kinds(["base ReLU"])["base ReLU"]
    assert whole.seconds_an_epoch(found, run) == pytest.approx(401.0)


@pytest.mark.parametrize(
    ("float32", "bf16", "within"),
    [([70.0, 72.0], [71.5, 71.5], True), ([70.0, 70.2], [69.0, 69.0], False), ([70.0], [71.0], None)],
)
def test_the_difference_is_held_against_the_spread(float32: list[float], bf16: list[float], within: bool) -> None:
    assert precision_accuracy.compared(float32, bf16)["within the spread"] is within


def test_a_stopped_benchmark_keeps_the_rows_that_it_has(tmp_path: Path) -> None:
    files = tmp_path / "a.json", tmp_path / "a.md"

    def rows() -> Iterator[harness.Row]:
        yield {"network": "first"}
        raise KeyboardInterrupt

    def stopped() -> None:
        with harness.report(*files) as result:
            result.table("whole", [{"network": "earlier"}])
            result.table("begun", rows())

    with pytest.raises(KeyboardInterrupt):
        stopped()
    content = json.loads(files[0].read_text())
    assert content["tables"] == {"whole": [{"network": "earlier"}], "begun": [{"network": "first"}]}
    assert content["finished"] is False
    assert "| first |" in files[1].read_text()
    with harness.report(*files) as result:
        result.note("Nothing was measured.")
    assert json.loads(files[0].read_text())["finished"] is True


def test_a_command_is_written_down_without_folders() -> None:
    given = ["/somewhere/benchmarks/epochs.py", "--data-dir", "/somewhere/data", "--kind", "base ReLU"]
    assert harness.command(given) == "./run_experiment.sh benchmarks/epochs.py --data-dir data --kind 'base ReLU'"
