import pytest
import torch
import torch.nn.functional as F
from foreign import RELUS, ResNet, changed, images, resnet, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, FIXED, LEAF, FNeuron
from aafit.errors import UserError
from aafit.experiment.models import NETWORKS, build
from aafit.networks.adaptive import train_only_activations
from aafit.networks.saving import load_activations, save_activations
from aafit.networks.surgery import replace_activations, restore_activations


def kinds(net: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in net.named_modules()}


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("new", [AHAF.like("ReLU"), LEAF.like("ReLU"), nn.ReLU()], ids=["AHAF", "LEAF", "torch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_like_for_like_replacement_hardly_changes_the_logits(name: str, new: nn.Module, sharing) -> None:
    torch.manual_seed(0)
    base, x = build(name, (1, 28, 28), 10).eval(), torch.rand(3, 1, 28, 28)
    net, swap = replace_activations(base, {"ReLU": new}, sharing, x)
    assert [row.path for row in swap.rows] == [*base.cnn_activations, *base.fc_activations]
    assert all(type(net.get_submodule(row.path)) is type(new) for row in swap.rows)
    torch.testing.assert_close(net(x), base(x), rtol=0, atol=1e-6)


def test_base_and_random_state_are_left_alone() -> None:
    base, x = resnet(), images()
    before, modes, where = snapshot(base), [m.training for m in base.modules()], kinds(base)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules()]
    random = torch.get_rng_state()
    net, _ = replace_activations(base, {"ReLU": LEAF.like("Tanh")}, "neuron", x)
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert changed(base, before) == set()
    assert kinds(base) == where
    assert [m.training for m in base.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules()] == hooks
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_the_sample_forward_is_in_eval_mode_and_draws_nothing() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.BatchNorm1d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(F.dropout(self.norm(x), training=True))

    base = Noisy().train()
    before, random = snapshot(base), torch.get_rng_state()
    # In training mode a batch norm refuses a batch of one.
    replace_activations(base, {"ReLU": LEAF.like("ReLU")}, sample=torch.ones(1, 3))
    assert torch.equal(torch.get_rng_state(), random)
    assert changed(base, before) == set()
    assert base.norm.training


@pytest.mark.parametrize(
    ("keys", "paths"),
    [
        (["ReLU"], RELUS),
        (["head.act"], ["head.act"]),
        (["layers.*"], RELUS[:4]),
        (["layers.?.act1"], ["layers.0.act1", "layers.1.act1"]),
        (["layers.[!0].*"], RELUS[2:4]),
        (["*"], ["stem.2", *RELUS]),
        (["SiLU", "head.act"], ["stem.2", "head.act"]),
        (["*.act2", "stem.*"], ["stem.2", "layers.0.act2", "layers.1.act2"]),
    ],
)
def test_keys_are_class_names_paths_or_patterns(keys: list[str], paths: list[str]) -> None:
    net, swap = replace_activations(resnet(), dict.fromkeys(keys, AHAF.like("SiLU")))
    assert [row.path for row in swap.rows] == list(paths)
    assert {path for path, kind in kinds(net).items() if kind is AHAF} == set(paths)


def test_activations_that_torch_does_not_know_are_found_by_class_or_path() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sigmoid()

    base = nn.Sequential(nn.Linear(3, 3), Swish(), nn.Linear(3, 3), nn.Identity(), nn.GELU())
    x = torch.randn(4, 3)
    _, swap = replace_activations(base, {"Swish": LEAF.like("SiLU"), "3": LEAF.like("Tanh"), "4": nn.Tanh()}, sample=x)
    assert [(row.old, row.new) for row in swap.rows] == [
        ("Swish", "LEAF as SiLU"),
        ("Identity", "LEAF as Tanh"),
        ("GELU", "Tanh"),
    ]


def test_gelu_network_by_pattern() -> None:
    torch.manual_seed(0)
    base = nn.Sequential()
    for i in range(3):
        base.add_module(f"mlp{i}", nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()))
    x = torch.randn(5, 7, 6)
    net, swap = replace_activations(base, {"mlp*": FNeuron.like(F.gelu, interval=(-6, 6), knots=242)}, sample=x)
    assert [row.path for row in swap.rows] == ["mlp0.2", "mlp1.2", "mlp2.2"]
    torch.testing.assert_close(net(x), base(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("sharing", "conv", "fc"), [("layer", (1,), (1,)), ("channel", (4, 1, 1), (5,)), ("neuron", (4, 4, 4), (5,))]
)
def test_shapes_follow_the_sharing(sharing, conv: tuple[int, ...], fc: tuple[int, ...]) -> None:
    net, swap = replace_activations(resnet(), {"ReLU": FNeuron.ramp(knots=5)}, sharing, images())
    assert [row.shape for row in swap.rows] == [conv] * 4 + [fc]
    assert {tuple(net.get_submodule(row.path).weight.shape) for row in swap.rows} == {(*conv, 5), (*fc, 5)}


def test_volumes_share_by_channel_and_sequences_by_neuron() -> None:
    volume = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU())
    tokens = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    _, swap = replace_activations(volume, {"ReLU": AHAF.like("ReLU")}, "channel", torch.rand(1, 1, 4, 5, 6))
    assert swap.rows[0].shape == (2, 1, 1, 1)
    _, swap = replace_activations(tokens, {"ReLU": AHAF.like("ReLU")}, "neuron", torch.rand(2, 5, 3))
    assert swap.rows[0].shape == (5, 4)


