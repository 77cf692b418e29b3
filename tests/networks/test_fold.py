"""Affine activations folded into the layers around them: outputs equal in float64, and what stands in the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import aafit
from aafit.errors import UserError
from aafit.networks.fold import ScaledFunction

IMAGES, ROWS, TOKENS = (3, 4, 9, 9), (5, 6), (2, 5, 6)


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    """The layers, called as a function says."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def trained(norm: nn.Module) -> nn.Module:
    """A batch norm with statistics and weights of its own."""
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def with_affine(
    base: nn.Module, x: Tensor, sharing: Any = "channel", function: Any = "ReLU", **options: Any
) -> nn.Module:
    base.eval()
    net, _ = aafit.replace_activations(base, {"SiLU": aafit.Affine(function, **options)}, sharing, x, channel_axis=1)
    with torch.no_grad():
        for name, parameter in aafit.adaptive_parameters(net).items():
            # Scales of either sign, away from 0; shifts of either sign.
            moved = torch.rand(parameter.shape) + 0.5
            parameter.copy_(moved * torch.randn(parameter.shape).sign() if name[-1] in "ab" else moved - 1)
    return net


def conv(i: int = 4, o: int = 6, k: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(i, o, k, **options)


def norm(channels: int = 6, **options: Any) -> nn.Module:
    return trained(nn.BatchNorm2d(channels, **options))


SHIFT, SCALE = "shift behind", "scale behind"

# A network, its input, what remains at its only SiLU, and why.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...], str]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3)), ROWS, (), ""),
    "linear without bias": (
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.SiLU(), nn.Linear(5, 3, bias=False)), ROWS, (), "",
    ),
    "convolution": (lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 3)), IMAGES, (), ""),
    "batch norm": (lambda: nn.Sequential(conv(bias=False), norm(), nn.SiLU(), conv(6, 3)), IMAGES, (), ""),
    "batch norm behind": (lambda: nn.Sequential(conv(), nn.SiLU(), norm(), conv(6, 3)), IMAGES, (), ""),
    "groups": (lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 4, groups=2)), IMAGES, (), ""),
    "depthwise": (lambda: nn.Sequential(conv(4, 4, groups=4), nn.SiLU(), conv(4, 8, groups=4)), IMAGES, (), ""),
    "zero padding": (
        lambda: nn.Sequential(conv(padding=1), nn.SiLU(), conv(6, 3, padding=1)), IMAGES, (SHIFT,),
        "zero padding before '2' takes no shift",
    ),
    "padding same": (
        lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 3, padding="same")), IMAGES, (SHIFT,), "zero padding",
    ),
    "padding same of one pixel": (
        lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 3, 1, padding="same")), IMAGES, (), "",
    ),
    "padding by reflection": (
        lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 3, padding=1, padding_mode="reflect")), IMAGES, (), "",
    ),
    "a zero pad": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.ZeroPad2d(1), conv(6, 3)), IMAGES, (SHIFT,), "zero padding",
    ),
    "another pad": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.ConstantPad2d(1, 0.5), conv(6, 3)), IMAGES, (SCALE, SHIFT), "pad",
    ),
    "average": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.AvgPool2d(2), conv(6, 3, 2)), IMAGES, (), ""),
    "padded average": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.AvgPool2d(3, padding=1), conv(6, 3, 2)), IMAGES, (SCALE, SHIFT),
        "avg_pool2d mixes",
    ),
    "flatten": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.Dropout(), nn.Flatten(), nn.Linear(294, 3)), IMAGES, (), "",
    ),
    "mean": (
        lambda: Net(lambda n, x: n.fc(F.silu(n.conv(x)).mean((2, 3))), conv=conv(), fc=nn.Linear(6, 3)), IMAGES, (), "",
    ),
    "view before": (
        lambda: Net(
            lambda n, x: n.two(F.silu(n.one(x).view(5, 2, 3)).flatten(1)), one=nn.Linear(6, 6), two=nn.Linear(6, 2)
        ),
        ROWS, (), "",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.SiLU(), nn.ConvTranspose2d(6, 4, 3, groups=2)),
        IMAGES, (SHIFT,), "transposed convolution",
    ),
    "concatenation": (
        lambda: Net(
            lambda n, x: n.last(torch.cat([n.other(x), F.silu(n.conv(x)), x[..., 1:-1, 1:-1]], 1)),
            conv=conv(), other=conv(4, 2), last=conv(12, 3),
        ),
        IMAGES, (), "",
    ),
    "residual": (
        lambda: Net(lambda n, x: n.last(n.a(F.silu(n.a(x))) + 0.0), a=conv(4, 4, padding=1), last=conv(4, 2)),
        IMAGES, ("shift before", SCALE, SHIFT), "'a' is called more than once",
    ),
    "residual sum behind": (
        lambda: Net(lambda n, x: n.last((y := F.silu(n.a(x))) + n.b(y)), a=conv(), b=conv(6, 6, 1), last=conv(6, 2)),
        IMAGES, (SCALE, SHIFT), "a sum of two tensors (add) takes it",
    ),
    "two layers behind": (
        lambda: Net(lambda n, x: n.b(y := F.silu(n.a(x))) + n.c(y), a=conv(), b=conv(6, 2), c=conv(6, 2)),
        IMAGES, (), "",
    ),
    "sum before": (
        lambda: Net(lambda n, x: n.last(F.silu(n.a(x) + n.b(x))), a=conv(), b=conv(), last=conv(6, 2)),
        IMAGES, ("shift before",), "a sum of two tensors (add) gives it",
    ),
    "layer used elsewhere": (
        lambda: Net(lambda n, x: n.last(F.silu(y := n.a(x))) + y[:, :2, 1:-1, 1:-1], a=conv(), last=conv(6, 2)),
        IMAGES, ("shift before",), "a sum of two tensors (add) takes it",
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.LayerNorm(6), nn.Linear(6, 2)), ROWS, (SCALE, SHIFT),
        "layer_norm takes it",
    ),
    "group norm before": (
        lambda: nn.Sequential(conv(), nn.GroupNorm(2, 6), nn.SiLU(), conv(6, 2)), IMAGES, ("shift before",),
        "group_norm gives it",
    ),
    "shared weights": (
        lambda: Net(
            lambda n, x: F.linear(F.silu(n.a(x)), n.a.weight.T[:, :6]) + F.linear(x, n.a.weight), a=nn.Linear(6, 6)
        ),
        ROWS, ("shift before", SCALE, SHIFT), "more than once, or its weights are shared",
    ),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.SiLU(), nn.Linear(5, 2)), ROWS, ("shift before",),
        "the weights of linear are computed",
    ),
    "batch norm without weights": (
        lambda: nn.Sequential(conv(), norm(affine=False), nn.SiLU(), conv(6, 2)), IMAGES, ("shift before",),
        "batch_norm has no weight",
    ),
    "an output too": (
        lambda: Net(lambda n, x: (n.b(y := F.silu(n.a(x))), y), a=conv(), b=conv(6, 2)), IMAGES, (SCALE, SHIFT),
        "it is an output of the network",
    ),
    "at the input": (lambda: nn.Sequential(nn.SiLU(), conv()), IMAGES, ("shift before",), "an input of the network"),
    "in place behind": (
        lambda: Net(lambda n, x: n.b(F.silu(n.a(x)).mul_(2)), a=conv(), b=conv(6, 2)), IMAGES, (SCALE, SHIFT),
        "mul in place takes it",
    ),
    "product": (
        lambda: Net(lambda n, x: n.b(F.silu(n.a(x)) * n.c(x)), a=conv(), b=conv(6, 2), c=conv()), IMAGES,
        (SCALE, SHIFT), "mul takes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_outputs_stay_and_the_report_says_what_remains(case: str) -> None:
    make, sizes, remains, why = CASES[case]
    x = torch.randn(sizes)
    # A maximum is in no case: scales may be negative.
    net = with_affine(make(), x)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded, report = aafit.fold_activations(net, x)
    (row,) = report.rows
    assert (row.remains, row.function) == (remains, "ReLU")
    assert why in row.why
    assert report.is_plain == (not remains)
    assert ("nothing" in str(report)) == report.is_plain
    module = folded.get_submodule(row.path)
    assert type(module) is (ScaledFunction if remains else nn.ReLU)
    for inputs in (x, torch.randn(sizes)):
        torch.testing.assert_close(folded(inputs), net(inputs), rtol=0, atol=1e-10)
    # The network itself is as it was.
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not aafit.adaptive_parameters(folded)


@pytest.mark.parametrize("function", ["SiLU", "Tanh", F.relu6, nn.LeakyReLU(0.1)])
@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_a_slope_goes_into_the_layer_before(function: Any, sharing: str) -> None:
    x = torch.randn(IMAGES)
    net = with_affine(nn.Sequential(conv(bias=False), norm(), nn.SiLU(), conv(6, 3)), x, sharing, function)
    folded, report = aafit.fold_activations(net, x)
    assert report.is_plain
    assert report.rows[0].before == "1"
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)
    expected = function if callable(function) else aafit.activations.FUNCTIONS[function]
    u = torch.randn(7)
    torch.testing.assert_close(folded[2](u), expected(u))


