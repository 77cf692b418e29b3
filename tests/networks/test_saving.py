import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from foreign import adaptive_resnet, changed, images, resnet, snapshot, train
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters, train_only_activations
from aafit.networks.saving import fingerprint, load_activations, read_activations, save_activations
from aafit.networks.surgery import replace_activations


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
@pytest.mark.parametrize(
    "new",
    [AHAF.random(), LEAF.like("Tanh"), FNeuron.like("Tanh", interval=(-2, 3), knots=7), FNeuron.random()],
    ids=["AHAF", "LEAF", "FNeuron", "FNeuron random"],
)
def test_saved_activations_load_onto_the_untouched_base(tmp_path: Path, sharing, new: AdaptiveActivation) -> None:
    net, base = adaptive_resnet(sharing, new), resnet()
    train(net, train_only_activations(net))
    save_activations(net, tmp_path / "a.safetensors")
    before = snapshot(base)
    loaded = load_activations(base, tmp_path / "a.safetensors")
    assert changed(loaded, snapshot(net)) == set()
    assert changed(base, before) == set()
    assert torch.equal(loaded(images()), net.eval()(images()))
    assert {at: a.settings() for at, a in adaptive_activations(loaded).items()} == {
        at: a.settings() for at, a in adaptive_activations(net).items()
    }
    assert not any(module.training for module in loaded.modules())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_activations_load_over_adaptive_ones_and_into_another_dtype(tmp_path: Path) -> None:
    tuned = adaptive_resnet(new=LEAF.random())
    save_activations(tuned, tmp_path / "a.safetensors")
    other = adaptive_resnet("neuron", FNeuron.random()).double()
    loaded = load_activations(other, tmp_path / "a.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    values, expected = adaptive_parameters(loaded), adaptive_parameters(tuned)
    assert {name: p.tolist() for name, p in values.items()} == {name: p.tolist() for name, p in expected.items()}


def test_parameters_that_two_activations_share_are_saved_for_both(tmp_path: Path) -> None:
    net = nn.Sequential(AHAF(2.0, 3.0), AHAF(4.0, 5.0))
    net[1].gamma = net[0].gamma
    save_activations(net, tmp_path / "a.safetensors")
    loaded = load_activations(nn.Sequential(nn.ReLU(), nn.ReLU()), tmp_path / "a.safetensors")
    values = {name: parameter.item() for name, parameter in adaptive_parameters(loaded).items()}
    assert values == {"0.gamma": 2, "0.beta": 3, "1.gamma": 2, "1.beta": 5}


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    save_activations(adaptive_resnet(), tmp_path / "a.safetensors")
    base = resnet()
    random = torch.get_rng_state()
    load_activations(base, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), random)


def test_file_has_tensors_by_name_with_starts_and_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    net, swap = replace_activations(resnet(), {"head.act": FNeuron.like("Tanh", knots=5)})
    start = {name: parameter.detach().clone() for name, parameter in adaptive_parameters(net).items()}
    train(net, train_only_activations(net))
    save_activations(net, str(path), start=start, replaced={row.path: row.old for row in swap.rows})
    tensors = load_file(path)
    assert torch.equal(tensors.pop("start.head.act.weight"), start["head.act.weight"])
    assert torch.equal(tensors.pop("head.act.weight"), net.head["act"].weight)
    assert tensors == {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["activations"]) == {"head.act": net.head["act"].settings()}
    assert json.loads(metadata["replaced"]) == {"head.act": "ReLU"}
    assert torch.equal(load_activations(resnet(), path).head["act"].weight, net.head["act"].weight)


@pytest.mark.parametrize(
    ("wrapped", "inner"),
    [(nn.DataParallel, "module"), (lambda net: torch.compile(net, backend="eager"), "_orig_mod")],
)
def test_a_wrapped_network_is_refused(tmp_path: Path, wrapped, inner: str) -> None:
    net, path = wrapped(adaptive_resnet()), tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=f"give net.{inner}"):
        save_activations(net, path)
    assert not path.exists()
    save_activations(getattr(net, inner), path)
    with pytest.raises(UserError, match=f"give net.{inner}"):
        load_activations(net, path)