def test_each_layer_has_parameters_of_its_own() -> None:
    given = LEAF.like("ReLU")
    net, swap = replace_activations(resnet(), {"ReLU": given})
    parameters = [parameter for row in swap.rows for parameter in net.get_submodule(row.path).parameters()]
    with torch.no_grad():
        for value, parameter in enumerate(parameters):
            parameter.fill_(value)
    assert [parameter.item() for parameter in parameters] == list(range(20))
    assert given.p3.item() == 2**16


def test_a_fixed_module_is_copied_for_each_layer() -> None:
    given = nn.PReLU(init=0.5)
    net, swap = replace_activations(resnet(), {"ReLU": given})
    put = [net.get_submodule(row.path) for row in swap.rows]
    assert len({id(module) for module in (given, *put)}) == 6
    assert {module.weight.item() for module in put} == {0.5}


def test_random_starts_are_made_for_each_layer_in_order() -> None:
    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        net, swap = replace_activations(
            resnet(), {"ReLU": lambda shape: FNeuron.random(shape, generator)}, "channel", images()
        )
        return [net.get_submodule(row.path).weight for row in swap.rows]

    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("with_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_dtype_and_mode_are_kept(dtype: torch.dtype, with_sample: bool) -> None:
    base = resnet().to(dtype)
    base.head.train()
    sample = images().to(dtype) if with_sample else None
    net, _ = replace_activations(base, {"ReLU": LEAF.like("ReLU"), "SiLU": nn.PReLU()}, sample=sample)
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    assert net.head["act"].training
    assert not net.layers[0].act1.training
    assert not net.stem[2].training


def test_mixed_dtypes_follow_the_layer_around_or_the_sample() -> None:
    in64 = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())).double()
    base = nn.ModuleDict({"in32": nn.Linear(2, 2), "in64": in64})
    net, _ = replace_activations(base, {"ReLU": AHAF.like("ReLU")})
    assert net["in64"][1][0].gamma.dtype == torch.float64

    class ToDouble(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    cast = nn.Sequential(nn.Linear(2, 2), ToDouble(), nn.ReLU())
    net, _ = replace_activations(cast, {"ReLU": AHAF.like("ReLU")}, sample=torch.rand(1, 2))
    assert net[2].gamma.dtype == torch.float64


def test_meta_device_is_kept() -> None:
    with torch.device("meta"):
        base = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net, _ = replace_activations(base, {"ReLU": AHAF.like("ReLU")})
    assert net[1].gamma.device.type == "meta"


def test_report_says_what_was_replaced_and_what_was_not_and_why() -> None:
    net, swap = replace_activations(resnet(), {"layers.0.*": LEAF.like("SiLU"), "head.act": nn.Tanh()}, sample=images())
    assert str(swap).splitlines() == [
        "replaced       old   new           calls  parameter shape",
        "layers.0.act1  ReLU  LEAF as SiLU  1      (1,)",
        "layers.0.act2  ReLU  LEAF as SiLU  1      (1,)",
        "head.act       ReLU  Tanh          1      (1,)",
        "",
        "not replaced   kind     why",
        "stem.2         SiLU     no key matches it",
        "layers.1.act1  ReLU     no key matches it",
        "layers.1.act2  ReLU     no key matches it",
        "softmax        Softmax  not an elementwise activation",
    ]
    _, again = replace_activations(net, {"head.act": FNeuron.random()})
    assert again.rows[0].new == "F-Neuron random"
    assert again.rows[0].calls is None
    assert "not counted" in str(again)
    assert ("layers.0.act1", "LEAF as SiLU") in [(row.path, row.name) for row in again.skipped]


def test_a_module_that_the_sample_does_not_reach_has_no_calls() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(input=x)

    _, swap = replace_activations(Unused(), {"ReLU": AHAF.like("ReLU")}, sample=torch.rand(2, 3))
    assert [(row.path, row.calls) for row in swap.rows] == [("used", 1), ("unused", 0)]
    with pytest.raises(UserError, match="does not call 'unused'"):
        replace_activations(Unused(), {"ReLU": AHAF.like("ReLU")}, "neuron", torch.rand(2, 3))


def test_networks_of_several_inputs_take_a_tuple() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.act(x + y)

    _, swap = replace_activations(Sum(), {"act": AHAF.like("ReLU")}, "neuron", (torch.rand(2, 3), torch.rand(2, 3)))
    assert swap.rows[0].shape == (3,)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x))


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, activation=nn.GELU(), batch_first=True)


