import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import FIXED
from aafit.errors import UserError
from aafit.experiment.models import NETWORKS, KerasNet, LeNet5, build


@pytest.mark.parametrize(
    ("name", "in_shape", "parameters"),
    [
        ("KerasNet", (3, 32, 32), 1_250_858),
        ("KerasNet", (1, 28, 28), 889_834),
        ("LeNet-5", (3, 32, 32), 657_000),
        ("LeNet-5", (1, 28, 28), 431_000),
    ],
)
def test_parameter_counts(name: str, in_shape: tuple[int, int, int], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build(name, in_shape, 10).parameters()) == parameters


KERASNET = {
    "act1": ((32, 32, 32), (32, 28, 28)),
    "act2": ((32, 30, 30), (32, 26, 26)),
    "drop3": ((32, 15, 15), (32, 13, 13)),
    "act4": ((64, 15, 15), (64, 13, 13)),
    "act5": ((64, 13, 13), (64, 11, 11)),
    "drop6": ((64, 6, 6), (64, 5, 5)),
    "act7": ((512,), (512,)),
    "fc8": ((10,), (10,)),
}
LENET5 = {
    "act1": ((20, 28, 28), (20, 24, 24)),
    "pool1": ((20, 14, 14), (20, 12, 12)),
    "act2": ((50, 10, 10), (50, 8, 8)),
    "pool2": ((50, 5, 5), (50, 4, 4)),
    "act3": ((500,), (500,)),
    "fc4": ((10,), (10,)),
}


@pytest.mark.parametrize(("name", "sizes"), [("KerasNet", KERASNET), ("LeNet-5", LENET5)])
@pytest.mark.parametrize(("column", "in_shape"), [(0, (3, 32, 32)), (1, (1, 28, 28))])
def test_layer_sizes(name: str, sizes: dict[str, tuple], column: int, in_shape: tuple[int, int, int]) -> None:
    net = build(name, in_shape, 10)
    seen = {}
    for path, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, output, path=path: seen.update({path: tuple(output.shape[1:])}))
    net(torch.rand(2, *in_shape))
    assert {path: seen[path] for path in sizes} == {path: shapes[column] for path, shapes in sizes.items()}


def test_layer_names_and_kinds_are_the_authors() -> None:
    kerasnet, lenet = KerasNet(), LeNet5()
    assert " ".join(dict(kerasnet.named_children())) == (
        "conv1 act1 conv2 act2 pool3 drop3 conv4 act4 conv5 act5 pool6 drop6 fc7 act7 drop7 fc8"
    )
    assert " ".join(dict(lenet.named_children())) == "conv1 act1 pool1 conv2 act2 pool2 fc3 act3 fc4"
    assert [(d, getattr(kerasnet, d).p) for d in ("drop3", "drop6", "drop7")] == [
        ("drop3", 0.25),
        ("drop6", 0.25),
        ("drop7", 0.2),
    ]
    assert isinstance(kerasnet.drop3, nn.Dropout2d)
    assert isinstance(kerasnet.drop6, nn.Dropout2d)
    assert [name for name in lenet.state_dict() if name.endswith("bias")] == ["fc3.bias"]


