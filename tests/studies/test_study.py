"""A whole study: its results, what it claims, that it resumes, and that studies are kept apart."""

import json

import pytest
import torch
from study_helpers import REPLACEMENTS, base, batches, studied
from torch import nn

import aafit
from aafit import LEAF, FNeuron
from aafit.errors import UserError
from aafit.identification import CROSS_ENTROPY, SQUARED_ERROR, identify
from aafit.studies import study as module
from aafit.studies.config import StudyConfig, study_key
from aafit.studies.page import study_page
from aafit.studies.samples import StudySamples


def config(**given):
    names = ("replacements", "sharing", "target", "loss", "output", "steps", "samples", "memory", "seed")
    return StudyConfig(**(dict.fromkeys(names) | {"replacements": REPLACEMENTS} | given))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(folder):
    return studied(folder)


def test_it_finds_replaces_and_evaluates(found):
    assert [row.path for row in found.found] == ["act1", "act2"]
    assert [row.new for row in found.replaced] == ["F-Neuron(knots=6) as ReLU", "AHAF as SiLU"]
    assert [row.path for row in found.inputs] == ["act1", "act2"]
    right, images, net = 0, 0, base()
    with torch.no_grad():
        for x, y in batches(768):
            right, images = right + int((net(x).argmax(1) == y).sum()), images + len(y)
    assert found.scores.base.accuracy == right / images
    assert (found.scores.samples, found.initial.samples) == (256, 256)
    assert found.scores.base.difference == 0
    assert found.scores.initial.difference > 0.01
    assert found.scores.accuracy_gain.value == pytest.approx(found.scores.tuned.accuracy - found.scores.base.accuracy)


def test_shapes_have_the_curves_before_after_and_at_each_step(found):
    for shape in found.shapes:
        assert len(shape.steps_SU) == len(found.identification.steps)
        assert torch.allclose(shape.steps_SU[0], shape.initial_U, atol=1e-6)
        assert torch.allclose(shape.steps_SU[-1], shape.tuned_U)
        own = found.net.get_submodule(shape.path).double()
        with torch.no_grad():
            assert torch.allclose(own(shape.u_U.reshape(-1, 1)).flatten(), shape.tuned_U, atol=1e-6)
        assert torch.equal(shape.original_U, shape.u_U.relu())


def test_the_network_is_left_as_it_was():
    net = base()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    aafit.study(net, batches(512), REPLACEMENTS, heldout=batches(768), steps=4, samples=96)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_verdict_has_the_numbers(found):
    first, second, third = found.verdict
    assert f"{found.scores.base.accuracy:.2%}" in first
    assert f"{len(found.identification.names)} parameters" in second
    assert f"of the {len(found.shapes)} learned shapes" in third
    assert str(found).startswith(first)


def test_it_is_json(found):
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert {"verdict", "inputs", "audit", "importance", "identification", "shapes", "provenance"} <= content.keys()
    assert content["shapes"][0]["nearest"][0]["name"] == found.shapes[0].nearest[0].name