LIKE = LEAF.like("ReLU")


@pytest.mark.parametrize(
    ("model", "replacements", "options", "message"),
    [
        (resnet, {}, {}, r"Nothing to replace was given. It has: stem.2 \(SiLU\), layers.0.act1 \(ReLU\)"),
        (
            resnet,
            {"Relu": LIKE},
            {},
            r"'Relu' matches no activation of .* Did you mean 'ReLU'\? It has: stem.2",
        ),
        (resnet, {"ReLU": LIKE, "head.acts": LIKE}, {}, r"'head.acts' matches no .* Did you mean 'head.act'\?"),
        (resnet, {"body.*": LIKE}, {}, r"'body\.\*' matches no activation"),
        (resnet, {"head.l*": LIKE}, {}, r"'head\.l\*' matches no activation"),
        (Functional, {"ReLU": LIKE}, {}, r"It has: none. No sample was given: activations called as functions"),
        (Functional, {"Relu": LIKE}, {"sample": torch.rand(2, 3)}, r"Did you mean 'ReLU'\? It has: relu_1 \(ReLU\)"),
        (resnet, {"ReLU": LIKE, "head.*": LIKE}, {}, r"'head.act' is matched by 'ReLU' and by 'head\.\*'"),
        (resnet, {"stem.0": LIKE}, {}, r"'stem.0' is a Conv2d, not an elementwise activation"),
        (resnet, {"BatchNorm2d": LIKE}, {}, r"'stem.1' is a BatchNorm2d, not"),
        (resnet, {"Softmax": LIKE}, {}, r"'softmax' is a Softmax, not an elementwise activation"),
        (nn.ReLU, {"ReLU": LIKE}, {}, r"The network itself is a ReLU"),
        (resnet, {"ReLU": LIKE}, {"sharing": "neuron"}, r"Sharing by neuron needs .* sample="),
        (resnet, {"ReLU": LIKE}, {"sharing": "chanel"}, r"Unknown sharing 'chanel'. Did you mean 'channel'\?"),
        (resnet, {"ReLU": nn.Tanh}, {}, r"'ReLU' is to be replaced by <class .*Tanh'>: give a text"),
        (resnet, {"ReLU": "LEAF as ReLu"}, {}, r"Unknown activation 'LEAF as ReLu'. Did you mean 'LEAF as ReLU'\?"),
        (resnet, {"ReLU": lambda shape: torch.relu}, {}, r"The function given for 'ReLU' returned .* for shape=\(1,\)"),
        (resnet, {"ReLU": LEAF.like("ReLU", (4, 1, 1))}, {}, r"shape \(4, 1, 1\)"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
            {"ReLU": LIKE},
            {"sharing": "neuron", "sample": torch.rand(3)},
            r"'1' receives a tensor of shape \(2,\), which has no batch axis",
        ),
    ],
)
def test_wrong_replacements_are_refused(model, replacements, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(model(), replacements, **options)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.rand(2, 4, 6, 6), r"\(\(2, 4, 6, 6\), float32, on cpu\) failed: .*channels"),
        (torch.rand(2, 3, 6, 6, dtype=torch.float64), r"\(\(2, 3, 6, 6\), float64, on cpu\) failed: "),
        (torch.rand(2, 3, 6, 6, device="meta"), r"on meta\) failed: "),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_with_its_cause(sample: Tensor, message: str) -> None:
    base = resnet()
    before = snapshot(base)
    with pytest.raises(UserError, match=message) as caught:
        replace_activations(base, {"ReLU": LIKE}, sample=sample)
    assert isinstance(caught.value.__cause__, Exception)
    assert changed(base, before) == set()


