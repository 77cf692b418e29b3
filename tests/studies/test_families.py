"""Families compared on one network: paired gains, their adjustment, the bound on time, the picture and the study."""

import json
import time
from functools import partial
from typing import Any

import pytest
import torch
from small import Quotient
from study_helpers import base, batches, studied
from torch import nn
from torch.nn import functional as F

import aafit
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.studies.families import ALL, FamilyRow, _adjusted

FAMILIES = [aafit.AHAF, "LEAF", partial(aafit.FNeuron.fit, knots=6), Quotient, aafit.Affine("ReLU", offset=False)]
NAMES = {"AHAF": 2, "LEAF": 4, "F-Neuron, knots=6": 6, "Quotient": 4, "Affine(ReLU,d=0)": 2}

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return base()


@pytest.fixture(scope="module")
def found(net: nn.Module) -> aafit.FamilyComparison:
    return aafit.compare_families(
        net, batches(512), heldout=batches(768), families=FAMILIES, steps=2, samples=200, verbose=False
    )


def test_every_family_is_in_every_place(found: aafit.FamilyComparison) -> None:
    assert {(row.place, row.family) for row in found.rows} == {
        (place, name) for place in ("act1", "act2", ALL) for name in NAMES
    }
    for row in found.rows:
        assert row.parameters == NAMES[row.family] * (2 if row.place == ALL else 1)
        assert row.relative_time > 0
        assert row.error >= 0
    assert (found.samples, found.heldout_samples, found.held_out) == (200, 256, True)
    assert "5 families in 3 places: 15 identifications of up to 2 steps from 200 samples" in found.cost
    assert [row.place for row in found.rows] == ["act1"] * 5 + ["act2"] * 5 + [ALL] * 5
    for place in ("act1", "act2", ALL):
        gains = [row.gain for row in found.rows if row.place == place]
        assert gains == sorted(gains, reverse=True)
    assert found.best().place == ALL
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_family_that_contains_the_original_fits_it_exactly(found: aafit.FamilyComparison) -> None:
    for row in found.rows:
        # An F-Neuron may have a knot at 0.
        if row.family != "F-Neuron, knots=6":
            assert (row.fit_error < 1e-5) == (row.family != "Quotient")


def test_operators_are_those_of_the_export(found: aafit.FamilyComparison) -> None:
    operators = {row.family: set(row.operators) for row in found.rows}
    assert {"relu", "mul", "add"} <= operators["Affine(ReLU,d=0)"]
    assert "abs" in operators["Quotient"]
    assert not operators["AHAF"] & {"relu", "to", "promote_types"}


def test_the_gain_is_that_of_the_identified_network(net: nn.Module, found: aafit.FamilyComparison) -> None:
    start, _ = aafit.replace_activations(net, {"act1": aafit.AHAF}, sample=batches(512)[0][0])
    fitted = [(x[: 200 - 64 * n], y[: 200 - 64 * n]) for n, (x, y) in enumerate(batches(512))]
    aafit.identify(start, fitted, base=net, steps=2, heldout=0.0, errors=False, verbose=False)
    with torch.no_grad():
        losses = [
            torch.cat([F.cross_entropy(own(x), y, reduction="none") for x, y in batches(768)]).double()
            for own in (net.eval(), start.eval())
        ]
    gain = losses[0] - losses[1]
    (row,) = (row for row in found.rows if (row.place, row.family) == ("act1", "AHAF"))
    assert row.gain == pytest.approx(gain.mean().item(), abs=1e-6)
    assert row.error == pytest.approx((gain.std() / len(gain) ** 0.5).item(), rel=1e-3)


def row(p: float) -> FamilyRow:
    return FamilyRow("act", "LEAF", 4, 0.0, 0.1, 0.1, p, 1.0, (), 1.0)


def test_p_values_are_adjusted_by_holm() -> None:
    # Smallest first: 3 * 0.01, then the larger of that and 2 * 0.02, then 1 * 0.5.
    assert [one.p for one in _adjusted([row(0.5), row(0.01), row(0.02)])] == pytest.approx([0.03, 0.04, 0.5])
    assert [one.p for one in _adjusted([row(0.3), row(0.4)])] == pytest.approx([0.6, 0.6])
    assert [one.significant for one in _adjusted([row(0.03), row(0.03)])] == [False, False]
    assert _adjusted([row(0.04)])[0].significant


