"""What a replacement changes, against hooks written down by hand."""

import dataclasses
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from foreign import RELUS, changed, images, resnet, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron, SiLU
from aafit.errors import UserError
from aafit.networks.surgery import replace_activations
from aafit.training.compare import compare
from aafit.training.evaluate import evaluate

Batches = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(5, 3),
    )
    # So that the images get different predictions.
    nn.init.normal_(net[-1].weight, std=3)
    return net


def problem(count: int = 20, size: int = 20, dtype: torch.dtype = torch.float32) -> Batches:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 2, 4, 4, generator=generator).to(dtype)
    y = torch.randint(3, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def rough() -> nn.Module:
    """`network` with functions in it that change some of its predictions."""
    return replace_activations(network(), {"2": FNeuron.random(knots=5), "6": LEAF(-2.0, 1.0, 1.0, 0.0)})[0]


def outputs(net: nn.Module, batches: Batches, path: str) -> Tensor:
    """What the module at `path` gives for all batches, with the network in evaluation mode; "" is the network."""
    seen: list[Tensor] = []
    net = net.eval()
    handle = net.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    with torch.no_grad():
        for x, _ in batches:
            net(x)
    handle.remove()
    return torch.cat(seen).double()


def test_a_network_against_itself() -> None:
    net = rough()
    result = compare(net, net, problem())
    assert [row.path for row in result.layers] == ["2", "6"]
    assert all((row.max_abs, row.mean_abs) == (0, 0) for row in (*result.layers, result.logits))
    assert result.agreement == 1
    assert (result.base_accuracy, result.base_loss) == (result.replaced_accuracy, result.replaced_loss)
    assert result.samples == 20


def test_a_network_with_nothing_replaced() -> None:
    net = network()
    result = compare(net, network(), problem())
    assert (result.layers, result.logits.max_abs, result.agreement) == ((), 0, 1)


@pytest.mark.parametrize("size", [20, 8, 1])
def test_against_hooks_by_hand(size: int) -> None:
    base, net, batches = network(), rough(), problem(size=size)
    result = compare(base, net, batches)
    for row, path in zip((*result.layers, result.logits), ("2", "6", ""), strict=True):
        difference = (outputs(net, batches, path) - outputs(base, batches, path)).abs()
        assert row.path == (path or "logits")
        assert row.max_abs == difference.max().item() > 0.1
        assert row.mean_abs == pytest.approx(difference.mean().item(), rel=1e-12)
    before, after = outputs(base, batches, "").argmax(1), outputs(net, batches, "").argmax(1)
    assert result.agreement == (before == after).double().mean().item() < 1


def close_to(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if value is None else pytest.approx(value, rel=1e-5) for name, value in values.items()}


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 31))
def test_the_batch_size_does_not_matter(count: int, size: int) -> None:
    base, net = network(), rough()
    whole = compare(base, net, problem(count, count)).as_dict()
    parts = compare(base, net, problem(count, size)).as_dict()
    rows = [(*dictionary.pop("layers"), dictionary.pop("logits")) for dictionary in (whole, parts)]
    for one, other in zip(*rows, strict=True):
        assert one.pop("path") == other.pop("path")
        assert one.pop("inputs", []) == pytest.approx(other.pop("inputs", []), rel=1e-5)
        assert one == close_to(other)
    assert parts == close_to(whole)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_accuracy_and_loss_are_those_of_evaluate(precision: str) -> None:
    base, net, batches = network(), rough(), problem(size=7)
    result = compare(base, net, batches, precision)
    one, other = evaluate(base, batches, precision), evaluate(net, batches, precision)
    assert (result.base_accuracy, result.replaced_accuracy) == (one.accuracy, other.accuracy)
    assert result.base_loss == pytest.approx(one.loss, rel=1e-6)
    assert result.replaced_loss == pytest.approx(other.loss, rel=1e-6)


def test_differences_in_float64() -> None:
    base = network().double()
    net, _ = replace_activations(base, {"Tanh": LEAF.like("Tanh")})
    result = compare(base, net, problem(dtype=torch.float64), "float64")
    assert [row.path for row in result.layers] == ["6"]
    assert result.layers[0].max_abs < 1e-15
    assert result.agreement == 1


def test_a_network_of_any_making() -> None:
    base = resnet()
    net, _ = replace_activations(base, {"ReLU": AHAF.like("ReLU")})
    batches = [(images(8), torch.arange(8) % 3)]
    result = compare(base, net, batches)
    assert [row.path for row in result.layers] == list(RELUS)
    assert all(row.max_abs < 1e-4 for row in (*result.layers, result.logits))
    assert result.agreement == 1