def test_a_transformer_layer_told_not_to_fuse_calls_the_replacement() -> None:
    torch.manual_seed(0)
    base = transformer().eval()
    base.activation_relu_or_gelu = 0
    x = torch.rand(2, 3, 4)
    net, _ = replace_activations(base, {"GELU": AHAF(0.0, 0.0)}, sample=x)
    with torch.no_grad():
        assert not torch.allclose(net(x), base(x))
        torch.testing.assert_close(net(x), net.norm2(_without_mlp(net, x) + net.linear2.bias))


def _without_mlp(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    return layer.norm1(x + layer.self_attn(x, x, x)[0])


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
def test_restoring_gives_the_base_back_bit_for_bit(sharing) -> None:
    base, x = resnet(), images()
    net, swap = replace_activations(base, {"ReLU": LEAF.like("Tanh"), "SiLU": AHAF.random()}, sharing, x)
    after = snapshot(net)
    restored = swap.restore(net)
    assert repr(restored) == repr(base)
    assert changed(restored, snapshot(base)) == set()
    assert torch.equal(restored(x), base(x))
    assert restored.layers[0].act1.inplace
    assert changed(net, after) == set()
    assert not set(restored.modules()) & {*base.modules(), *net.modules(), *swap.restore(net).modules()}


def test_restoring_keeps_what_was_trained_and_the_parameters_of_old_activations() -> None:
    base = nn.Sequential(nn.Linear(3, 3), nn.PReLU(init=0.1), nn.Linear(3, 3), nn.ReLU())
    net, swap = replace_activations(base, {"PReLU": LIKE, "ReLU": LIKE})
    with torch.no_grad():
        base[1].weight.fill_(7)
        net[0].weight.fill_(2)
    restored = restore_activations(net.double().train(False), swap)
    assert restored[0].weight.unique().tolist() == [2]
    assert restored[1].weight.tolist() == [torch.tensor(0.1).item()]
    assert restored[1].weight.dtype == torch.float64
    assert not restored[3].training


def test_restoring_another_network_is_refused() -> None:
    _, swap = replace_activations(resnet(), {"head.act": LIKE})
    with pytest.raises(UserError, match=r"no module at 'head.act'. .*act1"):
        swap.restore(build("KerasNet", (1, 28, 28), 10))
    with pytest.raises(UserError, match=r"no module at 'head.act'. It has no activation"):
        swap.restore(Functional())


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Small networks of linear layers, batch norms and activations, some of them nested."""
    layers: list[nn.Module] = []
    width = 3
    for _ in range(draw(st.integers(1, 5))):
        out = draw(st.integers(1, 4))
        block: list[nn.Module] = [nn.Linear(width, out)]
        if draw(st.booleans()):
            block.append(nn.BatchNorm1d(out))
        block.append(draw(st.sampled_from([nn.ReLU, nn.GELU, nn.PReLU, nn.Tanh, nn.ELU, *FIXED.values()]))())
        layers += [nn.Sequential(*block)] if draw(st.booleans()) else block
        width = out
    net = nn.Sequential(*layers).train(draw(st.booleans()))
    return net.double() if draw(st.booleans()) else net


@given(
    base=networks(),
    new=st.sampled_from([AHAF.like("SiLU"), LEAF.random(), FNeuron.like("Tanh"), nn.PReLU()]),
    sharing=st.sampled_from(["layer", "channel", "neuron"]),
    pick=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_replace_then_restore_is_the_identity(
    base: nn.Sequential, new: nn.Module, sharing, pick: st.DataObject
) -> None:
    others = (nn.Linear, nn.BatchNorm1d, nn.Sequential)
    there = [path for path, module in base.named_modules() if not isinstance(module, others)]
    paths = pick.draw(st.lists(st.sampled_from(there), min_size=1, unique=True))
    before, shown = snapshot(base), repr(base)
    x = torch.randn(4, 3, dtype=next(base.parameters()).dtype)
    net, swap = replace_activations(base, dict.fromkeys(paths, new), sharing, x)
    restored = restore_activations(net, swap)
    assert {row.path for row in swap.rows} == set(paths)
    assert all(type(net.get_submodule(path)) is type(new) for path in paths)
    assert {row.path for row in swap.skipped} == set(there) - set(paths)
    for result in (base, restored):
        assert repr(result) == shown
        assert changed(result, before) == set()
        assert [m.training for m in result.modules()] == [m.training for m in base.modules()]
    assert torch.equal(restored.eval()(x), base.eval()(x))


def test_class_of_the_foreign_network_stays() -> None:
    net, _ = replace_activations(resnet(), {"ReLU": LIKE})
    assert type(net) is ResNet


class ChannelsLast(nn.Module):
    """A convolution whose channels go to the end before the activation, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.act, self.other = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.GELU(), nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.act(self.linear(self.conv(x_BCHW).permute(0, 2, 3, 1)))
        permuted: Tensor = self.other(x_BHWC.permute(0, 3, 1, 2))
        return permuted


SHAPES = [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()), (2, 3, 8, 8), (4, 1, 1)),
    (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), (2, 3, 8), (4, 1)),
    (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Dropout(), nn.ReLU()), (2, 7, 5), (4,)),
    (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU()), (2, 6, 7, 5), (4,)),
    (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), (2, 6, 7), (42,)),
]