def test_few_differences_are_found_where_there_are_none() -> None:
    """Of 200 sets of 5 families without an effect, about one in 20 has a significant one, and not one in four."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    p_values = torch.special.erfc(z.abs() / 2**0.5)
    found = sum(any(one.significant for one in _adjusted([row(p) for p in own])) for own in p_values.tolist())
    plain = int((p_values < 0.05).any(1).sum())
    assert found <= 20 < plain


def test_a_better_activation_is_found() -> None:
    """A network whose activation should have been a tanh: the families that can come nearer to one gain."""
    torch.manual_seed(0)
    good = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
    for parameter in good.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1500, 3)
    y = (2 * good(x)).softmax(1).multinomial(1)[:, 0]
    wrong = nn.Sequential(good[0], nn.ReLU(), good[2])
    data = list(zip(x.split(250), y.split(250), strict=True))
    found = aafit.compare_families(
        wrong, data[:3], heldout=data[3:], families=["LEAF", aafit.Affine("ReLU")], verbose=False
    )
    rows = {row.family: row for row in found.rows}
    for family in ("LEAF", "Affine(ReLU)"):
        assert rows[family].significant
        assert rows[family].gain > 5 * rows[family].error
    assert found.best("1").gain == max(row.gain for row in found.rows)
    # A network with one activation has no further place.
    assert {row.place for row in found.rows} == {"1"}


def test_without_labels_the_outputs_of_the_base_are_the_target(net: nn.Module) -> None:
    unlabelled = [x for x, _ in batches(512)]
    found = aafit.compare_families(
        net, unlabelled, heldout=[x for x, _ in batches(768)], families=["AHAF", Quotient], layers=["act1"], steps=2,
        verbose=False,
    )  # fmt: skip
    assert [row.family for row in found.rows] == ["AHAF", "Quotient"]
    # Nothing is nearer to the base network than itself.
    assert all(row.gain <= 0 for row in found.rows)
    assert "squared error from the base's outputs" in str(found)


def test_no_row_begins_after_the_time(net: nn.Module) -> None:
    began = time.perf_counter()
    found = aafit.compare_families(
        net, batches(512), heldout=batches(768), families=["AHAF"], steps=1, seconds=1e-9, verbose=False
    )
    assert time.perf_counter() - began < 60
    assert found.rows == ()
    assert found.skipped == ("AHAF in act1", "AHAF in act2", f"AHAF in {ALL}")
    assert "Not tried, as the time was up: AHAF in act1" in str(found)


def test_the_network_is_left_unchanged(net: nn.Module, found: aafit.FamilyComparison) -> None:
    assert not adaptive_activations(net)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), base().parameters(), strict=True))


def test_the_picture_has_a_panel_for_each_place(found: aafit.FamilyComparison) -> None:
    figure = aafit.plot_families(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["act1", "act2", ALL]
    for axes in figure.axes[:3]:
        assert len(axes.containers) == 5


def test_a_study_has_the_comparison_on_its_page(tmp_path: Any) -> None:
    study = studied(tmp_path, families=["AHAF", Quotient], steps=1)
    assert study.families is not None
    assert {row.family for row in study.families.rows} == {"AHAF", "Quotient"}
    assert study.as_dict()["families"]["heldout_samples"] == 256
    page = (tmp_path / "study.html").read_text()
    assert 'id="families"' in page
    assert "data:image/svg+xml;base64," in page
    assert "p (Holm)" in str(study)
    # Resumed from its parts, and not the same study as one without.
    assert studied(tmp_path, families=["AHAF", Quotient], steps=1).families == study.families
    plain = studied(None, steps=1)
    assert plain.families is None
    assert plain.provenance["study"] != study.provenance["study"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"families": ["LEAFF"]}, "Unknown family of activations 'LEAFF'. Did you mean 'LEAF'"),
        ({"families": [3]}, "3 is no family: give a class such as LEAF"),
        ({"families": [nn.ReLU()]}, "is no family"),
        ({"families": ["LEAF", aafit.LEAF]}, "The family 'LEAF' is given twice"),
        ({"families": []}, "There is no family to compare"),
        ({"layers": ["act9"]}, "'act9' matches no activation"),
        ({"seconds": 0}, "a number of seconds above 0; got 0"),
        ({"samples": 1}, "at least 2; got 1"),
    ],
)
def test_mistakes(net: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        aafit.compare_families(net, batches(512), verbose=False, **options)


def test_a_place_that_was_not_tried(found: aafit.FamilyComparison) -> None:
    with pytest.raises(UserError, match=r"No family was tried in 'act3'\. Did you mean"):
        found.best("act3")
