"""Evaluation again and again: the same bits as at once, with what is frozen computed only once."""

import pytest
import torch

from aafit.activations import AHAF, FNeuron
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Split
from aafit.experiment.models import build
from aafit.networks.adaptive import train_only_activations
from aafit.networks.surgery import replace_activations
from aafit.training.evaluate import evaluate, repeated_evaluation


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (45, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (45,), generator=generator))


@pytest.mark.parametrize("fixed", ["ReLU", "SiLU"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("replacements", "frozen", "calls"),
    [
        ({"act7": FNeuron.like("Tanh")}, True, 0),
        ({"act7": FNeuron.like("Tanh")}, False, 3),
        ({"act?": AHAF.like("SiLU")}, True, 3),
        (None, False, 3),
    ],
)
def test_the_same_evaluation_as_at_once(split, replacements, frozen, calls, precision, fixed):
    torch.manual_seed(0)
    net = build("KerasNet", (3, 32, 32), 10, fixed, fixed)
    if replacements:
        net, _ = replace_activations(net, replacements)
    if frozen:
        train_only_activations(net)
    repeated = repeated_evaluation(net, lambda: evaluation_batches(split, 20), precision)
    assert repeated() == evaluate(net, evaluation_batches(split, 20), precision)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    images = []
    net.conv2.register_forward_hook(lambda module, args, output: images.append(len(args[0])))
    net.train()
    after = repeated()
    assert len(images) == calls
    assert net.training
    assert after == evaluate(net, evaluation_batches(split, 20), precision)
