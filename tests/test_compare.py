"""What a replacement changes, against hooks and functions written down by hand."""

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from foreign import RELUS, changed, images, resnet, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron, SiLU, from_text
from aafit.compare import compare, curve_errors
from aafit.errors import UserError
from aafit.evaluate import evaluate
from aafit.surgery import replace_activations

Batches = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
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


def problem(count: int = 20, size: int = 20, dtype: torch.dtype = torch.float32) -> Batches:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 2, 4, 4, generator=generator).to(dtype)
    y = torch.randint(3, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def rough() -> nn.Module:
    """`network` with functions in it that change some of its predictions."""
    return replace_activations(network(), {"2": FNeuron.random(pieces=3), "6": LEAF(-2.0, 1.0, 1.0, 0.0)})[0]


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
    assert result.images == 20


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


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 31))
def test_the_batch_size_does_not_matter(count: int, size: int) -> None:
    base, net = network(), rough()
    whole = compare(base, net, problem(count, count)).as_dict()
    parts = compare(base, net, problem(count, size)).as_dict()
    rows = [(*dictionary.pop("layers"), dictionary.pop("logits")) for dictionary in (whole, parts)]
    for one, other in zip(*rows, strict=True):
        assert one.pop("path") == other.pop("path")
        assert one == pytest.approx(other, rel=1e-5)
    assert parts == pytest.approx(whole, rel=1e-5)


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
        logits: Tensor = self.act(x).sum((2, 3))
        return logits


def test_an_activation_that_is_never_called_has_no_difference() -> None:
    net, _ = replace_activations(Spare(), {"ReLU": LEAF.like("SiLU")})
    result = compare(Spare(), net, problem())
    assert [row.path for row in result.layers] == ["act"]
    assert result.layers[0].max_abs > 0.1


def test_what_follows_may_work_in_place() -> None:
    """The output of the replaced SiLU, not what an in-place ReLU makes of it."""
    base = nn.Sequential(nn.SiLU(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3))
    net, _ = replace_activations(base, {"0": LEAF.like("Tanh")})
    batches = problem()
    expected = (outputs(net, batches, "0") - outputs(base, batches, "0")).abs()
    assert compare(base, net, batches).layers[0].max_abs == expected.max().item()