def test_what_is_there_is_not_computed_again(folder, found, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("computed again")

    for name in ("audit", "importance", "identify", "compare", "learned_shapes", "study_scores", "input_distributions"):
        monkeypatch.setattr(module, name, refuse)
    again = studied(folder)
    assert again.as_dict() == found.as_dict()
    state = found.net.state_dict()
    assert all(torch.equal(tensor.to(state[name]), state[name]) for name, tensor in again.net.state_dict().items())


def test_a_stopped_identification_resumes_bit_identical(found, tmp_path, monkeypatch):
    def stopping(*args, after_step, **options):
        def stop(state):
            after_step(state)
            if len(state.steps) == 2:
                raise KeyboardInterrupt

        return identify(*args, after_step=stop, **options)

    monkeypatch.setattr(module, "identify", stopping)
    with pytest.raises(KeyboardInterrupt):
        studied(tmp_path)
    monkeypatch.undo()
    again = studied(tmp_path)
    assert again.identification.values == found.identification.values
    for shape, whole in zip(again.shapes, found.shapes, strict=True):
        assert torch.equal(shape.steps_SU, whole.steps_SU)


@pytest.mark.parametrize(
    "change",
    [
        {"replacements": {"act1": FNeuron.like("ReLU", knots=7), "act2": LEAF.like("SiLU")}},
        {"replacements": {"act2": REPLACEMENTS["act2"]}},
        {"seed": 1},
        {"samples": 64},
        {"sharing": "channel"},
        {"memory": 1 << 20},
    ],
)
def test_other_arguments_are_another_study(change):
    samples = StudySamples.load(batches(512), None, None, 1 << 30, 0)
    assert study_key(base(), samples, config(**change)) != study_key(base(), samples, config())


def test_another_network_or_data_is_another_study():
    other = base()
    with torch.no_grad():
        other.out.bias += 1e-3
    given = [
        (base(), batches(512), None),
        (other, batches(512), None),
        (base(), batches(512, 200), None),
        (base(), batches(512), batches(768)),
    ]
    keys = {study_key(net, StudySamples.load(fit, more, None, 1 << 30, 0), config()) for net, fit, more in given}
    assert len(keys) == len(given)
    assert keys == {
        study_key(net, StudySamples.load(fit, more, None, 1 << 30, 0), config()) for net, fit, more in given
    }


def test_the_key_knows_functions_by_what_they_do():
    samples = StudySamples([], [], ("", ""))

    def key(make=None, **arguments):
        return study_key(nn.ReLU(), samples, config(replacements={"*": make}, **arguments))

    assert key(output=lambda out: out.a) != key(output=lambda out: out.b)
    assert key(output=lambda out: out[0]) != key(output=lambda out: out[1])
    # Another object with the same program, as in another process.
    again = [eval("lambda out: (lambda x: x)(out)") for _ in range(2)]
    assert key(output=again[0]) == key(output=again[1])
    assert len({key(loss=None), key(loss=CROSS_ENTROPY), key(loss=SQUARED_ERROR)}) == 3
    assert key(make=torch.relu) != key(make=torch.tanh)
    assert key(make=FNeuron.like("ReLU")) == key(make=FNeuron.like("ReLU"))
    assert key(make=FNeuron.like("ReLU")) != key(make=FNeuron.like("ReLU", interval=(-3, 3)))


def test_what_was_drawn_at_random_is_saved(tmp_path):
    replacements = {"act1": FNeuron.random}
    first = studied(tmp_path, replacements)
    again = studied(tmp_path, replacements)
    assert again.folder == first.folder
    assert again.identification.start == first.identification.start


def test_channels_have_curves_of_their_own():
    found = studied(replacements={"act1": LEAF.like("ReLU")}, sharing="channel")
    (shape,) = found.shapes
    assert shape.curves == 3
    assert shape.error_U is None
    assert (shape.low_U <= shape.tuned_U).all()
    assert (shape.tuned_U <= shape.high_U).all()


def test_no_more_samples_at_once_than_in_a_batch():
    class Counting(nn.Module):
        most = 0

        def __init__(self):
            super().__init__()
            self.net = base()

        def forward(self, x):
            Counting.most = max(Counting.most, len(x))
            return self.net(x)

    given = [(x[at : at + 7], y[at : at + 7]) for x, y in batches(512) for at in range(0, 56, 7)]
    aafit.study(Counting().eval(), given, {"net.act2": LEAF.like("ReLU")}, steps=1, samples=64)
    assert Counting.most == 7


def test_a_network_whose_activations_are_functions():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(32, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(torch.relu(self.one(x.flatten(1))))

    found = aafit.study(Called().eval(), batches(512), {"*": FNeuron.like("ReLU", knots=6)}, steps=2, samples=64)
    assert [shape.path for shape in found.shapes] == ["relu_1"]
    assert found.provenance["held-out set"] == "none"


def test_inputs_by_keyword_an_object_out_and_no_labels():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = base()

        def forward(self, pixels):
            return {"scores": self.net(pixels)}

    given = [{"pixels": x} for x, _ in batches(512)]
    options = {"output": lambda out: out["scores"], "steps": 2, "samples": 64}
    found = aafit.study(Wrapped().eval(), given, {"net.act1": FNeuron.like("SiLU", knots=6)}, **options)
    assert found.scores.base.accuracy is None
    assert found.scores.tuned.difference < found.scores.initial.difference
    assert "relative RMS difference of the outputs from the base network's" in found.verdict[1]
    assert f"{found.scores.tuned.difference:.2%}</strong> <span>relative RMS change of the outputs" in study_page(found)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "The batches hold no sample"),
        ([(torch.zeros(0, 2, 4, 4), torch.zeros(0).long())], "The batches hold no sample"),
        ([torch.randn(8, 2, 4, 4)], "The batches have no labels"),
    ],
)
def test_batches_that_cannot_be_studied_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        aafit.study(base(), given, REPLACEMENTS, target="labels")


def test_batches_without_end_are_refused():
    def endless():
        while True:
            yield torch.zeros(100, 2, 4, 4), torch.zeros(100).long()

    with pytest.raises(UserError, match="The batches take more than"):
        aafit.study(base(), endless(), REPLACEMENTS, memory=1 << 20)


def test_a_damaged_part_is_named(tmp_path):
    found = studied(tmp_path)
    (found.folder / "shapes.json").write_text("{")
    with pytest.raises(UserError, match=r"shapes\.json is damaged"):
        studied(tmp_path)


@pytest.mark.parametrize("new", [FNeuron, LEAF.like("ReLU")], ids=["fitted", "as ReLU"])
@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_slopes_by_channel_are_studied(new, sharing, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3), nn.PReLU(3), nn.Linear(3, 2))
    nn.init.uniform_(net[1].weight, 0, 0.6)
    x = torch.randn(256, 5)
    options = {"sharing": sharing, "target": "logits", "steps": 1, "report": tmp_path / "page.html"}
    (shape,) = aafit.study(net, [(x, None)], {"*": new}, **options).shapes
    slope = net[1].weight.detach().double().median()
    wanted = torch.where(shape.u_U > 0, shape.u_U, slope * shape.u_U)
    torch.testing.assert_close(shape.original_U, wanted)


class Graph:
    def __init__(self, x):
        self.x = x


class OfGraphs(nn.Module):
    """Sums an embedding over the nodes of each graph."""

    def __init__(self):
        super().__init__()
        self.into, self.act, self.out = nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)

    def forward(self, graphs):
        return torch.stack([self.out(self.act(self.into(graph.x))).sum(0) for graph in graphs])


def test_inputs_that_are_objects_are_studied(tmp_path):
    torch.manual_seed(0)
    given = [aafit.Batch(([Graph(torch.randn(4, 3)) for _ in range(8)],), {}) for _ in range(4)]
    options = {"heldout_share": 0.25, "steps": 1, "samples": 16, "report": tmp_path / "study.html"}
    found = aafit.study(OfGraphs().eval(), given, {"*": LEAF.like("SiLU")}, **options)
    assert (found.scores.samples, found.scores.held_out) == (8, True)
    assert [shape.path for shape in found.shapes] == ["act"]
