import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.experiment.authors_checkpoint import load_authors_checkpoint
from aafit.experiment.models import NETWORKS, build
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.saving import load_activations, save_activations

Tensors = dict[str, Tensor]
NEURONS = {
    "KerasNet": {
        "act1": (32, 28, 28),
        "act2": (32, 26, 26),
        "act4": (64, 13, 13),
        "act5": (64, 11, 11),
        "act7": (512,),
    },
    "LeNet-5": {"act1": (20, 24, 24), "act2": (50, 8, 8), "act3": (500,)},
}


def written(path: Path, tensors: Tensors, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam) -> Path:
    """A file as the authors' program writes it, with optimizers that have made a step."""
    parameters = [nn.Parameter(tensor[..., :1].clone()) for tensor in tensors.values() if tensor.ndim]
    opts = [optimizer(parameters[:1]), optimizer(parameters[1:], lr=1e-6)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for opt in opts:
        opt.step()
    torch.save({"net": tensors, "opts": [opt.state_dict() for opt in opts]}, path)
    return path


def weights(name: str, in_shape=(1, 28, 28), classes: int = 10) -> Tensors:
    torch.manual_seed(3)
    return dict(build(name, in_shape, classes).state_dict())


def ahaf(shape: tuple[int, ...]) -> Tensors:
    return {"gamma": torch.rand(shape), "beta": torch.rand(shape)}


def leaf(shape: tuple[int, ...]) -> Tensors:
    return {name: torch.randn(shape) for name in ("p1", "p2", "p3", "p4")}


def fneuron(shape: tuple[int, ...]) -> Tensors:
    return {"_weights": torch.randn(*shape, 18)}


def ahaf_of(u: Tensor, t: Tensors) -> Tensor:
    return t["beta"] * u * torch.sigmoid(t["gamma"] * u)


def leaf_of(u: Tensor, t: Tensors) -> Tensor:
    return (t["p1"] * u + t["p2"]) * torch.sigmoid(t["p3"] * u) + t["p4"]


def fneuron_of(u: Tensor, t: Tensors) -> Tensor:
    radius = 8 / 17
    members = [F.relu(1 - (u.clamp(-4, 4) - (-4 + i * radius)).abs() / radius) for i in range(18)]
    return sum(t["_weights"][..., i] * member for i, member in enumerate(members))


KINDS: dict[str, tuple[type, Callable[[tuple[int, ...]], Tensors], Callable[[Tensor, Tensors], Tensor]]] = {
    "AHAF": (AHAF, ahaf, ahaf_of),
    "LEAF": (LEAF, leaf, leaf_of),
    "F-Neuron": (FNeuron, fneuron, fneuron_of),
}


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("in_shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("name", NETWORKS)
def test_base_networks_load_bit_for_bit_with_everything_inferred(tmp_path: Path, name, in_shape, optimizer) -> None:
    tensors = weights(name, in_shape, classes=7)
    net = load_authors_checkpoint(written(tmp_path / "c.bin", tensors, optimizer), base="SiLU")
    assert type(net) is NETWORKS[name]
    expected = build(name, in_shape, 7, "SiLU", "SiLU")
    expected.load_state_dict(tensors)
    assert list(net.state_dict()) == list(tensors)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    x = torch.rand(2, *in_shape)
    assert torch.equal(net.eval()(x), expected.eval()(x))


@pytest.mark.parametrize("sharing", ["scalar", "layer", "channel", "neuron"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_adaptive_activations_have_the_values_and_the_formula(
    tmp_path: Path, name: str, kind: str, sharing: str
) -> None:
    family, draw, formula = KINDS[kind]
    tensors = weights(name)
    drawn = {}
    for at, full in NEURONS[name].items():
        shape = {"scalar": (), "layer": (1,), "channel": (full[0], *[1] * (len(full) - 1)), "neuron": full}[sharing]
        drawn[at] = draw(shape)
        tensors |= {f"{at}.{key}": tensor for key, tensor in drawn[at].items()}
    net = load_authors_checkpoint(written(tmp_path / "c.bin", tensors))
    found = adaptive_activations(net)
    assert {at: type(activation) for at, activation in found.items()} == dict.fromkeys(NEURONS[name], family)
    for at, activation in found.items():
        u = 3 * torch.randn(2, *NEURONS[name][at])
        torch.testing.assert_close(activation(u), formula(u, drawn[at]), rtol=1e-4, atol=1e-5)
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_layers_without_adaptive_tensors_have_the_base_function(tmp_path: Path) -> None:
    tensors = weights("KerasNet") | {f"act7.{key}": tensor for key, tensor in fneuron((1,)).items()}
    net = load_authors_checkpoint(written(tmp_path / "c.bin", tensors), base="Tanh", interval=(-1, 2))
    assert isinstance(net.act1, nn.Tanh)
    assert list(adaptive_activations(net)) == ["act7"]
    assert net.act7.interval == (-1, 2)


def test_what_was_imported_can_be_saved_and_loaded(tmp_path: Path) -> None:
    tensors = weights("LeNet-5") | {f"act2.{key}": tensor for key, tensor in leaf((50, 8, 8)).items()}
    net = load_authors_checkpoint(written(tmp_path / "c.bin", tensors))
    save_activations(net, tmp_path / "a.safetensors")
    loaded = load_activations(build("LeNet-5", (1, 28, 28), 10), tmp_path / "a.safetensors", strict=False)
    assert torch.equal(loaded.act2.p3, tensors["act2.p3"])


def test_dtype_is_that_of_the_file_and_nothing_is_drawn(tmp_path: Path) -> None:
    tensors = weights("LeNet-5") | {f"act1.{key}": tensor for key, tensor in ahaf((1,)).items()}
    path = written(tmp_path / "c.bin", {key: tensor.double() for key, tensor in tensors.items()})
    random = torch.get_rng_state()
    net = load_authors_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), random)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}


def test_oblong_images_need_to_be_said(tmp_path: Path) -> None:
    path = written(tmp_path / "c.bin", weights("LeNet-5", (2, 20, 40)))
    with pytest.raises(UserError, match=r"neither 32x32 nor 28x28 \(fc3 takes 700 features\): give in_shape="):
        load_authors_checkpoint(path)
    assert load_authors_checkpoint(path, in_shape=(2, 20, 40))(torch.rand(1, 2, 20, 40)).shape == (1, 10)


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {"network": "LeNet-5"}, r"is for another network: it has no weights fc4.weight. .*conv1.weight"),
        (
            lambda t: t,
            {"network": "LeNet-5", "in_shape": (1, 28, 28), "classes": 10},
            "is not a LeNet-5 for 1x28x28 images and 10 classes: it lacks fc3.weight, fc3.bias, fc4.weight and it has",
        ),
        (lambda t: t, {"network": "LeNet5"}, r"Unknown network 'LeNet5'. Did you mean 'LeNet-5'\?"),
        (lambda t: t, {"base": "Relu"}, r"'Relu'. Did you mean 'ReLU'\?"),
        (lambda t: t, {"in_shape": (3, 28, 28)}, r"conv1.weight has the shape \(32, 1, 3, 3\), not \(32, 3, 3, 3\)"),
        (lambda t: t, {"in_shape": (1, 32, 32)}, r"fc7.weight has the shape \(512, 1600\), not \(512, 2304\)"),
        (lambda t: t, {"classes": 100}, r"fc8.weight has the shape \(10, 512\), not \(100, 512\)"),
        (lambda t: without(t, "conv4.bias", "fc7.bias"), {}, r"it lacks conv4.bias, fc7.bias\.$"),
        (lambda t: without(t, "fc8.weight"), {}, "another network: it has no weights fc8.weight"),
        (lambda t: {}, {}, "Its tensors: none"),
        (lambda t: t | {"bn1.weight": torch.ones(3)}, {}, r"it has bn1.weight besides\.$"),
        (lambda t: t | {"act3.p1": torch.ones(1)}, {}, r"it has act3.p1 besides\.$"),
        (lambda t: t | {"conv1.bias": torch.ones(32, dtype=torch.int64)}, {}, "conv1.bias has the type torch.int64"),
        (
            lambda t: t | {"act1.gamma": torch.ones(1)},
            {},
            "act1 has the tensors gamma, which .*AHAF: gamma, beta",
        ),
        (
            lambda t: t | {f"act1.{key}": tensor for key, tensor in leaf((32, 30, 30)).items()},
            {},
            r"act1.p1 has the shape \(32, 30, 30\), not \(1,\) or \(32, 1, 1\) or \(32, 28, 28\)",
        ),
        (
            lambda t: t | {"act7._weights": torch.ones(100, 18)},
            {},
            r"act7._weights has the shape \(100, 18\), not \(1, knots\) or \(512, knots\)",
        ),
        (lambda t: t | {"act7._weights": torch.ones(())}, {}, r"act7._weights has the shape \(\)"),
        (lambda t: t | {"act7._weights": torch.ones(1, 2)}, {}, r"\(1, 2\)"),
        (
            lambda t: t | {"act7.gamma": torch.ones(1), "act7.beta": torch.ones(512)},
            {},
            r"one shape; got \(1,\), \(512,\)",
        ),
        (lambda t: t | {"act7.gamma": torch.ones(1), "act7.beta": torch.ones(1) / 0}, {}, "beta must be finite"),
    ],
)
def test_other_networks_tensors_are_refused(tmp_path: Path, change, options: dict, message: str) -> None:
    path = tmp_path / "c.bin"
    torch.save({"net": change(weights("KerasNet")), "opts": []}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_authors_checkpoint(path, **options)
    assert "Unknown" in message or "Did you" in message or str(path) in str(caught.value)


class Trap:
    """Would write a file if its pickle were trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickles_that_run_code_are_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    torch.save({"net": weights("LeNet-5"), "opts": [Trap(trap)]}, tmp_path / "c.bin")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"net": Trap(trap)}, protocol=2))
    torch.save(build("LeNet-5", (1, 28, 28), 10), tmp_path / "whole.bin")
    for name in ("c.bin", "raw.bin", "whole.bin"):
        with pytest.raises(UserError, match=rf"{name} is refused, since it would run code"):
            load_authors_checkpoint(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, damaged, or not a file"),
        (b"no checkpoint at all", "truncated, damaged, or not a file"),
        (b"PK\x03\x04 but no archive", "truncated, damaged, or not a file"),
        (pickle.dumps([1, 2]), "truncated, damaged, or not a file"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_authors_checkpoint(tmp_path / "c.bin")


@pytest.mark.parametrize("content", [{"weights": {}}, {"net": [1]}, {"net": {"conv1.weight": 1}}, [1], torch.ones(1)])
def test_other_checkpoints_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.bin")
    with pytest.raises(UserError, match=r"c\.bin is not a checkpoint of the authors' program"):
        load_authors_checkpoint(tmp_path / "c.bin")


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^Cannot read .*(No such file|Is a directory)"):
        load_authors_checkpoint(tmp_path / name)


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "legacy"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "c.bin"
    torch.save({"net": weights("LeNet-5"), "opts": []}, path, _use_new_zipfile_serialization=request.param)
    assert load_authors_checkpoint(path)(torch.rand(1, 1, 28, 28)).shape == (1, 10)
    return path


@given(keep=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_truncated_files_are_refused(whole: Path, tmp_path_factory: pytest.TempPathFactory, keep: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "c.bin"
    content = whole.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"c\.bin is .*damaged, or not a file"):
        load_authors_checkpoint(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"net": build("LeNet-5", (1, 28, 28), 10).state_dict(), "opts": []}, tmp_path / "stored.bin")
    with (
        zipfile.ZipFile(tmp_path / "stored.bin") as stored,
        zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member))
    load_authors_checkpoint(tmp_path / "stored.bin")
    with pytest.raises(UserError, match=r"packed\.bin is truncated, damaged, or not a file that torch\.save wrote"):
        load_authors_checkpoint(tmp_path / "packed.bin")


def test_a_tensor_with_fewer_values_than_its_shape_is_refused(tmp_path: Path) -> None:
    net = build("LeNet-5", (1, 28, 28), 10).state_dict()
    torch.save({"net": {**net, "fc4.weight": torch.zeros(1).expand(10**9, 500)}}, tmp_path / "crafted.bin")
    with pytest.raises(UserError, match=r"crafted\.bin is damaged: it has fewer values .* of fc4\.weight"):
        load_authors_checkpoint(tmp_path / "crafted.bin")