def test_many_activations_share_the_layers_between_them() -> None:
    base = nn.Sequential(
        conv(4, 8, bias=False), norm(8), nn.SiLU(), conv(8, 8, 1), nn.SiLU(), conv(8, 6, groups=2), norm(), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.SiLU(), nn.Linear(5, 2),
    )  # fmt: skip
    x = torch.randn(IMAGES)
    net = with_affine(base, x)
    folded, report = aafit.fold_activations(net, x)
    assert [(row.before, row.behind) for row in report.rows] == [
        ("1", ("3",)), ("3", ("5",)), ("6", ("10",)), ("10", ("12",)),
    ]  # fmt: skip
    assert report.is_plain
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)
    single, report = aafit.fold_activations(net.float(), x.float())
    torch.testing.assert_close(single(x.float()), net(x.float()), rtol=1e-4, atol=1e-4)
    assert report.difference < 1e-4


def test_without_an_offset_zero_padding_is_no_obstacle() -> None:
    base = nn.Sequential(conv(padding=1), nn.SiLU(), conv(6, 6, padding=1), nn.SiLU(), nn.ZeroPad2d(1), conv(6, 2))
    x = torch.randn(IMAGES)
    net = with_affine(base, x, offset=False)
    folded, report = aafit.fold_activations(net, x)
    assert report.is_plain
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(3), nn.MaxPool2d(3, padding=1)])
def test_a_maximum_lets_positive_scales_through(positive: bool, pool: nn.Module) -> None:
    x = torch.randn(IMAGES)
    net = with_affine(nn.Sequential(conv(), nn.SiLU(), pool, conv(6, 3, 2)), x)
    with torch.no_grad():
        net[1].a.abs_()
        if not positive:
            net[1].a[0] = -1
    folded, report = aafit.fold_activations(net, x)
    assert report.is_plain == positive
    if not positive:
        assert "a maximum comes behind it" in report.rows[0].why
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)