@pytest.mark.parametrize(("build_network", "sample", "shape"), SHAPES)
def test_the_channel_axis_is_that_of_the_layer_before(build_network, sample, shape) -> None:
    net, swap = replace_activations(build_network(), {"ReLU": LIKE}, "channel", torch.rand(sample))
    assert swap.rows[0].shape == shape
    assert net(torch.rand(sample)).isfinite().all()


def test_channels_at_the_end_share_by_channel() -> None:
    _, swap = replace_activations(ChannelsLast(), {"GELU": LIKE}, "channel", torch.rand(2, 3, 8, 8))
    assert swap.rows[0].shape == (6,)


@pytest.mark.parametrize(
    ("axis", "shape"), [(1, (6, 1, 1)), (2, (6, 1)), (-3, (6, 1, 1)), (None, None), (4, None), (0, None), (-4, None)]
)
def test_an_axis_that_cannot_be_told_is_asked_for(axis, shape) -> None:
    options = {} if axis is None else {"channel_axis": axis}
    if shape is None:
        why = (
            "does not determine the axis of the channels: give channel_axis=" if axis is None else "has no channel_axis"
        )
        with pytest.raises(UserError, match=why):
            replace_activations(ChannelsLast(), {"ReLU": LIKE}, "channel", torch.rand(2, 3, 8, 8), **options)
        return
    _, swap = replace_activations(ChannelsLast(), {"ReLU": LIKE}, "channel", torch.rand(2, 3, 8, 8), **options)
    assert swap.rows[0].shape == shape