def test_a_fixed_function_in_place_of_another_is_seen() -> None:
    base = network()
    net, _ = replace_activations(base, {"ReLU": SiLU()})
    assert [row.path for row in compare(base, net, problem()).layers] == ["2"]


class Spare(nn.Module):
    """A network with an activation that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.spare = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.act(x).sum(3)[:, 0, :3]
        return logits


def test_an_activation_that_is_never_called_has_no_difference() -> None:
    net, _ = replace_activations(Spare(), {"ReLU": LEAF.like("SiLU")})
    result = compare(Spare(), net, problem())
    assert [row.path for row in result.layers] == ["act"]
    assert result.layers[0].max_abs > 0.1


def test_what_follows_may_work_in_place() -> None:
    """The difference is that of what SiLU and LEAF give, not of what is left of them afterwards."""
    base = nn.Sequential(nn.SiLU(), nn.Hardtanh(-0.1, 0.1, inplace=True), nn.Flatten(), nn.Linear(32, 3))
    net, _ = replace_activations(base, {"0": LEAF.like("Tanh")})
    batches = problem()
    expected = (outputs(net, batches, "0") - outputs(base, batches, "0")).abs()
    assert compare(base, net, batches).layers[0].max_abs == expected.max().item()


@pytest.mark.parametrize(
    ("other", "unmatched"),
    [
        (nn.Sequential(*network()[:-1]), "8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), "2"),
        (nn.ModuleDict({"0": network()}), "1"),
    ],
)
def test_networks_that_are_not_alike(other: nn.Module, unmatched: str) -> None:
    for pair in ((network(), other), (other, network())):
        with pytest.raises(UserError, match=rf"different modules: only one of them has .*{unmatched}"):
            compare(*pair, problem())


NO_IMAGES = (torch.empty(0, 2, 4, 4), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("batches", [[], [NO_IMAGES]])
def test_nothing_to_compare_on(batches: Batches) -> None:
    with pytest.raises(UserError, match="no sample"):
        compare(network(), rough(), batches)


def test_an_empty_batch_among_others_changes_nothing() -> None:
    base, net, batches = network(), rough(), problem()
    assert compare(base, net, [*batches, NO_IMAGES]) == compare(base, net, batches)


def test_an_unknown_precision() -> None:
    with pytest.raises(UserError, match="Unknown precision 'half'"):
        compare(network(), rough(), problem(), "half")


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_both_networks_are_left_as_they_were(fails: bool) -> None:
    base, net = network(), rough().eval()
    net[1].training = True
    before, states = (modes(base), modes(net)), (snapshot(base), snapshot(net))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from problem()
        if fails:
            raise RuntimeError("a file is gone")

    if fails:
        with pytest.raises(RuntimeError, match="a file is gone"):
            compare(base, net, batches())
    else:
        compare(base, net, batches())
    assert (modes(base), modes(net)) == before
    assert changed(base, states[0]) == changed(net, states[1]) == set()
    assert not any(module._forward_hooks for module in (*base.modules(), *net.modules()))


def test_a_comparison_prints_and_is_saved() -> None:
    result = compare(network(), rough(), problem())
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines] == ["output", "2", "6", "logits", "prediction"]
    assert f"{result.layers[0].max_abs:.4g}" in lines[1]
    assert f"agreement {result.agreement:.2%}; " in lines[-1]
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["logits"] == dataclasses.asdict(result.logits)
    assert [row["path"] for row in saved["layers"]] == ["2", "6"]
    assert saved["samples"] == 20


@pytest.mark.parametrize(("value", "agreement"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, 1.0)])
def test_what_is_not_finite_is_called_that(value: float, agreement: float) -> None:
    base = network().eval()
    broken = deepcopy(base)
    with torch.no_grad():
        for net in (base, broken):
            net[-1].bias.fill_(value)
    compared = compare(base, broken, problem())
    images = 0 if value == 1.0 else compared.samples
    assert (compared.agreement, compared.base_not_finite, compared.replaced_not_finite) == (agreement, images, images)
    assert ("DIVERGED" in str(compared)) == (images > 0)
    json.dumps(compared.as_dict(), allow_nan=False)
    if images:
        assert compared.as_dict()["replaced_loss"] is None
        assert compared.replaced_accuracy == 0.0
        assert math.isnan(compared.logits.max_abs)


def test_one_image_that_is_not_finite_leaves_the_others() -> None:
    base, batches = network().eval(), problem()
    batches[0][0][0, 0, 0, 0] = math.nan
    compared = compare(base, base, batches)
    assert (compared.base_not_finite, compared.replaced_not_finite) == (1, 1)
    assert compared.agreement == (compared.samples - 1) / compared.samples
