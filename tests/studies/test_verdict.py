"""What a study claims: gains on held-out samples only, predictions of classes only, and significant changes only."""

import re
from dataclasses import replace

import pytest
import torch
from study_helpers import base, batches, studied
from torch import nn

import aafit
from aafit import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError
from aafit.studies.scores import PairedGain


@pytest.fixture(scope="module")
def found():
    return studied()


def with_gain(found, gain, held_out=True):
    state = found.identification.state
    steps = (state.steps[0], replace(state.steps[0], number=1, phase="joint"))
    identification = replace(found.identification, state=replace(state, steps=steps))
    scores = replace(found.scores, accuracy_gain=gain, held_out=held_out)
    return replace(found, identification=identification, scores=scores).verdict[1]


def test_a_gain_is_claimed_on_held_out_samples_only(found):
    gain = PairedGain(0.05, 0.01, 40)
    assert "more than two standard errors: an improvement" in with_gain(found, gain)
    assert "more than two standard errors: a loss" in with_gain(found, replace(gain, value=-0.05))
    assert "within two standard errors, so no difference is shown" in with_gain(found, replace(gain, value=0.01))
    fitted = with_gain(found, gain, held_out=False)
    assert "improvement" not in fitted
    assert "no evidence of a gain" in fitted


def test_few_changed_predictions_are_named_with_their_test(found):
    few = with_gain(found, PairedGain(0.01, 0.001, 5, 0.0625))
    assert "consistent with chance (exact test of 5 changed predictions, p = 0.062), so no difference" in few
    more = with_gain(found, PairedGain(0.01, 0.02, 7, 0.0156))
    assert "significant (exact test of 7 changed predictions, p = 0.016): an improvement" in more


def test_only_a_significant_change_of_a_shape_is_named(found):
    first, second = found.shapes

    def sentence(**changes):
        return replace(found, shapes=(replace(first, **({"changed": 0.5} | changes)), second)).verdict[2]

    assert second.significant is not True
    named = f"The shape of layer {first.path} changed most"
    assert named in sentence(significant=True, error=0.1)
    assert "(standard error 10.0%" in sentence(significant=True, error=0.1)
    assert "(no standard error available" in sentence(significant=None, error=None, changed=9.0)
    assert first.path not in sentence(significant=False)
    unchanged = tuple(replace(shape, changed=0.0, significant=False) for shape in found.shapes)
    assert replace(found, shapes=unchanged).verdict[2].startswith("No shape changed; ")


def test_the_true_function_is_never_improved_upon():
    for seed in range(3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        x = torch.randn(600, 4)
        y = net(x).detach() + torch.randn(600, 1)
        given = list(zip(x.split(100), y.split(100), strict=True))
        for share in (None, 0.0):
            study = aafit.study(net, given, {"*": LEAF}, loss="mean squared error", heldout_share=share, samples=200)
            assert "improvement" not in study.verdict[1]


def test_a_regression_has_no_predictions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    study = aafit.study(net, [torch.randn(64, 8) for _ in range(2)], {"*": LEAF.like("Tanh")}, steps=1)
    assert not re.search("prediction|accuracy", " ".join(study.verdict))
    assert study.scores.initial.agreement is None


def test_a_share_is_held_out_of_many_samples(caplog):
    many = batches(0, 600)
    with caplog.at_level("INFO", logger="aafit"):
        study = aafit.study(base(), many, {"act1": LEAF.like("ReLU")}, steps=0, samples=64)
    assert "480 samples are fitted, 120 are held out" in caplog.messages[0]
    assert (study.scores.samples, study.scores.held_out) == (120, True)
    assert "120 held-out samples" in study.verdict[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heldout_share": 1.0}, "is no share: give a number from 0 to below 1"),
        ({"heldout_share": 0.001}, "leaves none to hold out"),
        ({"heldout_share": 0.999}, "leaves none to fit"),
        ({"heldout_share": 0.2, "heldout": batches(768)}, "not both"),
        ({"samples": 1}, "number of samples must be an integer of at least 2"),
        ({"steps": -1}, "number of steps must be an integer of at least 0"),
        ({"report": "study.pdf"}, r"report='study\.html'"),
    ],
)
def test_arguments_are_checked_before_anything_runs(options, sentence, monkeypatch):
    monkeypatch.setattr("aafit.studies.study._run_parts", lambda *given: pytest.fail("it ran"))
    with pytest.raises(UserError, match=sentence):
        aafit.study(base(), batches(512), **options)


def test_held_out_samples_are_others_than_those_to_fit(monkeypatch):
    monkeypatch.setattr("aafit.studies.study._run_parts", lambda *given: pytest.fail("it ran"))
    with pytest.raises(UserError, match="256 of the 256 held-out samples are among those to fit"):
        aafit.study(base(), batches(512), heldout=batches(512)[::-1])
    mixed = [*batches(512)[:1], *batches(768)[:2]]
    with (
        pytest.warns(UserWarning, match="64 of the 192 held-out samples are among those to fit"),
        pytest.raises(pytest.fail.Exception),
    ):
        aafit.study(base(), batches(512), heldout=mixed)


@pytest.mark.parametrize("size", [2, 3])
def test_few_large_samples_are_enough(size):
    few = [(x[:size], y[:size]) for x, y in batches(512)]
    study = aafit.study(base(), few, {"act2": AHAF.like("SiLU")}, steps=1)
    assert study.scores.samples == 4 * size


def test_too_few_samples_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr("aafit.studies.study._run_parts", lambda *given: pytest.fail("it ran"))
    with pytest.raises(UserError, match="one sample to fit; a study needs at least 2"):
        aafit.study(base(), [(x[:1], y[:1]) for x, y in batches(512)[:1]])


def test_layers_are_in_the_order_of_their_calls():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.unused, self.first = nn.SiLU(), nn.ReLU(), nn.SiLU()
            self.out, self.into = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x):
            return self.out(self.second(self.first(self.into(x))))

    torch.manual_seed(0)
    given = [(torch.randn(64, 4), torch.randint(3, (64,))) for _ in range(4)]
    study = aafit.study(Reversed(), given, {"*": LEAF}, steps=0, samples=64)
    assert [row.path for row in study.replaced] == ["first", "second"]
    assert [row.path for row in study.inputs] == [row.path for row in study.shapes] == ["first", "second"]
    layers = [row.name.partition(".")[0] for row in study.audit.rows]
    assert [row.path for row in study.initial.layers] == [row.path for row in study.found][:2] == ["first", "second"]
    assert layers == sorted(layers, key=["first", "second"].index)


@pytest.mark.parametrize("steps", [0, 1, 3, 30])
def test_a_study_with_a_page_ends_where_no_step_helped(steps, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    given = [(torch.randn(64, 4), torch.randint(0, 3, (64,))) for _ in range(4)]
    study = aafit.study(net, given, {"*": LEAF}, report=tmp_path / "s.html", steps=steps, samples=64)
    assert study.page.exists()
    assert all(len(shape.steps_SU) == len(study.identification.steps) for shape in study.shapes)


def test_an_activation_of_ones_own_is_studied():
    class Scaled(AdaptiveActivation):
        family = "Scaled"
        starts = {"ReLU": (1.0,)}  # noqa: RUF012

        @staticmethod
        def formula(u, scale):
            return scale * u.relu()

    study = aafit.study(base(), batches(512), {"act1": Scaled.like("ReLU"), "act2": FNeuron}, steps=1, samples=64)
    assert {shape.path for shape in study.shapes} == {"act1", "act2"}