@pytest.mark.parametrize(
    ("other", "unmatched"),
    [
        (nn.Sequential(*network()[:-1]), "8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), "2"),
        (nn.ModuleDict({"0": network()}), r"0\.0"),
    ],
)
def test_networks_that_are_not_alike(other: nn.Module, unmatched: str) -> None:
    for pair in ((network(), other), (other, network())):
        with pytest.raises(UserError, match=rf"not built alike: only one of them has .*{unmatched}"):
            compare(*pair, problem())


NO_IMAGES = (torch.empty(0, 2, 4, 4), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("batches", [[], [NO_IMAGES]])
def test_nothing_to_compare_on(batches: Batches) -> None:
    with pytest.raises(UserError, match="no image"):
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
    assert [line.split()[0] for line in lines] == ["output", "2", "6", "logits", "equal"]
    assert f"{result.layers[0].max_abs:.4g}" in lines[1]
    assert f"{result.agreement:.2%} of 20 images" in lines[-1]
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["logits"] == {"path": "logits", "max_abs": result.logits.max_abs, "mean_abs": result.logits.mean_abs}
    assert [row["path"] for row in saved["layers"]] == ["2", "6"]
    assert saved["images"] == 20


DTYPES = ("float16", "bfloat16", "float32", "float64")
# The spacing of each type's numbers below 1, to which outputs of a bounded function are rounded.
SPACING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@pytest.mark.parametrize(
    ("text", "function", "interval", "least", "most"),
    [
        # The difference of the two as functions; rounding comes on top.
        ("LEAF as Tanh", torch.tanh, (-8.0, 8.0), 0.0, 0.0),
        ("LEAF as Sigmoid", torch.sigmoid, (-8.0, 8.0), 0.0, 0.0),
        ("F-Neuron as Tanh", torch.tanh, (-8.0, 8.0), 0.0191, 0.0192),
        ("F-Neuron as Sigmoid", torch.sigmoid, (-4.0, 4.0), 0.0026, 0.0027),
        ("F-Neuron as HardTanh", nn.Hardtanh(), (-8.0, 8.0), 0.11, 0.1112),
        ("F-Neuron constant", torch.tanh, (0.0, 8.0), 1.0, 1.0),
    ],
)
def test_curve_errors_in_every_type(
    text: str, function: Callable[[Tensor], Tensor], interval: tuple[float, float], least: float, most: float
) -> None:
    errors = curve_errors(from_text(text), function, interval)
    assert [error.dtype for error in errors] == list(DTYPES)
    for error in errors:
        # A float32 parameter, as F-Neuron's weights, is never nearer than its own type.
        rounding = 2 * max(SPACING[error.dtype], SPACING["float32"] if text.startswith("F") else 0)
        assert least - rounding <= error.max <= most + 2 * rounding
        assert 0 <= error.mean_squared <= error.max**2
        assert error.interval == interval


def test_leaf_as_tanh_is_the_tangent_within_rounding() -> None:
    (error,) = curve_errors(LEAF.like("Tanh"), torch.tanh, dtypes=[torch.float64])
    assert 0 < error.max < 1e-15


@pytest.mark.parametrize("text", ["AHAF as ReLU", "LEAF as ReLU"])
def test_as_relu_the_difference_is_small_in_every_type(text: str) -> None:
    # The two differ most where |u| is 2e-5, and not at all from |u| = 0.002 on in float32.
    errors = curve_errors(from_text(text), torch.relu, (-1e-4, 1e-4))
    assert [error.dtype for error in errors] == list(DTYPES)
    assert all(4.2e-6 < error.max < 4.3e-6 for error in errors)


@pytest.mark.parametrize("text", ["AHAF as SiLU", "LEAF as SiLU"])
def test_as_silu_there_is_no_difference_but_rounding(text: str) -> None:
    for error in curve_errors(from_text(text), SiLU()):
        # Outputs reach 8, where numbers lie 8 to 16 times as far apart as below 1.
        assert error.max <= 16 * SPACING[error.dtype]


def test_maximum_and_mean_square_by_hand() -> None:
    for error in curve_errors(nn.Identity(), lambda u: u + 0.5, (-2.0, 2.0)):
        assert (error.max, error.mean_squared) == pytest.approx((0.5, 0.25), rel=1e-12)
    (error,) = curve_errors(nn.Identity(), torch.zeros_like, (-3.0, 1.0), [torch.float64])
    assert error.max == 3.0
    # The mean of u^2 over [-3, 1] is (1 + 27) / 12.
    assert error.mean_squared == pytest.approx(28 / 12, rel=1e-3)


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("text", ["LEAF as Tanh", "F-Neuron as Tanh"])
def test_parameters_of_any_sharing(text: str, shape: tuple[int, ...]) -> None:
    shared, several = (curve_errors(from_text(text, of), torch.tanh, dtypes=[torch.float64])[0] for of in ((1,), shape))
    assert (several.max, several.interval) == (shared.max, shared.interval)
    assert several.mean_squared == pytest.approx(shared.mean_squared, rel=1e-6)


def test_every_neuron_counts() -> None:
    net = LEAF.like("Tanh", (2, 3, 1))
    with torch.no_grad():
        net.p4[1, 2, 0] += 0.25
    (error,) = curve_errors(net, torch.tanh, dtypes=[torch.float64])
    assert error.max == pytest.approx(0.25, rel=1e-12)
    assert error.mean_squared == pytest.approx(0.25**2 / 6, rel=1e-9)


def test_a_layer_of_many_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AAFIT_COMPILE", "0")
    # Fewer points for each, but still the bound of the function.
    (error,) = curve_errors(FNeuron.like("Tanh", (16, 16, 16)), torch.tanh, dtypes=[torch.float32])
    assert 0.019 < error.max < 0.0192


def test_a_type_that_cannot_be_computed_in_is_left_out() -> None:
    errors = curve_errors(nn.PReLU(init=0.0), torch.relu)
    assert [(error.dtype, error.max) for error in errors] == [("float32", 0.0)]