@pytest.mark.parametrize("sharing", ["channel", "neuron"])
def test_an_image_without_a_batch_axis_is_refused(sharing) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(UserError, match="has no batch axis: give a sample with a batch axis"):
        replace_activations(net, {"ReLU": LIKE}, sharing, torch.rand(3, 8, 8))


class Mixed(nn.Module):
    """A module and functions beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.gate = nn.ReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(F.relu(x))
        for _ in range(2):
            x = x.clamp(min=0)
        return torch.tanh(F.gelu(x, approximate="tanh")) * self.gate(x).clamp(0, 1)


def test_functions_are_replaced_and_gates_are_not() -> None:
    _, swap = replace_activations(Mixed(), {"ReLU": LIKE}, sample=torch.rand(2, 3))
    assert [(row.path, row.calls) for row in swap.rows] == [("relu_1", 1), ("act", 1), ("clamp_1", 2)]
    assert [(kept.path, kept.name) for kept in swap.skipped] == [
        ("gelu_1", "GELU"),
        ("tanh_1", "Tanh"),
        ("gate", "Sigmoid"),
    ]
    assert [kept.reason.startswith("a gate") for kept in swap.skipped] == [False, True, True]
    assert "not looked for" not in str(swap)


def test_without_a_sample_the_report_says_what_was_not_looked_for() -> None:
    _, swap = replace_activations(Mixed(), {"ReLU": LIKE})
    assert "called as functions (F.relu), and modules called more than once, were not looked for" in str(swap)


def test_restored_parameters_require_gradients_as_in_the_base() -> None:
    base = resnet()
    base.stem[0].weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    net, swap = replace_activations(base, {"ReLU": LIKE})
    train_only_activations(net)
    assert {name: p.requires_grad for name, p in swap.restore(net).named_parameters()} == flags


def test_another_network_is_not_restored() -> None:
    _, swap = replace_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), {"ReLU": LIKE})
    with pytest.raises(UserError, match="'1' of this network is a Linear, not the LEAF that was put there"):
        swap.restore(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_hooks_of_a_replaced_module_go_on() -> None:
    base = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen: list[str] = []
    base[1].register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    base[1].register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True)
    net, swap = replace_activations(base, {"ReLU": LIKE})
    net(torch.rand(1, 2))
    assert seen == ["before", "LEAF"]
    assert "2 hook(s) of '1' were moved to the new activation" in str(swap)


@pytest.mark.parametrize("sample", [[torch.rand(2, 3)], {"x": torch.rand(2, 3)}, (torch.rand(2, 3),)])
def test_a_sample_of_any_form(sample) -> None:
    _, swap = replace_activations(Mixed(), {"ReLU": LIKE}, sample=sample)
    assert len(swap.rows) == 3


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("x", "The sample is a str: give a tensor"),
        ((torch.rand(2, 3), 1), "takes 2 positional arguments but 3 were given"),
    ],
)
def test_a_sample_that_cannot_be_used(sample, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(Mixed(), {"ReLU": LIKE}, sample=sample)


class Widths(nn.Module):
    """One place, called after layers of two widths: a function, or one module."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 6)])
        self.act = F.relu if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return x


class Twice(Widths):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.layers[0](x))
        return self.act(self.layers[1](x))


@pytest.mark.parametrize("sharing", ["channel", "neuron"])
@pytest.mark.parametrize(
    ("base", "options"),
    [(lambda: Widths(), {}), (lambda: Widths(nn.ReLU()), {}), (lambda: Twice(nn.ReLU()), {"share_calls": True})],
    ids=["function", "module", "share_calls"],
)
def test_parameters_that_do_not_fit_all_calls_are_refused(base, options, sharing) -> None:
    with pytest.raises(UserError, match=r"receives tensors of several shapes, such as \(2, [46]\).* share by layer"):
        replace_activations(base(), {"ReLU": LIKE}, sharing, torch.rand(2, 3), **options)
    net, _ = replace_activations(base(), {"ReLU": LIKE}, sample=torch.rand(2, 3), **options)
    assert net(torch.rand(2, 3)).shape == (2, 6)