def test_the_same_activations_give_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_activations(adaptive_resnet(), path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_saving_replaces_an_old_file_and_leaves_it_where_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    save_activations(adaptive_resnet(), path)
    assert len(adaptive_activations(load_activations(resnet(), path))) == 5
    with pytest.raises(UserError, match=r"Cannot write .*nowhere"):
        save_activations(adaptive_resnet(), tmp_path / "nowhere" / "a.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*a\.safetensors"):
        save_activations(adaptive_resnet(), path)
    assert [left.name for left in tmp_path.iterdir()] == ["a.safetensors"]


def described(path: Path, **changes: str) -> None:
    """Write a file with one AHAF at head.act, with some of its metadata changed."""
    metadata = {
        "format": "aafit activations",
        "version": "1",
        "activations": json.dumps({"head.act": AHAF.like("SiLU").settings()}),
        "replaced": json.dumps({"head.act": "ReLU"}),
        "calls": "{}",
        "fingerprint": fingerprint(resnet(), ["head.act"]),
    } | changes
    save_file({"head.act.gamma": torch.ones(1), "head.act.beta": torch.ones(1)}, path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not one of activations"),
        ({"version": "2"}, "version 2, and this program reads version 1 only"),
        ({"activations": "{"}, "does not describe its activations"),
        ({"activations": "[1]"}, "does not describe its activations"),
        ({"activations": '{"head.act": {"family": "AHFA", "start": "ReLU", "shape": [1]}}'}, "Did you mean 'AHAF'"),
        ({"activations": '{"head.act": 1}'}, "settings of an adaptive activation"),
        (
            {"activations": '{"head.act": {"family": "LEAF", "start": "x", "shape": [1]}}'},
            "no tensor 'head.act.p1'",
        ),
        (
            {"activations": '{"head.act": {"family": "AHAF", "start": "x", "shape": [5]}}'},
            r"'head.act.gamma' has the shape \(1,\), not \(5,\)",
        ),
        ({"activations": '{"head.atc": {}}'}, r"no module at 'head.atc'. Did you mean 'head.act'\?"),
        ({"activations": '{"head.fc": {}}'}, "'head.fc' is a Linear, not an elementwise activation"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = tmp_path / "a.safetensors"
    described(path)
    assert list(adaptive_activations(load_activations(resnet(), path))) == ["head.act"]
    described(path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_activations(resnet(), path)
    assert str(path) in str(caught.value)


def test_files_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.safetensors", tmp_path / "notes.txt"
    save_file({"weight": torch.ones(2)}, plain)
    text.write_text("no tensors here")
    (tmp_path / "empty").touch()
    for path, message in [
        (plain, "not one of activations"),
        (text, "truncated or not a safetensors file"),
        (tmp_path / "empty", "truncated or not a safetensors file"),
        (tmp_path / "missing", "Cannot read"),
        (tmp_path, "Cannot read"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load_activations(resnet(), path)
        assert str(path) in str(caught.value)


@given(keep=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_truncated_files_are_refused(tmp_path_factory: pytest.TempPathFactory, keep: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    described(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"a\.safetensors is truncated or not"):
        load_activations(resnet(), path)


def test_activations_of_another_network_are_refused(tmp_path: Path) -> None:
    net, base = adaptive_resnet(), resnet()
    save_activations(net, tmp_path / "a.safetensors")
    other = deepcopy(base)
    with torch.no_grad():
        other.stem[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(UserError, match="belong to a network with other weights"):
        load_activations(other, tmp_path / "a.safetensors")
    assert adaptive_activations(load_activations(other, tmp_path / "a.safetensors", strict=False))
    for same in (base, deepcopy(base).double(), load_activations(base, tmp_path / "a.safetensors")):
        assert adaptive_activations(load_activations(same, tmp_path / "a.safetensors"))


def test_buffers_count_too(tmp_path: Path) -> None:
    save_activations(adaptive_resnet(), tmp_path / "a.safetensors")
    other = resnet()
    next(buffer for buffer in other.buffers() if buffer.is_floating_point()).add_(1)
    with pytest.raises(UserError, match="other weights"):
        load_activations(other, tmp_path / "a.safetensors")


def _written_again(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    """Write a file of activations again, with other metadata or tensors."""
    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("name", ["activations", "replaced", "calls", "fingerprint"])
def test_a_file_that_lacks_a_part_of_its_description_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(adaptive_resnet(), path)
    _written_again(path, lambda metadata, _: [metadata.pop(one) for one in (name, "checksum")])
    with pytest.raises(UserError, match=f"does not describe its activations .*{name}"):
        load_activations(resnet(), path)


def test_a_description_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(adaptive_resnet(), path)
    _written_again(path, lambda metadata, _: [metadata.pop("checksum"), metadata.update(activations="[" * 100_000)])
    with pytest.raises(UserError, match="does not describe its activations"):
        load_activations(resnet(), path)


@pytest.mark.parametrize("read", [lambda path: load_activations(resnet(), path), read_activations])
@pytest.mark.parametrize(
    "change",
    [
        lambda metadata, tensors: tensors["head.act.p1"].add_(1e-6),
        lambda metadata, tensors: metadata.update(replaced="{}"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change, read) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(adaptive_resnet(), path)
    _written_again(path, change)
    with pytest.raises(UserError, match="is damaged: its checksum"):
        read(path)


def test_what_was_replaced_is_noted_without_being_asked(tmp_path: Path) -> None:
    save_activations(adaptive_resnet(), tmp_path / "a.safetensors")
    assert {saved.replaced for saved in read_activations(tmp_path / "a.safetensors")} == {"ReLU"}
    again = load_activations(resnet(), tmp_path / "a.safetensors")
    save_activations(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_was_replaced_is_kept_by_loading_and_saving_again(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), AHAF.like("SiLU"))
    net, _ = replace_activations(base, {"GELU": LEAF.like("SiLU")})
    for number in range(3):
        path = tmp_path / f"{number}.safetensors"
        save_activations(net, path)
        assert [row.replaced for row in read_activations(path)] == ["GELU", None]
        # Onto the base and onto a network whose activation replaced another one.
        layers = (nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh())
        other, _ = replace_activations(nn.Sequential(*layers), {"*": LEAF.like("ReLU")})
        net = load_activations(base if number else other, path, strict=False)
        assert net[1].replaced == "GELU"