def _kerasnet(w: dict[str, Tensor], x: Tensor, cnn: nn.Module, fc: nn.Module) -> Tensor:
    x = cnn(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1))
    x = F.max_pool2d(cnn(F.conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2)
    x = cnn(F.conv2d(x, w["conv4.weight"], w["conv4.bias"], padding=1))
    x = F.max_pool2d(cnn(F.conv2d(x, w["conv5.weight"], w["conv5.bias"])), 2)
    return fc(x.reshape(len(x), -1) @ w["fc7.weight"].T + w["fc7.bias"]) @ w["fc8.weight"].T + w["fc8.bias"]


def _lenet5(w: dict[str, Tensor], x: Tensor, cnn: nn.Module, fc: nn.Module) -> Tensor:
    x = F.max_pool2d(cnn(F.conv2d(x, w["conv1.weight"])), 2)
    x = F.max_pool2d(cnn(F.conv2d(x, w["conv2.weight"])), 2)
    return fc(x.reshape(len(x), -1) @ w["fc3.weight"].T + w["fc3.bias"]) @ w["fc4.weight"].T


@pytest.mark.parametrize(("name", "by_hand"), [("KerasNet", _kerasnet), ("LeNet-5", _lenet5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_is_what_the_tables_say(name, by_hand, memory_format) -> None:
    net = build(name, (3, 20, 24), 7, cnn="SiLU", fc="Tanh").double().eval()
    x = torch.rand(2, 3, 20, 24, dtype=torch.float64)
    expected = by_hand(net.state_dict(), x, FIXED["SiLU"](), FIXED["Tanh"]())
    torch.testing.assert_close(net.to(memory_format=memory_format)(x.to(memory_format=memory_format)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_declared_activations_are_all_there_are(name: str) -> None:
    net = build(name, (1, 28, 28), 10, cnn="Tanh", fc="Sigmoid")
    found = {path: type(module) for path, module in net.named_children() if path.startswith("act")}
    assert found == dict.fromkeys(net.cnn_activations, nn.Tanh) | dict.fromkeys(net.fc_activations, nn.Sigmoid)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_do_not_depend_on_the_activations(name: str) -> None:
    drawn = []
    for cnn, fc in [("ReLU", "ReLU"), *zip(FIXED, reversed(FIXED), strict=True)]:
        torch.manual_seed(42)
        drawn.append(build(name, (1, 28, 28), 10, cnn, fc).state_dict())
    assert len(drawn[0]) == {"KerasNet": 12, "LeNet-5": 5}[name]
    for other in drawn[1:]:
        assert all(torch.equal(drawn[0][key], other[key]) for key in drawn[0])


@given(
    name=st.sampled_from(list(NETWORKS)),
    channels=st.integers(1, 4),
    height=st.integers(10, 24),
    width=st.integers(10, 24),
    classes=st.integers(1, 12),
)
@settings(max_examples=25, deadline=None)
def test_any_image_that_is_big_enough(name: str, channels: int, height: int, width: int, classes: int) -> None:
    if name == "LeNet-5":
        height, width = height + 6, width + 6
    net = build(name, (channels, height, width), classes)
    assert net(torch.rand(2, channels, height, width)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "in_shape", "classes", "cnn", "fc", "message"),
    [
        ("KerasNte", (3, 32, 32), 10, "ReLU", "ReLU", r"Unknown network 'KerasNte'. Did you mean 'KerasNet'\?"),
        ("KerasNet", (3, 32, 32), 10, "Relu", "ReLU", r"'Relu'. Did you mean 'ReLU'\?"),
        ("KerasNet", (3, 32, 32), 10, "ReLU", "Silu", r"'Silu'. Did you mean 'SiLU'\?"),
        ("LeNet-5", (3, 32, 32), 10, "ReLU", "LEAF as Tanh", r"fixed activation 'LEAF as Tanh'"),
        ("KerasNet", (3, 9, 32), 10, "ReLU", "ReLU", r"shape \(3, 9, 32\): .* at least 10 pixels"),
        ("LeNet-5", (3, 32, 15), 10, "ReLU", "ReLU", r"shape \(3, 32, 15\): .* at least 16 pixels"),
        ("KerasNet", (0, 32, 32), 10, "ReLU", "ReLU", r"at least 1 channel"),
        ("KerasNet", (32, 32), 10, "ReLU", "ReLU", r"\(channels, height, width\)"),
        ("LeNet-5", (3, 32, 32), 0, "ReLU", "ReLU", r"number of classes of LeNet-5 must be .* got 0"),
    ],
)
def test_wrong_settings_are_refused(name, in_shape, classes, cnn, fc, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, in_shape, classes, cnn, fc)


@pytest.mark.parametrize("name", ["KerasNet", "LeNet-5"])
def test_gradients_keep_the_memory_format_and_the_bits(name, monkeypatch):
    """Through the flattening of the images, which alone would give a gradient in NCHW."""
    torch.manual_seed(0)
    net = build(name, (3, 32, 32), 10).eval().to(memory_format=torch.channels_last)
    formats = []

    def note(module, grad_inputs, grad_outputs):
        formats.append(grad_outputs[0].is_contiguous(memory_format=torch.channels_last))

    (net.pool6 if name == "KerasNet" else net.pool2).register_full_backward_hook(note)
    ours, plain = (
        torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    net(ours).square().sum().backward()
    monkeypatch.setattr("aafit.experiment.models.flatten", lambda x_BCHW: torch.flatten(x_BCHW, start_dim=1))
    net(plain).square().sum().backward()
    assert formats == [True, False]
    assert torch.equal(ours.grad, plain.grad)
    assert ours.grad.abs().sum() > 0