@pytest.mark.parametrize("axis", ["c", 1.0, True, (1,)])
def test_a_channel_axis_is_a_whole_number(axis) -> None:
    with pytest.raises(UserError, match="channel_axis is the number of an axis, as 1 or -1; got"):
        replace_activations(resnet(), {"ReLU": LIKE}, "channel", images(), channel_axis=axis)


class Decorated(nn.Sequential):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [Decorated, nn.Sequential])
def test_within_autocast_parameters_take_the_dtype_of_the_network(kind) -> None:
    base = kind(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net, _ = replace_activations(base, {"ReLU": AHAF.like("SiLU")}, "channel", torch.rand(2, 3))
        assert net(torch.rand(2, 3)).isfinite().all()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_without_a_sample_the_report_says_what_worked_in_place() -> None:
    _, swap = replace_activations(resnet(), {"*": LIKE})
    assert "layers.0.act1, layers.0.act2, layers.1.act1, layers.1.act2 worked in place: if the network" in str(swap)
    _, swap = replace_activations(resnet(), {"head.act": LIKE})
    assert "in place" not in str(swap)
    _, swap = replace_activations(resnet(), {"*": LIKE}, sample=images())
    assert "in place" not in str(swap)


@pytest.mark.parametrize(
    ("text", "new"),
    [("LEAF as Tanh", LEAF), ("AHAF random", AHAF), ("F-Neuron ramp", FNeuron), ("LEAF", LEAF), ("ReLU", nn.ReLU)],
)
def test_a_text_names_the_new_activation(text: str, new: type) -> None:
    net, report = replace_activations(resnet(), {"ReLU": text}, "channel", images())
    assert {type(net.get_submodule(row.path)) for row in report.rows} == {new}
    if text == "AHAF random":
        assert len({net.get_submodule(row.path).gamma.flatten()[0].item() for row in report.rows}) == len(report.rows)


@pytest.mark.parametrize("slopes", [[0.1, 0.2, 0.0, 0.4], [0.0] * 4, [1.0, 0.0, 0.3, -0.2]])
@pytest.mark.parametrize("new", [LEAF, FNeuron])
def test_a_prelu_by_channel_of_any_slopes(slopes: list[float], new: type[nn.Module]) -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4))
    base[1].weight.data = torch.tensor(slopes)
    x = torch.randn(6, 3, 8, 8)
    net, _ = replace_activations(base, {"PReLU": new}, "channel", x)
    assert (net(x) - base(x)).square().mean().sqrt() < 0.03


def test_many_layers_take_linear_time() -> None:
    """Count the work of some steps that were once quadratic: lookups of modules by path."""

    class Counting(nn.Sequential):
        lookups = 0

        def get_submodule(self, target: str) -> nn.Module:
            Counting.lookups += 1
            return super().get_submodule(target)

        def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
            for parameter in super().parameters(recurse):
                Counting.lookups += 1
                yield parameter

    def work(layers: int) -> int:
        net = Counting(*[module for _ in range(layers) for module in (nn.Linear(2, 2), nn.ReLU())])
        Counting.lookups = 0
        keys = {str(2 * at + 1): LIKE for at in range(layers)}
        _, report = replace_activations(net, keys, sample=torch.rand(2, 2))
        assert len(report.rows) == layers
        return Counting.lookups

    assert work(60) < 4 * work(20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, report: replace_activations({"ReLU": LIKE}, net), "The network is a dict: give a torch.nn.Module"),
        (
            lambda net, report: restore_activations(report, net),
            "The report is a ResNet: give the network, then",
        ),
        (lambda net, report: restore_activations([net], report), "The network is a list: give a torch.nn.Module"),
        (lambda net, report: train_only_activations([net]), "The network is a list: give a torch.nn.Module"),
        (lambda net, report: train_only_activations(ResNet), "The network is the class ResNet: give an object of it"),
        (lambda net, report: save_activations(net, 3), "The file is given as a int: give its path"),
        (lambda net, report: load_activations("a.safetensors", net), "The network is a str: give a torch.nn.Module"),
    ],
)
def test_arguments_of_a_wrong_type_or_swapped(call, message: str) -> None:
    net, report = replace_activations(resnet(), {"ReLU": LIKE})
    with pytest.raises(UserError, match=message):
        call(net, report)