def test_a_positive_scale_of_a_homogeneous_function_goes_into_the_layer_before() -> None:
    x = torch.randn(IMAGES)
    base = Net(lambda n, x: F.silu(n.a(x)) + x[:, :, 1:-1, 1:-1], a=conv(4, 4))
    net = with_affine(base, x, offset=False)
    with torch.no_grad():
        net.get_submodule("silu_1").a.abs_()
    folded, report = aafit.fold_activations(net, x)
    assert report.is_plain
    assert (report.rows[0].before, report.rows[0].behind) == ("a", ())
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)
    # A function that is not homogeneous keeps its scale.
    net = with_affine(base, x, function="Tanh", offset=False)
    folded, report = aafit.fold_activations(net, x)
    assert report.rows[0].remains == (SCALE,)
    assert report.rows[0].why == "the output: a sum of two tensors (add) takes it"


@pytest.mark.parametrize("pool", [nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Identity()])
def test_parameters_for_each_neuron(pool: nn.Module) -> None:
    x = torch.randn(IMAGES)
    wide = 6 if not isinstance(pool, nn.Identity) else 6 * 49
    net = with_affine(nn.Sequential(conv(), nn.SiLU(), pool, nn.Flatten(), nn.Linear(wide, 2)), x, "neuron")
    folded, report = aafit.fold_activations(net, x)
    # Only a linear layer that receives every neuron can take what differs between them.
    assert (SCALE in report.rows[0].remains) == (wide == 6)
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)


def test_tokens_and_another_adaptive_activation() -> None:
    x = torch.randn(TOKENS)
    base = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
    net, _ = aafit.replace_activations(
        base, {"SiLU": aafit.Affine("ReLU").like("SiLU"), "GELU": aafit.LEAF}, sharing="channel", sample=x
    )
    folded, report = aafit.fold_activations(net, x)
    assert report.is_plain
    assert list(aafit.adaptive_activations(folded)) == ["3"]
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-10)


def test_what_is_trained_in_it_stays_so() -> None:
    x = torch.randn(ROWS)
    net = with_affine(nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2, bias=False)), x)
    aafit.train_only_activations(net)
    folded, _ = aafit.fold_activations(net, x)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded[2].bias is not None


def test_mistakes() -> None:
    x = torch.randn(ROWS)
    net = with_affine(nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2)), x)
    with pytest.raises(UserError, match="give an input of the network as the sample"):
        aafit.fold_activations(net, None)
    with pytest.raises(UserError, match="nothing to fold: the network has no Affine activation"):
        aafit.fold_activations(nn.Linear(6, 2), x)
    with pytest.raises(UserError, match=r"put it into an nn\.Sequential"):
        aafit.fold_activations(aafit.Affine("ReLU").like("ReLU"), x)
    with pytest.raises(UserError, match=r"forward of the sample .* failed"):
        aafit.fold_activations(net, torch.randn(3, 4))
    reads = Net(lambda n, x: n.b(F.silu(n.a(x))) * (1 + float(n.b.weight.abs().max())), a=conv(), b=conv(6, 2))
    images = torch.randn(IMAGES)
    net = with_affine(reads, images)
    _, report = aafit.fold_activations(net, images)
    assert report.rows[0].remains == (SCALE, SHIFT)

    def hidden(n: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            largest = n.b.weight.abs().max()
        return n.b(F.silu(n.a(x))) * largest

    # What no mode sees cannot be followed: the check of the outputs finds it.
    net = with_affine(Net(hidden, a=conv(), b=conv(6, 2)), images)
    with pytest.raises(UserError, match="Folding would change the outputs for the sample by up to"):
        aafit.fold_activations(net, images)
